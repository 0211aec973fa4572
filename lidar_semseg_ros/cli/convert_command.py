"""lidar-semseg convert: loose scans of a data set, with their images, as a recording."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import BagWriter, new_recording
from lidar_semseg_ros.formats.dataset import LIDAR_TOPIC, camera_topics
from lidar_semseg_ros.formats.loose_images import IMAGE_KINDS, image_files, images_of_scans
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
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="CAMERA=PATH",
        help="the .jpg or .png files of a camera, a folder or one, named as the scans or as many; they get their "
        f"scan's stamp, on {camera_topics('CAMERA')[0]} (may be repeated)",
    )


def run(args: argparse.Namespace) -> None:
    """Write one cloud per file, in the order of their names, and the images that go with it."""
    if not args.rate > 0:
        raise UserError(f"--rate must be positive, but it is {args.rate}")
    scans = scan_files(args.scans)
    cameras = _images_by_camera(args.images, scans)
    with new_recording(args.output) as writer:
        for index, scan in enumerate(tqdm(scans, unit="scan", disable=None, file=sys.stderr)):
            stamp_ns = FIRST_STAMP_NS + round(index / args.rate * 1e9)
            writer.write_cloud(args.topic, cloud_from_frame(read_scan(scan, stamp_ns, args.frame)))
            for camera, images in cameras.items():
                _write_image(writer, camera, images[index], stamp_ns)
    print(f"{args.output}: {len(scans)} clouds on {args.topic}")
    for camera, images in cameras.items():
        print(f"  {sum(image is not None for image in images)} images on {camera_topics(camera)[0]}")


def _images_by_camera(arguments: Sequence[str], scans: Sequence[Path]) -> dict[str, list[Path | None]]:
    cameras = {}
    for argument in arguments:
        camera, equals, path = argument.partition("=")
        if not equals or not camera.isidentifier() or camera in cameras:
            raise UserError(f"--images takes CAMERA=PATH with a name of its own per camera, but got '{argument}'")
        cameras[camera] = images_of_scans(scans, image_files(Path(path)))
    return cameras


def _write_image(writer: BagWriter, camera: str, image: Path | None, stamp_ns: int) -> None:
    if image is not None:
        kind = IMAGE_KINDS[image.suffix.lower()]
        writer.write_compressed_image(camera_topics(camera)[0], image.read_bytes(), kind, stamp_ns, camera)
