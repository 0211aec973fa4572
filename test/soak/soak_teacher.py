"""Run segmenter and teacher on a looping recording with two cameras, each alone and both, in turns, and count.

lidar-semseg simulate -o two_cameras.mcap --frames 100 --cameras 2 --speed-mps 0.8 --seed 77
python test/soak/soak_teacher.py two_cameras.mcap --minutes 3
python test/soak/soak_teacher.py two_cameras.mcap --minutes 3 --policy other    # the teacher does not yield
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lidar_semseg_ros.cli.live import NodeProcess, live_environment, running
from lidar_semseg_ros.cli.segment_command import SEGMENTATION_TOPIC
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.dataset import LIDAR_TOPIC, PSEUDO_LABEL_TOPIC, camera_to_json, camera_topics
from lidar_semseg_ros.formats.poses import fixed_transforms
from lidar_semseg_ros.formats.rig import recorded_rig

CAMERAS = ("camera_0", "camera_1")
ANSWERS = {"segmenter": SEGMENTATION_TOPIC, "teacher": PSEUDO_LABEL_TOPIC}
TOGETHER = (("segmenter",), ("segmenter", "teacher"), ("teacher",))
"""Who works: a node whose output nobody hears is idle."""
PART_S = 10.0
SETTLE_S = 3.0
"""So long after a change is not counted: what is in work is finished, and pairs are found again."""
STAMP = slice(4, 12)
"""Where a serialised message that begins with a header has its stamp."""


@dataclass
class Part:
    """What was heard while the same nodes worked."""

    lasted_s: float = 0.0
    clouds: int = 0
    latencies_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ANSWERS})

    def figures(self) -> dict[str, object]:
        """Give rates, and the times from a cloud to its answer."""
        found: dict[str, object] = {"clouds_per_s": round(self.clouds / self.lasted_s, 2)}
        for name, taken_s in self.latencies_s.items():
            if taken_s:
                found[f"{name}_per_s"] = round(len(taken_s) / self.lasted_s, 2)
                found[f"{name}_ms_p50_p95"] = [round(float(np.percentile(taken_s, q)) * 1e3) for q in (50, 95)]
        return found


def main() -> None:
    """Print a JSON object: rates of each part, the share of its rate that the segmenter keeps, memory, counters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("--teacher", default="teacher-small")
    parser.add_argument("--policy", default="idle", help="scheduling_policy of the teacher (default: idle)")
    parser.add_argument("--minutes", type=float, default=3.0, help="so long about, in rounds of three parts")
    args = parser.parse_args()
    os.environ.update(live_environment())
    import rclpy

    rclpy.init()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        images = {camera: camera_topics(camera)[0] for camera in CAMERAS}
        write_rig(args.bag, folder / "rig.yaml")
        started = {}
        for node in ANSWERS:
            started[node] = stack.enter_context(started_node(node, args, images, folder))
        for process in started.values():
            process.wait_for("ready for clouds")
        topics = ",".join([LIDAR_TOPIC, "/odom", *images.values()])
        playing = {"bag": str(args.bag), "topics": topics, "loop": True, "clock": False, "wait_for_subscribers": 1}
        stack.enter_context(running("player", playing, {}, folder / "player.log"))
        rounds = max(1, round(args.minutes * 60 / len(TOGETHER) / (SETTLE_S + PART_S)))
        print(json.dumps(measured(started, rounds), indent=1))


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


def started_node(
    name: str, args: argparse.Namespace, images: Mapping[str, str], folder: Path
) -> AbstractContextManager[NodeProcess]:
    """Start the segmenter or the teacher."""
    remaps = {"~/input/pointcloud": LIDAR_TOPIC}
    if name == "segmenter":
        return running(name, {"device": "cpu"}, remaps, folder / f"{name}.log")
    parameters = {"vision.model": args.teacher, "class_map": "", "cameras": ",".join(CAMERAS), "compressed": True}
    parameters |= {"extrinsics.source": "file", "extrinsics.file": str(folder / "rig.yaml")}
    parameters["scheduling_policy"] = args.policy
    remaps |= {"~/input/odometry": "/odom", "~/output/pointcloud/pseudo_labels": PSEUDO_LABEL_TOPIC}
    remaps |= {f"~/input/{camera}/image": topic for camera, topic in images.items()}
    return running(name, parameters, remaps, folder / f"{name}.log")


def measured(started: Mapping[str, NodeProcess], rounds: int) -> dict[str, object]:
    """Let the nodes work in turns, for what else the machine does changes from minute to minute."""
    listener, parts = Listener(), {" and ".join(nodes): Part() for nodes in TOGETHER}
    memory_mb: dict[str, list[float]] = {name: [] for name in started}
    for _ in range(rounds):
        for nodes in TOGETHER:
            listener.wake(nodes)
            listener.spin(SETTLE_S, Part())
            listener.spin(PART_S, parts[" and ".join(nodes)])
        for name, process in started.items():
            memory_mb[name].append(round(process.memory_mb(), 1))
    figures = {name: part.figures() for name, part in parts.items()}
    alone, beside = (figures[name]["segmenter_per_s"] for name in ("segmenter", "segmenter and teacher"))
    return {
        **figures,
        "segmenter_keeps": round(beside / alone, 3),
        "memory_mb_by_round": memory_mb,
        "diagnostics": listener.said,
    }


class Listener:
    """Hears clouds, and the answers of those nodes that are to work."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import PointCloud2

        self._kind, self._node = PointCloud2, rclpy.create_node("listening")
        self._answers: list[Any] = []
        self._part, self._came_s = Part(), {}
        self.said: dict[str, dict[str, str]] = {}
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._read, 10)
        self._node.create_subscription(PointCloud2, LIDAR_TOPIC, self._cloud, 5, raw=True)

    def wake(self, nodes: tuple[str, ...]) -> None:
        """Have these nodes work, and no others."""
        for subscription in self._answers:
            self._node.destroy_subscription(subscription)
        self._answers = [
            self._node.create_subscription(
                self._kind, ANSWERS[name], lambda data, name=name: self._answer(name, data), 5, raw=True
            )
            for name in nodes
        ]

    def spin(self, duration_s: float, part: Part) -> None:
        """Hear what comes for a while and add it to a part."""
        import rclpy

        self._part, begin = part, time.monotonic()
        while time.monotonic() < begin + duration_s:
            rclpy.spin_once(self._node, timeout_sec=0.1)
        part.lasted_s += time.monotonic() - begin

    def _read(self, message: Any) -> None:
        for status in message.status:
            self.said[status.name] = {entry.key: entry.value for entry in status.values}

    def _cloud(self, data: bytes) -> None:
        self._part.clouds += 1
        self._came_s[data[STAMP]] = time.monotonic()

    def _answer(self, name: str, data: bytes) -> None:
        if data[STAMP] in self._came_s:
            self._part.latencies_s[name].append(time.monotonic() - self._came_s[data[STAMP]])


if __name__ == "__main__":
    main()
