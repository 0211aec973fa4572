"""What the launch files have in common: arguments, the transport of large clouds, nodes that end together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

from lidar_semseg_ros.formats.config_files import package_share

SHARE = package_share()
PROFILES = {
    "FASTRTPS_DEFAULT_PROFILES_FILE": str(SHARE / "config" / "rmw" / "fastdds.xml"),  # up to Jazzy
    "FASTDDS_DEFAULT_PROFILES_FILE": str(SHARE / "config" / "rmw" / "fastdds.xml"),  # from Kilted on
    "CYCLONEDDS_URI": (SHARE / "config" / "rmw" / "cyclonedds.xml").as_uri(),
}
COMMON_ARGUMENTS = {
    "bag": ("", "recording to play: ROS 1 .bag, ROS 2 folder, .mcap or .db3"),
    "rate": ("", "speed of playing; empty: as recorded"),
    "loop": ("", "true: play again and again"),
    "record": ("", ".mcap file to record the clouds and their labels to"),
    "use_sim_time": ("false", "take the time from /clock"),
    "namespace": ("", "namespace of the nodes"),
    "log_level": ("info", "what the nodes log"),
}
TEACHER_OUTPUTS = ["pointcloud/pseudo_labels", "class_map", "settings"]
"""What is recorded of a teacher."""
YES_OR_NO = ["true", "false", "True", "False"]
CHOICES = {
    "rviz": YES_OR_NO,
    "foxglove": YES_OR_NO,
    "teacher": YES_OR_NO,
    "record_images": YES_OR_NO,
    "compressed": YES_OR_NO,
    "loop": ["", *YES_OR_NO],
    "use_sim_time": YES_OR_NO,
    "log_level": ["debug", "info", "warn", "error", "fatal"],
}


class Given:
    """The arguments of a launch, and the nodes that follow from them."""

    def __init__(self, context: LaunchContext, names: Mapping[str, Any]) -> None:
        self._context = context
        self._values = {name: str(LaunchConfiguration(name).perform(context)) for name in names}
        self.clock = {"use_sim_time": bool(self["bag"]) or self.is_true("use_sim_time")}

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def is_true(self, name: str) -> bool:
        """Tell whether a switch is on."""
        return self[name].lower() == "true"

    def parameters(self, *names: str) -> dict[str, str]:
        """Give those that are not empty: an argument left empty is no parameter, so that the node's default holds."""
        return {name: self[name] for name in names if self[name]}

    def file(self, name: str) -> str:
        """Give the path of a file that must be there."""
        path = Path(self[name]).expanduser()
        if not path.is_file():
            raise RuntimeError(f"there is no parameter file {path}; look at {name}:=")
        return str(path)

    @property
    def inside(self) -> str:
        """The namespace of the nodes, absolute and without a slash at its end."""
        outer = self._context.launch_configurations.get("ros_namespace")
        return (make_namespace_absolute(prefix_namespace(outer, self["namespace"])) or "").rstrip("/")

    def node(self, executable: str, parameters: list[Any], lidars: Sequence[str] = (), **more: Any) -> Node:
        """Make a node of this package, or one for each of several lidars; its failure ends the launch."""
        # With a name, launch would give the parameters to the node of that name in the namespace given, and no other.
        several = ["--lidars", ",".join(lidars)] if lidars else []
        return Node(
            package="lidar_semseg_ros",
            executable=executable,
            name=None if lidars else executable,
            namespace=self["namespace"],
            parameters=parameters,
            arguments=[*several, "--ros-args", "--log-level", self["log_level"]],
            output="screen",
            on_exit=_fail_together,
            **more,
        )

    def player(self, subscribers: int) -> list[Node]:
        """Play the bag, if there is one, once so many subscribers hear its clouds: models take time to load."""
        if not self["bag"]:
            return []
        timing = {name: yaml.safe_load(value) for name, value in self.parameters("rate", "loop").items()}
        return [self.node("player", [{"bag": self["bag"], **timing, "wait_for_subscribers": subscribers}])]

    def recorder(self, topics: list[str], outputs: Mapping[str, list[str]]) -> list[Node]:
        """Record, if a file is given, topics and outputs of nodes: {node: [names below ~/output]}."""
        if not self["record"]:
            return []
        made = [f"{self.inside}/{node}/output/{name}" for node, names in outputs.items() for name in names]
        # On the wall clock: before the first /clock ROS time is 0, and the class map comes before that.
        return [self.node("recorder", [{"file": self["record"], "topics": ",".join([*topics, *made])}])]


def _fail_together(event: Any, context: LaunchContext) -> list[Shutdown]:
    """End the launch when one of its nodes fails; a player that has played everything ends with status 0."""
    if event.returncode and not context.is_shutdown:
        return [Shutdown()]
    return []


def described(
    arguments: Mapping[str, tuple[str, str]], nodes: Callable[[LaunchContext], list[Any]]
) -> LaunchDescription:
    """Declare arguments {name: (default, what it is)}; large clouds need more room than a DDS gives by default."""
    transport = [SetEnvironmentVariable(name, os.environ.get(name, value)) for name, value in PROFILES.items()]
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=CHOICES.get(name))
        for name, (default, description) in arguments.items()
    ]
    return LaunchDescription([*transport, *declared, OpaqueFunction(function=nodes)])
