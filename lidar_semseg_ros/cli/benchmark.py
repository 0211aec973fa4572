"""How long the stages of a sweep take, and how much memory, as `lidar-semseg bench` tells it."""

from __future__ import annotations

import re
import resource
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.on_demand import CloudOnDemand, LabelledOnDemand
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, read_cloud
from lidar_semseg_ros.network.inputs import prepare
from lidar_semseg_ros.network.model_file import read_description, write_safetensors
from lidar_semseg_ros.network.parts import available_cores
from lidar_semseg_ros.network.roofline import cost_of, gpu_name, gpu_peak_mb
from lidar_semseg_ros.network.segmenter import Segmenter

WARM_UP = 3
SWEEPS, GPU_SWEEPS = 20, 200
"""Timed by default. On a GPU a hundredth of the sweeps can be slow for a reason, and all take no time."""
CALIBRATION_SWEEPS, CALIBRATION_POINTS = 4, 4000
LIBRARIES = ("lidar_semseg_ros", "numpy", "numba", "torch", "triton", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What came of one sweep, and how long each stage took."""

    durations_ms: dict[str, float]
    labelled: LabelledOnDemand


def write_random_model(path: Path, size: str, like: Path, contents: Sequence[CloudContent]) -> None:
    """Write a model of random weights whose batch norms have the statistics of these clouds."""
    from lidar_semseg_ros.distill.batch_norms import calibrated
    from lidar_semseg_ros.distill.batches import Sample, collate
    from lidar_semseg_ros.distill.beginning import initial_network
    from lidar_semseg_ros.network.waffleiron import WaffleIronConfig

    found = re.fullmatch(r"WI-([1-9]\d*)-([1-9]\d*)(-layer)?", size)
    if found is None:
        raise UserError(
            "--random takes WI-DEPTH-WIDTH, such as WI-24-256, or, with layer norms as ScaLR has them, "
            f"WI-DEPTH-WIDTH-layer, such as WI-48-768-layer, but got '{size}'"
        )
    description = read_description(like)
    network = WaffleIronConfig(
        inputs=len(description.inputs.features),
        depth=int(found[1]),
        width=int(found[2]),
        outputs=description.network["outputs"],
        norm="layer" if found[3] else "batch",
    )
    prepared = [
        prepare(read_cloud(content), description.inputs, CALIBRATION_POINTS)
        for content in contents[:CALIBRATION_SWEEPS]
    ]
    if not any(len(one) for one in prepared):
        raise UserError("no cloud has a point in the model's field of view; choose other ones with --points")
    batches = [collate([Sample(one, np.zeros(len(one), np.uint8), one.kept)]) for one in prepared if len(one)]
    model = calibrated(initial_network(network, seed=0), batches)
    described = replace(description, name=size, network=network.to_mapping(), provenance={"source": "random weights"})
    write_safetensors(path, model.state_dict(), described)


def measured(segmenter: Segmenter, contents: Sequence[CloudContent], sweeps: int | None) -> dict[str, Any]:
    """Time sweeps, None: as many as are by default; gives everything that is printed, as JSON takes it."""
    device, network, on_device = segmenter.device, segmenter.description.network, segmenter.backend.on_device
    sweeps = sweeps or (SWEEPS if device == "cpu" else GPU_SWEEPS)
    # Until nothing is left that only the first sweeps wait for, such as a graph for each of their sizes.
    rounds = 1 if on_device is None else on_device.replays.patience
    for index in range(max(WARM_UP, rounds * len(contents))):
        labelled(segmenter, contents[index % len(contents)])
    resident_mb, faults = memory_mb(), page_faults()
    timed = [labelled(segmenter, contents[index % len(contents)]).durations_ms for index in range(sweeps)]
    faults = (page_faults() - faults) // sweeps
    last_mb = memory_mb()
    # The kernel counts pages per core and keeps the peak a little behind.
    memory = {"first": resident_mb, "last": last_mb, "peak": max(peak_memory_mb(), resident_mb, last_mb)}
    inputs = segmenter.description.inputs
    prepared = [prepare(read_cloud(content), inputs) for content in contents]
    costs = [cost_of(network, one) for one in prepared]
    if segmenter.path.suffix == ".safetensors" and device != "cpu":
        memory["peak_gpu"] = gpu_peak_mb(device)
    stages = {stage: [durations_ms[stage] for durations_ms in timed] for stage in timed[0]}
    found = {
        "model": segmenter.path.name,
        "network": f"WI-{network['depth']}-{network['width']}" + ("-layer" if network["norm"] == "layer" else ""),
        "device": device,
        "engine": segmenter.backend.engine,
        "precision": segmenter.backend.precision,
        "machine": machine(device),
        "versions": versions(),
        "sweeps": sweeps,
        "points": float(np.mean([len(content) for content in contents])),
        "kept_points": float(np.mean([len(one) for one in prepared])),
        "stages_ms": {stage: percentiles(durations) for stage, durations in stages.items()},
        "gflop": float(np.mean([cost.flops for cost in costs])) / 1e9,
        "gbyte": float(np.mean([cost.bytes for cost in costs])) / 1e9,
        "memory_mb": memory,
        "page_faults": faults,
    }
    if on_device is not None:
        found["device_parts_ms"] = on_device.parts_ms()
    return found


def labelled(segmenter: Segmenter, content: CloudContent) -> Timed:
    """Do with one cloud what the node does, from the message's bytes to those of the labelled cloud."""
    config, palette = segmenter.config, segmenter.classes.palette()
    start = segmenter.clock()
    cloud = CloudOnDemand(content, config.input.fields, config.output.layout, palette)
    sweep = cloud.sweep(segmenter.takes_bytes)
    read = segmenter.clock()
    result = segmenter.segment(sweep)
    labels = segmenter.clock()
    answer = LabelledOnDemand(cloud, result.labels)
    answer.content  # noqa: B018 - to pack it now
    packed = segmenter.clock()
    steps_ms = {"prepare": result.prepare_ms, "network": result.network_ms}
    if segmenter.takes_bytes:
        # One graph prepares the points that were chosen and runs the network, so no clock of the host tells them apart.
        steps_ms = {"prepare + network": result.prepare_ms + result.network_ms}
    durations_ms = {
        "read": (read - start) * 1e3,
        **steps_ms,
        "finish": result.finish_ms,
        "pack": (packed - labels) * 1e3,
        "total": (packed - start) * 1e3,
    }
    return Timed(durations_ms=durations_ms, labelled=answer)


def machine(device: str) -> str:
    """Tell the GPU, if it is the device, the kind of processor and the cores that this process may use."""
    names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    cpu = f"{names[0] if names else 'unknown processor'}, {available_cores()} cores"
    return f"{gpu_name(device)}, {cpu}" if device.startswith("cuda") else cpu


def versions() -> dict[str, str]:
    """Tell the versions of what computes, as far as it is installed."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def memory_mb() -> float:
    """Tell how much memory the process holds now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def forget_peak_memory() -> None:
    """Let `peak_memory_mb` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Tell how much memory the process held at most since it began, in MiB."""
    # Not by getrusage(), which counts what the process that started this one held.
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def page_faults() -> int:
    """Count the pages that the process was given since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def percentiles(durations_ms: list[float]) -> dict[str, float]:
    """Give median and 95th percentile."""
    return {"p50": float(np.median(durations_ms)), "p95": float(np.percentile(durations_ms, 95))}
