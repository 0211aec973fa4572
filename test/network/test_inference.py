"""The network as it runs on a robot's CPU: the same numbers as written plainly, in little and steady memory."""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from random_networks import INPUTS, cloud, random_network

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network import backends, inference, library_products, parts, tiled_network
from lidar_semseg_ros.network.inference import CpuWaffleIron, Runner
from lidar_semseg_ros.network.inputs import NetworkInput, prepare, to_points
from lidar_semseg_ros.network.model_file import ModelDescription, write_safetensors
from lidar_semseg_ros.network.reference import PublishedWaffleIron, prepare_as_published
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.network.tile_instructions import Tiling
from lidar_semseg_ros.network.tiles import tiling_for
from lidar_semseg_ros.network.trial import faster_precisions, trial_sweep
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig, planes_of
from lidar_semseg_ros.network.workers import RoomOfThread, Workers

SMALL = WaffleIronConfig(inputs=5, width=24, depth=4, outputs=7)
VARIANTS = {
    "waffleiron": SMALL,
    "batch norm with gelu": replace(SMALL, activation="gelu"),
    "scalr": replace(SMALL, norm="layer"),
    "scalr downstream": replace(SMALL, norm="layer", head="norm_linear"),
    "scalr plus": replace(SMALL, norm="layer", activation="gelu", head="mlp", head_width=10),
    "waffleiron with tiles": replace(SMALL, width=64),
    "scalr with tiles": replace(SMALL, width=64, norm="layer"),
}
CLASSES = ClassTable(name="seven", names=tuple("abcdefg"), colors=((0, 0, 0),) * 7)


def saved(path: Path, config: WaffleIronConfig) -> Path:
    description = ModelDescription(
        name="m", network=config.to_mapping(), inputs=INPUTS, classes=CLASSES, provenance={"source": "random"}
    )
    write_safetensors(path, random_network(config).state_dict(), description)
    return path


def skip_where_bytes_are_missing(config: WaffleIronConfig, dtype: torch.dtype) -> None:
    if dtype == torch.int8 and not tiled_network.fit(config, dtype):
        pytest.skip("no bytes for this network on this processor")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spread", [3.9, 1.0], ids=["grid filled to its border", "grid cropped"])
def test_logits_and_labels_are_those_of_the_published_algorithm(variant: str, spread: float) -> None:
    model, frame = random_network(VARIANTS[variant]), cloud(6000, spread)
    plainly = prepare_as_published(frame, INPUTS)
    expected = PublishedWaffleIron(model.config, model.state_dict(), INPUTS.grids).logits(plainly).numpy()
    prepared = prepare(frame, INPUTS)
    logits = CpuWaffleIron(model, torch.float32, threads=2).logits(prepared).numpy()
    # Sums of float32 in another order; logits are of order 1.
    assert np.abs(logits - expected).max() < 1e-4
    ours, theirs = to_points(logits, prepared), to_points(expected, plainly.way_back())
    assert np.mean(ours.class_id == theirs.class_id) >= 0.9999


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_published_algorithm_is_the_published_formulas(variant: str) -> None:
    config = VARIANTS[variant]
    model, inputs = random_network(config), prepare_as_published(cloud(150), INPUTS)
    expected = published.logits(
        inputs.features.astype(np.float64),
        inputs.neighbours,
        list(inputs.cells),
        INPUTS.grids,
        {key: value.double().numpy() for key, value in model.state_dict().items()},
        layer_norm=config.norm == "layer",
        gelu=config.activation == "gelu",
        head=config.head,
    )
    logits = PublishedWaffleIron(config, model.state_dict(), INPUTS.grids).logits(inputs).numpy()
    assert np.abs(logits.T - expected).max() < 1e-4


