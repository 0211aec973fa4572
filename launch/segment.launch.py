"""Segment a live lidar, or a recording with bag:=… (which also plays it and sets use_sim_time)."""

from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from lidar_semseg_ros.ros.launching import COMMON_ARGUMENTS, SHARE, Given, described

ARGUMENTS = COMMON_ARGUMENTS | {
    "lidars": ("", "names of several lidars, comma-separated: each has its own node, NAME/segmenter, in one process"),
    "points": (
        "/{lidar}/points",
        "topic of the lidar's PointCloud2; {lidar} stands for its name among several, or lidar",
    ),
    "image": ("/camera/image_raw", "topic of the camera's Image, for the overlay"),
    "camera_info": ("/camera/camera_info", "topic of its CameraInfo"),
    "model": ("", "model file or name; empty: as in the parameters"),
    "device": ("", "auto, cpu, cuda, cuda:N or tensorrt; empty: as in the parameters"),
    "params_file": (str(SHARE / "config" / "segment.yaml"), "parameters of the segmenter"),
    "teacher": (
        "false",
        "true: pseudo-label the clouds, too (of several lidars the first one's), with the arguments of "
        "teacher.launch.py",
    ),
    "rviz": ("false", "true: show the labelled clouds in RViz"),
    "foxglove": ("false", "true: run foxglove_bridge; its layout is config/view/foxglove.json"),
}


def nodes(context):
    """Make the nodes of the arguments given."""
    given = Given(context, ARGUMENTS)
    params_file = given.file("params_file")
    lidars = [name.strip() for name in given["lidars"].split(",") if name.strip()]
    if len(lidars) > 1 and "{lidar}" not in given["points"]:
        raise RuntimeError(
            f"points:={given['points']} would give {', '.join(lidars)} the same clouds; write {{lidar}} where the "
            "name of each belongs, as in points:=/{lidar}/points"
        )
    points = [given["points"].replace("{lidar}", name) for name in lidars or ["lidar"]]
    segmenters = [f"{name}/segmenter" for name in lidars] or ["segmenter"]

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
        only_the_teacher["points"] = points[0]
        only_the_teacher["params_file"] = str(SHARE / "config" / "teacher.yaml")
        actions.append(IncludeLaunchDescription(source, launch_arguments=only_the_teacher.items()))
    inputs = [f"{given.inside}/{name}/input/pointcloud" for name in segmenters] if lidars else ["~/input/pointcloud"]
    remaps = [*zip(inputs, points), *((f"~/input/{name}", given[name]) for name in ("image", "camera_info"))]
    parameters = [params_file, {**given.parameters("model", "device"), **given.clock}]
    actions.append(given.node("segmenter", parameters, lidars, remappings=remaps))
    actions += given.player(subscribers=1 + given.is_true("teacher"))
    outputs = ["pointcloud/segmentation", "class_map"]
    return actions + given.recorder(points, {name: outputs for name in segmenters})


def generate_launch_description():
    """Declare the arguments."""
    return described(ARGUMENTS, nodes)
