"""Simulate a drive through a building, once, and segment it live, again and again, without any sensor.

This is segment.launch.py with a recording of its own; its other arguments (rviz, foxglove, model, …) hold here, too.
"""

import sys
from pathlib import Path

from launch.actions import ExecuteProcess, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from lidar_semseg_ros.ros.launching import COMMON_ARGUMENTS, SHARE, described

ARGUMENTS = {name: COMMON_ARGUMENTS[name] for name in ("rate", "record", "namespace", "log_level")} | {
    "folder": ("demo", "where the drive is kept, drive.mcap: the one that `lidar-semseg demo` makes"),
    "loop": ("true", "false: play it once"),
    "image": ("/camera_0/image_raw/compressed", "topic of the simulated camera's images, for the overlay"),
    "camera_info": ("/camera_0/camera_info", "topic of its CameraInfo"),
    "params_file": (str(SHARE / "config" / "demo.yaml"), "parameters of the segmenter"),
}


def nodes(context):
    """Make the drive, then all that segment.launch.py makes."""
    folder = Path(LaunchConfiguration("folder").perform(context)).expanduser()
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "segment.launch.py"))
    segment = IncludeLaunchDescription(source, launch_arguments={"bag": str(folder / "drive.mcap")}.items())

    def go_on(event, context):
        if context.is_shutdown:
            return []
        return [Shutdown(reason="there is no drive to segment") if event.returncode else segment]

    command = [sys.executable, "-m", "lidar_semseg_ros.cli.main", "demo", "--only-simulate", "--output", str(folder)]
    return [ExecuteProcess(cmd=command, name="simulate", output="screen", on_exit=go_on)]


def generate_launch_description():
    """Declare the arguments."""
    return described(ARGUMENTS, nodes)
