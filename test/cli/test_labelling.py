"""`label` where something is amiss: runs that were cut off, images, poses, disks; the classes come as masks."""

from __future__ import annotations

import resource
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from taught import CAMERA, STOREYS

from lidar_semseg_ros.cli.labelling import LabelJob, LabelSummary, label_bag
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, rigid, rotation_from_rpy
from lidar_semseg_ros.core.pairing import PairingConfig
from lidar_semseg_ros.formats.bags import COMPRESSED_IMAGE, BagWriter, open_bag
from lidar_semseg_ros.formats.dataset import PSEUDO_LABEL_TOPIC
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, cloud_from_frame, column
from lidar_semseg_ros.teacher.labeller import TeacherConfig
from lidar_semseg_ros.teacher.voting import VotingConfig

SWEEPS = 10
CLOUDS, IMAGES = "/lidar/points", "/camera/image_raw/compressed"
GARBAGE = b"\x00\x01\x00\x00 no image"
TENTH_NS = 10**8


class Shifted(BagWriter):
    """Logs everything so much later than its stamps say."""

    shift_ns = 0

    def write(self, topic: str, msgtype: str, log_time_ns: int, message: Any, latched: bool = False) -> None:
        super().write(topic, msgtype, log_time_ns + self.shift_ns, message, latched)


