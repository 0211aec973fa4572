"""Whoever learns from a teacher's recording reads it as the teacher read the bag, though the bag is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from taught import CAMERA, FORWARD, PERIOD_NS, RIG, write_taught

from lidar_semseg_ros.cli.labelling import LabelJob, label_bag
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import rigid
from lidar_semseg_ros.core.options import from_mapping
from lidar_semseg_ros.distill.recordings import Recording, SourceConfig
from lidar_semseg_ros.distill.sources import open_recording
from lidar_semseg_ros.formats.bags import ODOMETRY, BagWriter, open_bag
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame
from lidar_semseg_ros.teacher.labeller import Labeller, TeacherConfig

CLOUDS, IMAGES = "/os/points", "/front/image_raw/compressed"
SWEEPS, SWEEP_NS = 9, 125_000_000  # an eighth of a second, which float32 holds exactly
LIDAR_OFFSET_NS, CAMERA_OFFSET_NS = 10_000_000, -20_000_000
Times = list[tuple[int, list[int]]]
"""Of each sweep its start and the times of its images."""


def stamp_ns(sweep: int) -> int:
    return 10**9 + sweep * SWEEP_NS


def write_drive(path: Path, image_every: int = 1, garbage_s: float | None = None) -> None:
    """Sweeps stamped at their end, images 3 ms after the middle of every so manieth; no CameraInfo, no transforms.

    garbage_s: the time of two points, of which one has no return.
    """
    rng = np.random.default_rng(0)
    with BagWriter(path) as bag:
        for sweep in range(SWEEPS):
            if sweep % image_every == 0:
                middle_ns = stamp_ns(sweep) + LIDAR_OFFSET_NS - SWEEP_NS // 2
                pixels = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
                taken_ns = middle_ns + 3_000_000 - CAMERA_OFFSET_NS
                bag.write_image(IMAGES, CameraImage(stamp_ns=taken_ns, frame_id="front", pixels=pixels), jpeg=True)
            xyz = rng.uniform((1, -1, -1), (4, 1, 1), (50, 3)).astype(np.float32)
            time_s = np.linspace(0, SWEEP_NS / 1e9, 50, dtype=np.float32)
            if garbage_s is not None:
                time_s[[7, 20]], xyz[7] = garbage_s, np.nan
            frame = LidarFrame(stamp_ns=stamp_ns(sweep), frame_id="lidar", xyz=xyz, time_s=time_s)
            bag.write_cloud(CLOUDS, cloud_from_frame(frame))


def write_calibration(path: Path, **lidar: object) -> Path:
    """What nobody but the user knows of this drive."""
    front = {
        "topic": IMAGES, "width": CAMERA.width, "height": CAMERA.height, "K": CAMERA.matrix.ravel().tolist(),
        "rectified": True, "stamp_offset_s": CAMERA_OFFSET_NS / 1e9, "lidar": "os",
        "direction": "camera_from_lidar", "matrix": FORWARD.ravel().tolist(),
    }  # fmt: skip
    lidars = {"os": {"topic": CLOUDS, **lidar}, "rear": {"topic": "/rear/points", "stamp": "middle"}}
    path.write_text(yaml.safe_dump({"lidars": lidars, "cameras": {"front": front}}))
    return path


def as_the_teacher_saw(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, Any], **job: Any
) -> tuple[Path, Times]:
    """Label the drive in a folder, with masks for a teacher; give the recording and what was labelled."""
    masks = folder / "masks" / "front"
    masks.mkdir(parents=True)
    with open_bag(folder / "drive.mcap") as bag:
        for recorded in bag.messages([IMAGES]):
            stamp = recorded.message().header.stamp
            mask = np.ones((CAMERA.height, CAMERA.width), np.int32)
            np.save(masks / f"{stamp.sec * 10**9 + stamp.nanosec}.npy", mask)
    seen: Times = []
    label = Labeller.label

    def watched(self: Labeller, frame: LidarFrame, images: Mapping[str, Any], *more: Any) -> Any:
        seen.append((frame.stamp_ns, [taken.time_ns for taken in images.values()]))
        return label(self, frame, images, *more)

    monkeypatch.setattr(Labeller, "label", watched)
    config = from_mapping(TeacherConfig, {"class_map": "", **settings})
    made = folder / "taught.mcap"
    label_bag(LabelJob(bag=folder / "drive.mcap", output=made, config=config, masks=masks.parent, images=True, **job))
    (folder / "drive.mcap").unlink()
    return made, seen


def opened(path: Path, images: bool = True, **more: str) -> Recording:
    return open_recording(SourceConfig(path=str(path), **more), path.parent / "cache", images=images)


def times_in(recording: Recording) -> Times:
    sweeps = [recording.sweep(number) for number in range(len(recording))]
    return [(sweep.frame.stamp_ns, [image.time_ns for image in sweep.images]) for sweep in sweeps]


@pytest.mark.parametrize(("image_every", "max_dt_s", "pairs"), [(1, 0.05, SWEEPS), (3, 0.3, SWEEPS), (3, 0.05, 3)])
def test_a_recording_labelled_by_a_calibration_file_is_read_with_the_teachers_stamps_and_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_every: int, max_dt_s: float, pairs: int
) -> None:
    write_drive(tmp_path / "drive.mcap", image_every)
    calibration = write_calibration(tmp_path / "c.yaml", stamp="end", stamp_offset_s=LIDAR_OFFSET_NS / 1e9)
    settings = {"sync.max_dt_s": max_dt_s}
    made, seen = as_the_teacher_saw(tmp_path, monkeypatch, settings, calibration=str(calibration))
    calibration.unlink()
    start_ns = [stamp_ns(sweep) + LIDAR_OFFSET_NS - SWEEP_NS for sweep in range(SWEEPS)]
    recording = opened(made)
    assert times_in(recording) == seen
    assert [start for start, _ in seen] == start_ns
    assert sum(len(images) for _, images in seen) == pairs
    assert seen[3] == (start_ns[3], [start_ns[3] + SWEEP_NS // 2 + 3_000_000])
    (image,) = recording.sweep(0).images
    assert np.array_equal(image.camera.matrix, CAMERA.matrix) and np.allclose(image.camera_from_lidar, FORWARD)
    assert times_in(opened(made, images=False)) == [(start, []) for start in start_ns]


@pytest.mark.parametrize("garbage_s", [3.4e38, -3.4e38, float("inf")])
def test_a_drive_with_garbage_for_times_is_labelled_and_read_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garbage_s: float
) -> None:
    write_drive(tmp_path / "drive.mcap", garbage_s=garbage_s)
    calibration = write_calibration(tmp_path / "c.yaml", stamp="end", stamp_offset_s=LIDAR_OFFSET_NS / 1e9)
    made, seen = as_the_teacher_saw(tmp_path, monkeypatch, {}, calibration=str(calibration))
    assert times_in(opened(made)) == seen
    starts_ns = [stamp_ns(sweep) + LIDAR_OFFSET_NS - SWEEP_NS for sweep in range(SWEEPS)]
    assert seen == [(start_ns, [start_ns + SWEEP_NS // 2 + 3_000_000]) for start_ns in starts_ns]


def test_images_that_cannot_be_read_are_left_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, raw = tmp_path / "a.mcap", "/camera/image_raw"
    rig = replace(RIG, cameras=(replace(RIG.cameras[0], topic=raw),))
    write_taught(path, sweeps=3, images=False, rig=rig)
    drive = tmp_path / "drive"
    drive.mkdir()
    path.rename(drive / "0.mcap")
    pixels = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    with BagWriter(drive / "1.mcap") as bag:
        bag.write_image(raw, CameraImage(stamp_ns=3 * PERIOD_NS, frame_id="front", pixels=pixels))
    with open_bag(drive / "1.mcap") as bag:
        (recorded,) = bag.messages([raw])
    (drive / "1.mcap").unlink()
    with BagWriter(drive / "1.mcap") as bag:
        message = recorded.message()
        message.encoding, message.header.stamp.nanosec = "nv12", PERIOD_NS // 2
        bag.write(raw, recorded.msgtype, PERIOD_NS // 2, message)
        bag.write(raw, recorded.msgtype, 2 * PERIOD_NS, b"\0\1\0\0\xff")
        message.encoding, message.header.stamp.nanosec = "rgb8", 2 * PERIOD_NS
        bag.write(raw, recorded.msgtype, 2 * PERIOD_NS, message)
    recording = opened(drive)
    # The odd image is the nearest of two sweeps.
    assert [len(sweep.images) for sweep in map(recording.sweep, range(3))] == [0, 0, 1]
    odd, broken = sorted(caplog.messages, key=lambda text: "nv12" not in text)
    assert f"an image of drive, {raw}, is left out: images with encoding 'nv12'" in odd
    assert f"an image of drive, {raw}, is left out: {raw}: 5 bytes are no sensor_msgs" in broken


@pytest.mark.parametrize("images", [True, False])
def test_a_calibration_of_the_training_configuration_beats_the_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bool
) -> None:
    write_drive(tmp_path / "drive.mcap")
    made, _ = as_the_teacher_saw(
        tmp_path, monkeypatch, {}, calibration=str(write_calibration(tmp_path / "teachers.yaml", stamp="end"))
    )
    mended = write_calibration(tmp_path / "mended.yaml", stamp="start")
    found = times_in(opened(made, images, calibration=str(mended)))
    assert [start for start, _ in found] == [stamp_ns(sweep) for sweep in range(SWEEPS)]


@pytest.mark.parametrize(("topic", "x_m"), [("/slam/odom", 5.0), (None, None), ("none", None)])
def test_the_robot_moves_as_the_teacher_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topic: str | None, x_m: float | None
) -> None:
    write_drive(tmp_path / "still.mcap")
    with BagWriter(tmp_path / "poses.mcap") as bag:
        bag.write_pose(rigid(np.eye(3), np.array([5.0, 0, 0])), stamp_ns(0), base_frame="lidar")
    with BagWriter(tmp_path / "drive.mcap") as drive:
        for part in ("still", "poses"):
            with open_bag(tmp_path / f"{part}.mcap") as bag:
                for recorded in bag.messages():
                    names = ("/odom", "/slam/odom") if recorded.msgtype == ODOMETRY else (recorded.topic,)
                    for name in names if recorded.topic != "/tf" else ():
                        drive.write(name, recorded.msgtype, recorded.log_time_ns, recorded.cdr())
    calibration = str(write_calibration(tmp_path / "c.yaml", stamp="end"))
    made, _ = as_the_teacher_saw(tmp_path, monkeypatch, {}, calibration=calibration, poses=topic)
    trajectory = opened(made).trajectory
    assert (None if trajectory is None else trajectory.map_from_base[0, 0, 3]) == x_m


def test_the_teachers_names_of_fields_hold(tmp_path: Path) -> None:
    write_taught(tmp_path / "a.mcap", sweeps=1, settings={"fields.intensity": "views", "fields.ring": ""})
    assert set(opened(tmp_path / "a.mcap").sweep(0).frame.intensity) == {0, 1}


def test_a_recording_whose_teacher_does_not_tell_of_its_sensors_is_read_by_its_camera_info_and_tf(
    tmp_path: Path,
) -> None:
    write_taught(tmp_path / "a.mcap", sweeps=2, rig=None)
    (image,) = opened(tmp_path / "a.mcap").sweep(1).images
    assert image.time_ns == PERIOD_NS and np.allclose(image.camera_from_lidar, FORWARD)


def test_a_camera_whose_images_were_not_recorded_is_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    write_taught(path, sweeps=1, images=False)
    with pytest.raises(UserError, match=rf"no images on {RIG.cameras[0].topic}; .*`record_images:=true`"):
        opened(path)
    assert opened(path, images=False).sweep(0).images == ()


def test_a_live_teacher_that_takes_its_time_leaves_its_clouds_with_their_images_in_every_lap(tmp_path: Path) -> None:
    laps = tmp_path / "laps"
    laps.mkdir()
    for lap in range(2):
        write_taught(tmp_path / "a.mcap", sweeps=40, points=20, late_ns=3 * 10**9)
        with BagWriter(laps / f"{lap}.mcap") as later, open_bag(tmp_path / "a.mcap") as bag:
            for recorded in bag.messages():
                is_latched, log_time_ns = recorded.topic in bag.latched, recorded.log_time_ns + lap * 40 * PERIOD_NS
                later.write(recorded.topic, recorded.msgtype, log_time_ns, recorded.cdr(), is_latched)
        (tmp_path / "a.mcap").unlink()
    recording = opened(laps)
    assert len(recording) == 80
    found = [
        (sweep.frame.stamp_ns, *(image.time_ns for image in sweep.images)) for sweep in map(recording.sweep, range(80))
    ]
    assert found == [(number % 40 * PERIOD_NS,) * 2 for number in range(80)]


def test_a_teacher_in_a_namespace_is_found(tmp_path: Path) -> None:
    written = write_taught(tmp_path / "a.mcap", sweeps=2, namespace="/robot1")
    recording = opened(tmp_path / "a.mcap")
    assert recording.origin["teacher model"] == "tiny" and len(recording.sweep(0).images) == 1
    assert np.array_equal(recording.sweep(1).class_id, written[1][1])


def test_of_several_teachers_one_is_chosen_by_its_topic(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    for number in (1, 2):
        part = tmp_path / "both" / f"{number}.mcap"
        written = write_taught(part, sweeps=1, seed=number, namespace=f"/robot{number}")
    ending = "/teacher/output/pointcloud/pseudo_labels"
    with pytest.raises(UserError, match=rf"2 teachers \(/robot1{ending}, /robot2{ending}\); choose one with --topic"):
        opened(tmp_path / "both")
    chosen = opened(tmp_path / "both", topic=f"/robot2{ending}")
    assert len(chosen) == 1 and np.array_equal(chosen.sweep(0).class_id, written[0][1])
    with pytest.raises(UserError, match="no pseudo-labels on /robot3"):
        opened(tmp_path / "both", topic=f"/robot3{ending}")
