"""The node as the commands of ROS 2 see it: `ros2 node`, `param`, `topic` and `service`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")

from lidar_semseg_ros.cli.live import NodeProcess, live_environment, running

if shutil.which("ros2") is None:
    pytest.skip("there is no ros2 command: it comes with a ROS 2 installation", allow_module_level=True)

os.environ.update(live_environment())
# The command's background process would outlive the tests.
SEEK = ("--no-daemon", "--spin-time", "1")


def ros2(*words: str, says: str) -> str:
    """What a command says; on a busy machine it may have to look more than once until it has found all of the node."""
    for _ in range(6):
        done = subprocess.run(["ros2", *words], capture_output=True, text=True, timeout=60)
        said = done.stdout + done.stderr
        if says in said:
            break
    assert says in said
    return said


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    log = tmp_path_factory.mktemp("log") / "segmenter.log"
    with running("segmenter", {"device": "cpu", "min_score": 0.25}, {}, log) as process:
        process.wait_for("ready for clouds")
        yield process


def test_ros2_node_info_lists_outputs_and_services(segmenter: NodeProcess) -> None:
    said = ros2("node", "info", *SEEK, "/segmenter", says="/segmenter/dump_timings: std_srvs/srv/Trigger")
    assert "/segmenter/output/pointcloud/segmentation: sensor_msgs/msg/PointCloud2" in said


def test_parameters_that_ros2_param_dumps_start_a_node_with_the_same_settings(
    segmenter: NodeProcess, tmp_path: Path
) -> None:
    said = ros2("param", "dump", *SEEK, "/segmenter", says="min_score: 0.25")
    assert yaml.safe_load(said)["/segmenter"]["ros__parameters"]["input"]["range"]["max"] == float("inf")
    file = tmp_path / "dumped.yaml"
    file.write_text(said.replace("/segmenter:", "/**:", 1))
    arguments = ["--ros-args", "--params-file", str(file), "-r", "__node:=again"]
    command = ["ros2", "run", "lidar_semseg_ros", "segmenter", *arguments]
    # In a process group of its own, as a terminal makes one: an interrupt of `ros2 run` alone leaves the node alive.
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as again:
        try:
            assert any("ready for clouds" in line for line in again.stderr)
            ros2("param", "get", *SEEK, "/again", "min_score", says="0.25")
        finally:
            os.killpg(again.pid, signal.SIGINT)


def test_ros2_param_says_what_a_setting_may_be(segmenter: NodeProcess) -> None:
    ros2(
        "param", "set", *SEEK, "/segmenter", "output.layout", "fancy", says="one of aligned, autoware, append, but got"
    )
    ros2("param", "describe", *SEEK, "/segmenter", "model", says="Read only: true")


def test_ros2_topic_echo_hears_the_class_map_of_a_node_that_has_long_been_there(segmenter: NodeProcess) -> None:
    latched = ("--qos-durability", "transient_local", "--qos-reliability", "reliable")
    topic = ("/segmenter/output/class_map", "std_msgs/msg/String")
    ros2("topic", "echo", "--no-daemon", "--once", "--full-length", *latched, *topic, says='"name": "wall"')


def test_ros2_service_calls_are_answered(segmenter: NodeProcess) -> None:
    for service, kind, request, answer in (
        ("enable", "SetBool", "{data: false}", "disabled by ~/enable"),
        ("reset", "Trigger", "{}", "counters, timings and buffers are empty"),
        ("enable", "SetBool", "{data: true}", "idle: nobody subscribes to an output"),
        ("dump_timings", "Trigger", "{}", '"stages"'),
    ):
        said = ros2("service", "call", f"/segmenter/{service}", f"std_srvs/srv/{kind}", request, says=answer)
        assert "success=True" in said
