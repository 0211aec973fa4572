"""lidar-semseg bench: how long each step of a sweep takes on this machine, from its bytes to labelled bytes."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.cli.benchmark import (
    GPU_SWEEPS,
    SWEEPS,
    labelled,
    measured,
    peak_memory_mb,
    percentiles,
    write_random_model,
)
from lidar_semseg_ros.cli.growth import CASES, caption, grown, panels, table
from lidar_semseg_ros.cli.outputs import require_folder
from lidar_semseg_ros.cli.settings import add_settings, config_from, flag_of
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.formats.dataset import chosen_cloud_topic
from lidar_semseg_ros.formats.pointcloud2 import (
    CloudContent,
    cloud_content,
    cloud_from_frame,
    labelled_cloud,
    read_cloud,
)
from lidar_semseg_ros.network.inputs import prepare, to_points
from lidar_semseg_ros.network.model_file import read_safetensors
from lidar_semseg_ros.network.roofline import Ceilings, measured_ceilings
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig, model_path
from lidar_semseg_ros.sim.drive import random_views
from lidar_semseg_ros.sim.sensors import KNOWN_LIDARS, lidar_named
from lidar_semseg_ros.view.log_log import log_log
from lidar_semseg_ros.view.paint import save_png
from lidar_semseg_ros.view.report import text_table

MOST_SWEEPS = 16
"""So many different sweeps are kept in memory and taken in turn."""
BASELINE_SWEEPS = 5
LIDAR = "OS1-64"
NOT_WITH_GROWTH = ("points", "topic", "random", "baseline", "lidars", "build_only")
"""Arguments that have no effect where the cases bring their own clouds and networks."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--points",
        metavar="LIDAR|RINGSxCOLUMNS|BAG",
        help=f"sweeps to label: of a simulated lidar ({KNOWN_LIDARS}) or a recording (default: {LIDAR})",
    )
    parser.add_argument("--topic", help="the cloud topic of the recording (default: the only one)")
    parser.add_argument(
        "--sweeps",
        type=int,
        help=f"timed sweeps, after others for warming up (default: {SWEEPS}, on a GPU {GPU_SWEEPS})",
    )
    parser.add_argument(
        "--random",
        metavar="WI-DEPTH-WIDTH[-layer]",
        help="a network of this size with random weights, its inputs and classes those of --model; -layer: with layer "
        "norms, as ScaLR has them",
    )
    parser.add_argument(
        "--baseline", action="store_true", help="also time the published algorithm, in turn with this one"
    )
    parser.add_argument(
        "--lidars",
        type=int,
        metavar="N",
        help="also label the sweeps of so many lidars that share the model, a thread each, as one node does",
    )
    parser.add_argument(
        "--build-only",
        action="store_true",
        help="only load the model and keep on disk what is compiled for it, so that later starts need not wait",
    )
    parser.add_argument(
        "--growth",
        type=Path,
        metavar="PICTURE.png",
        help="instead, see how time and memory grow with points, depth and width (some minutes), and draw that",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    add_settings(parser, SegmenterConfig)


def run(args: argparse.Namespace) -> None:
    """Time the sweeps and print the median and the 95th percentile of every stage."""
    if args.sweeps is not None and args.sweeps < 1:
        raise UserError(f"--sweeps must be at least 1, but it is {args.sweeps}")
    if args.lidars is not None and args.lidars < 2:
        raise UserError(f"--lidars must be at least 2, but it is {args.lidars}")
    require_folder(args.json)
    config = config_from(args, SegmenterConfig)
    if args.growth:
        see_growth(args, config)
        return
    contents: list[CloudContent] = []
    if args.random or not args.build_only:
        source = args.points or LIDAR
        contents = list(islice(clouds(source, args.topic), min(args.sweeps or MOST_SWEEPS, MOST_SWEEPS)))
        if not contents:
            raise UserError(f"{source} holds no cloud to label")
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            path = Path(folder) / f"{args.random}.safetensors"
            write_random_model(path, args.random, model_path(config.model, package_share() / "models"), contents)
            config = replace(config, model=str(path))
        start = time.perf_counter()
        segmenter = Segmenter(config, package_share() / "models")
        if args.build_only:
            print(f"{segmenter.path.name} is ready on {segmenter.device} after {time.perf_counter() - start:.1f} s")
            return
        figures = measured(segmenter, contents, args.sweeps)
        if segmenter.path.suffix == ".safetensors":
            figures["ceilings"] = shares(figures, measured_ceilings(segmenter.device, config.threads))
        if args.lidars:
            figures["lidars"] = shared(segmenter, contents, args.lidars, figures["sweeps"])
        if args.baseline:
            figures["baseline"] = compared(segmenter, contents, args.sweeps or BASELINE_SWEEPS)
    print(report(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def see_growth(args: argparse.Namespace, config: SegmenterConfig) -> None:
    """Print how the cost grows, and draw it."""
    if args.growth.suffix != ".png" or not args.growth.absolute().parent.is_dir():
        raise UserError(f"--growth takes a .png file in a folder that is there, but got {args.growth}")
    if without_effect := [flag_of(name) for name in NOT_WITH_GROWTH if getattr(args, name)]:
        raise UserError(
            f"--growth scans with lidars and builds networks of its own, so {' and '.join(without_effect)} would have "
            "no effect; leave out one or the other"
        )
    figures = grown(config, args.sweeps, CASES)
    print(text_table(*table(figures)))
    save_png(args.growth, log_log(panels(figures, CASES), caption(figures)))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def clouds(source: str, topic: str | None) -> Iterator[CloudContent]:
    """Yield the clouds of a recording, or endlessly those of a simulated lidar."""
    if not Path(source).exists():
        try:
            lidar = lidar_named(source)
        except UserError as error:
            raise UserError(f"--points: there is no recording {source}, and {error}") from None
        for frame, _ in random_views(np.random.default_rng(0), lidar):
            yield cloud_from_frame(frame)
    with open_bag(Path(source)) as bag:
        for recorded in bag.messages([chosen_cloud_topic(bag, topic, source)]):
            yield cloud_content(recorded.message())


def shares(figures: dict[str, Any], ceilings: Ceilings) -> dict[str, float]:
    """Put the network's rates at the median beside the machine's, those of int8 beside its bfloat16."""
    on_device = figures.get("device_parts_ms")
    seconds = (on_device["network"] if on_device else figures["stages_ms"]["network"]["p50"]) / 1e3
    best = ceilings.float32_flops_per_s if figures["precision"] == "float32" else ceilings.bfloat16_flops_per_s
    if figures["precision"] == "int8":  # where there may be no bfloat16
        best = max(best, ceilings.float32_flops_per_s)
    return {
        "float32_gflop_per_s": ceilings.float32_flops_per_s / 1e9,
        "bfloat16_gflop_per_s": ceilings.bfloat16_flops_per_s / 1e9,
        "copy_gbyte_per_s": ceilings.bytes_per_s / 1e9,
        "share_of_flops": figures["gflop"] * 1e9 / seconds / best,
        "share_of_bytes": figures["gbyte"] * 1e9 / seconds / ceilings.bytes_per_s,
    }


def shared(segmenter: Segmenter, contents: list[CloudContent], lidars: int, sweeps: int) -> dict[str, Any]:
    """Label the same sweeps by one lidar and by several at once with one model: sweeps per second, all together."""
    others = [Segmenter(segmenter.config, segmenter.path.parent, beside=segmenter) for _ in range(lidars - 1)]

    def rate(segmenters: list[Segmenter]) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(len(segmenters)) as threads:
            for done in [threads.submit(_labelled_in_turn, one, contents, sweeps) for one in segmenters]:
                done.result()
        return len(segmenters) * sweeps / (time.perf_counter() - start)

    alone, together = rate([segmenter]), rate([segmenter, *others])
    return {"lidars": lidars, "alone_hz": alone, "together_hz": together, "ratio": together / alone}


def _labelled_in_turn(segmenter: Segmenter, contents: list[CloudContent], sweeps: int) -> None:
    for index in range(sweeps):
        labelled(segmenter, contents[index % len(contents)])


def compared(segmenter: Segmenter, contents: list[CloudContent], sweeps: int) -> dict[str, Any]:
    """Time the published algorithm, in float32, and this one in turn on the same device, and compare what they say."""
    from lidar_semseg_ros.network.reference import PublishedWaffleIron, prepare_as_published
    from lidar_semseg_ros.network.waffleiron import WaffleIronConfig

    if segmenter.path.suffix != ".safetensors":
        raise UserError("--baseline takes a .safetensors model, for it needs the weights as they were trained")
    state, description = read_safetensors(segmenter.path)
    inputs, device = description.inputs, segmenter.device
    published = PublishedWaffleIron(
        WaffleIronConfig(**description.network), state, inputs.grids, segmenter.config.threads, device
    )
    if device != "cpu":  # where the first call loads libraries
        published.logits(prepare_as_published(read_cloud(contents[0], segmenter.config.input.fields), inputs))
    ours_ms: dict[str, list[float]] = {}
    theirs_ms: dict[str, list[float]] = {}
    same, differences = [], []
    for index in range(sweeps):
        content = contents[index % len(contents)]
        ours = labelled(segmenter, content)
        begun = time.perf_counter()
        frame = read_cloud(content, segmenter.config.input.fields)
        read = time.perf_counter()
        prepared = prepare_as_published(frame, inputs)
        ready = time.perf_counter()
        logits = published.logits(prepared).numpy()
        computed = time.perf_counter()
        labels = to_points(logits, prepared.way_back())
        finished = time.perf_counter()
        labelled_cloud(content, frame, labels, segmenter.classes.palette(), segmenter.config.output.layout)
        packed = time.perf_counter()
        took_s = {"read": read - begun, "prepare": ready - read, "network": computed - ready}
        took_s |= {"finish": finished - computed, "pack": packed - finished, "total": packed - begun}
        for stage, duration_ms in ours.durations_ms.items():
            ours_ms.setdefault(stage, []).append(duration_ms)
            theirs_ms.setdefault(stage, []).append(1e3 * sum(took_s[part] for part in stage.split(" + ")))
        same.append(float(np.mean(labels.class_id == ours.labelled.labels.class_id)))
        differences.append(float(np.abs(logits - segmenter.backend.logits(prepare(frame, inputs))).max()))
    return {
        "sweeps": sweeps,
        "device": device,
        "published_ms": {stage: percentiles(durations) for stage, durations in theirs_ms.items()},
        "ours_ms": {stage: percentiles(durations) for stage, durations in ours_ms.items()},
        "ratio": {stage: float(np.median(theirs_ms[stage]) / np.median(ours_ms[stage])) for stage in ours_ms},
        "peak_memory_mb": peak_memory_mb(),
        "same_labels": float(np.mean(same)),
        "largest_logit_difference": max(differences),
    }


def report(figures: dict[str, Any]) -> str:
    """Write the figures for the terminal."""
    rows = [[stage, f"{d['p50']:.1f}", f"{d['p95']:.1f}"] for stage, d in figures["stages_ms"].items()]
    held = figures["memory_mb"]
    lines = [
        f"{figures['model']} ({figures['network']}), {figures['precision']} on {figures['device']} of a "
        f"{figures['machine']}, by {figures['engine']}: {figures['points']:,.0f} points a sweep, "
        f"{figures['kept_points']:,.0f} kept",
        text_table(["stage", "p50 ms", "p95 ms"], rows),
        *_parts(figures),
        f"network: {figures['gflop']:.1f} GFLOP and at least {figures['gbyte']:.2f} GB a sweep",
        f"memory: {held['first']:.0f} MB at the first sweep, {held['last']:.0f} MB at the last, {held['peak']:.0f} MB "
        f"at most; {figures['page_faults']:,} page faults a sweep",
    ]
    if "peak_gpu" in held:
        lines.append(f"memory of the GPU: {held['peak_gpu']:.0f} MB at most")
    if "ceilings" in figures:
        c = figures["ceilings"]
        lines.append(
            f"that is {c['share_of_flops']:.0%} of the machine's arithmetic, {c['share_of_bytes']:.0%} of its memory "
            f"(products: {c['float32_gflop_per_s']:.0f} GFLOP/s float32, {c['bfloat16_gflop_per_s']:.0f} bfloat16; "
            f"copy: {c['copy_gbyte_per_s']:.1f} GB/s)"
        )
    if "lidars" in figures:
        s = figures["lidars"]
        lines.append(
            f"{s['lidars']} lidars that share the model: {s['together_hz']:.1f} sweeps a second together, "
            f"{s['alone_hz']:.1f} by one alone: {s['ratio']:.2f} times as many"
        )
    if "baseline" in figures:
        b = figures["baseline"]
        rows = [
            [stage, *(f"{b[whose][stage][at]:.1f}" for whose in ("published_ms", "ours_ms") for at in ("p50", "p95")),
             f"{ratio:.1f}"]
            for stage, ratio in b["ratio"].items()
        ]  # fmt: skip
        lines += [
            f"published algorithm on {b['device']} in float32 and this one, {b['sweeps']} sweeps in turn:",
            text_table(["stage", "published p50 ms", "p95 ms", "this one p50 ms", "p95 ms", "times as fast"], rows),
            f"{b['ratio']['total']:.1f} times as fast; {b['same_labels']:.4%} of the labels the same, logits differ by "
            f"at most {b['largest_logit_difference']:.1e}",
        ]
    return "\n".join(lines)


def _parts(figures: dict[str, Any]) -> list[str]:
    """Tell how long the parts of a sweep take on a device, where they were timed."""
    parts = figures.get("device_parts_ms", {})
    said = ", ".join(f"{part} {ms:.2f} ms" for part, ms in parts.items())
    return [f"alone on {figures['device']}, each in a graph of its own: {said}"] if parts else []
