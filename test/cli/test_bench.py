"""`lidar-semseg bench`: what it promises to measure is there, and sane."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from stand_in_device import StandInDevice

from lidar_semseg_ros.cli import benchmark
from lidar_semseg_ros.cli.bench_command import clouds, report, shares
from lidar_semseg_ros.cli.growth import Case, panels
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.network.inputs import NetworkInput
from lidar_semseg_ros.network.model_file import read_description
from lidar_semseg_ros.network.roofline import Ceilings, cost_of
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.network.waffleiron import WaffleIronConfig
from lidar_semseg_ros.sim.drive import random_views
from lidar_semseg_ros.sim.sensors import scanner

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a small network on a small lidar gives, with the baseline."""
    path = tmp_path_factory.mktemp("bench") / "figures.json"
    arguments = ["bench", "--points", "VLP-16", "--random", "WI-3-16", "--sweeps", "2", "--baseline", "--device", "cpu"]
    main([*arguments, "--lidars", "3", "--json", str(path)])
    return json.loads(path.read_text())


def test_every_stage_is_timed_and_they_sum_to_the_total(figures: dict) -> None:
    stages = figures["stages_ms"]
    assert list(stages) == ["read", "prepare", "network", "finish", "pack", "total"]
    assert all(0 < found["p50"] <= found["p95"] for found in stages.values())
    # Medians of two sweeps are means, which sum.
    assert sum(found["p50"] for name, found in stages.items() if name != "total") <= stages["total"]["p50"] * 1.01


def test_points_memory_and_ceilings_are_there(figures: dict) -> None:
    assert figures["network"] == "WI-3-16" and figures["precision"] == "float32"
    assert figures["engine"] == "CPU, in place" and figures["baseline"]["device"] == "cpu"
    assert figures["points"] == 28_800 and 100 < figures["kept_points"] < 28_800
    memory = figures["memory_mb"]
    assert 50 < memory["first"] <= memory["peak"] and memory["last"] <= memory["peak"] and "peak_gpu" not in memory
    assert 0 <= figures["page_faults"] < 5000, "a sweep's arrays are not mapped anew each time"
    ceilings = figures["ceilings"]
    assert all(ceilings[name] > 0 for name in ("float32_gflop_per_s", "bfloat16_gflop_per_s", "copy_gbyte_per_s"))
    assert 0 < ceilings["share_of_flops"] < 1.2
    assert figures["machine"].endswith(" cores") and {"lidar_semseg_ros", "numpy", "torch"} <= set(figures["versions"])


def test_the_baseline_says_the_same_in_more_time(figures: dict) -> None:
    baseline = figures["baseline"]
    assert baseline["same_labels"] >= 0.9999 and baseline["largest_logit_difference"] <= 1e-3
    assert baseline["sweeps"] == 2 and baseline["peak_memory_mb"] >= figures["memory_mb"]["peak"]
    assert list(baseline["ratio"]) == ["read", "prepare", "network", "finish", "pack", "total"]
    for stage in ("prepare", "network", "total"):
        published_ms, ours_ms = (baseline[whose][stage]["p50"] for whose in ("published_ms", "ours_ms"))
        assert baseline["ratio"][stage] == pytest.approx(published_ms / ours_ms) and published_ms > ours_ms > 0
    said = report(figures)
    assert "2 sweeps in turn" in said and f"{baseline['ratio']['total']:.1f} times as fast" in said


def test_several_lidars_share_the_model(figures: dict) -> None:
    found = figures["lidars"]
    assert found["lidars"] == 3 and found["ratio"] == pytest.approx(found["together_hz"] / found["alone_hz"])
    # One alone takes as long as the stages say; three take turns, and their other steps overlap at best.
    assert 0.3 < found["alone_hz"] * figures["stages_ms"]["total"]["p50"] / 1e3 < 3
    assert 0.3 < found["ratio"] < 3
    assert "3 lidars that share the model: " in report(figures)


class Many(SimpleNamespace):
    """A cloud or an input of a thousand points."""

    def __len__(self) -> int:
        return 1000


def on_device(patience: int, graphs: set[int]) -> SimpleNamespace:
    """What a segmenter tells of a GPU whose graphs are `graphs`."""
    replays = SimpleNamespace(patience=patience, fault="")
    parts_ms = {"choose": 0.1, "prepare": 0.4, "network": 2.0, "label": 0.1}
    return SimpleNamespace(replays=replays, graphs=graphs, parts_ms=lambda: parts_ms)


