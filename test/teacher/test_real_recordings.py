"""Real scans with images and the calibration of their makers: do points get what the image shows there?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL.Image", reason="images need pillow")

from PIL import Image
from real_rigs import RIGS

from lidar_semseg_ros.cli.calib_check_command import Moment, moments_of_cameras
from lidar_semseg_ros.core.geometry import transform_points
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.calibration import read_calibration
from lidar_semseg_ros.teacher.alignment import Alignment, alignment
from lidar_semseg_ros.teacher.lifting import LiftingConfig, Sighting, sighting

EVERYTHING = LiftingConfig(max_depth_m=1000.0, visible_within_m=1e9)
VISIBLE = LiftingConfig(max_depth_m=1000.0)
NONE = 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


def moments(rig: str, shared_data: Path, folder: Path) -> dict[str, list[Moment]]:
    place = folder / rig
    place.mkdir(exist_ok=True)
    bag, calibration = RIGS[rig](shared_data).recorded(place)
    return moments_of_cameras(bag, str(calibration), None, None)


def checked(of_camera: list[Moment]) -> Alignment:
    return alignment([moment.edges for moment in of_camera], np.random.default_rng(0))


def seen(moment: Moment, config: LiftingConfig) -> tuple[Sighting, tuple[np.ndarray, np.ndarray]]:
    """Give what an image shows, and rows and columns of the pixels."""
    found = sighting(moment.xyz_camera, moment.edges.camera, config)
    column, row = np.rint(found.uv_px).astype(int).T
    return found, (row, column)


@pytest.mark.parametrize("rig", ["01", "02"])
def test_the_calibration_of_kitti_is_found_to_be_good(rig: str, shared_data: Path, folder: Path) -> None:
    found = checked(moments(rig, shared_data, folder)["left"])
    assert found.verdict == "good" and found.off_by_deg < 0.5 and found.percentile >= 99


def test_a_turn_of_kittis_camera_by_2_degrees_is_found_with_its_direction(shared_data: Path, folder: Path) -> None:
    (folder / "02").mkdir(exist_ok=True)
    bag, right = RIGS["02"](shared_data).recorded(folder / "02")
    camera_from_lidar = read_calibration(right).cameras["left"].camera_from_lidar
    assert camera_from_lidar is not None
    cosine, sine = np.cos(np.radians(2)), np.sin(np.radians(2))
    turn = np.array([[cosine, 0, sine, 0], [0, 1, 0, 0], [-sine, 0, cosine, 0], [0, 0, 0, 1]])
    wrong = right.with_name("wrong.yaml")
    numbers = ", ".join(str(number) for number in (turn @ camera_from_lidar).ravel())
    text = right.read_text()
    start = text.index("matrix:")
    kept = [line for line in text[start:].splitlines()[1:] if not line.lstrip().startswith("-")]
    wrong.write_text(text[:start] + f"matrix: [{numbers}]\n" + "\n".join(kept) + "\n")
    found = checked(moments_of_cameras(bag, str(wrong), None, None)["left"])
    assert found.verdict == "wrong" and found.turn_deg[1] == pytest.approx(-2, abs=0.4)


def test_no_camera_of_nuscenes_is_called_wrong_and_most_are_good_from_one_sweep(
    shared_data: Path, folder: Path
) -> None:
    found = {name: checked(ones) for name, ones in moments("03", shared_data, folder).items()}
    assert len(found) == 6 and all(one.percentile > 80 for one in found.values())
    verdicts = [one.verdict for one in found.values()]
    assert verdicts.count("good") >= 4 and "wrong" not in verdicts


@pytest.mark.parametrize("rig", ["05", "06"])
def test_where_twigs_or_glass_hide_the_truth_nothing_is_claimed(rig: str, shared_data: Path, folder: Path) -> None:
    """Bare trees have edges everywhere, and through the lobby's front the lidar sees what the camera does not."""
    for of_camera in moments(rig, shared_data, folder).values():
        assert checked(of_camera).verdict == "unclear"


def test_pixel_labels_agree_with_point_labels_off_road(shared_data: Path, folder: Path) -> None:
    """A plain projection gives 77 %; most of the rest is puddle against grass and bush against grass."""
    place = shared_data / "05_rellis3d_offroad_frame"
    truth = np.fromfile(place / "000104.label", np.uint32) & 0xFFFF
    pixels = np.asarray(Image.open(next(place.glob("frame*.png"))))
    moment = moments("05", shared_data, folder)["pylon"][0]
    agreement = {}
    for config in (EVERYTHING, VISIBLE):
        found, at = seen(moment, config)
        agreement[config.visible_within_m] = (float((pixels[at] == truth[found.row]).mean()), len(found.row))
    plain, visible = agreement[1e9], agreement[0.05]
    assert plain[0] > 0.765 and visible[0] > 0.755
    assert visible[1] > 0.93 * plain[1]


def test_points_in_one_segment_have_one_label_and_more_so_with_the_visibility_test(
    shared_data: Path, folder: Path
) -> None:
    place = shared_data / "01_kitti00_semantic_sequence"
    truth = np.load(place / "labels" / "000000.npy")
    masks = [np.asarray(Image.open(file)) > 0 for file in sorted((place / "sam_masks_image_2_000000").glob("*.png"))]
    segment = np.full(masks[0].shape, -1)
    for number in sorted(range(len(masks)), key=lambda one: -masks[one].sum()):
        segment[masks[number]] = number  # smaller ones lie on top
    moment = moments("01", shared_data, folder)["left"][0]
    purity = {}
    for config in (EVERYTHING, VISIBLE):
        found, at = seen(moment, config)
        label, of_segment = truth[found.row], segment[at]
        counted = (label != 0) & (label != NONE) & (of_segment >= 0)
        table = np.zeros((len(masks), 20), int)
        np.add.at(table, (of_segment[counted], label[counted]), 1)
        purity[config.visible_within_m] = table.max(axis=1).sum() / table.sum()
    assert purity[0.05] > 0.96 > 0.955 > purity[1e9]


def test_points_on_the_board_of_the_lobby_are_seen_on_the_board(shared_data: Path, folder: Path) -> None:
    """Around the middle of the second image there is nothing but the board, of one colour, held at arm's length."""
    moment = moments("06", shared_data, folder)["webcam"][1]
    found, (row, column) = seen(moment, VISIBLE)
    ahead = (np.abs(column - 1190) < 200) & (np.abs(row - 500) < 150)
    assert ahead.sum() > 200
    assert moment.image.pixels[row[ahead], column[ahead]].std(axis=0).max() < 10
    assert np.ptp(np.percentile(found.depth_m[ahead], [1, 98])) < 0.2


def test_a_bag_made_of_loose_scans_and_images_keeps_every_point(shared_data: Path, folder: Path) -> None:
    (folder / "03").mkdir(exist_ok=True)
    bag, calibration = RIGS["03"](shared_data).recorded(folder / "03")
    with open_bag(bag) as opened:
        assert opened.message_count("/lidar/points") == 1
        assert sum(name.endswith("/image_raw/compressed") for name in opened.topics) == 6
    camera = read_calibration(calibration).cameras["cam_front"]
    assert camera.camera is not None and camera.camera_from_lidar is not None
    ahead = transform_points(camera.camera_from_lidar, np.array([[0.0, 10.0, 0.0]]))  # nuScenes: y is ahead
    uv_px, shown = camera.camera.project(ahead)
    assert shown[0] and np.abs(uv_px[0] - (800, 450)).max() < 120
