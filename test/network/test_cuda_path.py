"""The network on a GPU against the one on the CPU; without a GPU its kernels run, slowly, in Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
DEVICE = "cuda" if ON_GPU else "cpu"

from random_networks import random_network
from waiting_calls import outcomes

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.core.packed import packed_frame, point_labels
from lidar_semseg_ros.core.sensor import FieldNames, IntensityConfig, RangeConfig, SensorConfig
from lidar_semseg_ros.formats.on_demand import CloudOnDemand, LabelledOnDemand
from lidar_semseg_ros.formats.pointcloud2 import (
    LAYOUTS,
    NUMPY_CODES,
    CloudContent,
    CloudField,
    cloud_from_frame,
    column,
    packed_cloud,
    read_cloud,
)
from lidar_semseg_ros.network import backends, fused_network
from lidar_semseg_ros.network.fused_network import CudaWaffleIron
from lidar_semseg_ros.network.inference import Cells, CpuWaffleIron
from lidar_semseg_ros.network.inputs import InputConfig, NetworkInput, prepare, to_points
from lidar_semseg_ros.network.model_file import (
    ModelDescription,
    read_description,
    read_safetensors,
    write_safetensors,
)
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.network.trial import trial_sweep
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig, from_state_dict, planes_of

if TYPE_CHECKING:
    from lidar_semseg_ros.network.device_segmenter import DeviceSegmenter

ROOT = Path(__file__).resolve().parents[2]
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="no CUDA GPU on this machine")
needs_triton = pytest.mark.skipif(not fused_network.has_triton(), reason="Triton is not installed")

INPUTS = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-4, -4, -1),
    fov_max_m=(4, 4, 2),
    planes=("z", "y"),
    grids=((40, 30), (40, 12)),
    neighbours=4,
    intensity_mean=0.5,
    intensity_std=0.3,
)
PALETTE = np.zeros((256, 3), np.uint8)
SMALL = WaffleIronConfig(inputs=5, width=24, depth=2, outputs=7)
VARIANTS = {
    "waffleiron": SMALL,
    "scalr downstream": replace(SMALL, norm="layer", head="norm_linear"),
    "scalr plus": replace(SMALL, norm="layer", activation="gelu", head="mlp", head_width=10),
}


def cloud(points: int, half_m: float = 0.3, seed: int = 0) -> LidarFrame:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-half_m, half_m, (points, 3)).astype(np.float32)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=xyz, intensity=rng.uniform(0, 1, points).astype(np.float32))


def awkward_cloud() -> LidarFrame:
    """Rows without a return, twice the same point, far outside, near the border of the field of view, NaN intensity."""
    frame = cloud(30)
    xyz, intensity = frame.xyz.copy(), frame.intensity.copy()
    xyz[3], xyz[5], xyz[7], xyz[11] = np.nan, 0, 1e7, xyz[12]
    xyz[20], xyz[21], xyz[22] = (9, 0, 0), (3.99, 3.99, 1.99), (4, 0, 0)
    intensity[25] = np.nan
    return replace(frame, xyz=xyz, intensity=intensity)


def by_modules(model: WaffleIron, prepared: NetworkInput) -> torch.Tensor:
    features, neighbours, *planes = (torch.from_numpy(array) for array in prepared.arrays())
    with torch.inference_mode():
        return model(features, neighbours, planes_of(planes))


@needs_triton
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_compute_what_the_modules_do_for_several_clouds_at_once(variant: str) -> None:
    model = random_network(VARIANTS[variant])
    clouds = [prepare(cloud(20), INPUTS), prepare(cloud(15, 3.9, seed=1), INPUTS)]
    found = CudaWaffleIron(model, torch.float32, DEVICE).logits_of(clouds)
    for logits, one in zip(found, clouds):
        # Sums of float32 in another order; logits are of order 1.
        assert (logits - by_modules(model, one)).abs().max() < 1e-5


@needs_triton
def test_kernels_work_through_blocks_of_points_channels_and_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    from lidar_semseg_ros.network import triton_kernels

    # 2 blocks of points, 2 of outputs and 5 of hidden channels in `_embed`; in the others 3 of channels and, for each
    # program, several of cells and of their points. The last of each is not full.
    model, one = random_network(replace(SMALL, width=160, depth=1, norm="layer")), prepare(cloud(95), INPUTS)
    for name, value in (("PROGRAMS", 3), ("CHANNEL_BLOCK", 64), ("POINT_ROWS", 4)):
        monkeypatch.setattr(triton_kernels, name, value)
    cells = [len(plane.occupied) for plane in one.planes]
    assert len(one) > 64 and min(cells) > 6 and len(one) / max(cells) > 4
    assert (CudaWaffleIron(model, torch.float32, DEVICE).logits(one) - by_modules(model, one)).abs().max() < 1e-4


@needs_triton
def test_clouds_of_several_lidars_that_wait_go_into_one_call_and_get_what_they_get_alone() -> None:
    model = random_network(SMALL)
    network = CudaWaffleIron(model, torch.float32, DEVICE)
    clouds = [prepare(cloud(20 - 3 * k, 0.3 + k, seed=k), INPUTS) for k in range(3)]
    found, calls = outcomes(network.logits_of, network.most_clouds, clouds)
    assert [len(together) for together in calls] == [1, 2]
    for logits, one in zip(found, clouds):
        assert (logits - by_modules(model, one)).abs().max() < 1e-5  # as above


def neighbourhoods(
    features: torch.Tensor,
    neighbours: torch.Tensor,
    total: torch.Tensor,
    relative: torch.Tensor,
    shift: torch.Tensor,
    mix: torch.Tensor,
) -> torch.Tensor:
    """What the kernel computes: Triton's interpreter multiplies no matrices of bfloat16."""
    hidden = torch.relu((features[neighbours.long()] - features[:, None]) @ relative + shift)
    return (hidden.to(mix.dtype) @ mix).amax(1)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_rounds_little(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if dtype == torch.bfloat16 and not ON_GPU:
        monkeypatch.setattr("lidar_semseg_ros.network.triton_kernels.embed_neighbours", neighbourhoods)
    model, prepared = random_network(SMALL), prepare(cloud(20), INPUTS)
    rounded = CudaWaffleIron(model, dtype, DEVICE).logits(prepared)
    # bfloat16 keeps 8 bits: 0.4 % of values of order 1, a few times.
    assert 0 < (rounded - by_modules(model, prepared)).abs().max() < (0.05 if dtype == torch.bfloat16 else 0.005)


def test_without_triton_the_modules_run_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused_network, "has_triton", lambda: False)
    model, clouds = random_network(SMALL), [prepare(cloud(300), INPUTS), prepare(cloud(200, 3.9), INPUTS)]
    network = CudaWaffleIron(model, torch.float32, DEVICE)
    for logits, one in zip(network.logits_of(clouds), clouds):
        assert (logits - CpuWaffleIron(model, torch.float32, threads=1).logits(one)).abs().max() < 1e-4
    monkeypatch.setattr(backends, "_runner", lambda model, device, precision, threads: network)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    path = saved(tmp_path / "m.safetensors", SMALL)
    backend = backends.TorchBackend(path, device="cuda", precision="float32", threads=1)
    assert backend.on_device is None and caplog.text.count("Triton is not installed") == 1
    assert backend.engine == "PyTorch modules: Triton is not installed"


