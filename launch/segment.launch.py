"""Segment a live lidar, or a recording with bag:=… (which also plays it and sets use_sim_time)."""

import os
from pathlib import Path

import yaml
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

from lidar_semseg_ros.formats.config_files import package_share

SHARE = package_share()
ARGUMENTS = {
    "points": ("/lidar/points", "topic of the lidar's PointCloud2"),
    "image": ("/camera/image_raw", "topic of the camera's Image, for the overlay"),
    "camera_info": ("/camera/camera_info", "topic of its CameraInfo"),
    "bag": ("", "recording to play: ROS 1 .bag, ROS 2 folder, .mcap or .db3"),
    "rate": ("", "speed of playing; empty: as recorded"),
    "loop": ("", "true: play again and again"),
    "model": ("", "model file or name; empty: as in the parameters"),
    "device": ("", "auto, cpu, cuda, cuda:N or tensorrt; empty: as in the parameters"),
    "params_file": (str(SHARE / "config" / "segment.yaml"), "parameters of the segmenter"),
    "record": ("", ".mcap file to record the clouds and their labels to"),
    "rviz": ("false", "true: show the labelled clouds in RViz"),
    "foxglove": ("false", "true: run foxglove_bridge; its layout is config/view/foxglove.json"),
    "use_sim_time": ("false", "take the time from /clock"),
    "namespace": ("", "namespace of the nodes"),
    "log_level": ("info", "what the nodes log"),
}
YES_OR_NO = ["true", "false", "True", "False"]
CHOICES = {
    "rviz": YES_OR_NO,
    "foxglove": YES_OR_NO,
    "use_sim_time": YES_OR_NO,
    "log_level": ["debug", "info", "warn", "error", "fatal"],
}
INPUTS = {"pointcloud": "points", "image": "image", "camera_info": "camera_info"}
PROFILES = {
    "FASTRTPS_DEFAULT_PROFILES_FILE": str(SHARE / "config" / "rmw" / "fastdds.xml"),  # up to Jazzy
    "FASTDDS_DEFAULT_PROFILES_FILE": str(SHARE / "config" / "rmw" / "fastdds.xml"),  # from Kilted on
    "CYCLONEDDS_URI": (SHARE / "config" / "rmw" / "cyclonedds.xml").as_uri(),
}


def fail_together(event, context):
    """End the launch when one of its nodes fails; a player that has played everything ends with status 0."""
    if event.returncode and not context.is_shutdown:
        return [Shutdown()]
    return []


def nodes(context):
    """Make the nodes of the arguments given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    params_file = Path(given["params_file"]).expanduser()
    if not params_file.is_file():
        raise RuntimeError(f"there is no parameter file {params_file}; look at params_file:=")

    def is_true(name):
        return given[name].lower() == "true"

    def chosen(*names):
        # An argument left empty is no parameter, so that the node's own default holds.
        return {name: given[name] for name in names if given[name]}

    def viewer(package, executable, parameters, **more):
        return Node(package=package, executable=executable, namespace=given["namespace"], parameters=parameters, **more)

    def node(executable, parameters, **more):
        return Node(
            package="lidar_semseg_ros",
            executable=executable,
            name=executable,
            namespace=given["namespace"],
            parameters=parameters,
            arguments=["--ros-args", "--log-level", given["log_level"]],
            output="screen",
            on_exit=fail_together,
            **more,
        )

    clock = {"use_sim_time": bool(given["bag"]) or is_true("use_sim_time")}
    actions = []
    # The viewers first: one that is not installed ends the launch, which would leave alive what had been started.
    if is_true("rviz"):
        view = str(SHARE / "config" / "view" / "segment.rviz")
        actions.append(viewer("rviz2", "rviz2", [clock], arguments=["-d", view]))
    if is_true("foxglove"):
        actions.append(viewer("foxglove_bridge", "foxglove_bridge", [clock]))
    remaps = [(f"~/input/{name}", given[topic]) for name, topic in INPUTS.items()]
    actions.append(node("segmenter", [str(params_file), {**chosen("model", "device"), **clock}], remappings=remaps))
    if given["bag"]:
        # The first cloud waits for the model to be loaded, and for the recorder.
        ready = {"wait_for_subscribers": 2 if given["record"] else 1}
        timing = {name: yaml.safe_load(value) for name, value in chosen("rate", "loop").items()}
        actions.append(node("player", [{"bag": given["bag"], **timing, **ready}]))
    if given["record"]:
        outer = context.launch_configurations.get("ros_namespace")
        inside = make_namespace_absolute(prefix_namespace(outer, given["namespace"])) or ""
        outputs = [f"{inside.rstrip('/')}/segmenter/output/{name}" for name in ("pointcloud/segmentation", "class_map")]
        topics = ",".join([given["points"], *outputs])
        # On the wall clock: before the first /clock ROS time is 0, and the class map comes before that.
        actions.append(node("recorder", [{"file": given["record"], "topics": topics}]))
    return actions


def generate_launch_description():
    """Declare the arguments; large clouds need a larger transport than a DDS has by default."""
    transport = [SetEnvironmentVariable(name, os.environ.get(name, value)) for name, value in PROFILES.items()]
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=CHOICES.get(name))
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*transport, *declared, OpaqueFunction(function=nodes)])
