"""Segment a live lidar, or a recording with bag:=… (which also plays it and sets use_sim_time)."""

from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from lidar_semseg_ros.ros.launching import COMMON_ARGUMENTS, SHARE, Given, described

ARGUMENTS = COMMON_ARGUMENTS | {
    "points": ("/lidar/points", "topic of the lidar's PointCloud2"),
    "image": ("/camera/image_raw", "topic of the camera's Image, for the overlay"),
    "camera_info": ("/camera/camera_info", "topic of its CameraInfo"),
    "model": ("", "model file or name; empty: as in the parameters"),
    "device": ("", "auto, cpu, cuda, cuda:N or tensorrt; empty: as in the parameters"),
    "params_file": (str(SHARE / "config" / "segment.yaml"), "parameters of the segmenter"),
    "teacher": ("false", "true: pseudo-label the clouds, too, with the arguments of teacher.launch.py"),
    "rviz": ("false", "true: show the labelled clouds in RViz"),
    "foxglove": ("false", "true: run foxglove_bridge; its layout is config/view/foxglove.json"),
}
INPUTS = {"pointcloud": "points", "image": "image", "camera_info": "camera_info"}


def nodes(context):
    """Make the nodes of the arguments given."""
    given = Given(context, ARGUMENTS)
    params_file = given.file("params_file")

    def viewer(package, executable, **more):
        return Node(
            package=package, executable=executable, namespace=given["namespace"], parameters=[given.clock], **more
        )

    actions = []
    # The viewers first: one that is not installed ends the launch, which would leave alive what had been started.
    if given.is_true("rviz"):
        view = str(SHARE / "config" / "view" / "segment.rviz")
        actions.append(viewer("rviz2", "rviz2", arguments=["-d", view]))
    if given.is_true("foxglove"):
        actions.append(viewer("foxglove_bridge", "foxglove_bridge"))
    if given.is_true("teacher"):
        source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "teacher.launch.py"))
        only_the_teacher = {"bag": "", "record": "", "use_sim_time": str(given.clock["use_sim_time"]).lower()}
        only_the_teacher["params_file"] = str(SHARE / "config" / "teacher.yaml")
        actions.append(IncludeLaunchDescription(source, launch_arguments=only_the_teacher.items()))
    remaps = [(f"~/input/{name}", given[topic]) for name, topic in INPUTS.items()]
    parameters = [params_file, {**given.parameters("model", "device"), **given.clock}]
    actions.append(given.node("segmenter", parameters, remappings=remaps))
    actions += given.player(subscribers=1 + given.is_true("teacher"))
    return actions + given.recorder([given["points"]], {"segmenter": ["pointcloud/segmentation", "class_map"]})


def generate_launch_description():
    """Declare the arguments."""
    return described(ARGUMENTS, nodes)