@needs_triton
@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (lambda *arguments: torch.zeros(len(arguments[0]), 24, device=DEVICE), "differ from the modules by"),
        (lambda *arguments: 1 // 0, "do not run here (ZeroDivisionError"),
    ],
    ids=["computes something else", "does not run"],
)
def test_the_modules_run_where_a_kernel_fails(kernel: object, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lidar_semseg_ros.network.triton_kernels.embed_neighbours", kernel)
    model, prepared = random_network(SMALL), prepare(cloud(300), INPUTS)
    network = CudaWaffleIron(model, torch.float32, DEVICE)
    assert network.fused is None and said in network.fault
    assert (network.logits(prepared) - by_modules(model, prepared)).abs().max() < 1e-4


def prepared_on_device(frame: LidarFrame, inputs: InputConfig, beyond: int) -> tuple:
    from lidar_semseg_ros.network.device_inputs import DevicePreparation

    rows = len(frame) + beyond
    xyz, intensity = torch.full((rows, 3), torch.nan), torch.zeros(rows)
    xyz[: len(frame)], intensity[: len(frame)] = torch.from_numpy(frame.xyz), torch.from_numpy(frame.intensity)
    xyz, intensity = xyz.to(DEVICE), intensity.to(DEVICE)
    preparation = DevicePreparation(inputs, DEVICE)
    sifted = preparation.sifted(xyz)
    prepared, nearest = preparation.network_input(xyz, intensity, sifted, min(int(sifted.total) + beyond, rows))
    return sifted, prepared, nearest


@needs_triton
@pytest.mark.parametrize(
    ("frame", "inputs"),
    [
        (awkward_cloud(), INPUTS),
        (cloud(12, 2.0), replace(INPUTS, max_label_distance_m=0.05)),
        (cloud(3, 0.5), INPUTS),
        (cloud(1), INPUTS),
    ],
    ids=["awkward rows", "few near enough", "fewer points than neighbours", "one point"],
)
def test_the_device_prepares_what_the_host_does(frame: LidarFrame, inputs: InputConfig) -> None:
    sifted, prepared, nearest = prepared_on_device(frame, inputs, beyond=5)
    host = prepare(frame, inputs)
    count = len(host)
    assert sifted.total.item() == prepared.total.item() == count
    assert sifted.kept[:count].tolist() == host.kept.tolist()
    assert np.allclose(prepared.features[:count].cpu(), host.features, rtol=1e-6)
    assert np.array_equal(
        *(np.sort(neighbours, axis=1) for neighbours in (prepared.neighbours[:count].cpu().numpy(), host.neighbours))
    )
    expected = np.full(len(nearest), -1)
    expected[host.measured] = host.nearest
    assert nearest.tolist() == expected.tolist()
    for cells, plane in zip(prepared.planes, host.planes):
        on_host = Cells.on(plane)
        occupied, hidden = len(on_host.hidden), len(on_host.around)
        assert (cells.occupied_total.item(), cells.hidden_total.item()) == (occupied, hidden)
        assert np.array_equal(cells.order[:count].cpu(), on_host.order)
        assert np.array_equal(cells.start[: occupied + 1].cpu(), on_host.start)
        assert np.array_equal(cells.around[:hidden].cpu(), on_host.around)
        assert np.array_equal(cells.hidden[:occupied].cpu(), on_host.hidden)


@needs_triton
def test_rows_beyond_the_points_change_nothing() -> None:
    from lidar_semseg_ros.network.fused_network import FusedNetwork

    network, frame = FusedNetwork(random_network(VARIANTS["scalr plus"]), torch.float32, DEVICE), cloud(12)
    with torch.inference_mode():
        exact, padded = (network(prepared_on_device(frame, INPUTS, beyond)[1]) for beyond in (0, 9))
    # A matrix product of another size may sum in another order.
    assert len(padded) > len(exact) and (padded[: len(exact)] - exact).abs().max() < 1e-6


def labelled(segmenter: DeviceSegmenter, frame: LidarFrame, max_points: int = 0) -> tuple[int, PointLabels]:
    """How many points were kept, and the labels."""
    kept = segmenter.prepare(packed_frame(frame), SensorConfig(max_points=max_points), np.eye(4), 0.0)
    points, is_finite = segmenter.compute(kept)
    assert is_finite
    return kept, point_labels(points)


@needs_triton
@pytest.mark.parametrize("max_points", [0, 9])
def test_a_sweep_is_labelled_as_on_the_host(max_points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lidar_semseg_ros.network import device_segmenter

    monkeypatch.setattr(device_segmenter, "LEAST_CAPACITY", 16)
    model, frame = random_network(SMALL), replace(awkward_cloud(), intensity=None)
    network = fused_network.FusedNetwork(model, torch.float32, DEVICE)
    segmenter = device_segmenter.DeviceSegmenter(network, INPUTS, PALETTE, DEVICE)
    kept, labels = labelled(segmenter, frame, max_points)
    prepared = prepare(frame, INPUTS, max_points)
    expected = to_points(by_modules(model, prepared).numpy(), prepared)
    assert kept == len(prepared)
    assert np.array_equal(labels.class_id, expected.class_id)
    assert np.allclose(labels.probability, expected.probability, atol=1e-5)
    assert np.allclose(labels.entropy, expected.entropy, atol=1e-5)


@needs_triton
def test_the_host_prepares_where_the_device_labels_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lidar_semseg_ros.network import device_segmenter

    monkeypatch.setattr(device_segmenter, "trial_sweep", lambda inputs: cloud(14))
    monkeypatch.setattr(device_segmenter, "LEAST_CAPACITY", 16)
    network = CudaWaffleIron(random_network(SMALL), torch.float32, DEVICE)
    assert network.fused is not None
    arguments = (network, network.fused, INPUTS, PALETTE, DEVICE)
    assert device_segmenter.device_segmenter(*arguments) is not None and caplog.text == ""
    wrong = torch.tensor([[7.0], [0.5], [0.5]], device=DEVICE)
    monkeypatch.setattr(device_segmenter, "labels_of_rows", lambda logits, nearest: wrong.expand(3, len(nearest)))
    assert device_segmenter.device_segmenter(*arguments) is None
    assert "the GPU labels only 0.0 % alike" in caplog.text


@needs_triton
def test_a_sweep_without_a_point_is_unlabelled() -> None:
    from lidar_semseg_ros.network.device_segmenter import DeviceSegmenter

    network = fused_network.FusedNetwork(random_network(SMALL), torch.float32, DEVICE)
    segmenter = DeviceSegmenter(network, INPUTS, PALETTE, DEVICE)
    for points in (0, 4):
        frame = replace(cloud(points), xyz=np.full((points, 3), np.nan, np.float32))
        kept, labels = labelled(segmenter, frame)
        assert kept == 0 and labels.class_id.tolist() == [255] * points and labels.entropy.tolist() == [1] * points


@needs_triton
def test_capacities_are_few_and_hold_what_they_must() -> None:
    from lidar_semseg_ros.network.device_segmenter import capacity_of

    assert [capacity_of(count) for count in (0, 1, 256, 257, 384, 385, 512, 513)] == [
        256,
        256,
        256,
        *[384] * 2,
        512,
        512,
        768,
    ]
    assert [capacity_of(rows) for rows in (65_536, 65_537, 262_144)] == [65_536, 98_304, 262_144]
    counts = np.unique(np.geomspace(1, 2**24, 3000).astype(int)).tolist()
    capacities = [capacity_of(count) for count in counts]
    assert all(count <= capacity <= max(1.5 * count, 256) for count, capacity in zip(counts, capacities))
    assert capacities == sorted(capacities) and len(set(capacities)) <= 33 and capacities[-1] == 2**24


class Graph:
    """Does again what was captured, and notes that it did."""

    def __init__(self, capacity: int, replayed: list[int]) -> None:
        self._capacity, self._replayed = capacity, replayed

    def replay(self) -> None:
        self._replayed.append(self._capacity)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Capacities that were replayed, where capturing is made up; the work gives its capacity."""
    from lidar_semseg_ros.network import device_segmenter

    noted: list[int] = []

    def captured(self: object, work: Callable[[], int]) -> tuple[Graph, int]:
        capacity = work()
        return Graph(capacity, noted), capacity

    monkeypatch.setattr(device_segmenter.Replays, "_captured", captured)
    return noted


@needs_triton
def test_a_capacity_gets_its_graph_when_it_is_wanted_often_and_until_then_a_larger_one_serves(
    replayed: list[int],
) -> None:
    from lidar_semseg_ros.network.device_segmenter import PATIENCE, Replays

    replays = Replays("cuda")
    assert [replays.run("label", 1024, 512, int) for _ in range(PATIENCE + 2)] == [512] * (PATIENCE + 2)
    assert replayed == [512] * 3 and len(replays) == 1  # captured in the sweep that wanted it for the PATIENCE-th time
    found = [replays.run("label", 1024, 256, int) for _ in range(PATIENCE + 1)]
    assert found == [512] * (PATIENCE - 1) + [256] * 2 and len(replays) == 2
    assert replays.run("label", 1024, 768, int) == 768, "what is larger than all graphs waits for none"
    assert replays.run("label", 2048, 256, int) == 256 and replays.run("sift", 1024, 256, int) == 256
    assert len(replayed) == 3 + PATIENCE + 1, "another room and other work have graphs of their own"


@needs_triton
def test_there_is_no_end_of_sizes_but_of_graphs(replayed: list[int]) -> None:
    from lidar_semseg_ros.network.device_segmenter import MOST_GRAPHS, PATIENCE, Replays

    replays = Replays("cuda")
    for rows in range(MOST_GRAPHS + 9):
        assert [replays.run("label", rows, 256, int) for _ in range(PATIENCE)] == [256] * PATIENCE
    assert len(replays) == MOST_GRAPHS == len(replayed)


@needs_triton
def test_a_moment_without_memory_is_an_error_of_that_sweep_and_graphs_are_captured_later(
    replayed: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lidar_semseg_ros.network.device_segmenter import PATIENCE, Replays

    replays = Replays("cuda")

    def short(self: object, work: object) -> None:
        raise torch.OutOfMemoryError("others have it")

    with monkeypatch.context() as patched:
        patched.setattr(Replays, "_captured", short)
        for _ in range(PATIENCE - 1):
            replays.run("label", 1024, 512, int)
        with pytest.raises(torch.OutOfMemoryError):
            replays.run("label", 1024, 512, int)
        assert replays.run("label", 1024, 512, int) == 512, "the same sweep once more, as the node does it"
    for _ in range(PATIENCE - 1):
        replays.run("label", 1024, 512, int)
    assert replayed == [512] and replays.fault == "" and caplog.text == ""


@needs_triton
def test_where_no_graph_can_be_captured_every_step_is_launched_by_itself_and_it_is_said_once(
    replayed: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lidar_semseg_ros.network.device_segmenter import PATIENCE, Replays

    def refused(self: object, work: object) -> None:
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(Replays, "_captured", refused)
    replays = Replays("cuda")
    assert [replays.run("label", 1024, 512, int) for _ in range(3 * PATIENCE)] == [512] * 3 * PATIENCE
    assert replays.fault == "operation not permitted" and caplog.text.count("no CUDA graph could be captured") == 1


@needs_triton
def test_the_parts_of_the_last_sweep_are_timed_and_the_next_one_is_labelled_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lidar_semseg_ros.network import device_segmenter

    monkeypatch.setattr(device_segmenter, "PART_REPEATS", 1)
    monkeypatch.setattr(device_segmenter, "LEAST_CAPACITY", 16)
    network = fused_network.FusedNetwork(random_network(replace(SMALL, depth=1)), torch.float32, DEVICE)
    segmenter = device_segmenter.DeviceSegmenter(network, INPUTS, PALETTE, DEVICE)

    def entropy() -> np.ndarray:
        return labelled(segmenter, cloud(9), max_points=7)[1].entropy

    before, parts_ms = entropy(), segmenter.parts_ms()
    assert set(parts_ms) == {"choose", "prepare", "network", "label"} and all(ms > 0 for ms in parts_ms.values())
    assert np.array_equal(entropy(), before)


@needs_triton
def test_labels_of_rows_are_those_of_the_host() -> None:
    from lidar_semseg_ros.network.device_segmenter import labels_of_rows

    prepared = prepare(cloud(900, 3.0), replace(INPUTS, max_label_distance_m=0.03))
    logits = 4 * np.random.default_rng(0).normal(size=(len(prepared), 7)).astype(np.float32)
    expected = to_points(logits, prepared)
    nearest = np.full(prepared.points, -1)
    nearest[prepared.measured] = prepared.nearest
    found = labels_of_rows(torch.from_numpy(logits), torch.from_numpy(nearest)).numpy()
    assert np.array_equal(found[0], expected.class_id)
    assert np.allclose(found[1], expected.probability, atol=1e-6) and np.allclose(found[2], expected.entropy, atol=1e-6)
    logits[5] = np.nan
    assert np.isnan(labels_of_rows(torch.from_numpy(logits), torch.from_numpy(nearest)).numpy()[2]).any()


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_step_that_is_captured_looks_at_the_data(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without memory stand for those of a GPU: whatever reads one, or mixes it with the host's, raises."""
    from lidar_semseg_ros.network import triton_kernels
    from lidar_semseg_ros.network.device_segmenter import DeviceSegmenter

    def of_rows(like: torch.Tensor, rows: object, columns: int) -> torch.Tensor:
        return torch.empty((len(rows), columns), dtype=like.dtype, device=like.device)

    for name, kernel in {
        "search": lambda queries, *arguments, others: of_rows(arguments[3], queries, arguments[-2]),
        "morton_codes": lambda voxels: torch.empty(len(voxels), dtype=torch.int64, device=voxels.device),
        "embed_neighbours": lambda features, *arguments: of_rows(arguments[-1], features, SMALL.width),
        "flatten": lambda tokens, offset, order, start, *rest: of_rows(tokens, start[1:], SMALL.width),
        "convolve": lambda mean, around, *rest: of_rows(mean, around, SMALL.width),
        "inflate": lambda *arguments: None,
    }.items():
        monkeypatch.setattr(triton_kernels, name, kernel)
    content = replace(cloud_from_frame(cloud(500)), is_bigendian=True)
    with torch.inference_mode():
        for config, layout in zip(VARIANTS.values(), LAYOUTS, strict=True):
            network = fused_network.FusedNetwork(WaffleIron(config), dtype, "meta")
            device = DeviceSegmenter(network, INPUTS, PALETTE, "meta")
            device._room = device._room_for(packed_cloud(content, FieldNames(), layout))
            device._sift(512)
            prepared, _ = device._prepare(256)
            device._label(256)
    assert prepared.neighbours.dtype == torch.int32 and prepared.features.dtype == torch.float32
    assert all(array.dtype == torch.int32 for plane in prepared.planes for array in plane)


@needs_triton
@pytest.mark.skipif(ON_GPU, reason="the GPU itself compiles them")
@pytest.mark.parametrize(
    ("dtype", "gpu", "shared_kb", "most_spilled"),
    [("float32", 90, 227, 1024), ("bfloat16", 90, 227, 20), ("bfloat16", 89, 99, 128)],
)
def test_every_kernel_compiles_and_fits_registers_and_shared_memory(
    dtype: str, gpu: int, shared_kb: int, most_spilled: int, tmp_path: Path
) -> None:
    """The interpreter runs what the compiler refuses; compiling needs no GPU. Every launch is compiled as it is.

    gpu: compute capability, 89 (Ada), 90 (Hopper). shared_kb: what a block may have there. most_spilled:
    bytes of a thread that do not fit into registers.
    """
    script = f"""
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lidar_semseg_ros.network import triton_kernels as kernels

DTYPE = torch.{dtype}
NAMES = {{torch.int32: "*i32", torch.int64: "*i64", torch.float32: "*fp32", torch.float64: "*fp64",
          torch.bfloat16: "*bf16", torch.float16: "*fp16", int: "i32", float: "fp32"}}

class Compiled:
    def __init__(self, kernel):
        self._kernel = kernel

    def __getitem__(self, grid):
        return self._launch

    def _launch(self, *arguments, num_warps=4, **constants):
        names = self._kernel.arg_names
        kinds = [NAMES[value.dtype if torch.is_tensor(value) else type(value)] for value in arguments]
        signature = dict(zip(names, kinds)) | dict.fromkeys(constants, "constexpr")
        places = {{(names.index(name),): value for name, value in constants.items()}}
        aligned = {{(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds) if kind.startswith("*")}}
        source = ASTSource(fn=self._kernel, signature=signature, constexprs=places, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", {gpu}, 32), options={{"num_warps": num_warps}})
        print("compiled", self._kernel.__name__, compiled.metadata.shared)

for name in ("_codes", "_search", "_embed", "_flatten", "_convolve", "_inflate"):
    setattr(kernels, name, Compiled(getattr(kernels, name)))

def some(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)

count, near, windows = some(dtype=torch.int32), some(9, 16, dtype=torch.int32), some(4, 9, dtype=torch.int32)
by_cell = some(9, dtype=torch.int32), some(5, dtype=torch.int32), count
voxels = some(9, 3, dtype=torch.int32)
curve = kernels.morton_codes(voxels), some(9, 3), some(9, dtype=torch.int32), count, some(6, dtype=torch.float64)
kernels.search(some(9, 3), voxels, *curve, 16, 2, others=True)
kernels.search(some(9, 3), voxels, *curve, 1, 1, others=False)
for C in (64, 256, 768):
    row_C, kernel_9C, mix_CC = some(C), some(9, C), some(C, C, dtype=DTYPE)
    tokens = kernels.embed_neighbours(some(9, 5), near, count, some(5, C), row_C, mix_CC)
    for epsilon in (-1.0, 1e-5):
        mean = kernels.flatten(tokens, row_C, *by_cell, row_C, row_C, epsilon)
    for gelu in (False, True):
        hidden = kernels.convolve(mean, windows, count, kernel_9C, row_C, gelu)
    kernels.inflate(tokens, row_C, hidden, windows, *by_cell, kernel_9C, row_C)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_DUMP_PTXAS_LOG": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = re.findall(r"^compiled (\w+) (\d+)$", ended.stdout, re.MULTILINE)
    of_width = ["_embed", "_flatten", "_flatten", "_convolve", "_convolve", "_inflate"]
    assert [name for name, _ in found] == ["_codes", "_search", "_search", *3 * of_width]
    assert all(int(shared) <= 1024 * shared_kb for _, shared in found)
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill stores", ended.stdout + ended.stderr)]
    assert len(spilled) >= len(set(found)) and max(spilled) <= most_spilled


def saved(path: Path, config: WaffleIronConfig, inputs: InputConfig = INPUTS) -> Path:
    classes = ClassTable(name="seven", names=tuple("abcdefg"), colors=((0, 0, 0),) * 7)
    description = ModelDescription(
        name="m", network=config.to_mapping(), inputs=inputs, classes=classes, provenance={"source": "random"}
    )
    write_safetensors(path, random_network(config).state_dict(), description)
    return path


def searched(
    queries: torch.Tensor,
    voxels: torch.Tensor,
    codes: torch.Tensor,
    points: torch.Tensor,
    ranks: torch.Tensor,
    total: torch.Tensor,
    lattice: torch.Tensor,
    count: int,
    first_level: int,
    others: bool,
) -> torch.Tensor:
    """What the kernel finds, by looking at every point: in Triton's interpreter 16 neighbours take half a minute."""
    found = torch.full((len(queries), count), -1, dtype=torch.int32)
    for query in torch.nonzero(voxels[:, 0] >= 0).flatten().tolist():
        far_m2 = (points[:total].double() - queries[query].double()).square().sum(1)
        asked = far_m2 < lattice[5]
        if others:
            asked &= ranks[:total] != query
        nearest = ranks[:total][asked][far_m2[asked].argsort(stable=True)[:count]]
        found[query, : len(nearest)] = nearest
    return found


@needs_triton
def test_a_device_gives_the_bytes_of_the_labelled_cloud_that_the_host_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    from lidar_semseg_ros.network import device_segmenter

    if not ON_GPU:
        monkeypatch.setattr("lidar_semseg_ros.network.triton_kernels.search", searched)
    monkeypatch.setattr(device_segmenter, "LEAST_CAPACITY", 16)
    sensor = SensorConfig(roll=0.1, pitch=-0.2, sensor_height=1.2, range=RangeConfig(min=0.2), max_points=14)
    config = SegmenterConfig(device="cpu", precision="float32", threads=1, min_score=0.3, input=sensor)
    by_host, by_device = (Segmenter(config, ROOT / "models") for _ in range(2))
    state, description = read_safetensors(by_device.path)
    model, palette = from_state_dict(WaffleIronConfig(**description.network), state, ""), by_host.classes.palette()
    network = fused_network.FusedNetwork(model, torch.float32, DEVICE)
    by_device.backend.on_device = device_segmenter.DeviceSegmenter(network, description.inputs, palette, DEVICE)
    assert by_device.takes_bytes and not by_host.takes_bytes
    frame = cloud(20)
    frame.xyz[3], frame.xyz[5], frame.xyz[7] = np.nan, 0, (0.1, 0.1, 0.1)
    asked = CloudOnDemand(cloud_from_frame(frame), FieldNames(), "aligned", palette)
    found = LabelledOnDemand(asked, by_device.segment(asked.packed).labels)
    expected = LabelledOnDemand(asked, by_host.segment(asked.frame).labels)
    assert 3 <= np.sum(expected.labels.class_id == 255) < len(frame)
    for name in ("x", "y", "z", "rgb", "class_id"):
        assert column(found.content, name).tobytes() == column(expected.content, name).tobytes(), name
    for name in ("probability", "entropy"):
        # Sums of float32 in another order.
        assert np.allclose(column(found.content, name), column(expected.content, name), atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "auto"])
def test_sweeps_of_changing_size_are_labelled_on_the_gpu_as_on_the_cpu(tmp_path: Path, precision: str) -> None:
    path = saved(tmp_path / "m.safetensors", replace(SMALL, width=128, depth=4))
    on_cpu, on_gpu = (
        Segmenter(SegmenterConfig(model=str(path), device=device, precision=kind), tmp_path)
        for device, kind in (("cpu", "float32"), ("cuda", precision))
    )
    for frame in (trial_sweep(INPUTS), cloud(700, 2.0), cloud(12_000, 3.9, seed=1), cloud(700, 2.0)):
        expected, found = on_cpu.segment(frame).labels.class_id, on_gpu.segment(frame).labels.class_id
        assert np.mean(expected == found) > (0.9999 if precision == "float32" else 0.97)


@needs_gpu
def test_a_replayed_graph_gives_the_same_labels_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path / "m.safetensors", SMALL)
    segmenter = Segmenter(SegmenterConfig(model=str(path), device="cuda", precision="float32"), tmp_path)
    replays = segmenter.backend.on_device.replays
    assert len(replays) == 2 and segmenter.backend.engine == "CUDA graphs", "the trial sweep's"
    first, other = cloud(3000, 2.0), cloud(2900, 1.5, seed=1)
    launched = segmenter.segment(first).labels
    for _ in range(replays.patience):
        segmenter.segment(other)
        replayed = segmenter.segment(first).labels
    again = segmenter.segment(first).labels
    assert len(replays) >= 4 and caplog.text == ""
    assert np.array_equal(again.class_id, replayed.class_id) and np.array_equal(again.entropy, replayed.entropy)
    assert np.array_equal(launched.class_id, replayed.class_id)
    assert np.allclose(launched.entropy, replayed.entropy, atol=1e-5)