def test_on_a_gpu_all_graphs_are_captured_before_a_sweep_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    device, wanted, timed_graphs = on_device(5, set()), dict.fromkeys(range(7), 0), []

    def labelled(segmenter: object, content: object) -> object:
        wanted[content.capacity] += 1
        if wanted[content.capacity] == device.replays.patience:
            device.graphs.add(content.capacity)
        timed_graphs.append(len(device.graphs))
        durations_ms = {"read": 0.1, "prepare + network": 2.5, "finish": 0.1, "pack": 0.1, "total": 2.8}
        return SimpleNamespace(durations_ms=durations_ms)

    described = SimpleNamespace(
        network=WaffleIronConfig(inputs=5, width=8, depth=1, outputs=2).to_mapping(), inputs=None
    )
    backend = SimpleNamespace(on_device=device, precision="float16", engine="CUDA graphs")
    segmenter = SimpleNamespace(device="cuda", description=described, backend=backend, path=Path("m.onnx"))
    prepared = Many(neighbours=np.zeros((1000, 16)), planes=())
    monkeypatch.setattr(benchmark, "labelled", labelled)
    monkeypatch.setattr(benchmark, "read_cloud", lambda content: content)
    monkeypatch.setattr(benchmark, "prepare", lambda frame, inputs: prepared)
    figures = benchmark.measured(segmenter, [Many(capacity=capacity) for capacity in wanted], None)
    assert figures["sweeps"] == 200 and timed_graphs[-200:] == [7] * 200
    assert list(figures["stages_ms"]) == ["read", "prepare + network", "finish", "pack", "total"]
    best = Ceilings(float32_flops_per_s=1e9, bfloat16_flops_per_s=4e9, bytes_per_s=1e9)
    figures["ceilings"] = shares(figures, best)
    # In the 2 ms of the network alone, at the rate of half precision.
    assert figures["ceilings"]["share_of_flops"] == pytest.approx(figures["gflop"] / 2e-3 / 4)
    assert "float16 on cuda" in report(figures) and "by CUDA graphs" in report(figures)
    assert "choose 0.10 ms, prepare 0.40 ms, network 2.00 ms" in report(figures)


def test_on_a_device_the_stages_begin_and_end_with_bytes() -> None:
    segmenter = Segmenter(SegmenterConfig(device="cpu", precision="float32", threads=1), ROOT / "models")
    segmenter.backend.on_device = StandInDevice()
    timed = benchmark.labelled(segmenter, next(clouds("8x64", None)))
    assert list(timed.durations_ms) == ["read", "prepare + network", "finish", "pack", "total"]
    assert len(timed.labelled.content) == 512 and "frame" not in vars(timed.labelled.cloud)


def test_a_lidar_may_be_given_by_its_resolution() -> None:
    assert len(next(clouds("8x64", None))) == 512


