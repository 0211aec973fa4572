"""Label many sweeps in one process, and see whether its memory stays as it was.

python test/soak/soak_memory.py --frames 10000 --lidar 64x1024
"""

from __future__ import annotations

import argparse
import json
from itertools import islice

import numpy as np

from lidar_semseg_ros.cli.benchmark import labelled, memory_mb, page_faults, peak_memory_mb
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.sim.drive import random_views

SWEEPS = 64
"""So many different ones, of 8 buildings, are taken in turn."""
PARTS = 10


def main() -> None:
    """Print memory and page faults after each tenth of the frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--lidar", default="16x1024")
    parser.add_argument("--model", default="indoor-small")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    views = random_views(np.random.default_rng(0), args.lidar)
    clouds = [cloud_from_frame(frame) for frame, _ in islice(views, SWEEPS)]
    segmenter = Segmenter(SegmenterConfig(model=args.model, device=args.device), package_share() / "models")
    for cloud in clouds:
        labelled(segmenter, cloud)
    rss_mb, faults_per_frame, p50_ms = [memory_mb()], [], []
    for part in np.array_split(np.arange(args.frames), PARTS):
        before = page_faults()
        durations_ms = [labelled(segmenter, clouds[index % SWEEPS]).durations_ms["total"] for index in part]
        faults_per_frame.append(round((page_faults() - before) / len(part), 2))
        p50_ms.append(round(float(np.median(durations_ms)), 2))
        rss_mb.append(memory_mb())
        print(f"{part[-1] + 1:6d} frames  {rss_mb[-1]:7.1f} MB  {faults_per_frame[-1]:8.2f} page faults a frame")
    growth = {"rss_mb": [round(mb, 1) for mb in rss_mb], "peak_mb": round(peak_memory_mb(), 1)}
    print(json.dumps(growth | {"page_faults_per_frame": faults_per_frame, "p50_ms": p50_ms}))


if __name__ == "__main__":
    main()
