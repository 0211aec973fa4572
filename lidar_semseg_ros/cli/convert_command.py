"""lidar-semseg convert: loose scans of a data set as a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import BagWriter
from lidar_semseg_ros.formats.dataset import LIDAR_TOPIC
from lidar_semseg_ros.formats.loose_scans import read_scan, scan_files
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame

FIRST_STAMP_NS = 1_000_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("scans", type=Path, help="a folder of .bin (KITTI), .pcd.bin (nuScenes) or .pcd files, or one")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .mcap file to write")
    parser.add_argument("--rate", type=float, default=10.0, help="sweeps per second, for the stamps (default: 10)")
    parser.add_argument("--topic", default=LIDAR_TOPIC, help=f"the cloud topic (default: {LIDAR_TOPIC})")
    parser.add_argument("--frame", default="lidar", help="the frame_id of the clouds (default: lidar)")


def run(args: argparse.Namespace) -> None:
    """Write one cloud per file, in the order of their names."""
    if not args.rate > 0:
        raise UserError(f"--rate must be positive, but it is {args.rate}")
    files = scan_files(args.scans)
    with BagWriter(args.output) as writer:
        for index, file in enumerate(tqdm(files, unit="scan", disable=None, file=sys.stderr)):
            stamp_ns = FIRST_STAMP_NS + round(index / args.rate * 1e9)
            writer.write_cloud(args.topic, cloud_from_frame(read_scan(file, stamp_ns, args.frame)))
    print(f"{args.output}: {len(files)} clouds on {args.topic}")
