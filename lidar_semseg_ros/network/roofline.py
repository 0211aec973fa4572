"""What a sweep costs the network, by formula, and what this machine can do at most, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lidar_semseg_ros.network.inputs import NetworkInput

if TYPE_CHECKING:
    import torch

PRODUCT_SHAPE = {"cpu": (2048, 256), "cuda": (8192, 8192)}
"""Rows and columns of the left factor; the right one is square."""
PARTS, COPIED_BYTES, REPEATS = 64, 2**28, 7


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Floating-point operations, a multiply-add is two, and bytes that must at least go through memory."""

    flops: float
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """The best rates found: of matrix products, and of a copy, its reads and writes together."""

    float32_flops_per_s: float
    bfloat16_flops_per_s: float
    bytes_per_s: float


def cost_of(network: Mapping[str, Any], prepared: NetworkInput) -> Cost:
    """Count what the folded network does for N points, with M occupied cells on average over the planes.

    embedding N·(2·I·C + K·(2·I·C + 2·C²) + 2·C²); a layer 4·C²·N + 2·N·C + 36·M·C; head 2·C·outputs·N. Bytes are those
    of tokens, read twice and written once per layer, of the cells' means and mixes, of inputs, weights and logits.
    network: of a ModelDescription.
    """
    points, neighbours = prepared.neighbours.shape
    inputs, width, depth, outputs = (network[name] for name in ("inputs", "width", "depth", "outputs"))
    cells = sum(len(plane.occupied) for plane in prepared.planes) / max(len(prepared.planes), 1)
    embedding = points * (2 * inputs * width * (1 + neighbours) + 2 * width**2 * (1 + neighbours))
    layer = 4 * width**2 * points + 2 * points * width + 36 * cells * width
    head_width = network["head_width"]
    head = 2 * points * (head_width * (width + outputs) if head_width else width * outputs)
    tokens = 4 * points * width
    values = points * (inputs + 2 * neighbours + outputs) + depth * (2 * width**2 + 6 * cells * width)
    return Cost(flops=embedding + depth * layer + head, bytes=(1 + 3 * depth + 1) * tokens + 4 * values)


def measured_ceilings(device: str, threads: int) -> Ceilings:
    """Measure for a few seconds; threads: of the CPU, 0 for as many as PyTorch takes."""
    import torch

    from lidar_semseg_ros.network.tile_instructions import BIASED
    from lidar_semseg_ros.network.tiles import packed, product, tiling_for
    from lidar_semseg_ros.network.workers import RoomOfThread, Workers, as_array, edges

    on_gpu, dice = device != "cpu", torch.Generator(device).manual_seed(0)
    workers = None if on_gpu else Workers(threads or torch.get_num_threads())
    (rows, width), parts = PRODUCT_SHAPE[device.partition(":")[0]], 1 if on_gpu else PARTS

    def rate(amount: float, items: int, work: Callable[[int, int], object]) -> float:
        durations_s = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            if workers is None:
                work(0, items)
                torch.cuda.synchronize(device)
            else:
                workers.lead(lambda: workers.share(edges(items, items // parts), work))
            durations_s.append(time.perf_counter() - start)
        return amount / min(durations_s)

    def products_per_s(dtype: torch.dtype) -> float:
        # Not ones: with numbers whose bits hardly change a GPU needs less power, and clocks higher.
        left, right = (torch.randn(size, width, generator=dice, device=device).to(dtype) for size in (rows, width))
        amount, room = 2.0 * rows * width**2 * parts, RoomOfThread()

        def of_library(begin: int, end: int) -> None:
            torch.mm(left, right, out=room.take("product", left.shape, dtype) if workers else None)

        tiling = None if on_gpu else tiling_for(width, dtype)
        if tiling is None:
            return rate(amount, parts, of_library)
        factors = as_array(left), packed(right, tiling, dtype), as_array(torch.zeros(width))

        def of_tiles(begin: int, end: int) -> None:
            product(tiling, BIASED)(*factors, as_array(room.take("sum", left.shape)))

        of_tiles(0, 1)  # compiles
        return max(rate(amount, parts, of_library), rate(amount, parts, of_tiles))

    source, target = (torch.ones(COPIED_BYTES // 4, device=device) for _ in range(2))
    return Ceilings(
        float32_flops_per_s=products_per_s(torch.float32),
        bfloat16_flops_per_s=products_per_s(torch.bfloat16),
        bytes_per_s=rate(2 * COPIED_BYTES, len(source), lambda begin, end: target[begin:end].copy_(source[begin:end])),
    )


def gpu_name(device: str) -> str:
    """Tell what a GPU is, as PyTorch knows it."""
    import torch

    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else device


def gpu_peak_mb(device: str) -> float:
    """Tell how much memory of a GPU PyTorch held at most, in MiB."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20
