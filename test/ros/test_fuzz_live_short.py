"""A short run of test/fuzz/fuzz_live.py: a live segmenter among malformed clouds."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
from fuzz.fuzz_live import SETTINGS, fuzz

from lidar_semseg_ros.cli.live import NodeProcess


@pytest.mark.parametrize("segmenter", [SETTINGS], indirect=True)
def test_every_malformed_cloud_is_counted_and_the_good_ones_are_labelled(segmenter: NodeProcess, node: object) -> None:
    counts = fuzz(segmenter, node, 300, np.random.default_rng(0))
    assert counts["failed"] == 0, "what is wrong with a cloud is said before the network"
    assert min(counts["labelled"], counts["invalid"], counts["stale"]) > 0
