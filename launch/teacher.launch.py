"""Pseudo-label a live lidar by its cameras, or a recording with bag:=… (which also plays it and sets use_sim_time)."""

from lidar_semseg_ros.ros.launching import COMMON_ARGUMENTS, SHARE, TEACHER_OUTPUTS, Given, described

ARGUMENTS = COMMON_ARGUMENTS | {
    "points": ("/lidar/points", "topic of the lidar's PointCloud2"),
    "cameras": ("camera", "names of the cameras, comma-separated"),
    "images": ("/{camera}/image_raw/compressed", "topic of each one's images; {camera} stands for its name"),
    "camera_infos": ("/{camera}/camera_info", "topic of each one's CameraInfo"),
    "compressed": ("true", "whether these are CompressedImage"),
    "odometry": ("/odom", "topic of Odometry, by which motion is undone; none need be published"),
    "calibration": ("", "calibration file, or the name of a shipped one; empty: /tf and CameraInfo tell"),
    "record_images": (
        "false",
        "true: record the images too, for students that learn features and for labelling anew",
    ),
    "teacher_model": ("", "folder of a vision model, or its id on the hub; empty: as in the parameters"),
    "params_file": (str(SHARE / "config" / "teacher.yaml"), "parameters of the teacher"),
}


def nodes(context):
    """Make the nodes of the arguments given."""
    given = Given(context, ARGUMENTS)
    cameras = [name.strip() for name in given["cameras"].split(",") if name.strip()]
    images = {name: given["images"].replace("{camera}", name) for name in cameras}
    infos = {name: given["camera_infos"].replace("{camera}", name) for name in cameras}
    remaps = [("~/input/pointcloud", given["points"]), ("~/input/odometry", given["odometry"])]
    for name in cameras:
        remaps += [(f"~/input/{name}/image", images[name]), (f"~/input/{name}/camera_info", infos[name])]
    parameters = {"cameras": given["cameras"], "compressed": given.is_true("compressed"), **given.clock}
    if given["calibration"]:
        parameters |= {"extrinsics.source": "file", "extrinsics.file": given["calibration"]}
    if given["teacher_model"]:
        parameters["vision.model"] = given["teacher_model"]
    actions = [given.node("teacher", [given.file("params_file"), parameters], remappings=remaps)]
    actions += given.player(subscribers=1)  # the recorder hears the labelled clouds, not these
    # With everything that training needs, so that the recording stands for itself; only features need the images.
    beside = [*infos.values(), given["odometry"], "/tf", "/tf_static"]
    if given.is_true("record_images"):
        beside += images.values()
    return actions + given.recorder(beside, {"teacher": TEACHER_OUTPUTS})


def generate_launch_description():
    """Declare the arguments."""
    return described(ARGUMENTS, nodes)
