"""A network made ready to label sweeps on a CPU, in place; on a GPU it is network/fused_network.py.

Four things make it faster than the network written as modules. A chunk of points goes through all steps of a layer
while it lies in a core's cache. Grids exist on occupied cells only (network/grid_kernels.py). The products of networks
with ReLU are finished in a core's registers (network/tiles.py). And all steps of these are one compiled function
(network/tiled_network.py). Whatever tiles do not fit takes the products of libraries (network/library_products.py) and
shares the chunks of one step after the other. In both, products run on one core each: one shared by all cores waits
for the slowest of them at its end, and on a robot, where other processes run, that is a time slice and not a
microsecond.

Chunks do not depend on the number of threads, so neither does the last bit of the logits.
Letters as in network/waffleiron.py; M: occupied cells of a plane, G: these and those around them, n: points of a chunk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lidar_semseg_ros.network import grid_kernels, library_products, tiled_network
from lidar_semseg_ros.network.inputs import CroppedPlane, NetworkInput, random_input
from lidar_semseg_ros.network.tiled_network import TiledNetwork
from lidar_semseg_ros.network.tiles import MEASURED, tiling_for
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig, folded
from lidar_semseg_ros.network.weights import epsilon_of, gain_and_shift, kernel_and_bias
from lidar_semseg_ros.network.workers import RoomOfThread, Workers, edges

logger = logging.getLogger(__name__)

EXAMPLE_POINTS, EXAMPLE_CELLS, EXAMPLE_TIMES = 8192, 64, 5
CHUNK_VALUES = 2**17
"""Rows times channels of a chunk: half a megabyte in float32, so that its few arrays fit the cache of a core."""


class Runner(Protocol):
    """A network on the device it runs on; not for two threads at once.

    most_clouds: so many in one call take less time than one after the other.
    """

    most_clouds: int

    def logits(self, prepared: NetworkInput) -> Tensor:
        """Compute logits (N, outputs) float32, on the CPU, of N ≥ 1 kept points."""
        ...

    def logits_of(self, prepared: Sequence[NetworkInput]) -> list[Tensor]:
        """Compute the logits of several clouds, as `logits` does of one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Where the N points of a sweep lie on a plane, without its empty cells.

    place: (N,) the occupied cell of each point. order: (N,) points by cell. start: (M + 1,) of each cell's in it.
    around: (G, 9) occupied cells around each hidden cell. hidden: (M, 9) hidden cells around each occupied cell.
    """

    place: np.ndarray
    order: np.ndarray
    start: np.ndarray
    around: np.ndarray
    hidden: np.ndarray

    @classmethod
    def on(cls, plane: CroppedPlane) -> Cells:
        """Find the occupied cells of a plane and the hidden ones around them."""
        points, cells = len(plane.order), len(plane.occupied)
        place, start = np.empty(points, np.int64), np.append(plane.start, points)
        around = np.empty((grid_kernels.most_around(cells, plane.weight.size), 9), np.int32)
        hidden = np.empty((cells, 9), np.int32)
        shape = np.array(plane.weight.shape)
        total = grid_kernels.find_cells(plane.order, start, plane.occupied, shape, place, around, hidden)
        return cls(place=place, order=plane.order, start=start, around=around[:total], hidden=hidden)

    def parts(self, points: int) -> list[int]:
        """Split the occupied cells where about so many points each lie between: edges from 0 to M."""
        edges = np.searchsorted(self.start, np.arange(0, len(self.order), points))
        return [*np.unique(edges).tolist(), len(self.start) - 1]


class SpatialMix:
    """tokens ← tokens + inflate(W₂ ∗ act(W₁ ∗ (gain · mean(normal tokens of the cell) + shift) + b₁) + b₂)."""

    def __init__(self, mix: Any) -> None:
        self.epsilon = epsilon_of(mix.norm)
        gain_C, shift_C = gain_and_shift(mix.norm)
        self.gain, self.shift = gain_C.numpy(), shift_C.numpy()
        first, self.activation, last = mix.ffn
        self.first, self.last = _arrays(first), _arrays(last)


def _arrays(convolution: Any) -> tuple[np.ndarray, np.ndarray]:
    kernel, bias = kernel_and_bias(convolution)
    return kernel.numpy(), bias.numpy()


class StepwiseNetwork:
    """A network whose steps are shared one by one, with the products of libraries (network/library_products.py)."""

    def __init__(self, model: WaffleIron, dtype: torch.dtype, threads: int) -> None:
        self._room, self._workers = RoomOfThread(), Workers(threads)
        self._embedding = library_products.Embedding(model, dtype, self._room)
        self._layers = [
            (SpatialMix(spatial), library_products.ChannelMix(channel, dtype, self._room))
            for spatial, channel in zip(model.waffleiron.spatial_mix, model.waffleiron.channel_mix)
        ]
        self._head, self._width = model.classif, model.config.width
        self._rows, self._none_C = max(CHUNK_VALUES // self._width, 1), np.zeros(self._width, np.float32)

    def write(self, prepared: NetworkInput, logits: Tensor) -> None:
        """Write logits (N, outputs)."""
        self._workers.lead(lambda: self._write(prepared, logits))

    def _write(self, prepared: NetworkInput, logits: Tensor) -> None:
        points, planes = len(prepared), [Cells.on(plane) for plane in prepared.planes]
        tokens_NC = self._room.take("tokens", (points, self._width))

        def embed(begin: int, end: int) -> None:
            self._embedding.write(begin, end, prepared, tokens_NC)

        def classify(begin: int, end: int) -> None:
            logits[begin:end] = self._head(tokens_NC[begin:end])

        # It keeps two arrays of a chunk, so that may be twice as large.
        self._workers.share(edges(points, max(2 * self._rows // prepared.neighbours.shape[1], 1)), embed)
        for layer, (spatial_mix, channel_mix) in enumerate(self._layers):
            self._layer(tokens_NC, planes[layer % len(planes)], spatial_mix, channel_mix)
        self._workers.share(edges(points, self._rows), classify)

    def _layer(self, tokens_NC: Tensor, cells: Cells, spatial_mix: SpatialMix, channel_mix: Any) -> None:
        occupied, around, channels = len(cells.hidden), len(cells.around), tokens_NC.shape[1]
        mean_MC = self._room.take("mean", (occupied, channels)).numpy()
        hidden_GC = self._room.take("hidden cells", (around, channels))
        mixed_MC = self._room.take("mixed", (occupied, channels)).numpy()
        tokens, hidden, mix = tokens_NC.numpy(), hidden_GC.numpy(), spatial_mix
        rectify = isinstance(mix.activation, nn.ReLU)

        def flatten(begin: int, end: int) -> None:
            grid_kernels.flatten(
                begin, end, tokens, cells.order, cells.start, mix.gain, mix.shift, mix.epsilon, mean_MC
            )

        def first(begin: int, end: int) -> None:
            grid_kernels.convolve(begin, end, mean_MC, cells.around, *mix.first, self._none_C, rectify, hidden)
            if not rectify:
                hidden_GC[begin:end] = mix.activation(hidden_GC[begin:end])

        def last(begin: int, end: int) -> None:
            grid_kernels.convolve(begin, end, hidden, cells.hidden, *mix.last, self._none_C, False, mixed_MC)

        def update(begin: int, end: int) -> None:
            channel_mix.update(begin, end, mixed_MC, cells.place, tokens_NC)

        self._workers.share(cells.parts(self._rows), flatten)
        self._workers.share(edges(around, self._rows), first)
        self._workers.share(edges(occupied, self._rows), last)
        self._workers.share(edges(len(tokens_NC), self._rows), update)


def quicker(
    tiled: TiledNetwork | StepwiseNetwork, stepwise: StepwiseNetwork, config: WaffleIronConfig
) -> TiledNetwork | StepwiseNetwork:
    """Take the network that computes an example in less time."""
    example = random_input(config.inputs, EXAMPLE_POINTS, EXAMPLE_CELLS)
    tiled_s, stepwise_s = (seconds_of(network, example, config.outputs) for network in (tiled, stepwise))
    logger.info("an example takes %.1f ms by tiles, %.1f ms by the libraries", 1e3 * tiled_s, 1e3 * stepwise_s)
    return tiled if tiled_s <= stepwise_s else stepwise


def seconds_of(network: TiledNetwork | StepwiseNetwork, example: NetworkInput, outputs: int) -> float:
    """Time a network on an example, the best of a few times, after one that may compile."""
    logits, durations_s = torch.empty(len(example), outputs), []
    for _ in range(EXAMPLE_TIMES + 1):
        start = time.perf_counter()
        network.write(example, logits)
        durations_s.append(time.perf_counter() - start)
    return min(durations_s[1:])


class CpuWaffleIron:
    """A network made ready for inference on a CPU; not for two threads at once.

    dtype: float32, or bfloat16 or float16 for the products of C × C, or int8 for a part of these, if
    `tiled_network.fit` says so; tokens and grids are float32 in all of them. stepwise: with the libraries' products
    even where tiles fit, so that the first call need not wait until these are compiled. Where it is not known which of
    the two is quicker, for tiles are not among those MEASURED, the network that computes an example in less time is
    taken. Two processes may so take different ones, whose logits differ by rounding.
    """

    most_clouds = 1  # every core is busy with one, and a chunk of another one's rows is the same work

    def __init__(self, model: WaffleIron, dtype: torch.dtype, threads: int, *, stepwise: bool = False) -> None:
        model = folded(model)
        fit = tiled_network.fit(model.config, dtype) and not stepwise
        self._network: TiledNetwork | StepwiseNetwork = (TiledNetwork if fit else StepwiseNetwork)(
            model, dtype, threads
        )
        self.config = model.config
        if fit and tiling_for(model.config.width, dtype) not in (None, *MEASURED):
            self._network = quicker(self._network, StepwiseNetwork(model, dtype, threads), self.config)

    def logits(self, prepared: NetworkInput) -> Tensor:
        """Compute logits (N, outputs) float32 of N ≥ 1 kept points."""
        logits = torch.empty(len(prepared), self.config.outputs)
        self._network.write(prepared, logits)
        return logits

    def logits_of(self, prepared: Sequence[NetworkInput]) -> list[Tensor]:
        """Compute the logits of several clouds one after the other."""
        return [self.logits(one) for one in prepared]