def test_a_random_network_may_have_the_norms_of_scalr(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    like = ROOT / "models" / "indoor-small.safetensors"
    benchmark.write_random_model(path, "WI-2-16-layer", like, [next(clouds("8x64", None))])
    network = read_description(path).network
    assert (network["depth"], network["width"], network["norm"]) == (2, 16, "layer")


def test_operations_are_those_counted_by_hand() -> None:
    prepared = NetworkInput(
        points=10,
        features=np.zeros((10, 3), np.float32),
        neighbours=np.zeros((10, 2), np.int64),
        planes=(),
        kept=np.arange(10),
        measured=np.arange(10),
        nearest=np.arange(10),
    )
    cost = cost_of(WaffleIronConfig(inputs=3, width=4, depth=1, outputs=5).to_mapping(), prepared)
    # Per point: 3 products of 3 × 4, 3 of 4 × 4; then 2 of 4 × 4 and 2 · 4 for mean and copy; at last one of 4 × 5.
    per_point = 2 * (3 * 12 + 3 * 16) + 2 * (2 * 16) + 2 * 4 + 2 * 20
    assert cost.flops == 10 * per_point


def test_growth_is_measured_case_by_case_printed_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Case(rings=8, columns=128, network="WI-1-16")
    cases = {
        "points": {n: replace(small, columns=n // 8) for n in (1024, 4096)},
        "depth": {1: small},
        "width": {16: small, 32: replace(small, network="WI-1-32")},
    }
    monkeypatch.setattr("lidar_semseg_ros.cli.bench_command.CASES", cases)
    picture, figures_file = tmp_path / "growth.png", tmp_path / "growth.json"
    main(["bench", "--growth", str(picture), "--sweeps", "1", "--device", "cpu", "--json", str(figures_file)])
    figures = json.loads(figures_file.read_text())
    rows = figures["growth"]["points"]
    assert [row["value"] for row in rows] == [1024, 4096] == [row["points"] for row in rows]
    assert rows[0]["kept_points"] < rows[1]["kept_points"] <= 4096
    assert all(row["peak_mb"] > 50 and row["stages_ms"]["total"] > 0 for row in rows)
    # One measurement serves wherever the same case is asked for.
    assert figures["growth"]["depth"][0]["stages_ms"] == figures["growth"]["width"][0]["stages_ms"]
    first, last = (row["stages_ms"]["network"] for row in rows)
    assert figures["slopes"]["points"]["network"] == pytest.approx(np.log(last / first) / np.log(4))
    said = capsys.readouterr().out
    assert "peak MB" in said and "width: slope" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_says_what_stays_the_same_while_something_grows() -> None:
    network = Case(rings=8, columns=250, network="WI-3-24")
    cases = {
        "points": {2000: replace(network, network=""), 4000: Case(rings=16, columns=250)},
        "depth": {3: network, 6: replace(network, network="WI-6-24")},
        "width": {24: network, 48: replace(network, network="WI-3-48")},
    }
    stages_ms = dict.fromkeys(("total", "prepare", "network", "finish"), 1.0)
    growth = {name: [{"value": at, "stages_ms": stages_ms, "peak_mb": 1.0} for at in cases[name]] for name in cases}
    drawn = panels({"network": "WI-12-96", "growth": growth}, cases)
    assert [panel.quantity for panel in drawn] == [
        "points of a scan of the same rooms, WI-12-96",
        "depth, at width 24 and 2,000 points",
        "width, at depth 3 and 2,000 points",
        "points of a scan of the same rooms, WI-12-96",
    ]


def test_scans_of_growing_resolution_see_the_same_rooms() -> None:
    coarse, fine = (
        next(random_views(np.random.default_rng(3), scanner(rings, columns)))[0]
        for rings, columns in ((8, 64), (64, 512))
    )
    assert (len(coarse), len(fine)) == (512, 32_768)
    low, high = fine.xyz.min(axis=0), fine.xyz.max(axis=0)
    # Noise is a centimetre; what few beams meet, more meet too.
    assert (coarse.xyz > low - 0.1).all() and (coarse.xyz < high + 0.1).all()
    ranges_m = [np.quantile(np.linalg.norm(f.xyz[f.has_return()], axis=1), (0.25, 0.5, 0.75)) for f in (coarse, fine)]
    assert np.allclose(*ranges_m, rtol=0.15)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--random", "WI-big"], "WI-24-256, or, with layer norms"),
        (["--random", "WI-2-16-instance"], "WI-48-768-layer, but got 'WI-2-16-instance'"),
        (["--points", "8by64"], "no recording 8by64, and a simulated lidar is VLP-16, "),
        (["--points", "0x64"], "RINGSxCOLUMNS, such as 128x2048, for an OS1 of another resolution; got '0x64'"),
        (["--sweeps", "0"], "at least 1"),
        (["--lidars", "1"], "at least 2"),
        (["--points", "nowhere.bag"], "nowhere.bag"),
        (["--growth", "picture.jpg"], "takes a .png"),
        (["--growth", "nowhere/picture.png"], "folder that is there"),
        (["--growth", "picture.png", "--points", "OS1-64"], "so --points would have no effect"),
        (["--growth", "picture.png", "--topic", "/a"], "so --topic would have no effect"),
        (["--growth", "picture.png", "--random", "WI-3-16"], "so --random would have no effect"),
        (["--growth", "picture.png", "--build-only", "--baseline"], "so --baseline and --build-only would have"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and said in error


def test_an_exported_model_is_timed_without_pytorch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from lidar_semseg_ros.cli.main import main\n"
        f"main(['bench', '--model', {str(ROOT / 'models' / 'indoor-small.onnx')!r}, '--sweeps', '1'])\n"
        "assert 'torch' not in sys.modules\n"
    )
    said = subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert "network" in said and "page faults" in said


def test_after_build_only_the_next_start_compiles_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lidar_semseg_ros.cli.bench_command.clouds", None)  # it takes none, nor what simulates them
    main(["bench", "--build-only", "--device", "cpu"])
    assert "indoor-small.safetensors is ready on cpu after" in capsys.readouterr().out
    command = [sys.executable, "-m", "lidar_semseg_ros.cli.main", "bench", "--device", "cpu", "--sweeps", "1"]
    done = subprocess.run([*command, "--points", "16x512"], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "page faults" in done.stdout and "compiling" not in done.stderr


def test_a_recording_can_be_benched(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = shared_data / "07_indoor_vlp16_office_rosbag2" / "pointcloud2_bag_derived"
    if not bag.exists():
        pytest.skip("the office recording is not on this machine")
    main(["bench", "--points", str(bag), "--sweeps", "1"])
    assert "kept" in capsys.readouterr().out
