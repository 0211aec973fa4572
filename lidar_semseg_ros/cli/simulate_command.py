"""lidar-semseg simulate: a drive through a simulated building as an ordinary recording."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from lidar_semseg_ros.cli.settings import add_settings, config_from
from lidar_semseg_ros.core.geometry import invert_rigid
from lidar_semseg_ros.formats.bags import BagWriter
from lidar_semseg_ros.formats.config_files import class_table
from lidar_semseg_ros.formats.dataset import CLASS_MAP_TOPIC, LABEL_TOPIC, LIDAR_TOPIC, camera_topics
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame
from lidar_semseg_ros.sim.drive import SimConfig, SimulatedFrame, drive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .mcap file to write")
    add_settings(parser, SimConfig)


def run(args: argparse.Namespace) -> None:
    """Record the drive."""
    config = config_from(args, SimConfig)
    simulate(config, args.output)
    print(f"{args.output}: {config.frames} sweeps of a {config.lidar}, {config.cameras} cameras, seed {config.seed}")


def simulate(config: SimConfig, output: Path) -> None:
    """Write clouds, images, camera_info, transforms, poses and exact labels."""
    with BagWriter(output) as writer:
        frames = tqdm(drive(config), total=config.frames, unit="sweep", disable=None, file=sys.stderr)
        for index, simulated in enumerate(frames):
            if index == 0:
                _write_constants(writer, simulated)
            _write_frame(writer, simulated)
