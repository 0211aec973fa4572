"""`calib-check` on a simulated drive with two cameras, whose calibration is exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from taught import CAMERA

pytest.importorskip("embreex", reason="the simulator needs embreex, the extra [sim]")

from lidar_semseg_ros.cli.calib_check_command import _moment, moments_of_cameras
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, rigid, rotation_from_rpy
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.poses import fixed_transforms
from lidar_semseg_ros.teacher.labeller import TakenImage
from lidar_semseg_ros.teacher.lifting import Trajectory


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drive") / "drive.mcap"
    main(["simulate", "-o", str(path), "--cameras", "2", "--frames", "6", "--seed", "4", "--speed-mps", "2"])
    return path


def test_an_exact_calibration_is_good_for_each_camera_and_drawn(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["calib-check", str(bag), "-o", str(tmp_path / "a.png")])
    said = capsys.readouterr().out
    assert "camera_0: good" in said and "camera_1: good" in said
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_calibration_file_that_is_wrong_by_2_degrees_is_called_wrong_with_the_turn(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_bag(bag) as opened:
        right = fixed_transforms(opened).lookup("camera_0", "lidar")
    assert right is not None
    wrong = rigid(rotation_from_rpy(0, np.radians(2), 0), np.zeros(3)) @ right
    file = tmp_path / "wrong.yaml"
    file.write_text(
        "lidars: {lidar: {stamp: start}}\n"
        "cameras:\n"
        "  camera_0:\n"
        "    topic: /camera_0/image_raw/compressed\n"
        "    camera_info_topic: /camera_0/camera_info\n"
        "    direction: camera_from_lidar\n"
        f"    matrix: {wrong.ravel().tolist()}\n"
    )
    main(["calib-check", str(bag), "--calibration", str(file)])
    said = capsys.readouterr().out
    assert "camera_0: wrong" in said
    assert any(f"-{turn:.1f}° about y (down)" in said for turn in (1.8, 1.9, 2.0, 2.1, 2.2)), said


def test_a_recording_without_clouds_cameras_or_poses_is_an_error(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = tmp_path / "blind.mcap"
    main(["simulate", "-o", str(blind), "--lidar", "VLP-16", "--cameras", "0", "--frames", "1"])
    for command, said in (
        (["calib-check", str(blind)], "no camera of the recording can be used"),
        (["calib-check", str(bag), "--topic", "/none"], "has no cloud topic /none"),
        (["calib-check", str(bag), "--poses", "/none"], "holds no poses"),
        (["calib-check", str(bag), "--calibration", "nowhere"], "no calibration 'nowhere'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_images_and_clouds_that_cannot_be_read_are_left_out_and_the_others_looked_at(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    clouds, images = "/lidar/points", "/camera_0/image_raw/compressed"
    faulty, seen = tmp_path / "faulty.mcap", Counter[str]()
    with open_bag(bag) as source, BagWriter(faulty) as writer:
        for one in source.messages():
            seen[one.topic] += 1
            data = one.cdr()
            if (one.topic, seen[one.topic]) in ((images, 3), (clouds, 5)):
                data = b"\x00\x01\x00\x00 neither image nor cloud"
            if (one.topic, seen[one.topic]) == (images, 4):
                stamp_ns = one.log_time_ns
                writer.write_compressed_image(images, b"\xff\xd8 garbage", "jpeg", stamp_ns, "camera_0")
            else:
                writer.write(one.topic, one.msgtype, one.log_time_ns, data, one.topic in source.latched)
    moments = moments_of_cameras(faulty, None, None, None)
    assert {name: len(found) for name, found in moments.items()} == {"camera_0": 3, "camera_1": 5}
    warned = [record.getMessage() for record in caplog.records]
    assert [said.split(" is left out")[0] for said in warned] == [f"a message of {t}" for t in (images, clouds, images)]
    main(["calib-check", str(faulty)])
    assert "camera_0: " in capsys.readouterr().out


def test_far_from_all_poses_the_robot_is_taken_to_stand_still() -> None:
    rng = np.random.default_rng(0)
    poses = np.stack([np.eye(4), rigid(np.eye(3), np.array([0.5, 0, 0]))])
    trajectory = Trajectory(stamps_ns=np.array([0, 10**8]), map_from_base=poses)
    frame = LidarFrame(
        stamp_ns=0, frame_id="lidar", xyz=rng.uniform((2, -3, -2), (6, 3, 2), (500, 3)).astype(np.float32)
    )
    image = CameraImage(stamp_ns=0, frame_id="camera", pixels=rng.integers(0, 255, (48, 64, 3), np.uint8))

    def ahead_m(begin_s: float) -> np.ndarray:
        """How far before the camera the points are 40 ms after the sweep, at 5 m/s."""
        begin_ns = round(begin_s * 1e9)
        camera_from_lidar = rigid(OPTICAL_FROM_BODY, np.zeros(3))
        taken = TakenImage(
            time_ns=begin_ns + 4 * 10**7, image=image, camera=CAMERA, camera_from_lidar=camera_from_lidar
        )
        return _moment(taken, replace(frame, stamp_ns=begin_ns), trajectory, np.eye(4)).xyz_camera[:, 2]

    assert ahead_m(0.6) == pytest.approx(frame.xyz[:, 0] - 0.2, abs=1e-5)
    assert ahead_m(0.7) == pytest.approx(frame.xyz[:, 0], abs=1e-5)