class Robot:
    """Turns and drives through a cloud of points that stand still; every pixel of its camera is of a random class."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._rng = folder, np.random.default_rng(1)
        self.table = folder / "storeys.yaml"
        self.table.write_text(yaml.safe_dump(STOREYS.to_mapping()))
        self._masks = folder / "masks" / "camera"
        self._masks.mkdir(parents=True)
        self._world_m = self._rng.uniform((-6, -6, -1.5), (8, 6, 1.5), (3000, 3))

    def record(
        self,
        path: Path,
        *,
        period_ns: int = TENTH_NS,
        laps: int = 1,
        posed: Callable[[float], bool] = lambda time_s: True,
        faults: Collection[tuple[int, str]] = (),
    ) -> Path:
        """Record sweeps, each with its image, and ten poses a second.

        posed: whether there is a pose at a time of the drive. faults: images that are wrong, and how.
        """
        with Shifted(path) as bag:
            mounts = {("base_link", "lidar"): np.eye(4)}
            mounts[("base_link", "camera")] = rigid(OPTICAL_FROM_BODY.T, np.zeros(3))
            bag.write_tf_static(mounts, 0)
            for lap in range(laps):
                bag.shift_ns = lap * (SWEEPS * period_ns + 10**9)
                for stamp_ns in range(0, SWEEPS * period_ns, TENTH_NS):
                    if posed(stamp_ns / 1e9):
                        bag.write_pose(self._pose(stamp_ns), stamp_ns)
                    if stamp_ns % period_ns == 0:
                        self._write_sweep(bag, stamp_ns, dict(faults).get(stamp_ns // period_ns, ""))
        return path

    def _pose(self, stamp_ns: int) -> np.ndarray:
        time_s = stamp_ns / 1e9
        return rigid(rotation_from_rpy(0, 0, 0.5 * time_s), np.array([0.7 * time_s, 0, 0]))

    def _write_sweep(self, bag: BagWriter, stamp_ns: int, fault: str) -> None:
        pose = self._pose(stamp_ns)
        xyz = ((self._world_m - pose[:3, 3]) @ pose[:3, :3]).astype(np.float32)
        bag.write_cloud(CLOUDS, cloud_from_frame(LidarFrame(stamp_ns=stamp_ns, frame_id="lidar", xyz=xyz)))
        bag.write_camera_info("/camera/camera_info", CAMERA, stamp_ns, "camera")
        image = CameraImage(stamp_ns=stamp_ns, frame_id="camera", pixels=np.zeros((48, 64, 3), np.uint8))
        if fault == "no message":
            bag.write(IMAGES, COMPRESSED_IMAGE, stamp_ns, GARBAGE)
        elif fault == "no jpeg":
            bag.write_compressed_image(IMAGES, b"\xff\xd8 garbage", "jpeg", stamp_ns, "camera")
        else:
            pixels = image.pixels[::2] if fault == "half as high" else image.pixels
            bag.write_image(IMAGES, replace(image, pixels=pixels), jpeg=True)
        # The same topic once more at the same time: a run may be cut off between the two.
        bag.write_camera_info("/camera/camera_info", CAMERA, stamp_ns, "camera")
        mask = self._masks / f"{stamp_ns}.npy"
        if not mask.exists():
            np.save(mask, self._rng.integers(0, 2, (48, 64)).astype(np.int32))

    def job(self, bag: Path, output: str, **voting: Any) -> LabelJob:
        anything = VotingConfig(min_share=0.5, min_agreement=0.5, min_confidence=0.0)
        config = TeacherConfig(classes=str(self.table), class_map="", voting=replace(anything, **voting))
        return LabelJob(bag=bag, output=self.folder / output, masks=self.folder / "masks", config=config)


@pytest.fixture
def robot(tmp_path: Path) -> Robot:
    return Robot(tmp_path)


class Killed(BaseException):
    """What ends a run in its midst."""


def killed_after(job: LabelJob, clouds: int) -> None:
    def count(done: int, _: int) -> None:
        if done == clouds:
            raise Killed

    with pytest.raises(Killed):
        label_bag(job, count)


def content(path: Path) -> list[tuple[str, int, bytes]]:
    with open_bag(path) as opened:
        return sorted((one.topic, one.log_time_ns, one.cdr()) for one in opened.messages())


def values(path: Path, name: str) -> list[np.ndarray]:
    with open_bag(path) as opened:
        return [column(cloud_content(one.message()), name) for one in opened.messages([PSEUDO_LABEL_TOPIC])]


def most_views(summary: LabelSummary) -> list[int]:
    return [int(views.max()) for views in values(summary.output, "views")]


# --- a run that was cut off


def test_what_was_killed_long_after_the_window_of_its_first_sweep_becomes_the_same_bytes(robot: Robot) -> None:
    bag = robot.record(robot.folder / "drive.mcap")
    whole, resumed = robot.job(bag, "whole.mcap", window=2), robot.job(bag, "resumed.mcap", window=2)
    label_bag(whole)
    killed_after(resumed, 4)
    label_bag(resumed)
    assert content(resumed.output) == content(whole.output)
    assert max(int(views.max()) for views in values(whole.output, "views")) == 3


def test_sweeps_without_motion_take_their_place_in_the_window_so_that_a_killed_run_becomes_the_same_bytes(
    robot: Robot,
) -> None:
    bag = robot.record(
        robot.folder / "drive.mcap", period_ns=4 * TENTH_NS, posed=lambda time_s: not 1.0 < time_s < 2.55
    )
    whole, resumed = robot.job(bag, "whole.mcap", window=2), robot.job(bag, "resumed.mcap", window=2)
    label_bag(whole)
    killed_after(resumed, 5)
    label_bag(resumed)
    assert content(resumed.output) == content(whole.output)


def swapped_classes(job: LabelJob) -> LabelJob:
    table = ClassTable(name="storeys", names=STOREYS.names[::-1], colors=STOREYS.colors)
    Path(job.config.classes).write_text(yaml.safe_dump(table.to_mapping()))
    return job


def other_recording(job: LabelJob) -> LabelJob:
    other = job.bag.with_name("other.mcap")
    other.write_bytes(job.bag.read_bytes())
    return replace(job, bag=other)


def other_calibration(job: LabelJob) -> LabelJob:
    file = job.bag.with_name("rig.yaml")
    matrix = np.vstack([np.column_stack([OPTICAL_FROM_BODY, [0.02, 0, 0]]), [0, 0, 0, 1]])
    camera = {
        "topic": IMAGES, "camera_info_topic": "/camera/camera_info",
        "direction": "camera_from_lidar", "matrix": matrix.tolist(),
    }  # fmt: skip
    file.write_text(yaml.safe_dump({"lidars": {"lidar": {"stamp": "start"}}, "cameras": {"camera": camera}}))
    return replace(job, calibration=str(file))


OTHERS: dict[str, Callable[[LabelJob], LabelJob]] = {
    "class map": swapped_classes,
    "voting.window": lambda job: replace(job, config=replace(job.config, voting=VotingConfig(window=0))),
    "sync.max_dt_s": lambda job: replace(job, config=replace(job.config, sync=PairingConfig(max_dt_s=0.1))),
    "poses_topic": lambda job: replace(job, poses="none"),
    "images": lambda job: replace(job, images=True),
    "cameras": other_calibration,
    "bag": other_recording,
}


def test_what_was_begun_with_other_settings_is_refused_and_kept_for_those_it_was_begun_with(robot: Robot) -> None:
    bag = robot.record(robot.folder / "drive.mcap")
    whole, job = robot.job(bag, "whole.mcap"), robot.job(bag, "cut.mcap")
    label_bag(whole)
    killed_after(job, 6)
    for named, other in OTHERS.items():
        with pytest.raises(UserError, match=rf"cut-off\.mcap was begun with other settings \(.*\b{named}\b.*remove it"):
            label_bag(other(job))
        robot.table.write_text(yaml.safe_dump(STOREYS.to_mapping()))
    label_bag(job)
    assert content(job.output) == content(whole.output)
    assert not list(robot.folder.glob("cut.*.mcap"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the disk refuse larger ones."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_refuses_is_an_error_in_one_line_and_with_room_the_same_command_goes_on(robot: Robot) -> None:
    bag = robot.record(robot.folder / "drive.mcap")
    whole, job = robot.job(bag, "whole.mcap"), robot.job(bag, "full.mcap")
    label_bag(whole)
    with (
        files_of_at_most(whole.output.stat().st_size // 2),
        pytest.raises(
            UserError, match=r"full\.mcap is not finished: .*File too large; once .* goes on where it stopped"
        ),
    ):
        label_bag(job)
    label_bag(job)
    assert content(job.output) == content(whole.output)


def test_an_output_folder_that_cannot_be_made_is_an_error_in_one_line(
    robot: Robot, capsys: pytest.CaptureFixture[str]
) -> None:
    robot.table.with_name("file").write_text("no folder")
    with pytest.raises(SystemExit) as ended:
        main(["label", "a.mcap", "-o", str(robot.folder / "file" / "out")])
    assert ended.value.code == 2 and "cannot make the folder" in capsys.readouterr().err


# --- several recordings


@pytest.fixture
def chosen(robot: Robot) -> list[str]:
    return ["--classes", str(robot.table), "--class-map", "", "--masks", str(robot.folder / "masks")]


def test_recordings_of_a_folder_that_are_labelled_already_are_left_as_they_are_and_the_others_labelled(
    robot: Robot, chosen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bags = [robot.record(robot.folder / name) for name in ("one.mcap", "two.mcap")]
    folder = robot.folder / "out"
    main(["label", str(bags[0]), "-o", str(folder), *chosen])
    before = (folder / "one.mcap").stat()
    capsys.readouterr()
    for more in ([], ["--workers", "2"]):
        main(["label", *map(str, bags), "-o", str(folder), *chosen, *more])
        said = capsys.readouterr().out
        assert f"{bags[0]} is labelled already" in said
        assert ("two.mcap: 10 clouds labelled" in said) != (f"{bags[1]} is labelled already" in said)
    assert (folder / "one.mcap").stat() == before
    assert sorted(path.name for path in folder.iterdir()) == ["one.mcap", "two.mcap"]


def test_labels_of_a_folder_that_were_made_with_other_settings_are_not_taken_for_finished(
    robot: Robot, chosen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bag, folder = robot.record(robot.folder / "one.mcap"), robot.folder / "out"
    main(["label", str(bag), "-o", str(folder), *chosen])
    with pytest.raises(SystemExit) as ended:
        main(["label", str(bag), "-o", str(folder), *chosen, "--voting-window", "0"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "out/one.mcap was begun with other settings (voting.window)" in said


def test_what_is_done_before_a_fault_is_told_and_the_fault_names_its_recording(
    robot: Robot, chosen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    good, blind = robot.record(robot.folder / "good.mcap"), robot.folder / "blind.mcap"
    with BagWriter(blind) as writer:
        frame = LidarFrame(stamp_ns=1, frame_id="lidar", xyz=np.ones((5, 3), np.float32))
        writer.write_cloud(CLOUDS, cloud_from_frame(frame))
    with pytest.raises(SystemExit) as ended:
        main(["label", str(good), str(blind), "-o", str(robot.folder / "out"), *chosen])
    said = capsys.readouterr()
    assert ended.value.code == 2 and f"error: {blind}: no camera of the recording can be used" in said.err
    assert "good.mcap: 10 clouds labelled" in said.out


def test_after_a_fault_processes_begin_no_further_recordings(robot: Robot, chosen: list[str]) -> None:
    bags = [str(robot.record(robot.folder / f"{number}.mcap")) for number in range(9)]
    with pytest.raises(SystemExit) as ended:
        main(["label", "nowhere.mcap", *bags, "-o", str(robot.folder / "out"), *chosen, "--workers", "2"])
    assert ended.value.code == 2
    # Those in work at that time are finished, and the pool may have handed out one more.
    assert len(list((robot.folder / "out").iterdir())) < 9
    assert not list((robot.folder / "out").glob("*.part.mcap"))


# --- images


def test_images_that_cannot_be_used_are_left_out_and_counted_by_camera_and_cause(
    robot: Robot, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [(0, "no jpeg"), (4, "no message"), (7, "half as high")]
    bag = robot.record(robot.folder / "drive.mcap", faults=faults)
    chosen = ["--classes", str(robot.table), "--class-map", "", "--masks", str(robot.folder / "masks"), "--images"]
    main(["label", str(bag), "-o", str(robot.folder / "out.mcap"), "--voting-window", "0", *chosen])
    said = capsys.readouterr().out
    assert f"{SWEEPS} clouds labelled, 0 dropped" in said
    assert "camera: 2 images left out as unreadable" in said
    assert "camera: 1 images left out as not of its calibration's size" in said
    views = [int(found.max()) for found in values(robot.folder / "out.mcap", "views")]
    assert views == [int(number not in dict(faults)) for number in range(SWEEPS)]


# --- poses


def test_sweeps_far_from_all_poses_are_counted_and_labelled_as_if_the_robot_stood_still(
    robot: Robot, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = robot.record(
        robot.folder / "drive.mcap", period_ns=4 * TENTH_NS, posed=lambda time_s: not 1.0 < time_s < 2.55
    )
    moving = label_bag(robot.job(bag, "moving.mcap"))
    still = label_bag(replace(robot.job(bag, "still.mcap"), poses="none"))
    # Poses at 1.0 and 2.6 s; sweeps at 1.6 and 2.0 s.
    assert (moving.without_motion, still.without_motion) == (2, 0)
    views = most_views(moving)
    assert views[4] == views[5] == 1 and views[3] > 1
    assert most_views(still) == [1] * SWEEPS
    of_moving, of_still = values(moving.output, "class_id"), values(still.output, "class_id")
    assert [np.array_equal(a, b) for a, b in zip(of_moving, of_still)][3:6] == [False, True, True]
    chosen = ["--classes", str(robot.table), "--class-map", "", "--masks", str(robot.folder / "masks")]
    main(["label", str(bag), "-o", str(robot.folder / "said.mcap"), *chosen])
    assert "2 clouds have no poses within 0.5 s" in capsys.readouterr().out


def test_a_recording_whose_stamps_begin_anew_has_no_votes_of_the_lap_before(robot: Robot) -> None:
    views = most_views(label_bag(robot.job(robot.record(robot.folder / "laps.mcap", laps=2), "out.mcap")))
    assert views[0] == views[SWEEPS] == 1
    assert views[1:SWEEPS] == views[SWEEPS + 1 :] and max(views) > 2


# --- clouds


@pytest.mark.parametrize("command", ["label", "calib-check"])
def test_a_cloud_topic_without_clouds_is_an_error_in_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rosbags.rosbag2 import Writer
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_JAZZY)
    kind = "std_msgs/msg/String"
    with Writer(tmp_path / "empty", version=9) as writer:
        writer.add_connection(CLOUDS, "sensor_msgs/msg/PointCloud2", typestore=types)
        said = writer.add_connection("/said", kind, typestore=types)
        writer.write(said, 1, types.serialize_cdr(types.types[kind](data="a"), kind))
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path / "empty"), "-o", str(tmp_path / "out.mcap")])
    assert ended.value.code == 2 and f"the topic {CLOUDS}, but no cloud on it" in capsys.readouterr().err
