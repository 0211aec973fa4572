"""The launch file, by itself and live with the real `ros2 launch`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

# Not `launch`, for which Python takes any folder of that name.
pytest.importorskip("launch_ros", reason="launch_ros is not installed: it comes with a ROS 2 installation")
pytest.importorskip("rclpy")

import rclpy
import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node
from robot import room, spin_until
from sensor_msgs.msg import PointCloud2

from lidar_semseg_ros.cli.live import live_environment
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, cloud_from_frame

os.environ.update(live_environment())

try:
    SHARE = Path(get_package_share_directory("lidar_semseg_ros"))
except PackageNotFoundError:
    pytest.skip("ament does not know the package: build it with colcon and source it", allow_module_level=True)

LAUNCH_FILE = SHARE / "launch" / "segment.launch.py"
ARGUMENTS = (
    "lidars points image camera_info bag rate loop model device params_file teacher teacher_params_file record rviz "
    "fixed_frame foxglove use_sim_time namespace"
)
CLOUDS = "/lidar/points"
LABELLED = "/robot1/segmenter/output/pointcloud/segmentation"
CLASS_MAP = "/robot1/segmenter/output/class_map"
STAMPS_NS = [10**9 + k * 2 * 10**8 for k in range(5)]


@pytest.fixture(scope="module")
def small_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bag") / "small.mcap"
    with BagWriter(path) as writer:
        for stamp_ns in STAMPS_NS:
            frame = LidarFrame(stamp_ns=stamp_ns, frame_id="lidar", xyz=room(500, seed=stamp_ns % 7))
            writer.write_cloud(CLOUDS, cloud_from_frame(frame))
    return path


# ---- the description, without running it


Nodes = dict[str, tuple[list[str], dict[str, object]]]


def described(file: Path = LAUNCH_FILE, **given: str) -> tuple[set[str], Nodes]:
    """Names of the declared arguments; of each node its command line and its parameters."""
    context = LaunchContext()
    context.launch_configurations.update(given)
    entities = PythonLaunchDescriptionSource(str(file)).get_launch_description(context).entities
    return _described(entities, context)


def _described(entities: list[object], context: LaunchContext) -> tuple[set[str], Nodes]:
    declared = [entity for entity in entities if isinstance(entity, DeclareLaunchArgument)]
    for entity in declared:
        entity.visit(context)
    nodes: Nodes = {}
    for entity in next(e for e in entities if isinstance(e, OpaqueFunction)).visit(context):
        if isinstance(entity, IncludeLaunchDescription):
            *settings, included = entity.visit(context)
            for one in settings:
                one.visit(context)
            nodes |= _described(included.entities, context)[1]
            continue
        assert isinstance(entity, Node)
        entity._perform_substitutions(context)
        names = {"name": entity.node_name, "ns": f"__ns:={entity.expanded_node_namespace}"}
        context.extend_locals({"ros_specific_arguments": names})  # as Node.execute does
        command = ["".join(part.perform(context) for part in parts) for parts in entity.cmd[1:]]
        parameters: dict[str, object] = {}
        for option, value in pairwise(command):
            if option == "--params-file":
                (content,) = yaml.safe_load(Path(value).read_text()).values()
                parameters |= content["ros__parameters"]
        nodes[entity.node_executable] = (command, parameters)
    return {entity.name for entity in declared}, nodes


def test_every_argument_of_the_interface_is_declared_and_by_default_there_is_only_the_segmenter() -> None:
    declared, nodes = described()
    assert declared == {*ARGUMENTS.split(), "log_level"}
    command, parameters = nodes.pop("segmenter")
    assert not nodes
    assert parameters["use_sim_time"] is False
    assert f"~/input/pointcloud:={CLOUDS}" in command


def test_a_bag_brings_the_player_and_its_clock_and_nothing_else() -> None:
    _, nodes = described(bag="some.bag", rate="2", loop="true")
    assert set(nodes) == {"segmenter", "player"}
    assert nodes["segmenter"][1]["use_sim_time"] is True
    expected = {"bag": "some.bag", "rate": 2, "loop": True, "wait_for_subscribers": 1}
    assert nodes["player"][1] == expected


def test_the_player_waits_for_the_recorder_too_and_topics_follow_the_namespace() -> None:
    _, nodes = described(bag="some.bag", record="out.mcap", namespace="robot1", points="/os/points")
    assert nodes["player"][1]["wait_for_subscribers"] == 2
    assert nodes["recorder"][1] == {"file": "out.mcap", "topics": f"/os/points,{LABELLED},{CLASS_MAP}"}
    assert "__ns:=/robot1" in nodes["segmenter"][0] and "~/input/pointcloud:=/os/points" in nodes["segmenter"][0]


def test_model_and_device_are_parameters_only_where_they_are_given(tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text("/**: {ros__parameters: {threads: 1}}")
    assert described(params_file=str(plain))[1]["segmenter"][1] == {"threads": 1, "use_sim_time": False}
    _, nodes = described(model="mine.onnx", device="cpu", use_sim_time="True", log_level="debug")
    command, parameters = nodes["segmenter"]
    assert (parameters["model"], parameters["device"], parameters["use_sim_time"]) == ("mine.onnx", "cpu", True)
    assert command[command.index("--log-level") + 1] == "debug"


def test_a_teacher_hears_every_camera_and_is_recorded_with_all_that_training_needs() -> None:
    given = {"cameras": "left,right", "bag": "some.bag", "record": "out.mcap", "calibration": "ntu_viral"}
    _, nodes = described(SHARE / "launch" / "teacher.launch.py", **given)
    assert set(nodes) == {"teacher", "player", "recorder"}
    command, parameters = nodes["teacher"]
    for camera in ("left", "right"):
        assert f"~/input/{camera}/image:=/{camera}/image_raw/compressed" in command
        assert f"~/input/{camera}/camera_info:=/{camera}/camera_info" in command
    assert (parameters["cameras"], parameters["compressed"], parameters["use_sim_time"]) == ("left,right", True, True)
    assert (parameters["extrinsics.source"], parameters["extrinsics.file"]) == ("file", "ntu_viral")
    # Only the teacher hears the clouds that are played.
    assert nodes["player"][1]["wait_for_subscribers"] == 1
    topics = str(nodes["recorder"][1]["topics"]).split(",")
    made = {f"/teacher/output/{name}" for name in ("pointcloud/pseudo_labels", "class_map", "settings")}
    assert made | {"/left/camera_info", "/right/camera_info", "/odom", "/tf", "/tf_static"} == set(topics)


@pytest.mark.parametrize(
    ("subscribed", "images"),
    [
        ({}, {"/left/image_raw/compressed", "/right/image_raw/compressed"}),
        ({"images": "/{camera}/image", "compressed": "false"}, {"/left/image", "/right/image"}),
    ],
)
def test_images_are_recorded_as_the_teacher_hears_them_where_that_is_asked_for(
    subscribed: dict[str, str], images: set[str]
) -> None:
    given = {"cameras": "left,right", "record": "out.mcap", "namespace": "robot1", **subscribed}
    recorded = {}
    for asked in ("false", "true"):
        _, nodes = described(SHARE / "launch" / "teacher.launch.py", record_images=asked, **given)
        recorded[asked] = set(str(nodes["recorder"][1]["topics"]).split(","))
    assert recorded["true"] - recorded["false"] == images
    assert {"/left/camera_info", "/robot1/teacher/output/pointcloud/pseudo_labels"} <= recorded["false"]


def test_a_segmenter_may_have_a_teacher_beside_it_which_hears_the_same_lidar() -> None:
    _, nodes = described(teacher="true", bag="some.bag", points="/os/points", cameras="front")
    assert set(nodes) == {"segmenter", "teacher", "player"}
    command, parameters = nodes["teacher"]
    assert "~/input/pointcloud:=/os/points" in command and "~/input/front/image:=/front/image_raw/compressed" in command
    # Nobody may want the teacher's labels: then it does not hear the clouds, and the player must not wait for it.
    assert parameters["use_sim_time"] is True and nodes["player"][1]["wait_for_subscribers"] == 1


def test_what_a_teacher_beside_a_segmenter_says_is_recorded_too_and_has_parameters_of_its_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("/**: {ros__parameters: {class_map: ''}}")
    given = {"bag": "some.bag", "record": "out.mcap", "namespace": "robot1", "teacher_params_file": str(mine)}
    _, nodes = described(teacher="true", cameras="front", **given)
    assert set(nodes) == {"segmenter", "teacher", "player", "recorder"}
    topics = str(nodes["recorder"][1]["topics"]).split(",")
    assert {"/robot1/teacher/output/pointcloud/pseudo_labels", "/robot1/teacher/output/settings", LABELLED} < set(
        topics
    )
    # Segmenter, teacher and recorder all hear the clouds.
    assert nodes["player"][1]["wait_for_subscribers"] == 3
    assert str(mine) in nodes["teacher"][0] and str(mine) not in nodes["segmenter"][0]


def test_several_lidars_are_nodes_of_one_process_and_have_their_names_in_their_topics() -> None:
    given = {"namespace": "robot1", "bag": "some.bag", "record": "out.mcap", "model": "mine.onnx"}
    _, nodes = described(lidars="front, rear", **given)
    assert set(nodes) == {"segmenter", "player", "recorder"}
    command, parameters = nodes["segmenter"]
    assert command[command.index("--lidars") + 1] == "front,rear" and command.index("--lidars") == 0
    assert "__ns:=/robot1" in command and not any("__node:=" in word for word in command)
    for lidar in ("front", "rear"):
        assert f"/robot1/{lidar}/segmenter/input/pointcloud:=/{lidar}/points" in command
    assert "~/input/image:=/camera/image_raw" in command
    # For all of them: a file for a node's name would have to name each.
    files = [
        yaml.safe_load(Path(value).read_text()) for option, value in pairwise(command) if option == "--params-file"
    ]
    assert all(list(file) == ["/**"] for file in files)
    assert (parameters["model"], parameters["use_sim_time"]) == ("mine.onnx", True)
    made = [
        f"/robot1/{x}/segmenter/output/{y}" for x in ("front", "rear") for y in ("pointcloud/segmentation", "class_map")
    ]
    assert nodes["recorder"][1]["topics"] == ",".join(["/front/points", "/rear/points", *made])


def test_the_topics_of_several_lidars_follow_one_pattern_and_the_teacher_hears_the_first() -> None:
    _, nodes = described(lidars="os_left,os_right", points="/sensors/{lidar}/cloud", teacher="true", cameras="front")
    assert "/os_right/segmenter/input/pointcloud:=/sensors/os_right/cloud" in nodes["segmenter"][0]
    heard = [word for word in nodes["teacher"][0] if word.startswith("~/input/pointcloud:=")]
    assert heard == ["~/input/pointcloud:=/sensors/os_left/cloud"]


def test_several_lidars_on_one_topic_are_refused_and_one_lidar_may_have_any() -> None:
    with pytest.raises(RuntimeError, match=r"points:=/os/points would give front, rear the same .* \{lidar\} where"):
        described(lidars="front,rear", points="/os/points")
    _, nodes = described(lidars="front", points="/os/points")
    assert "/front/segmenter/input/pointcloud:=/os/points" in nodes["segmenter"][0]


@pytest.mark.parametrize(
    ("given", "frame", "shown"),
    [
        ({}, "lidar", ["/segmenter"]),
        ({"namespace": "robot1", "fixed_frame": "base_link"}, "base_link", ["/robot1/segmenter"]),
        ({"lidars": "front,rear", "fixed_frame": "odom"}, "odom", ["/front/segmenter", "/rear/segmenter"]),
        ({"lidars": "front", "namespace": "robot1"}, "lidar", ["/robot1/front/segmenter"]),
    ],
)
def test_rviz_shows_every_segmenter_where_it_is_in_the_frame_that_is_given(
    given: dict[str, str], frame: str, shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # What is not installed can be described, but has no path.
    monkeypatch.setattr("launch_ros.substitutions.ExecutableInPackage.perform", lambda self, context: "rviz2")
    _, nodes = described(rviz="true", **given)
    command, _ = nodes["rviz2"]
    manager = yaml.safe_load(Path(command[command.index("-d") + 1]).read_text())["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == frame
    topics = [display["Topic"]["Value"] for display in manager["Displays"] if "Topic" in display]
    outputs = ("pointcloud/visualization", "overlay")
    assert topics == [f"{name}/output/{output}" for name in shown for output in outputs]
    assert len({display["Name"] for display in manager["Displays"]}) == 1 + len(topics)


def test_a_demo_makes_its_drive_and_then_all_that_segments_it_again_and_again(tmp_path: Path) -> None:
    context = LaunchContext()
    context.launch_configurations.update({"folder": str(tmp_path), "device": "cpu", "namespace": "robot1"})
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "demo.launch.py"))
    entities = source.get_launch_description(context).entities
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.visit(context)
    (simulate,) = next(e for e in entities if isinstance(e, OpaqueFunction)).visit(context)
    assert isinstance(simulate, ExecuteProcess) and not isinstance(simulate, Node)
    command = ["".join(part.perform(context) for part in parts) for parts in simulate.cmd]
    assert command[-4:] == ["demo", "--only-simulate", "--output", str(tmp_path)]
    go_on = simulate._ExecuteLocal__on_exit
    (ended,) = go_on(SimpleNamespace(returncode=2), context)
    assert isinstance(ended, Shutdown)
    (segment,) = go_on(SimpleNamespace(returncode=0), context)
    *settings, included = segment.visit(context)
    for one in settings:
        one.visit(context)
    _, nodes = _described(included.entities, context)
    assert set(nodes) == {"segmenter", "player"}
    assert (nodes["player"][1]["bag"], nodes["player"][1]["loop"]) == (str(tmp_path / "drive.mcap"), True)
    command, parameters = nodes["segmenter"]
    assert "__ns:=/robot1" in command and "~/input/image:=/camera_0/image_raw/compressed" in command
    assert (parameters["overlay.compressed"], parameters["device"], parameters["use_sim_time"]) == (True, "cpu", True)


# ---- live


def test_a_demo_whose_drive_is_there_segments_it_in_a_loop(small_bag: Path, tmp_path: Path) -> None:
    (tmp_path / "drive.mcap").write_bytes(small_bag.read_bytes())
    arguments = (f"folder:={tmp_path}", "namespace:=robot1", "device:=cpu", "rate:=0.5")
    with launched(*arguments, file="demo.launch.py") as launch:
        heard_until(lambda heard: all(heard[stamp_ns] >= 2 for stamp_ns in STAMPS_NS), launch)
        launch.ctrl_c()
        assert not launch.left()
    clean = re.findall(r"\[(\w+)-\d\]: process has finished cleanly", launch.output)
    assert sorted(clean) == ["player", "segmenter", "simulate"], launch.output
    assert "simulating" not in launch.output and "Traceback" not in launch.output
    assert [path.name for path in tmp_path.iterdir()] == ["drive.mcap"]


class Launched:
    """A launch in a process group of its own, as a terminal makes one."""

    def __init__(self, *arguments: str, file: str = LAUNCH_FILE.name) -> None:
        self.output = ""
        command = ["ros2", "launch", "lidar_semseg_ros", file, *arguments]
        environment = live_environment() | {"PYTHONUNBUFFERED": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.output += line

    def ctrl_c(self) -> float:
        """Interrupt everything at once; how long it took to end."""
        os.killpg(self.process.pid, signal.SIGINT)
        start = time.monotonic()
        self.wait()
        return time.monotonic() - start

    def wait(self) -> int:
        status = self.process.wait(60)
        self._reader.join(5)
        return status

    def left(self) -> list[str]:
        """Processes of the launch that live."""
        listed = subprocess.run(["ps", "-eo", "pgid,stat,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
        return [args for group, state, args in rows if int(group) == self.process.pid and not state.startswith("Z")]


@contextmanager
def launched(*arguments: str, file: str = LAUNCH_FILE.name) -> Iterator[Launched]:
    if shutil.which("ros2") is None:
        pytest.skip("there is no ros2 command")
    launch = Launched(*arguments, file=file)
    try:
        yield launch
    finally:
        if launch.left():
            os.killpg(launch.process.pid, signal.SIGKILL)


def heard_until(done: Callable[[Counter[int]], bool], launch: Launched) -> None:
    """Listen to the labelled clouds until their counts by stamp are as wanted."""
    heard: Counter[int] = Counter()
    rclpy.init()
    try:
        ear = rclpy.create_node("ear")
        ear.create_subscription(PointCloud2, LABELLED, lambda m: heard.update([cloud_content(m).stamp_ns]), 10)
        spin_until(ear, lambda: done(heard) or launch.process.poll() is not None, timeout_s=90)
        assert launch.process.poll() is None, launch.output
    finally:
        rclpy.try_shutdown()


def test_a_launch_labels_and_records_a_bag_and_ctrl_c_ends_it_with_a_closed_recording(
    small_bag: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.mcap"
    arguments = (f"bag:={small_bag}", "loop:=true", "rate:=0.5", f"record:={record}", "namespace:=robot1")
    with launched(*arguments, "device:=cpu") as launch:
        heard_until(lambda heard: all(heard[stamp_ns] >= 2 for stamp_ns in STAMPS_NS), launch)
        took_s = launch.ctrl_c()
        assert not launch.left()
    assert launch.process.returncode == 0
    clean = re.findall(r"\[(\w+)-\d\]: process has finished cleanly", launch.output)
    assert sorted(clean) == ["player", "recorder", "segmenter"], launch.output
    assert "Traceback" not in launch.output and "escalating" not in launch.output
    assert took_s < 5  # 2 s promised for a node; launch itself takes some more
    assert record.read_bytes().endswith(b"\x89MCAP0\r\n")
    with open_bag(record) as bag:
        assert bag.message_count(CLASS_MAP) == 1
        labelled = [cloud_content(message.message()) for message in bag.messages([LABELLED])]
        played = {cloud_content(message.message()).stamp_ns for message in bag.messages([CLOUDS])}
    assert played == {content.stamp_ns for content in labelled} == set(STAMPS_NS)
    assert all(len(content) == 500 for content in labelled)
    assert "class_id" in [field.name for field in labelled[0].fields]


def test_a_launch_of_two_lidars_labels_and_records_both(tmp_path: Path) -> None:
    bag, record = tmp_path / "two.mcap", tmp_path / "record.mcap"
    with BagWriter(bag) as writer:
        for stamp_ns in STAMPS_NS:
            for topic, points in (("/front/points", 500), ("/rear/points", 300)):
                frame = LidarFrame(stamp_ns=stamp_ns, frame_id="lidar", xyz=room(points, seed=stamp_ns % 7))
                writer.write_cloud(topic, cloud_from_frame(frame))
    outputs = {f"/robot1/{name}/segmenter/output/pointcloud/segmentation": name for name in ("front", "rear")}
    heard: dict[str, set[int]] = {topic: set() for topic in outputs}
    arguments = (f"bag:={bag}", "loop:=true", "rate:=0.5", f"record:={record}", "namespace:=robot1")
    with launched(*arguments, "device:=cpu", "lidars:=front,rear") as launch:
        rclpy.init()
        try:
            ear = rclpy.create_node("ear")
            for topic, stamps in heard.items():
                ear.create_subscription(PointCloud2, topic, lambda m, s=stamps: s.add(cloud_content(m).stamp_ns), 10)
            every = set(STAMPS_NS)
            spin_until(ear, lambda: launch.process.poll() is not None or all(s == every for s in heard.values()), 90)
        finally:
            rclpy.try_shutdown()
        assert launch.process.poll() is None, launch.output
        launch.ctrl_c()
        assert not launch.left()
    assert launch.process.returncode == 0 and "Traceback" not in launch.output
    with open_bag(record) as recorded:
        for topic, name in outputs.items():
            sizes = {len(cloud_content(message.message())) for message in recorded.messages([topic])}
            assert sizes == {500 if name == "front" else 300}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lidars:=front,front"], "--lidars takes different names"),
        (["lidars:=front,rear", "points:=/os/points"], "write {lidar} where the name of each belongs"),
        (["model:=/none.onnx"], "error: there is no model file /none.onnx"),
        (["bag:=/none.mcap"], "error: there is no recording /none.mcap"),
        (["params_file:=/none.yaml"], "there is no parameter file /none.yaml"),
        (["use_sim_time:=maybe"], "Valid options are"),
        (["namespace:=a-b"], "Invalid namespace"),
    ],
)
def test_a_launch_that_cannot_work_says_why_and_ends_by_itself(arguments: list[str], said: str) -> None:
    with launched(*arguments) as launch:
        launch.wait()
        assert not launch.left()
    assert said in launch.output
    assert "Traceback" not in launch.output


def test_a_viewer_that_is_not_installed_ends_the_launch_and_leaves_no_process_behind() -> None:
    try:
        get_package_share_directory("rviz2")
    except PackageNotFoundError:
        pass
    else:
        pytest.skip("rviz2 is installed")
    with launched("rviz:=true") as launch:
        assert launch.wait() == 1
        assert not launch.left()
    assert "package 'rviz2' not found" in launch.output