def with_bytes(frame: LidarFrame, datatype: int, is_bigendian: bool) -> CloudContent:
    """Write a cloud with intensities of a type, in an order of bytes."""
    order = ">" if is_bigendian else "<"
    points = np.zeros(len(frame), [(name, f"{order}f4") for name in "xyz"] + [("i", order + NUMPY_CODES[datatype])])
    for axis, name in enumerate("xyz"):
        points[name] = frame.xyz[:, axis]
    points["i"] = 200 * frame.intensity
    return CloudContent(
        stamp_ns=0,
        frame_id="lidar",
        height=1,
        width=len(frame),
        fields=(
            *(CloudField(name, 4 * place, 7) for place, name in enumerate("xyz")),
            CloudField("intensity", 12, datatype),
        ),
        is_bigendian=is_bigendian,
        point_step=points.itemsize,
        row_step=points.nbytes,
        data=points.view(np.uint8),
        is_dense=True,
    )


@pytest.mark.parametrize(("datatype", "is_bigendian"), [(2, False), (8, True)])
def test_clouds_are_written_for_the_next_test_as_they_should_be(datatype: int, is_bigendian: bool) -> None:
    frame = cloud(50)
    read = read_cloud(with_bytes(frame, datatype, is_bigendian))
    assert np.array_equal(read.xyz, frame.xyz) and np.abs(read.intensity - 200 * frame.intensity).max() <= 1


