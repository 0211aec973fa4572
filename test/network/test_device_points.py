"""Clouds as bytes on a device, in and out, beside what the host reads and writes; Triton's kernels are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("triton", reason="Triton is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in_device import StandInDevice

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.core.geometry import rigid, rotation_from_rpy
from lidar_semseg_ros.core.packed import packed_frame, point_labels
from lidar_semseg_ros.core.sensor import (
    FieldNames,
    IntensityConfig,
    RangeConfig,
    SensorConfig,
    levelling,
    normalised,
)
from lidar_semseg_ros.formats.on_demand import CloudOnDemand, LabelledOnDemand
from lidar_semseg_ros.formats.pointcloud2 import (
    LAYOUTS,
    NUMPY_CODES,
    CloudContent,
    CloudField,
    cloud_from_frame,
    labelled_cloud,
    packed_cloud,
    read_cloud,
)
from lidar_semseg_ros.network import device_segmenter
from lidar_semseg_ros.network.device_inputs import Sifted
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig, with_min_score

ROOT = Path(__file__).resolve().parents[2]
INPUTS = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-4, -4, -1),
    fov_max_m=(4, 4, 2),
    planes=("z",),
    grids=((40, 30),),
    intensity_mean=0.5,
    sensor_height_m=1.0,
)
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
CLASSES = 7
ALWAYS = settings(derandomize=True, deadline=None, database=None, max_examples=300)


class Everything:
    """Stands for the preparation: keeps every row that has a return, each with logits of its own, and notes them."""

    def __init__(self, inputs: InputConfig, device: str) -> None:
        self.logits = torch.empty(0)

    def sifted(self, xyz: torch.Tensor) -> Sifted:
        rows, has_return = len(xyz), _has_return(xyz)
        return Sifted(
            voxel=torch.zeros(rows, 3, dtype=torch.int32),
            low=torch.zeros(3),
            kept=torch.arange(rows),
            total=has_return.sum(dtype=torch.int32),
        )

    def network_input(
        self, xyz: torch.Tensor, intensity: torch.Tensor, sifted: Sifted, capacity: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.xyz, self.intensity = xyz.cpu().numpy().copy(), intensity.cpu().numpy().copy()
        self.logits = 3 * torch.randn(len(xyz), CLASSES, generator=torch.Generator().manual_seed(0))
        return self.logits, torch.where(_has_return(xyz), torch.arange(len(xyz)), -1)


def _has_return(xyz: torch.Tensor) -> torch.Tensor:
    return (xyz.abs() < 1e4).all(1) & (xyz != 0).any(1)


@pytest.fixture(scope="module")
def device() -> device_segmenter.DeviceSegmenter:
    """A device whose network gives the logits that the preparation made up."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(device_segmenter, "DevicePreparation", Everything)
        return device_segmenter.DeviceSegmenter(lambda prepared: prepared, INPUTS, PALETTE, "cpu")


@st.composite
def clouds(draw: st.DrawFn) -> CloudContent:
    """Draw the layout of a cloud, and random bytes for its points, or measurements with some rows without a return."""
    roles = [(name, draw(st.sampled_from([7, 8]))) for name in "xyz"]
    roles += draw(st.sampled_from([[], *([("intensity", datatype)] for datatype in NUMPY_CODES)]))
    fields, offset = [], 0
    for name, datatype in draw(st.permutations(roles)):
        field = CloudField(name, offset + draw(st.integers(0, 5)), datatype)
        fields.append(field)
        offset = field.end
    height, width, step = draw(st.integers(0, 3)), draw(st.integers(0, 5)), offset + draw(st.integers(0, 5))
    row_step = width * step + draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    content = CloudContent(
        stamp_ns=7,
        frame_id="lidar",
        height=height,
        width=width,
        fields=tuple(fields),
        is_bigendian=draw(st.booleans()),
        point_step=step,
        row_step=row_step,
        data=rng.integers(0, 256, height * row_step + draw(st.integers(0, 3)), dtype=np.uint8),
        is_dense=False,
    )
    if draw(st.booleans()) and len(content):
        order = ">" if content.is_bigendian else "<"
        for field in fields:
            dtype = np.dtype(order + NUMPY_CODES[field.datatype])
            values = rng.normal(0, 5, (height, width)) if field.name in "xyz" else rng.integers(0, 99, (height, width))
            values = values * (rng.random((height, width)) > 0.2)
            np.ndarray((height, width), dtype, content.data, field.offset, (row_step, step))[...] = values
    return content


