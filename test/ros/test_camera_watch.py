"""When a camera counts as silent, on a clock that the test turns."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
from lidar_semseg_ros.ros.camera_watch import CameraWatch
from lidar_semseg_ros.ros.synchronizers import SyncConfig


class Robot:
    """Eight clouds a second, each after an image of whichever camera works."""

    def __init__(self) -> None:
        self.now_s, self.said = 100.0, []
        topics = {"left": "/l/image", "right": "/r/image"}
        self.watch = CameraWatch(topics, "clouds wait", self.said.append, lambda: self.now_s)

    def drive(self, clouds: int, *cameras: str) -> None:
        for _ in range(clouds):
            self.now_s += 0.125
            for camera in cameras:
                self.watch.image(camera)
            self.watch.cloud()


def test_cameras_that_deliver_are_not_talked_about() -> None:
    robot = Robot()
    robot.drive(1000, "left", "right")
    assert robot.said == [] and robot.watch.silences() == ""


def test_a_camera_that_stops_is_named_once_with_its_topic_and_how_long_and_so_is_its_return() -> None:
    robot = Robot()
    robot.drive(5, "left", "right")
    robot.drive(48, "left")
    assert robot.said == ["no image of right has come for 2.0 s on /r/image; until it returns clouds wait"]
    assert robot.watch.silences() == "no image of right has come for 6.0 s on /r/image"
    robot.drive(5, "left", "right")
    assert robot.said[1:] == ["images of right come again, after 6.1 s"] and robot.watch.silences() == ""
    robot.drive(50)
    assert [said.split(" has")[0] for said in robot.said[2:]] == ["no image of left", "no image of right"]


def test_a_camera_that_never_came_is_missed_too() -> None:
    robot = Robot()
    robot.drive(30, "left")
    assert robot.said and robot.said[0].startswith("no image of right has come for 2.0 s")


def test_while_no_clouds_come_either_no_camera_is_missed() -> None:
    robot = Robot()
    robot.drive(5, "left", "right")
    robot.now_s += 60  # a bag that is paused, and played on
    robot.drive(1)
    robot.drive(5, "left", "right")
    assert robot.said == []


def test_who_begins_to_listen_anew_is_patient_anew() -> None:
    robot = Robot()
    robot.drive(50, "left")
    robot.watch.begin()
    assert robot.watch.silences() == ""
    robot.drive(10, "left")
    assert len(robot.said) == 1


@pytest.mark.parametrize(
    ("policy", "cameras", "consequence"),
    [
        ("nearest", 2, "clouds go without it"),
        ("nearest", 1, "every cloud is dropped as no_image"),
        ("approximate", 2, "no cloud is labelled, for sync.policy is approximate"),
        ("exact", 1, "no cloud is labelled, for sync.policy is exact"),
    ],
)
def test_what_a_silent_camera_means_for_the_clouds_depends_on_the_policy_and_the_other_cameras(
    policy: str, cameras: int, consequence: str
) -> None:
    assert SyncConfig(policy=policy).without_a_camera(cameras) == consequence