@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("datatype", "is_bigendian"), [(2, False), (4, False), (7, False), (7, True), (8, True)])
def test_a_replayed_graph_takes_the_settings_of_its_sweep(
    layout: str, datatype: int, is_bigendian: bool, tmp_path: Path
) -> None:
    path = saved(tmp_path / "m.safetensors", SMALL)
    by_host, by_device = (
        Segmenter(SegmenterConfig(model=str(path), device=device, precision="float32"), tmp_path)
        for device in ("cpu", "cuda")
    )
    for min_score, sensor in (
        (0.0, SensorConfig()),
        (0.3, SensorConfig(roll=0.2, sensor_height=1.0, range=RangeConfig(min=0.5))),
        (0.2, SensorConfig(pitch=-0.1, intensity=IntensityConfig(scale=0.5, clip=0.3))),
    ):
        by_host.config = replace(by_host.config, min_score=min_score, input=sensor)
        by_device.config = replace(by_device.config, min_score=min_score, input=sensor)
        for points in (3000, 2900):
            content = with_bytes(cloud(points, 2.0, seed=points), datatype, is_bigendian)
            asked = CloudOnDemand(content, FieldNames(), layout, PALETTE)
            expected = LabelledOnDemand(asked, by_host.segment(asked.frame).labels)
            for _ in range(by_device.backend.on_device.replays.patience):
                found = LabelledOnDemand(asked, by_device.segment(asked.packed).labels)
            assert np.mean(found.labels.class_id == expected.labels.class_id) > 0.999
            for name in "xyz":
                assert column(found.content, name).tobytes() == column(expected.content, name).tobytes()


