"""Run the teacher on a looping recording with two cameras, with and without the segmenter beside it, and count.

lidar-semseg simulate -o two_cameras.mcap --frames 100 --cameras 2 --speed-mps 0.8 --seed 77
python test/soak/soak_teacher.py two_cameras.mcap --minutes 3
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import yaml

from lidar_semseg_ros.cli.live import NodeProcess, live_environment, running
from lidar_semseg_ros.cli.segment_command import SEGMENTATION_TOPIC
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.dataset import LIDAR_TOPIC, PSEUDO_LABEL_TOPIC, camera_to_json, camera_topics
from lidar_semseg_ros.formats.poses import fixed_transforms
from lidar_semseg_ros.formats.rig import recorded_rig

CAMERAS = ("camera_0", "camera_1")
WARM_UP_S = 15.0


def main() -> None:
    """Print a JSON object for the segmenter alone, the teacher alone, and both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("--teacher", default="teacher-small")
    parser.add_argument("--minutes", type=float, default=3.0)
    args = parser.parse_args()
    os.environ.update(live_environment())
    import rclpy

    rclpy.init()
    with tempfile.TemporaryDirectory() as folder:
        rig = Path(folder) / "rig.yaml"
        write_rig(args.bag, rig)
        for nodes in (("segmenter",), ("teacher",), ("segmenter", "teacher")):
            print(json.dumps({" and ".join(nodes): measured(args, nodes, rig, Path(folder))}), flush=True)


def write_rig(bag: Path, path: Path) -> None:
    """Say in a calibration file what the recording says of its cameras: live, only tf2 could tell."""
    with open_bag(bag) as opened:
        frame_id = str(next(opened.messages([LIDAR_TOPIC])).message().header.frame_id)
        found = recorded_rig(opened, LIDAR_TOPIC, frame_id, fixed_transforms(opened), None)
    cameras = {}
    for camera in found.cameras:
        said = camera_to_json(camera.camera, camera.camera_from_lidar)
        matrix = np.reshape(said.pop("camera_from_lidar"), (4, 4)).tolist()
        cameras[camera.name] = {**said, "direction": "camera_from_lidar", "matrix": matrix}
    path.write_text(yaml.safe_dump({"lidars": {frame_id: {"stamp": "start"}}, "cameras": cameras}))


def measured(args: argparse.Namespace, nodes: tuple[str, ...], rig: Path, folder: Path) -> dict[str, object]:
    """Run some of the nodes on a recording at its own rate."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from sensor_msgs.msg import PointCloud2

    images = {name: camera_topics(name)[0] for name in CAMERAS}
    listening = rclpy.create_node("listening")
    arrived: Counter[str] = Counter()
    said: dict[str, dict[str, str]] = {}

    def hear(message: DiagnosticArray) -> None:
        for status in message.status:
            said[status.name] = {entry.key: entry.value for entry in status.values}

    listening.create_subscription(DiagnosticArray, "/diagnostics", hear, 10)
    answers = {"segmenter": SEGMENTATION_TOPIC, "teacher": PSEUDO_LABEL_TOPIC}
    for topic in (LIDAR_TOPIC, *(answers[node] for node in nodes)):
        listening.create_subscription(PointCloud2, topic, lambda _, topic=topic: arrived.update([topic]), 5, raw=True)
    with ExitStack() as stack:
        started = {node: stack.enter_context(started_node(node, args.teacher, images, rig, folder)) for node in nodes}
        for node in started.values():
            node.wait_for("ready for clouds")
        topics = ",".join([LIDAR_TOPIC, "/odom", *images.values()])
        playing = {"bag": str(args.bag), "topics": topics, "loop": True, "clock": False}
        playing["wait_for_subscribers"] = 1 + len(nodes)
        stack.enter_context(running("player", playing, {}, folder / "player.log"))
        spin(listening, WARM_UP_S)
        arrived.clear()
        before = {name: node.memory_mb() for name, node in started.items()}
        begin = time.monotonic()
        spin(listening, args.minutes * 60)
        lasted_s = time.monotonic() - begin
        figures: dict[str, object] = {"clouds_per_s": round(arrived[LIDAR_TOPIC] / lasted_s, 2)}
        for name, node in started.items():
            figures[f"{name}_per_s"] = round(arrived[answers[name]] / lasted_s, 2)
            figures[f"{name}_mb"] = [round(before[name], 1), round(node.memory_mb(), 1)]
    listening.destroy_node()
    return {**figures, "diagnostics": said}


def started_node(name: str, teacher: str, images: dict[str, str], rig: Path, folder: Path) -> NodeProcess:
    """Start the segmenter or the teacher."""
    remaps = {"~/input/pointcloud": LIDAR_TOPIC}
    if name == "segmenter":
        return running(name, {"device": "cpu"}, remaps, folder / f"{name}.log")
    parameters = {"vision.model": teacher, "class_map": "", "cameras": ",".join(CAMERAS), "compressed": True}
    parameters |= {"extrinsics.source": "file", "extrinsics.file": str(rig)}
    remaps |= {"~/input/odometry": "/odom", "~/output/pointcloud/pseudo_labels": PSEUDO_LABEL_TOPIC}
    remaps |= {f"~/input/{camera}/image": topic for camera, topic in images.items()}
    return running(name, parameters, remaps, folder / f"{name}.log")


def spin(node: object, duration_s: float) -> None:
    """Hear what comes for a while."""
    import rclpy

    end = time.monotonic() + duration_s
    while time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)


if __name__ == "__main__":
    main()
