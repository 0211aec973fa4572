"""What the shipped model promises in models/README.md."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.metrics import confusion_matrix, iou_per_class, mean_iou
from lidar_semseg_ros.core.sensor import SensorConfig
from lidar_semseg_ros.formats.config_files import class_table, package_share
from lidar_semseg_ros.formats.loose_scans import read_scan
from lidar_semseg_ros.network.inputs import prepare
from lidar_semseg_ros.network.plausibility import doubt
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig

MODELS = package_share() / "models"
CLASSES = class_table("indoor17")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(SegmenterConfig(device="cpu"), MODELS)


def share(segmenter: Segmenter, frame: LidarFrame, where: np.ndarray, name: str) -> float:
    """The share of the points of a region that are labelled as a class."""
    assert where.sum() > 300
    return float(np.mean(segmenter.segment(frame).labels.class_id[where] == CLASSES.id_of(name)))


def test_every_shipped_model_is_listed_with_its_checksum() -> None:
    listed = dict(reversed(line.split()) for line in (MODELS / "SHA256SUMS").read_text().splitlines())
    files = [path for path in MODELS.rglob("*") if path.suffix in (".safetensors", ".onnx")]
    assert set(listed) == {path.relative_to(MODELS).as_posix() for path in files} != set()
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[path.relative_to(MODELS).as_posix()]


def test_on_unseen_simulated_buildings_it_is_as_good_as_its_card_says(segmenter: Segmenter) -> None:
    pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")
    from lidar_semseg_ros.sim.drive import random_views

    confusion = np.zeros((17, 18), np.int64)
    for frame, truth in islice(random_views(np.random.default_rng(31_337)), 24):
        confusion += confusion_matrix(truth, segmenter.segment(frame).labels.class_id, 17)
    iou = iou_per_class(confusion)
    # The card gives 53 % over 25 drives; three buildings vary.
    assert mean_iou(confusion) > 0.4
    assert iou[CLASSES.id_of("floor")] > 0.85 and iou[CLASSES.id_of("ceiling")] > 0.85 and iou[0] > 0.65


@pytest.mark.parametrize(("seed", "lidar"), [(900, "OS1-64"), (902, "OS1-64"), (905, "VLP-16"), (907, "VLP-16")])
def test_by_its_labels_a_sensor_that_hangs_upside_down_is_noticed_and_one_that_does_not_is_not(
    segmenter: Segmenter, seed: int, lidar: str
) -> None:
    pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")
    from lidar_semseg_ros.sim.drive import SimConfig, drive

    upright = next(iter(drive(SimConfig(lidar=lidar, cameras=0, frames=1, seed=seed)))).frame
    hanging = replace(upright, xyz=upright.xyz * np.float32([1, -1, -1]))
    inputs, sensor = segmenter.description.inputs, SensorConfig()
    said = [doubt(frame, segmenter.segment(frame).labels, CLASSES, inputs, sensor) for frame in (upright, hanging)]
    assert said[0] == "" and "hangs upside down" in said[1]


def test_it_finds_floor_and_ceiling_of_a_real_room(segmenter: Segmenter, shared_data: Path) -> None:
    frame = read_scan(shared_data / "15_indoor_room_scan_pcl" / "room_scan1.pcd", 0, "lidar")
    # The room's floor lies at −1.3 m, its ceiling at 1.65 m; what is between is not known point by point.
    assert share(segmenter, frame, frame.xyz[:, 2] < -1.22, "floor") > 0.8
    assert share(segmenter, frame, frame.xyz[:, 2] > 1.6, "ceiling") > 0.85


def test_it_finds_floor_and_walls_of_a_real_lobby_without_intensity(segmenter: Segmenter, shared_data: Path) -> None:
    frame = read_scan(shared_data / "06_indoor_rslidar16_webcam" / "pointcloud" / "3.pcd", 0, "lidar")
    assert frame.intensity is None
    # The wall behind the lidar, 1.4 m away (a third of all points lie in its plane), and the floor ahead.
    x, y, z = frame.xyz.T
    assert share(segmenter, frame, (x > -1.5) & (x < -1.25), "wall") > 0.9
    assert share(segmenter, frame, (x > 2) & (np.abs(y) < 3) & (z < -0.95), "floor") > 0.6


def test_its_onnx_form_gives_the_same_labels_on_a_real_cloud(shared_data: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    frame = read_scan(shared_data / "15_indoor_room_scan_pcl" / "room_scan1.pcd", 0, "lidar")
    segmenter = Segmenter(SegmenterConfig(device="cpu", precision="float32"), MODELS)
    other = Segmenter(SegmenterConfig(model=str(MODELS / "indoor-small.onnx"), device="cpu"), MODELS)
    prepared = prepare(frame, segmenter.description.inputs)
    logits, other_logits = (found.backend.logits(prepared) for found in (segmenter, other))
    assert np.abs(logits - other_logits).max() <= 1e-3
    same = segmenter.segment(frame).labels.class_id == other.segment(frame).labels.class_id
    assert same.mean() >= 0.999


def test_nothing_is_fetched_from_a_network_to_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    xyz = np.random.default_rng(0).uniform(-3, 3, (2000, 3)).astype(np.float32)
    loaded = Segmenter(SegmenterConfig(device="cpu"), MODELS)
    labels = loaded.segment(LidarFrame(stamp_ns=0, frame_id="", xyz=xyz)).labels
    assert (labels.class_id < len(CLASSES)).all()
