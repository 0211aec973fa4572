"""How time and memory of a sweep grow with its points and with the network's depth and width.

Each case runs in a process of its own, so that none finds what another one left. On a CPU the time is that of its
cores, added up, in which no time counts that other processes take.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.benchmark import forget_peak_memory, machine, measured, write_random_model
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig, model_path
from lidar_semseg_ros.sim.drive import random_views
from lidar_semseg_ros.sim.sensors import scanner
from lidar_semseg_ros.view.log_log import Panel, slope

VIEWS = 4
"""So many buildings are scanned, from the same place each, however finely."""
DRAWN = ("total", "prepare", "network", "prepare + network", "finish")
"""Of these, the stages that are timed on the device."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scan of so many beams, and the size of a network with random weights; empty: the model of the settings."""

    rings: int = 64
    columns: int = 1024
    network: str = ""


Growth = dict[str, dict[float, Case]]
"""Cases by the value of the quantity that grows."""
SCANS = ((16, 512), (16, 1024), (32, 1024), (64, 1024), (128, 1024), (128, 2048), (256, 2048))
CASES: Growth = {
    "points": {rings * columns: Case(rings=rings, columns=columns) for rings, columns in SCANS},
    "depth": {depth: Case(network=f"WI-{depth}-64") for depth in (6, 12, 24, 48)},
    "width": {width: Case(network=f"WI-6-{width}") for width in (64, 128, 256, 384)},
}


def grown(config: SegmenterConfig, sweeps: int | None, cases: Growth) -> dict[str, Any]:
    """Time all cases; gives, as JSON takes it, for each quantity its values, and the slopes of what depends on them."""
    if config.precision == "auto":  # which takes another one from some width on
        config = replace(config, precision="float32")
    order = list(dict.fromkeys(case for by_value in cases.values() for case in by_value.values()))
    todo = [order[0], *order]  # the first one twice, for whoever compiles keeps the compiler's memory
    # Not by fork, which would hand on what this process holds.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        done = pool.imap(partial(_measured_case, config=config, sweeps=sweeps), todo)
        shown = tqdm(done, total=len(todo), desc="growth", disable=None, file=sys.stderr)
        found = dict(zip(todo, shown))
    growth = {name: [_row(value, found[case]) for value, case in cases[name].items()] for name in cases}
    facts = {name: found[order[0]][name] for name in ("model", "network", "device", "precision", "sweeps")}
    return {**facts, "machine": machine(found[order[0]]["device"]), "growth": growth, "slopes": _slopes(growth)}


def _measured_case(case: Case, config: SegmenterConfig, sweeps: int | None) -> dict[str, Any]:
    lidar, models = scanner(case.rings, case.columns), package_share() / "models"
    # The place is drawn before the noise, so it does not depend on the number of beams.
    frames = [next(random_views(np.random.default_rng(seed), lidar))[0] for seed in range(VIEWS)]
    contents = [cloud_from_frame(frame) for frame in frames]
    forget_peak_memory()  # which simulating took
    with tempfile.TemporaryDirectory() as folder:
        if case.network:
            path = Path(folder) / f"{case.network}.safetensors"
            write_random_model(path, case.network, model_path(config.model, models), contents)
            config = replace(config, model=str(path))
        segmenter = Segmenter(config, models)
        if segmenter.device == "cpu":
            segmenter.clock = time.process_time
        return measured(segmenter, contents, sweeps)


def _row(value: float, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "value": value,
        **{name: figures[name] for name in ("points", "kept_points", "page_faults")},
        "stages_ms": {stage: found["p50"] for stage, found in figures["stages_ms"].items()},
        "peak_mb": figures["memory_mb"]["peak"],
    }


def _slopes(growth: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    slopes = {}
    for name, rows in growth.items():
        at = [row["value"] for row in rows]
        slopes[name] = {stage: slope(at, [row["stages_ms"][stage] for row in rows]) for stage in _drawn(rows)}
        slopes[name]["peak_mb"] = slope(at, [row["peak_mb"] for row in rows])
    return slopes


def _drawn(rows: list[dict[str, Any]]) -> list[str]:
    return [stage for stage in DRAWN if stage in rows[0]["stages_ms"]]


def panels(figures: dict[str, Any], cases: Growth) -> list[Panel]:
    """Give what is drawn of the figures of these cases: times, as multiples of the first case's total, and memory."""
    growth, drawn = figures["growth"], []
    titles = {
        "points": f"points of a scan of the same rooms, {figures['network']}",
        **{name: f"{name}, at {_held(name, cases[name])}" for name in ("depth", "width")},
    }
    for name, rows in growth.items():
        unit = rows[0]["stages_ms"]["total"]
        drawn.append(
            Panel(
                title=f"Time (1 = {unit:.0f} ms)",
                quantity=titles[name],
                at=[row["value"] for row in rows],
                ticks=[_short(row["value"]) for row in rows],
                by_name={stage: [row["stages_ms"][stage] / unit for row in rows] for stage in _drawn(rows)},
                notes=[f"{row['stages_ms']['total']:.0f} ms" for row in rows],
            )
        )
    rows = growth["points"]
    memory = {"peak": [row["peak_mb"] for row in rows]}
    return [
        *drawn,
        Panel(
            title="Memory, MB",
            quantity=titles["points"],
            at=[row["value"] for row in rows],
            ticks=[_short(row["value"]) for row in rows],
            by_name=memory,
            notes=[f"{mb:.0f}" for mb in memory["peak"]],
        ),
    ]


def _held(grows: str, cases: Mapping[float, Case]) -> str:
    """Tell in words what all cases of a network that grows have in common: its other dimension, and the points."""
    case = next(iter(cases.values()))
    _, depth, width = case.network.split("-")
    other = f"width {width}" if grows == "depth" else f"depth {depth}"
    return f"{other} and {case.rings * case.columns:,} points"


def caption(figures: dict[str, Any]) -> list[str]:
    """Say what was measured on what."""
    kept = ", ".join(f"{_short(row['value'])}: {row['kept_points']:,.0f}" for row in figures["growth"]["points"])
    return [
        f"{figures['model']} ({figures['network']}; depth and width: random weights), {figures['precision']} on "
        f"{figures['device']}: {figures['machine']}.",
        f"Medians of {figures['sweeps']} sweeps of {VIEWS} rooms, each case in a process of its own; "
        + ("CPU time, all cores added up." if figures["device"] == "cpu" else "time passed."),
        f"Points kept by voxels, which the network sees: {kept}.",
    ]


def table(figures: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Give header and rows for the terminal."""
    drawn = _drawn(next(iter(figures["growth"].values())))
    header = ["case", "points", "kept", *drawn, "total ms", "peak MB", "faults a sweep"]
    body = []
    for name, rows in figures["growth"].items():
        unit = rows[0]["stages_ms"]["total"]
        for row in rows:
            times = [f"{row['stages_ms'][stage] / unit:.2f}" for stage in drawn]
            last = [f"{row['stages_ms']['total']:.1f}", f"{row['peak_mb']:.0f}", f"{row['page_faults']:.0f}"]
            points = [f"{row['points']:,.0f}", f"{row['kept_points']:,.0f}"]
            body.append([f"{name} {row['value']:,}", *points, *times, *last])
        slopes = figures["slopes"][name]
        times = [f"{slopes[stage]:.2f}" for stage in drawn]
        body.append([f"{name}: slope", "", "", *times, "", f"{slopes['peak_mb']:.2f}", ""])
    return header, body


def _short(value: float) -> str:
    return f"{value / 1024:.0f}k" if value >= 1024 else f"{value:.0f}"
