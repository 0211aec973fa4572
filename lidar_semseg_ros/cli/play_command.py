"""lidar-semseg play: the player node as a command."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from typing import Any

from lidar_semseg_ros.cli.settings import add_settings, config_from, given_settings
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.playback import PlaybackConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bag", help="a ROS 1 .bag, a ROS 2 bag folder, an .mcap or a .db3 file")
    add_settings(parser, PlaybackConfig, leave_out=["bag", "keyboard"])


def run(args: argparse.Namespace) -> None:
    """Become the player node, obeying the keyboard where there is one."""
    config_from(args, PlaybackConfig)  # faults are told here rather than by the node
    has_keyboard = sys.stdin is not None and sys.stdin.isatty()  # it is None where the shell closed it
    command = node_command("player", given_settings(args) | {"bag": args.bag, "keyboard": has_keyboard})
    os.execv(command[0], command)


def node_command(node: str, parameters: dict[str, Any]) -> list[str]:
    """Give the command line that runs a node with parameters; UserError where ROS 2 is not installed."""
    if importlib.util.find_spec("rclpy") is None:
        raise UserError("this needs ROS 2: source an installation, or `pip install 'lidar_semseg_ros[ros]'`")
    command = [sys.executable, "-m", f"lidar_semseg_ros.ros.{node}_node", "--ros-args"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={json.dumps(value)}"]
    return command
