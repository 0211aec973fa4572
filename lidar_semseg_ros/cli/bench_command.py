"""lidar-semseg bench: how long each stage of a sweep takes on this machine."""

from __future__ import annotations

import argparse
import platform

import numpy as np

from lidar_semseg_ros.cli.settings import add_settings, config_from
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.sim.drive import random_views
from lidar_semseg_ros.view.report import text_table

STAGES = ("prepare", "network", "finish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--lidar", default="OS1-64", help="the simulated lidar (default: OS1-64)")
    parser.add_argument("--sweeps", type=int, default=20, help="timed sweeps, after three for warming up (default: 20)")
    add_settings(parser, SegmenterConfig)


def run(args: argparse.Namespace) -> None:
    """Time simulated sweeps and print the median and the 95th percentile."""
    segmenter = Segmenter(config_from(args, SegmenterConfig), package_share() / "models")
    views = random_views(np.random.default_rng(0), args.lidar)
    durations_ms: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for index in range(args.sweeps + 3):
        frame, _ = next(views)
        result = segmenter.segment(frame)
        if index >= 3:
            for stage in STAGES:
                durations_ms[stage].append(getattr(result, f"{stage}_ms"))
    durations_ms["total"] = np.sum([durations_ms[stage] for stage in STAGES], axis=0).tolist()
    print(f"{segmenter.path.name}, {args.lidar}, {segmenter.device}, {platform.processor() or platform.machine()}")
    rows = [[stage, f"{np.median(d):.1f}", f"{np.percentile(d, 95):.1f}"] for stage, d in durations_ms.items()]
    print(text_table(["stage", "p50 ms", "p95 ms"], rows))
