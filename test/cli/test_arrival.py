"""What is counted of a live run, on recordings as a recorder's process leaves them."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
from taught import STOREYS, two_storeys

from lidar_semseg_ros.cli.arrival import account, read_arrival
from lidar_semseg_ros.cli.segment_command import CLASS_MAP_TOPIC, SEGMENTATION_TOPIC
from lidar_semseg_ros.core.frame import PointLabels
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.dataset import LABEL_TOPIC
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_from_frame, labelled_cloud

CLOUDS = "/lidar/points"
SECOND = 10**9


def recorded(
    folder: Path, *, sweeps: int, points: int = 50, answered: set[int], changed: dict[int, str] | None = None
) -> tuple[Path, Path]:
    """Write a drive with exact labels, and what arrived of its run: all labels below, right for half of the points.

    answered: numbers of the sweeps that were labelled. changed: of these, what was changed on the way.
    """
    source, arrived, rng = folder / "source.mcap", folder / "arrived.mcap", np.random.default_rng(0)
    with BagWriter(source) as drive, BagWriter(arrived) as heard:
        heard.write_json(CLASS_MAP_TOPIC, json.dumps(STOREYS.to_mapping()), 1)
        for number in range(sweeps):
            frame, truth = two_storeys(rng, points, stamp_ns=number * SECOND)
            cloud, below = cloud_from_frame(frame), np.zeros(points, np.uint8)
            drive.write_class_ids(LABEL_TOPIC, truth[None], frame.stamp_ns, "lidar")
            drive.write_cloud(CLOUDS, cloud)
            heard.write_cloud(CLOUDS, cloud, log_time_ns=frame.stamp_ns + 5)
            if number in answered:
                sure = np.ones(points, np.float32)
                labels = PointLabels(class_id=below, probability=sure, entropy=0 * sure)
                answer = labelled_cloud(cloud, frame, labels, STOREYS.palette(), "aligned")
                heard.write_cloud(
                    SEGMENTATION_TOPIC, altered(answer, (changed or {}).get(number, "")), frame.stamp_ns + 10**8
                )
    return source, arrived


def altered(cloud: CloudContent, how: str) -> CloudContent:
    if how == "point":
        data = cloud.data.copy()
        data[:4] = np.frombuffer(np.float32(77).tobytes(), np.uint8)
        return replace(cloud, data=data)
    return replace(cloud, stamp_ns=cloud.stamp_ns + 1) if how == "stamp" else cloud


def test_clouds_without_labels_are_lost_and_a_point_that_was_changed_is_found(tmp_path: Path) -> None:
    source, arrived = recorded(tmp_path, sweeps=6, answered={0, 2, 3, 5}, changed={3: "point"})
    arrival = read_arrival(arrived, CLOUDS)
    with open_bag(source) as bag:
        found = account(bag, CLOUDS, arrival)
    assert (found["played"], found["labelled"], found["lost"], found["changed"]) == (6, 4, 2, 1)
    assert found["accuracy"] == pytest.approx(0.5, abs=0.1) and found["latency_ms"][0] == pytest.approx(100, abs=1)
    assert arrival.middle().stamp_ns == 3 * SECOND


def test_labels_with_another_stamp_than_any_cloud_count_as_changed(tmp_path: Path) -> None:
    source, arrived = recorded(tmp_path, sweeps=3, answered={0, 1, 2}, changed={2: "stamp"})
    with open_bag(source) as bag:
        assert account(bag, CLOUDS, read_arrival(arrived, CLOUDS))["changed"] == 1


def test_a_long_run_is_counted_a_few_clouds_at_a_time(tmp_path: Path) -> None:
    sweeps, points = 40, 20_000
    source, arrived = recorded(tmp_path, sweeps=sweeps, points=points, answered=set(range(sweeps)))
    tracemalloc.start()
    try:
        with open_bag(source) as bag:
            arrival = read_arrival(arrived, CLOUDS)
            account(bag, CLOUDS, arrival)
            arrival.middle()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    labelled_bytes = sweeps * points * 28
    assert peak < labelled_bytes / 2