@needs_gpu
def test_graphs_are_captured_anew_when_all_were_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lidar_semseg_ros.network import device_segmenter

    path, frame = saved(tmp_path / "m.safetensors", SMALL), cloud(3000, 2.0)
    segmenter = Segmenter(SegmenterConfig(model=str(path), device="cuda", precision="float32"), tmp_path)
    monkeypatch.setattr(device_segmenter, "MOST_ROOMS", 1)
    replays, answers = segmenter.backend.on_device.replays, []
    for sweep in (frame, replace(frame, intensity=None)) * 2:  # each in a room of its own, which ends that of the other
        for _ in range(replays.patience + 1):
            labels = segmenter.segment(sweep).labels
        answers.append(labels.class_id)
        assert len(replays) == 2
    assert replays.fault == ""
    assert np.array_equal(answers[0], answers[2]) and np.array_equal(answers[1], answers[3])


@needs_gpu
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("width", [64, 256, 768])
def test_a_full_sweep_is_labelled_on_the_gpu_as_on_the_cpu(
    width: int, norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = read_description(ROOT / "models" / "indoor-small.safetensors").inputs
    path = saved(tmp_path / "m.safetensors", replace(SMALL, width=width, depth=4, norm=norm), inputs)
    for name, value in (("TRIAL_RINGS", 64), ("TRIAL_COLUMNS", 1024)):
        monkeypatch.setattr(f"lidar_semseg_ros.network.trial.{name}", value)
    frame = trial_sweep(inputs)
    assert len(frame) == 65_536 and inputs.neighbours == 16
    on_cpu, on_gpu = (
        Segmenter(SegmenterConfig(model=str(path), device=device, precision="float32"), tmp_path)
        for device in ("cpu", "cuda")
    )
    assert on_gpu.backend.engine == "CUDA graphs"
    expected = on_cpu.segment(frame).labels
    for _ in range(on_gpu.backend.on_device.replays.patience):
        found = on_gpu.segment(frame).labels
    # Sums of float32 in another order.
    assert np.mean(found.class_id == expected.class_id) > 0.9999 and caplog.text == ""
    assert np.allclose(found.entropy, expected.entropy, atol=1e-3)