angles = st.sampled_from([0.0, 0.1, np.pi, -0.7])
sensors = st.builds(
    SensorConfig,
    roll=angles,
    pitch=angles,
    sensor_height=st.sampled_from([0.0, 1.0, 2.5]),
    range=st.sampled_from([RangeConfig(), RangeConfig(min=2.5), RangeConfig(min=0.3, max=6.1)]),
    intensity=st.builds(
        IntensityConfig, scale=st.sampled_from([1.0, 1 / 255, 0.0]), clip=st.sampled_from([float("inf"), 0.2])
    ),
)


def on_the_host(
    device: device_segmenter.DeviceSegmenter, frame: LidarFrame, min_score: float, any_kept: bool
) -> PointLabels:
    """The labels of the logits that the stand-in noted, as the host makes them of these."""
    rows = len(frame)
    class_id, probability = np.full(rows, 255, np.uint8), np.zeros(rows, np.float32)
    entropy = np.ones(rows, np.float32)
    if any_kept:
        made_up, has_return = device._preparation, _has_return(torch.from_numpy(device._preparation.xyz[:rows])).numpy()
        found = device_segmenter.labels_of_rows(made_up.logits, torch.arange(len(made_up.logits))).numpy()[:, :rows]
        for column, values in zip((class_id, probability, entropy), found):
            column[has_return] = values[has_return]
    return with_min_score(PointLabels(class_id=class_id, probability=probability, entropy=entropy), min_score)


@ALWAYS
@given(
    clouds(), sensors, st.booleans(), st.sampled_from(list(LAYOUTS)), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()
)
def test_bytes_come_back_as_the_host_reads_and_writes_them(
    device: device_segmenter.DeviceSegmenter,
    content: CloudContent,
    sensor: SensorConfig,
    is_levelled: bool,
    layout: str,
    min_score: float,
    is_frame: bool,
) -> None:
    level = rigid(rotation_from_rpy(0.2, -0.1, 0.4), np.array([9.0, 9.0, 1.7])) if is_levelled else None
    asked = CloudOnDemand(content, FieldNames(), layout, PALETTE)
    frame = read_cloud(content)
    kept = device.prepare(
        packed_frame(frame) if is_frame else asked.packed, sensor, levelling(sensor, 1.0, level), min_score
    )
    points, is_finite = device.compute(kept)
    assert is_finite and len(points) == len(content)
    labels = on_the_host(device, frame, min_score, any_kept=kept > 0)
    if kept:
        with np.errstate(over="ignore", invalid="ignore"):
            expected = normalised(frame, sensor, 1.0, level)
        seen = device._preparation.xyz
        has_return = _has_return(torch.from_numpy(expected.xyz)).numpy()
        assert np.array_equal(seen[: len(frame)][has_return], expected.xyz[has_return])
        assert not _has_return(torch.from_numpy(seen[: len(frame)][~has_return])).any()
        assert np.isnan(seen[len(frame) :]).all(), "rows beyond the sweep have no return"
        intensity = np.full(len(frame), 0.5, np.float32) if expected.intensity is None else expected.intensity
        assert np.array_equal(device._preparation.intensity[: len(frame)], intensity, equal_nan=True)
    if is_frame:
        assert all(np.array_equal(getattr(point_labels(points), name), getattr(labels, name)) for name in vars(labels))
        return
    found, written = (
        LabelledOnDemand(asked, points).content,
        labelled_cloud(content, frame, labels, PALETTE, layout),
    )
    assert found.data.tobytes() == written.data.tobytes()
    assert replace(found, data=written.data) == written
    assert np.array_equal(LabelledOnDemand(asked, points).labels.entropy, labels.entropy)


def sweep(points: int, seed: int = 0) -> LidarFrame:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-3, 3, (points, 3)).astype(np.float32)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=xyz, intensity=rng.random(points, np.float32))


