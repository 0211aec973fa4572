"""Segment a live lidar, or a recording with bag:=… (which also plays it and sets use_sim_time)."""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, PushRosNamespace

from lidar_semseg_ros.formats.config_files import package_share

ARGUMENTS = {
    "points": ("/lidar/points", "topic of the lidar's PointCloud2"),
    "bag": ("", "recording to play: ROS 1 .bag, ROS 2 folder, .mcap or .db3"),
    "rate": ("1.0", "speed of playing"),
    "loop": ("false", "play again and again"),
    "model": ("", "model file or name; empty: as in the parameters"),
    "device": ("", "auto, cpu, cuda, cuda:N or tensorrt; empty: as in the parameters"),
    "params_file": (str(package_share() / "config" / "segment.yaml"), "parameters of the segmenter"),
    "record": ("", ".mcap file to record the labelled clouds to"),
    "use_sim_time": ("false", "take the time from /clock"),
    "namespace": ("", "namespace of the nodes"),
    "log_level": ("info", "debug, info, warn, error"),
}


def nodes(context):
    """Make the nodes of the arguments given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    sim_time = bool(given["bag"]) or given["use_sim_time"].lower() == "true"
    chosen = {name: given[name] for name in ("model", "device") if given[name]}
    log = ["--ros-args", "--log-level", given["log_level"]]
    actions = [
        PushRosNamespace(given["namespace"]),
        Node(
            package="lidar_semseg_ros",
            executable="segmenter",
            name="segmenter",
            parameters=[given["params_file"], {**chosen, "use_sim_time": sim_time}],
            remappings=[("~/input/pointcloud", given["points"])],
            arguments=log,
            output="screen",
        ),
    ]
    if given["bag"]:
        playing = {"bag": given["bag"], "rate": float(given["rate"]), "loop": given["loop"].lower() == "true"}
        # Start with the first cloud only once the model is loaded.
        playing["wait_for_subscribers"] = 1
        actions.append(
            Node(package="lidar_semseg_ros", executable="player", name="player", parameters=[playing], output="screen")
        )
    if given["record"]:
        segmenter = "/".join(["", *filter(None, [given["namespace"].strip("/"), "segmenter"])])
        topics = f"{given['points']},{segmenter}/output/pointcloud/segmentation,{segmenter}/output/class_map"
        recording = {"file": given["record"], "topics": topics, "use_sim_time": sim_time}
        actions.append(
            Node(
                package="lidar_semseg_ros",
                executable="recorder",
                name="recorder",
                parameters=[recording],
                output="screen",
            )
        )
    return actions


def generate_launch_description():
    """Declare the arguments; large clouds need a larger transport than Fast DDS has by default."""
    profile = str(package_share() / "config" / "rmw" / "fastdds.xml")
    transport = [
        SetEnvironmentVariable(name, os.environ.get(name, profile))
        for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    ]
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*transport, *declared, OpaqueFunction(function=nodes)])
