"""Run the segmenter on a looping recording for long, and see whether it stays as it was: memory, threads, latency.

lidar-semseg simulate -o minute.mcap --frames 600 --cameras 0 --seed 77
python test/soak/soak_segmenter.py minute.mcap --minutes 60
python test/soak/soak_segmenter.py minute.mcap --minutes 1 --idle     # nobody subscribes: what it costs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lidar_semseg_ros.cli.live import NodeProcess, live_environment, running
from lidar_semseg_ros.core.memory import keep_freed_memory

SAMPLE_S = 10.0
WARM_UP_S = 60.0
PART_S = 600.0
"""The first and the last ten minutes are compared."""


def main() -> None:
    """Print a line per minute and the verdict at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("--topic", default="/lidar/points")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--idle", action="store_true", help="subscribe to nothing")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    os.environ.update(live_environment())
    keep_freed_memory()  # so that listening costs little
    import rclpy
    from rclpy.executors import ExternalShutdownException

    rclpy.init()
    watcher = Watcher(args.topic, args.idle)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder)
        playing = {"bag": str(args.bag), "topics": args.topic, "loop": True, "clock": False}
        playing["wait_for_subscribers"] = 0 if args.idle else 2
        with running("segmenter", {"device": args.device}, {"~/input/pointcloud": args.topic}, log / "s.log") as node:
            node.wait_for("ready for clouds")
            with running("player", playing, {}, log / "p.log"):
                try:
                    samples = watch(watcher, node, args.minutes * 60)
                except (KeyboardInterrupt, ExternalShutdownException):
                    return
    print(json.dumps(verdict(samples, watcher), indent=1))


class Watcher:
    """Hears the input and the labelled cloud, and notes how long each answer took."""

    def __init__(self, topic: str, idle: bool) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import PointCloud2

        from lidar_semseg_ros.cli.segment_command import SEGMENTATION_TOPIC

        self.node = rclpy.create_node("soak")
        self.latencies_s: list[tuple[float, float]] = []
        self.counts: dict[str, str] = {}
        self._sent: dict[bytes, float] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._count, 10)
        if not idle:
            self.node.create_subscription(PointCloud2, topic, self._note, 5, raw=True)
            self.node.create_subscription(PointCloud2, SEGMENTATION_TOPIC, self._answer, 5, raw=True)

    def _note(self, data: bytes) -> None:
        self._sent[data[4:12]] = time.monotonic()

    def _answer(self, data: bytes) -> None:
        stamp = data[4:12]
        if stamp in self._sent:
            now = time.monotonic()
            self.latencies_s.append((now, now - self._sent[stamp]))

    def _count(self, message: object) -> None:
        for status in message.status:
            self.counts = {entry.key: entry.value for entry in status.values}


def watch(watcher: Watcher, node: NodeProcess, duration_s: float) -> np.ndarray:
    """Sample (time, RSS in MB, threads, CPU seconds) of the segmenter until the time is over."""
    import rclpy

    start = time.monotonic()
    samples: list[tuple[float, float, int, float]] = []
    while (now := time.monotonic() - start) < duration_s:
        rclpy.spin_once(watcher.node, timeout_sec=0.1)
        if now >= len(samples) * SAMPLE_S:
            samples.append((now, node.memory_mb(), *_threads_and_cpu(node.process.pid)))
            if len(samples) % 6 == 1:
                print("{:6.0f} s  {:7.1f} MB  {:3d} threads  {:7.1f} CPU s".format(*samples[-1]), file=sys.stderr)
    return np.array(samples)


def _threads_and_cpu(pid: int) -> tuple[int, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[17]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def verdict(samples: np.ndarray, watcher: Watcher) -> dict[str, object]:
    """Sum up: slope of the memory after the warm-up, threads, CPU, latency at the beginning and at the end."""
    settled = samples[samples[:, 0] >= min(WARM_UP_S, samples[-1, 0] / 2)]
    slope_mb_per_s = np.polyfit(settled[:, 0], settled[:, 1], 1)[0] if len(settled) > 2 else float("nan")
    figures: dict[str, object] = {
        "minutes": round(samples[-1, 0] / 60, 1),
        "rss_mb": [round(float(settled[0, 1]), 1), round(float(settled[-1, 1]), 1)],
        "rss_slope_mb_per_10_min": round(float(slope_mb_per_s * 600), 3),
        "threads": [int(settled[0, 2]), int(settled[-1, 2])],
        "cpu_share_of_a_core": round(float((settled[-1, 3] - settled[0, 3]) / (settled[-1, 0] - settled[0, 0])), 4),
        "counts": watcher.counts,
    }
    if watcher.latencies_s:
        when, latency_s = np.array(watcher.latencies_s).T
        when -= when[0]
        first, last = latency_s[when < PART_S], latency_s[when > when[-1] - PART_S]
        for share in (50, 95):
            figures[f"latency_p{share}_ms_first_and_last_10_min"] = [
                round(float(np.percentile(part, share)) * 1e3, 1) for part in (first, last)
            ]
    return figures


if __name__ == "__main__":
    main()