@pytest.mark.parametrize("variant", ["waffleiron with tiles", "scalr with tiles"])
def test_a_processor_with_narrower_vectors_computes_the_same(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prepared = random_network(VARIANTS[variant]), prepare(cloud(900), INPUTS)
    if tiled_network.tiling_for(64, torch.float32) is None:
        pytest.skip("for this processor no tiles are known")
    wide = CpuWaffleIron(model, torch.float32, threads=2).logits(prepared)
    monkeypatch.setattr(tiled_network, "tiling_for", lambda width, dtype: Tiling(8, 2))
    narrow = CpuWaffleIron(model, torch.float32, threads=2).logits(prepared)
    monkeypatch.setattr(tiled_network, "tiling_for", lambda width, dtype: None)
    without = CpuWaffleIron(model, torch.float32, threads=2).logits(prepared)
    assert torch.equal(narrow, wide) and 0 < (wide - without).abs().max() < 1e-4


def test_the_published_preparation_needs_more_voxels_than_neighbours() -> None:
    with pytest.raises(UserError, match="more than 16 voxels, but got 5"):
        prepare_as_published(cloud(5), INPUTS)


@pytest.mark.parametrize("points", [1, 2, 17, 3000])
@pytest.mark.parametrize("variant", ["waffleiron", "waffleiron with tiles"])
def test_the_number_of_threads_does_not_change_the_last_bit(
    points: int, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "available_cores", lambda: 5)
    model, prepared = random_network(VARIANTS[variant]), prepare(cloud(points), INPUTS)
    alone, shared = (CpuWaffleIron(model, torch.float32, threads).logits(prepared) for threads in (1, 5))
    assert alone.shape == (len(prepared), 7) and torch.equal(alone, shared)


@pytest.mark.parametrize("variant", ["waffleiron", "waffleiron with tiles"])
def test_nothing_of_a_larger_sweep_is_left_in_a_smaller_one(variant: str) -> None:
    network = CpuWaffleIron(random_network(VARIANTS[variant]), torch.float32, threads=2)
    small, large = prepare(cloud(700), INPUTS), prepare(cloud(9000, seed=1), INPUTS)
    before = network.logits(small)
    network.logits(large)
    assert torch.equal(network.logits(small), before)


def test_other_threads_keep_their_number_of_cores() -> None:
    before = torch.get_num_threads()
    workers, seen, both = Workers(2), [], threading.Barrier(2)

    def look(begin: int, end: int) -> None:
        both.wait(10)  # the leader and the other one, a part each
        seen.append((begin, torch.get_num_threads()))

    workers.lead(lambda: workers.share([0, 1, 2], look))
    assert sorted(seen) == [(0, 1), (1, 1)] and torch.get_num_threads() == before


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_step_is_done_when_it_ends_whoever_did_it(count: int) -> None:
    workers, done = Workers(count), []

    def note(step: int, begin: int, end: int) -> None:
        done.append((step, begin, end))

    def steps() -> None:
        for step in range(50):
            workers.share([0, 3, 4, 9], functools.partial(note, step))
            assert sorted(done[3 * step :]) == [(step, 0, 3), (step, 3, 4), (step, 4, 9)]

    workers.lead(steps)
    assert len(done) == 150


@pytest.mark.parametrize("at_fault", [0, 1])
def test_a_fault_in_a_worker_reaches_the_caller(at_fault: int) -> None:
    workers, both = Workers(2), threading.Barrier(2)

    def fail(begin: int, end: int) -> None:
        both.wait(10)
        if begin == at_fault:
            raise MemoryError

    with pytest.raises(MemoryError):
        workers.lead(lambda: workers.share([0, 1, 2], fail))


@pytest.mark.parametrize("width", [48, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("points", [1, 60])
@pytest.mark.parametrize("neighbours", [1, 5, 16])
def test_points_are_embedded_as_by_the_modules(width: int, neighbours: int, points: int, dtype: torch.dtype) -> None:
    model = random_network(replace(SMALL, width=width))
    prepared = prepare(cloud(points), replace(INPUTS, neighbours=neighbours))
    tokens = torch.empty(len(prepared), width)
    with torch.inference_mode():
        embedding = library_products.Embedding(model.requires_grad_(False), dtype, RoomOfThread())
        embedding.write(0, len(prepared), prepared, tokens)
        expected = model.embed(torch.from_numpy(prepared.features), torch.from_numpy(prepared.neighbours))
    assert (tokens - expected).abs().max() < (0.02 if dtype == torch.bfloat16 else 2e-5)


@pytest.mark.parametrize(
    "config", [replace(SMALL, width=64), replace(SMALL, width=256, norm="layer", head="norm_linear")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("points", [1, 2, 60, 700])
@pytest.mark.parametrize("neighbours", [1, 5, 16, 70])
def test_one_function_computes_what_the_modules_do(
    config: WaffleIronConfig, neighbours: int, points: int, dtype: torch.dtype
) -> None:
    if not tiled_network.fit(config, dtype):
        pytest.skip(f"no tiles for width {config.width} in {dtype} on this processor")
    model = random_network(config)
    prepared = prepare(cloud(points), replace(INPUTS, neighbours=neighbours))
    features, places, *planes = (torch.from_numpy(array) for array in prepared.arrays())
    with torch.inference_mode():
        expected = model.eval()(features, places, planes_of(planes))
    logits = CpuWaffleIron(model, dtype, threads=2).logits(prepared)
    assert (logits - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("place", ["embed.conv2.1.weight", "embed.final.weight", "waffleiron.spatial_mix.1.ffn.0.bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("variant", ["waffleiron", "waffleiron with tiles"])
def test_a_nan_inside_is_not_hidden_by_an_activation(place: str, dtype: torch.dtype, variant: str) -> None:
    skip_where_bytes_are_missing(VARIANTS[variant], dtype)
    model = random_network(VARIANTS[variant])
    model.get_parameter(place).data[3] = torch.from_numpy(np.array(0xFFFFFFFF, np.uint32).view(np.float32))
    assert CpuWaffleIron(model, dtype, threads=2).logits(prepare(cloud(500), INPUTS)).isnan().all()


@pytest.mark.parametrize("variant", ["waffleiron", "scalr plus", "waffleiron with tiles", "scalr with tiles"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_lower_precision_rounds_factors_only(variant: str, dtype: torch.dtype) -> None:
    skip_where_bytes_are_missing(VARIANTS[variant], dtype)
    model, prepared = random_network(VARIANTS[variant]), prepare(cloud(3000), INPUTS)
    exact, rounded = (CpuWaffleIron(model, kind, threads=2).logits(prepared) for kind in (torch.float32, dtype))
    # bfloat16 keeps 8 bits: 0.4 % of values of order 1, and over layers they average out.
    assert 0 < (rounded - exact).abs().max() < 0.1
    assert (rounded.argmax(1) == exact.argmax(1)).float().mean() > 0.98


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_shipped_model_labels_in_lower_precision_as_in_float32(precision: str) -> None:
    models = package_share() / "models"
    skip_where_bytes_are_missing(replace(SMALL, width=64), getattr(torch, precision))
    exact, rounded = (
        Segmenter(SegmenterConfig(device="cpu", precision=kind), models) for kind in ("float32", precision)
    )
    frame = trial_sweep(exact.description.inputs)
    assert np.mean(exact.segment(frame).labels.class_id == rounded.segment(frame).labels.class_id) >= 0.995


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("variant", ["waffleiron", "waffleiron with tiles"])
def test_memory_stays_flat_over_sweeps_of_changing_size(precision: str, variant: str, tmp_path: Path) -> None:
    skip_where_bytes_are_missing(VARIANTS[variant], getattr(torch, precision))
    model = str(saved(tmp_path / "m.safetensors", VARIANTS[variant]))
    segmenter = Segmenter(SegmenterConfig(model=model, device="cpu", precision=precision), tmp_path)
    sizes = np.random.default_rng(0).integers(500, 12000, 300)
    sizes[:10] = 12000

    def resident_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    for index, points in enumerate(sizes):
        segmenter.segment(cloud(points, spread=1 + 3 * index / len(sizes), seed=index))
        if index == 20:
            settled_mb = resident_mb()
    # A leak of one array of a sweep's tokens would be some 300 MB by now, a product compiled for every size 100.
    assert resident_mb() - settled_mb < 40


@pytest.mark.skipif(tiling_for(64, torch.float32) is None, reason="for this processor no tiles are known")
@pytest.mark.parametrize(
    ("is_known", "stepwise_s", "expected"),
    [
        (True, 0.0, "TiledNetwork"),
        (False, 0.9, "StepwiseNetwork"),
        (False, 1.1, "TiledNetwork"),
        (False, None, "(Tiled|Stepwise)Network"),
    ],
)
def test_where_nothing_was_measured_the_quicker_network_is_taken(
    is_known: bool, stepwise_s: float | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "MEASURED", (tiling_for(64, torch.float32),) if is_known else ())
    if stepwise_s is not None:
        seconds = {"TiledNetwork": 1.0, "StepwiseNetwork": stepwise_s}
        monkeypatch.setattr(inference, "seconds_of", lambda network, *_: seconds[type(network).__name__])
    network = CpuWaffleIron(random_network(VARIANTS["waffleiron with tiles"]), torch.float32, threads=2)
    assert re.fullmatch(expected, type(network._network).__name__)


def test_bytes_are_refused_where_they_cannot_be_computed(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", SMALL)
    with pytest.raises(UserError, match=r"for CPUs with VNNI .* width 24; set precision to auto"):
        backends.TorchBackend(path, device="cpu", precision="int8", threads=2)


def test_auto_takes_bfloat16_only_where_it_is_faster_and_keeps_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / "m.safetensors", SMALL)
    trial = "lidar_semseg_ros.network.trial"

    def chosen() -> str:
        return backends.TorchBackend(path, device="cpu", precision="auto", threads=2).precision

    monkeypatch.setattr(f"{trial}.faster_precisions", lambda device, config: ())
    assert chosen() == "float32"
    monkeypatch.setattr(f"{trial}.faster_precisions", lambda device, config: ("bfloat16",))
    monkeypatch.setattr(f"{trial}.LEAST_AGREEMENT", 0.5)
    assert chosen() == "bfloat16"
    monkeypatch.setattr(f"{trial}.LEAST_AGREEMENT", 1.01)
    assert chosen() == "float32"
    assert "precision auto: float32" in caplog.text


def test_auto_takes_the_next_precision_where_the_fastest_changes_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make, path = backends._runner, saved(tmp_path / "m.safetensors", SMALL)

    class Wrong:
        def logits(self, prepared: NetworkInput) -> torch.Tensor:
            return -make(random_network(SMALL), "cpu", "float32", 2).logits(prepared)

    def runner(model: WaffleIron, device: str, precision: str, threads: int, **more: bool) -> Runner:
        return Wrong() if precision == "int8" else make(model, device, precision, threads, **more)

    monkeypatch.setattr(backends, "_runner", runner)
    monkeypatch.setattr("lidar_semseg_ros.network.trial.faster_precisions", lambda *_: ("int8", "bfloat16"))
    assert backends.TorchBackend(path, device="cpu", precision="auto", threads=2).precision == "bfloat16"
    assert "precision auto: int8 changes" in caplog.text


@pytest.mark.parametrize(
    ("width", "has_bytes", "has_bfloat16", "expected"),
    [
        (48, True, True, ()),
        (64, True, True, ("bfloat16",)),
        (64, True, False, ("int8",)),
        (256, True, True, ("int8", "bfloat16")),
        (256, False, True, ("bfloat16",)),
        (256, False, False, ()),
    ],
)
def test_what_is_faster_depends_on_processor_and_width(
    width: int, has_bytes: bool, has_bfloat16: bool, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = frozenset({"+avx512bf16" if has_bfloat16 else "-avx512bf16"})
    monkeypatch.setattr("lidar_semseg_ros.network.tile_instructions.processor_features", lambda: features)
    monkeypatch.setattr(tiled_network, "byte_tiling_for", lambda width: Tiling(16, 4) if has_bytes else None)
    assert faster_precisions("cpu", replace(SMALL, width=width)) == expected


def test_the_trial_sweep_is_a_room_inside_the_field_of_view_and_always_the_same() -> None:
    frame, again = trial_sweep(INPUTS), trial_sweep(INPUTS)
    assert np.array_equal(frame.xyz, again.xyz) and np.array_equal(frame.intensity, again.intensity)
    assert frame.has_return().all()
    prepared = prepare(frame, INPUTS)
    assert len(prepared) > 1000 and (prepared.nearest >= 0).all()
    # Walls of a room are planes: on the farthest one in each direction lie many points.
    assert np.mean(np.abs(frame.xyz[:, 0] - 0.6 * 4) < 0.05) > 0.05
