"""How a node as a process answers to signals, whatever it is doing just then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("rclpy")

from lidar_semseg_ros.cli.live import live_environment
from lidar_semseg_ros.ros.process import SHUTDOWN_CHECK_S

# Python looks for signals between two calls, and would not see one that comes just before a single long sleep begins.
SLOW_TO_MAKE = """
    print("here", flush=True)
    eval("[time.sleep(0.05) for _ in range(1200)]")
"""
IN_A_CALLBACK = """
    node = rclpy.create_node("subject")
    def work():
        print("here", flush=True)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
        print("written whole", flush=True)
    node.create_timer(0.01, work)
    return node
"""
FAILING_WITHOUT_CONTEXT = """
    print("here", flush=True)
    while rclpy.ok():
        try:
            time.sleep(0.1)
        except BaseException:
            pass  # as C code and destructors swallow what a signal's handler raises
    return rclpy.create_node("subject")
"""
ASLEEP = """
    node = rclpy.create_node("subject")
    once = node.create_timer(0.0, lambda: (once.cancel(), print("here", flush=True)))
    return node
"""


def started(make_node: str, *arguments: str) -> subprocess.Popen[str]:
    script = (
        "import sys, time, rclpy\n"
        "from lidar_semseg_ros.ros.process import run_node\n"
        f"def make_node():{make_node}\n"
        "sys.exit(run_node(make_node))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=live_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "make_node",
    [SLOW_TO_MAKE, IN_A_CALLBACK, FAILING_WITHOUT_CONTEXT, ASLEEP],
    ids=["while it is made", "in a callback", "deaf while it is made", "asleep"],
)
def test_a_signal_ends_a_node_with_status_0_whatever_it_does(make_node: str, number: int) -> None:
    with started(make_node) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        said, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (0, "")
    # A callback is not torn: a recording must not end within a message.
    assert said.count("here") + 1 == said.count("written whole") or make_node != IN_A_CALLBACK


def test_pressing_ctrl_c_again_and_again_is_no_failure() -> None:
    with started(IN_A_CALLBACK) as process:
        process.stdout.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode == 0, process.stderr.read()


@pytest.mark.parametrize("arguments", [("--log-level", "loud"), ("--params-file", os.devnull + "/none"), ("--wrong",)])
def test_ros_arguments_that_ros_refuses_are_an_error_in_one_line(arguments: tuple[str, ...]) -> None:
    with started(ASLEEP, "--ros-args", *arguments) as process:
        _, complaints = process.communicate(timeout=20)
    assert process.returncode == 2
    assert complaints.splitlines()[-1].startswith("error: ROS did not start with these arguments: ")
    assert arguments[-1].strip("-") in complaints and "Traceback" not in complaints


def test_a_node_looks_often_enough_whether_it_was_told_to_stop() -> None:
    assert SHUTDOWN_CHECK_S < 1.0  # of the 2 s in which a node promises to end
