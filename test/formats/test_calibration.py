from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lidar_semseg_ros.core.camera import FisheyeCamera, PinholeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.geometry import transform_points
from lidar_semseg_ros.formats import calibration
from lidar_semseg_ros.formats.calibration import (
    Calibration,
    CameraCalibration,
    LidarCalibration,
    calibration_file,
    read_calibration,
)

INTRINSICS = {
    "width": 640,
    "height": 480,
    "model": "plumb_bob",
    "distortion": [0.1, -0.2, 0.001, 0.002],
    "fx": 500.0,
    "fy": 510,
    "cx": 320.5,
    "cy": 240.5,
}
# The camera looks along the lidar's x axis: camera x = −lidar y, camera y = −lidar z, camera z = lidar x.
FORWARD = [[0, -1, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, 0.3], [0, 0, 0, 1]]
FORWARD_XYZW = [0.5, -0.5, 0.5, 0.5]  # a third of a turn about (1, −1, 1)
MATRIX = {"direction": "camera_from_lidar", "matrix": FORWARD}
CAMERA = {**INTRINSICS, **MATRIX}
FILE = {"lidars": {"top": {"stamp": "start"}}, "cameras": {"left": CAMERA}}


def written(folder: Path, content: object) -> Path:
    path = folder / "robot.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def camera_of(folder: Path, **entries: Any) -> CameraCalibration:
    """Read a file with one camera of just these entries."""
    return read_calibration(written(folder, FILE | {"cameras": {"left": entries}})).cameras["left"]


def without(mapping: dict, *keys: str) -> dict:
    return {key: value for key, value in mapping.items() if key not in keys}


# ---- the presets


def preset(name: str) -> Calibration:
    return read_calibration(calibration_file(name))