def answer(device: device_segmenter.DeviceSegmenter, content: CloudContent, layout: str = "aligned") -> bytes:
    cloud = packed_cloud(content, FieldNames(), layout)
    return device.compute(device.prepare(cloud, SensorConfig(), np.eye(4), 0.0))[0].tobytes()


def test_clouds_of_other_layouts_in_between_and_smaller_ones_change_nothing(
    device: device_segmenter.DeviceSegmenter,
) -> None:
    content, fewer = cloud_from_frame(sweep(300)), cloud_from_frame(sweep(270, seed=1))
    expected, expected_fewer = answer(device, content), answer(device, fewer)
    other = cloud_from_frame(replace(sweep(290), intensity=None))
    for between in (fewer, other):
        answer(device, between)
        answer(device, content, "append")
        assert answer(device, content) == expected
    assert answer(device, fewer) == expected_fewer


def test_rooms_and_their_graphs_are_bounded_and_the_unused_one_goes_first(
    device: device_segmenter.DeviceSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(device_segmenter, "MOST_ROOMS", 3)
    monkeypatch.setattr(device.replays, "forget", lambda form: forgotten.append(form.point.itemsize))
    device._rooms.clear()

    def of(step: int) -> CloudContent:
        fields = tuple(CloudField(name, 4 * axis, 7) for axis, name in enumerate("xyz"))
        data = np.zeros(9 * step, np.uint8)
        header = {"stamp_ns": 0, "frame_id": "", "height": 1, "width": 9, "is_bigendian": False, "is_dense": True}
        return CloudContent(**header, fields=fields, point_step=step, row_step=9 * step, data=data)

    for step in (12, 13, 14, 12, 15, 16):
        answer(device, of(step))
    assert forgotten == [13, 14] and [form.point.itemsize for form in device._rooms] == [12, 15, 16]
    with pytest.raises(UserError, match="a point may have 4,096 bytes on a GPU, but has 4,097"):
        answer(device, of(4097))


def test_graphs_of_a_room_are_forgotten_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    graph = SimpleNamespace(replay=lambda: None)
    monkeypatch.setattr(device_segmenter.Replays, "_captured", lambda self, work: (graph, work()))
    replays = device_segmenter.Replays("cuda")
    for _ in range(replays.patience):
        replays.run("sift", "one", 256, int)
        replays.run("sift", "two", 256, int)
    replays.run("label", "one", 256, int)
    replays.forget("one")
    assert [key[1] for key in replays._graphs] == ["two"] and not replays._wanted


@pytest.fixture
def segmenter() -> Segmenter:
    """The shipped model with a stand-in for a device."""
    loaded = Segmenter(SegmenterConfig(device="cpu", precision="float32", threads=1), ROOT / "models")
    loaded.backend.on_device = StandInDevice()
    return loaded


def test_a_network_that_gives_no_numbers_on_a_device_is_an_error(segmenter: Segmenter) -> None:
    assert segmenter.segment(sweep(5)).labels.class_id.tolist() == [3] * 5
    segmenter.backend.on_device.is_finite = False
    for asked in (sweep(5), packed_frame(sweep(5))):
        with pytest.raises(FloatingPointError, match="gave NaN or infinity in float32"):
            segmenter.segment(asked)


def test_intensities_are_demanded_or_left_out_on_a_device_as_on_the_host(segmenter: Segmenter) -> None:
    noted, without = segmenter.backend.on_device.clouds, packed_frame(replace(sweep(5), intensity=None))
    for missing, has_intensity in (("mean", True), ("always", False), ("error", True)):
        sensor = SensorConfig(intensity=IntensityConfig(missing=missing))
        segmenter.config = replace(segmenter.config, input=sensor)
        segmenter.segment(packed_frame(sweep(5)))
        assert noted[-1].has_intensity() == has_intensity
        if missing == "error":
            with pytest.raises(UserError, match="the cloud has no intensities"):
                segmenter.segment(without)
        else:
            segmenter.segment(without)
            assert not noted[-1].has_intensity()
    segmenter.backend.on_device = None
    with pytest.raises(TypeError, match="takes sweeps as LidarFrame"):
        segmenter.segment(without)
