"""lidar-semseg simulate: a drive through a simulated building as an ordinary recording."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from lidar_semseg_ros.cli.settings import add_settings, config_from
from lidar_semseg_ros.formats.bags import BagWriter, new_recording
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
    with new_recording(output) as writer:
        frames = tqdm(drive(config), total=config.frames, unit="sweep", disable=None, file=sys.stderr)
        for index, simulated in enumerate(frames):
            if index == 0:
                _write_constants(writer, simulated)
            _write_frame(writer, simulated)


def _write_constants(writer: BagWriter, simulated: SimulatedFrame) -> None:
    stamp_ns = simulated.frame.stamp_ns
    transforms = {("base_link", simulated.frame.frame_id): simulated.base_from_lidar}
    transforms |= {("base_link", camera.name): camera.base_from_camera for camera, _, _ in simulated.images}
    writer.write_tf_static(transforms, stamp_ns)
    writer.write_json(CLASS_MAP_TOPIC, json.dumps(class_table("indoor17").to_mapping()), stamp_ns)


def _write_frame(writer: BagWriter, simulated: SimulatedFrame) -> None:
    frame = simulated.frame
    writer.write_pose(simulated.map_from_base, frame.stamp_ns)
    # The labels first: who reads along has them when the cloud comes.
    writer.write_class_ids(LABEL_TOPIC, simulated.labels.reshape(frame.shape), frame.stamp_ns, frame.frame_id)
    writer.write_cloud(LIDAR_TOPIC, cloud_from_frame(frame))
    for camera, image, classes in simulated.images:
        image_topic, info_topic = camera_topics(camera.name)
        writer.write_camera_info(info_topic, camera.model, image.stamp_ns, image.frame_id)
        writer.write_image(image_topic, image, jpeg=True)
        writer.write_class_ids(f"/ground_truth/{camera.name}", classes, image.stamp_ns, image.frame_id)