@pytest.mark.parametrize(
    ("name", "lidar_topic", "stamp", "camera_topic", "size"),
    [
        ("ntu_viral", "/os1_cloud_node1/points", "end", "/left/image_raw", (752, 480)),
        ("m3dgr", "/livox/mid360/lidar", "start", "/camera/color/image_raw/compressed", (640, 480)),
        ("m2dgr", "/velodyne_points", "end", "/camera/color/image_raw/compressed", (640, 480)),
    ],
)
def test_presets_fit_their_data_sets(
    name: str, lidar_topic: str, stamp: str, camera_topic: str, size: tuple[int, int]
) -> None:
    found = preset(name)
    ((lidar_name, lidar),), (camera,) = found.lidars.items(), found.cameras.values()
    assert (lidar.topic, lidar.stamp, camera.topic, camera.lidar) == (lidar_topic, stamp, camera_topic, lidar_name)
    assert camera.camera is not None and (camera.camera.width, camera.camera.height) == size
    assert camera.camera_from_lidar is not None
    rotation = camera.camera_from_lidar[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def seen_at(found: Calibration, xyz_lidar: list[float]) -> list[float]:
    """Project one lidar point that the only camera must show."""
    (camera,) = found.cameras.values()
    assert camera.camera is not None and camera.camera_from_lidar is not None
    uv_px, shown = camera.camera.project(transform_points(camera.camera_from_lidar, np.array([xyz_lidar])))
    assert shown.all()
    return uv_px[0].tolist()


def test_a_point_in_front_of_ntu_viral_lands_where_it_does_by_hand() -> None:
    # p = 5 · first column + t = (0.232147, −0.0257382, 4.9406699); x/z = 0.0469870, y/z = −0.0052095, r² = 0.00223492.
    # radial = 1 − 0.2881053 · r² + 0.0745783 · r⁴ = 0.9993565; tangential: u −1.896e-6, v +2.16e-6 or less.
    # u = 425.0258563 · (0.0469568 − 1.9e-6) + 386.0151867; v = 426.7976261 · (−0.0052061 + 1.9e-6) + 241.9130337.
    assert seen_at(preset("ntu_viral"), [5.0, 0, 0]) == pytest.approx([405.972, 239.692], abs=2e-3)


def test_a_point_in_front_of_m3dgr_lands_where_it_does_by_hand() -> None:
    # p = 2 · first column + t = (0.1002056, 0.630298, 1.869554); x/z = 0.0535987, y/z = 0.3371382.
    # u = 607.798 · 0.0535987 + 328.798; v = 607.835 · 0.3371382 + 245.533.
    assert seen_at(preset("m3dgr"), [2.0, 0, 0]) == pytest.approx([361.375, 450.457], abs=2e-3)


def test_the_camera_of_m2dgr_sits_where_its_published_translation_says() -> None:
    # The inverse takes the published place of the camera to its centre, and 2 m ahead of it onto the optical axis.
    m2dgr = preset("m2dgr")
    camera_from_lidar = m2dgr.cameras["color"].camera_from_lidar
    assert camera_from_lidar is not None
    place = np.array([[0.30456, 0.00065, 0.65376]])
    np.testing.assert_allclose(transform_points(camera_from_lidar, place), [[0, 0, 0]], atol=1e-12)
    assert seen_at(m2dgr, [2.30456, 0.00065, 0.65376]) == pytest.approx([327.71, 253.977])
    # 0.2 m to the left of that, x/z = −0.1: −0.1 · (1 + 0.148 · 0.01 − 0.2178 · 0.0001) = −0.10014582.
    u_px = 327.71 - 617.971 * 0.10014582
    assert seen_at(m2dgr, [2.30456, 0.20065, 0.65376]) == pytest.approx([u_px, 253.977])


def test_an_unknown_preset_is_answered_with_the_known_ones_and_a_path_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no calibration 'ntu'.* m2dgr, m3dgr, ntu_viral"):
        calibration_file("ntu")
    path = written(tmp_path, FILE)
    assert calibration_file(str(path)) == path


# ---- what files may say


def test_stamps_are_declared_and_shifted() -> None:
    second = 10**9
    for stamp, start_s in (("start", 7.0), ("middle", 6.95), ("end", 6.9)):
        lidar = LidarCalibration(stamp=stamp)
        assert lidar.start_ns(7 * second, 0.1) == round(start_s * second)
        assert lidar.middle_ns(7 * second, 0.1) == round((start_s + 0.05) * second)
    assert LidarCalibration(stamp="end", stamp_offset_s=-0.02).start_ns(7 * second, 0.1) == 6_880_000_000
    # Beyond the 53 bits of a float, no nanosecond is lost.
    assert LidarCalibration(stamp="start").start_ns(1_700_000_000_123_456_789, 0.1) == 1_700_000_000_123_456_789


def test_offsets_topics_and_lidars_are_read(tmp_path: Path) -> None:
    content = {
        "lidars": {"top": {"stamp": "end", "stamp_offset_s": 0.01, "topic": "/top"}, "low": {"stamp": "middle"}},
        "cameras": {"left": {**CAMERA, "lidar": "low", "stamp_offset_s": -0.005, "topic": "/left"}},
    }
    found = read_calibration(written(tmp_path, content))
    assert found.lidars == {
        "top": LidarCalibration(stamp="end", stamp_offset_s=0.01, topic="/top"),
        "low": LidarCalibration(stamp="middle"),
    }
    left = found.cameras["left"]
    assert (left.lidar, left.topic, left.camera_info_topic, left.rectified) == ("low", "/left", None, False)
    assert left.time_ns(10**9) == 995_000_000


@pytest.mark.parametrize(
    ("model", "given", "camera_class", "kept"),
    [
        ("plumb_bob", [1, 2, 3, 4], PinholeCamera, [1, 2, 3, 4, 0]),
        ("plumb_bob", [1, 2, 3, 4, 5], PinholeCamera, [1, 2, 3, 4, 5]),
        ("rational_polynomial", [1, 2, 3, 4, 5, 6, 7, 8], PinholeCamera, [1, 2, 3, 4, 5, 6, 7, 8]),
        ("equidistant", [1, 2, 3, 4], FisheyeCamera, [1, 2, 3, 4]),
    ],
)
def test_every_camera_model_is_read(
    tmp_path: Path, model: str, given: list[float], camera_class: type, kept: list[float]
) -> None:
    camera = camera_of(tmp_path, **{**CAMERA, "model": model, "distortion": given}).camera
    assert isinstance(camera, camera_class) and camera.distortion.tolist() == kept
    assert camera.matrix.tolist() == [[500, 0, 320.5], [0, 510, 240.5], [0, 0, 1]]


@pytest.mark.parametrize("k", [[500, 1, 320, 0, 510, 240, 0, 0, 1], [[500, 1, 320], [0, 510, 240], [0, 0, 1]]])
def test_intrinsics_may_be_a_matrix_flat_or_in_rows(tmp_path: Path, k: list) -> None:
    camera = camera_of(tmp_path, **without(CAMERA, "fx", "fy", "cx", "cy"), K=k).camera
    assert camera is not None and camera.matrix.tolist() == [[500, 1, 320], [0, 510, 240], [0, 0, 1]]


def test_rectified_images_have_no_distortion(tmp_path: Path) -> None:
    left = camera_of(tmp_path, **without(CAMERA, "model", "distortion"), rectified=True)
    assert left.rectified and left.camera is not None and left.camera.distortion.tolist() == [0] * 5


def test_what_the_recording_brings_may_be_declared_instead(tmp_path: Path) -> None:
    left = camera_of(tmp_path, camera_info_topic="/left/camera_info", transform="tf_static", rectified=True)
    assert (left.camera, left.camera_from_lidar, left.camera_info_topic) == (None, None, "/left/camera_info")
    assert left.rectified


def test_the_example_of_the_documentation_is_a_calibration_file(tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text((calibration.__doc__ or "").partition("\n\n")[2], encoding="utf-8")
    left = read_calibration(path).cameras["left"]
    assert left.lidar == "os1" and left.camera_from_lidar is not None
    # What the quaternion says: the lidar's x axis is the camera's z axis.
    np.testing.assert_allclose(left.camera_from_lidar, [[0, -1, 0, 0.1], [0, 0, -1, 0], [1, 0, 0, -0.2], [0, 0, 0, 1]])


# The inverse of FORWARD: its rotation transposed, and −Rᵀ t.
BACKWARD = [[0, 0, 1, -0.3], [-1, 0, 0, 0.1], [0, -1, 0, 0.2], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "transform",
    [
        MATRIX,
        {"direction": "camera_from_lidar", "matrix": [number for row in FORWARD for number in row]},
        {"direction": "lidar_from_camera", "matrix": BACKWARD},
        {
            "direction": "camera_from_lidar",
            "translation": [0.1, 0.2, 0.3],
            "quaternion": FORWARD_XYZW,
            "quaternion_order": "xyzw",
        },
        {
            "direction": "camera_from_lidar",
            "translation": [0.1, 0.2, 0.3],
            "quaternion": [-0.5, -0.5, 0.5, -0.5],  # the same rotation with its sign turned
            "quaternion_order": "wxyz",
        },
        {"direction": "camera_from_lidar", "translation": [0.1, 0.2, 0.3], "rpy": [np.pi / 2, -np.pi / 2, 0]},
        {"direction": "lidar_from_camera", "translation": [-0.3, 0.1, 0.2], "rpy": [-np.pi / 2, 0, -np.pi / 2]},
    ],
)
def test_every_way_to_write_a_transform_gives_the_same(tmp_path: Path, transform: dict[str, Any]) -> None:
    found = camera_of(tmp_path, **INTRINSICS, **transform).camera_from_lidar
    np.testing.assert_allclose(found, FORWARD, atol=1e-12)


def test_rounded_rotations_are_made_orthonormal(tmp_path: Path) -> None:
    angle = 0.3
    exact = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = exact.round(4)
    found = camera_of(tmp_path, **INTRINSICS, direction="camera_from_lidar", matrix=matrix.tolist()).camera_from_lidar
    assert found is not None
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(found[:3, :3], exact, atol=1e-4)


# ---- what they may not


QUATERNION = {"translation": [0, 0, 0], "quaternion": FORWARD_XYZW, "quaternion_order": "xyzw"}
BARE = INTRINSICS | {"direction": "camera_from_lidar"}
STRETCHED = [[1.01, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
MIRRORED = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
TRANSPOSED = [list(row) for row in zip(*FORWARD)]
NO_FOCAL = without(CAMERA, "fx", "fy", "cx", "cy")


@pytest.mark.parametrize(
    ("camera", "said"),
    [
        # missing
        (without(CAMERA, "width"), "width is missing"),
        (without(CAMERA, "model"), "model is missing; choose one of plumb_bob, rational_polynomial, equidistant"),
        (without(CAMERA, "distortion"), "distortion is missing"),
        (without(CAMERA, "cy"), "cy is missing"),
        (NO_FOCAL, "K is missing; give it, or fx, fy, cx and cy"),
        (INTRINSICS, "matrix is missing; give it, or translation"),
        ({**BARE, "translation": [0, 0, 0]}, "matrix is missing"),
        ({**INTRINSICS, "matrix": FORWARD}, "direction is missing; choose one of camera_from_lidar, lidar_from_camera"),
        (BARE | without(QUATERNION, "quaternion_order"), "quaternion_order is missing; choose one of xyzw, wxyz"),
        (BARE | without(QUATERNION, "translation"), "translation is missing"),
        ({**BARE, "rpy": [0, 0, 0]}, "translation is missing"),
        # contradictory
        ({**CAMERA, "K": [1] * 9}, "fx contradicts K"),
        ({**CAMERA, "rectified": True}, "model contradicts rectified"),
        ({**CAMERA, "camera_info_topic": "/i"}, "model contradicts camera_info_topic"),
        (CAMERA | QUATERNION, "quaternion contradicts matrix"),
        ({**CAMERA, "translation": [0, 0, 0]}, "translation contradicts matrix"),
        ({**CAMERA, "quaternion_order": "xyzw"}, "quaternion_order contradicts matrix"),
        ({**BARE, **QUATERNION, "rpy": [0, 0, 0]}, "rpy contradicts quaternion"),
        ({**CAMERA, "transform": "tf_static"}, "transform contradicts matrix"),
        ({**BARE, "transform": "tf_static"}, "direction contradicts transform"),
        # unknown
        ({**CAMERA, "quaternion_ordr": "xyzw"}, "quaternion_ordr is not known; did you mean quaternion_order"),
        ({**CAMERA, 7: 1}, "7 is not known"),
        ({**CAMERA, "model": "radtan"}, "model is 'radtan'; choose one of plumb_bob"),
        ({**CAMERA, "direction": "left"}, "direction is 'left'; choose one of"),
        ({**CAMERA, "lidar": "low"}, "lidar is 'low'; choose one of top"),
        ({**INTRINSICS, "transform": "tf"}, "transform is 'tf'; choose one of tf_static"),
        # mistyped
        ({**CAMERA, "width": 640.0}, r"width takes a whole number of pixels, but it is 640\.0"),
        ({**CAMERA, "height": 0}, "height takes a whole number of pixels, but it is 0"),
        ({**CAMERA, "fx": True}, "fx takes finite numbers, but there is True"),
        ({**CAMERA, "fx": "1e3"}, r"fx takes numbers, but '1e3' is a text; YAML writes powers of ten as 1\.0e-3"),
        ({**CAMERA, "fx": 0}, "fx is wrong: .*positive focal lengths"),
        ({**CAMERA, "cx": float("nan")}, "cx takes finite numbers, but there is nan"),
        ({**NO_FOCAL, "K": [500, 0, 0, 0, 500, 0, 320, 240, 1]}, "K is wrong: .*last row"),
        ({**NO_FOCAL, "K": [0] * 9}, "K is wrong: .*positive focal lengths"),
        ({**NO_FOCAL, "K": [1] * 8}, "K takes a list of 9 or 3×3 numbers"),
        ({**CAMERA, "distortion": [0, 0, 0]}, "distortion takes a list of 0 or 4 or 5 numbers"),
        ({**CAMERA, "distortion": 0.1}, "distortion takes a list"),
        ({**CAMERA, "distortion": [0, 0, None, 0]}, "distortion takes finite numbers, but there is None"),
        ({**CAMERA, "model": ["plumb_bob"]}, r"model is \['plumb_bob'\]"),
        ({**CAMERA, "rectified": "yes"}, "rectified takes true or false, but it is 'yes'"),
        ({**CAMERA, "topic": 5}, "topic takes a text, but it is 5"),
        ({**CAMERA, "stamp_offset_s": "late"}, "stamp_offset_s takes numbers, but 'late' is a text"),
        ({**CAMERA, "stamp_offset_s": 1.7e18}, "stamp_offset_s is in seconds.*more than a century"),
        ({**CAMERA, "fx": 10**400}, "fx takes finite numbers"),
        ({**CAMERA, "matrix": [1e200] * 12 + [0, 0, 0, 1]}, "matrix is no rotation"),
        ({**CAMERA, "matrix": FORWARD[:3]}, "matrix takes a list of 16 or 4×4 numbers"),
        ({**CAMERA, "matrix": [*FORWARD[:3], [0, 0, 1]]}, "matrix takes a list of 16 or 4×4 numbers"),
        # not a rotation
        ({**CAMERA, "matrix": TRANSPOSED}, r"matrix must end in the row 0, 0, 0, 1, but it is \[0\.1, 0\.2, 0\.3, 1"),
        (
            {**CAMERA, "matrix": STRETCHED},
            r"matrix is no rotation: .*identity by 0\.02, and the determinant is 1\.0100",
        ),
        ({**CAMERA, "matrix": MIRRORED}, r"matrix is no rotation: .*identity by 0, and the determinant is -1\.0000"),
        ({**BARE, **QUATERNION, "quaternion": [0, 0, 0, 0]}, r"quaternion has length 0\.0000 instead of 1"),
        ({**BARE, **QUATERNION, "quaternion": [0, 0, 0.1, 1]}, r"quaternion has length 1\.0050 instead of 1"),
        ({**BARE, "translation": [0, 0, 0], "rpy": [0, 0, 90]}, "rpy is in radians.*convert degrees"),
    ],
)
def test_a_faulty_camera_is_refused_with_file_and_key(tmp_path: Path, camera: dict, said: str) -> None:
    with pytest.raises(UserError, match=rf"robot\.yaml: cameras\.left\.{said}"):
        read_calibration(written(tmp_path, FILE | {"cameras": {"left": camera}}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lidars": {"top": {}}}, "lidars.top.stamp is missing; choose one of start, middle, end"),
        ({"lidars": {"top": {"stamp": "begin"}}}, "lidars.top.stamp is 'begin'; choose one of start, middle, end"),
        ({"lidars": {"top": {"stamp": "end", "stamp_ofset_s": 1}}}, "did you mean stamp_offset_s"),
        ({"lidars": {"top": {"stamp": "end", "stamp_offset_s": None}}}, "lidars.top.stamp_offset_s takes finite"),
        ({"lidars": {"top": None}}, "lidars.top must hold 'name: value' lines, but it holds None"),
        ({"lidars": {}}, "lidars is empty"),
        ({"lidars": {1: {"stamp": "end"}}}, "lidars.1 is no name; write it in quotes"),
        ({"cameras": [CAMERA]}, "cameras must hold 'name: value' lines"),
        ({"camera": {}}, "camera is not known; did you mean cameras"),
        (
            {"lidars": {name: {"stamp": "end"} for name in ("top", "low")}},
            "cameras.left.lidar is missing; choose one of top, low",
        ),
        ({"cameras": {}}, "cameras is empty"),
        (
            {"cameras": {name: {**CAMERA, "topic": "/same"} for name in ("left", "right")}},
            "cameras.right.topic is that of cameras.left",
        ),
    ],
)
def test_a_faulty_file_is_refused_with_file_and_key(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(UserError, match=rf"robot\.yaml: .*{said}"):
        read_calibration(written(tmp_path, deepcopy(FILE) | change))


@pytest.mark.parametrize("section", ["lidars", "cameras"])
def test_a_file_without_a_section_is_refused(tmp_path: Path, section: str) -> None:
    with pytest.raises(UserError, match=rf"robot\.yaml: {section} is missing"):
        read_calibration(written(tmp_path, without(FILE, section)))


def test_a_key_that_is_there_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "robot.yaml"
    path.write_text("lidars:\n  top:\n    stamp: end\n    stamp: start\n")
    with pytest.raises(UserError, match=r"robot\.yaml, line 4: 'stamp' is there twice"):
        read_calibration(path)
