"""Segment a live lidar, or a recording with bag:=… (which also plays it and sets use_sim_time)."""

import tempfile

import yaml
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from lidar_semseg_ros.ros.launching import COMMON_ARGUMENTS, SHARE, TEACHER_OUTPUTS, Given, described

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
        "true: pseudo-label the clouds, too (of several lidars the first one's), with cameras, images, calibration … "
        "as in teacher.launch.py; record gets its labels, too, but not all that training needs, as there",
    ),
    "teacher_params_file": (str(SHARE / "config" / "teacher.yaml"), "parameters of the teacher"),
    "rviz": ("false", "true: show the labelled clouds of all lidars in RViz"),
    "fixed_frame": ("", "RViz's fixed frame: the lidar's own, or one that /tf leads to from it; empty: lidar"),
    "foxglove": (
        "false",
        "true: run foxglove_bridge. Its layout, config/view/foxglove.json, shows /segmenter: with namespace or lidars "
        "choose their topics in its panels. It needs no fixed frame",
    ),
}


def view(segmenters, fixed_frame):
    """Write the view of config/view/segment.rviz for these segmenters, named absolutely, and give its path."""
    settings = yaml.safe_load((SHARE / "config" / "view" / "segment.rviz").read_text())
    manager = settings["Visualization Manager"]
    if fixed_frame:
        manager["Global Options"]["Fixed Frame"] = fixed_frame
    shown = [display for display in manager["Displays"] if "Topic" not in display]
    for name in segmenters:
        for display in manager["Displays"]:
            if "Topic" in display:
                topic = display["Topic"]["Value"].replace("/segmenter", name, 1)
                named = {"Name": f"{display['Name']} of {name}", "Topic": display["Topic"] | {"Value": topic}}
                shown.append(display | named)
    manager["Displays"] = shown
    with tempfile.NamedTemporaryFile("w", prefix="segment_", suffix=".rviz", delete=False) as file:
        yaml.safe_dump(settings, file, sort_keys=False)
    return file.name


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
        seen = view([f"{given.inside}/{name}" for name in segmenters], given["fixed_frame"])
        actions.append(viewer("rviz2", "rviz2", arguments=["-d", seen]))
    if given.is_true("foxglove"):
        actions.append(viewer("foxglove_bridge", "foxglove_bridge"))
    if given.is_true("teacher"):
        source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "teacher.launch.py"))
        only_the_teacher = {"bag": "", "record": "", "use_sim_time": str(given.clock["use_sim_time"]).lower()}
        only_the_teacher["points"] = points[0]
        only_the_teacher["params_file"] = given["teacher_params_file"]
        actions.append(IncludeLaunchDescription(source, launch_arguments=only_the_teacher.items()))
    inputs = [f"{given.inside}/{name}/input/pointcloud" for name in segmenters] if lidars else ["~/input/pointcloud"]
    remaps = [*zip(inputs, points), *((f"~/input/{name}", given[name]) for name in ("image", "camera_info"))]
    parameters = [params_file, {**given.parameters("model", "device"), **given.clock}]
    actions.append(given.node("segmenter", parameters, lidars, remappings=remaps))
    outputs = {name: ["pointcloud/segmentation", "class_map"] for name in segmenters}
    if given.is_true("teacher"):
        outputs["teacher"] = TEACHER_OUTPUTS
    # The first lidar's clouds are heard by its segmenter and, where there is a recorder, by that and by the teacher,
    # whose labels it wants; without one, nobody need listen to a teacher, which then does not listen either.
    actions += given.player(subscribers=2 + given.is_true("teacher") if given["record"] else 1)
    return actions + given.recorder(points, outputs)


def generate_launch_description():
    """Declare the arguments."""
    return described(ARGUMENTS, nodes)
