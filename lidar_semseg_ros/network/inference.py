"""A network made ready to label sweeps on a CPU, in place; on a GPU it is network/fused_network.py.

Three things make it faster than the network written as modules. A chunk of points goes through all steps of a
layer while it lies in a core's cache. Grids exist on occupied cells only (network/grid_kernels.py). And the chunks are
shared by a few workers whose matrix products run on one core each: a product shared by all cores waits for the slowest
of them at its end, and on a robot, where other processes run, that is a time slice and not a microsecond.

Chunks do not depend on the number of workers, so neither does the last bit of the logits.
Letters as in network/waffleiron.py; M: occupied cells of a plane, G: these and those around them, n: points of a chunk.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lidar_semseg_ros.network import grid_kernels, point_kernels
from lidar_semseg_ros.network.inputs import CroppedPlane, NetworkInput
from lidar_semseg_ros.network.waffleiron import WaffleIron, folded

CHUNK_VALUES = 2**17
"""Rows times channels of a chunk: half a megabyte in float32, so that its few arrays fit the cache of a core."""
SAME_ROWS = 256
"""In bfloat16, factors have a multiple of so many rows: oneDNN compiles a product for every shape, and keeps it."""
ROOM_TO_GROW = 1.25
"""Arrays are made this much larger than a sweep needs, so that the next larger one finds room."""


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


class Workers:
    """Threads that share the parts of a step; PyTorch runs on one core in each of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="network")
        # The number of threads is each thread's own from its first operation on, but it is set for all later ones too.
        before, ready = torch.get_num_threads(), threading.Barrier(count)

        def on_one_core(_: int) -> None:
            torch.set_num_threads(1)
            torch.get_num_threads()
            ready.wait()

        list(self._pool.map(on_one_core, range(count)))
        torch.set_num_threads(before)

    def share(self, edges: Sequence[int], step: Callable[[int, int], object]) -> None:
        """Do step(begin, end) for each pair of successive edges, the next one by whoever is free."""
        parts = itertools.count()

        def work() -> None:
            with torch.inference_mode():
                while (part := next(parts)) < len(edges) - 1:
                    step(edges[part], edges[part + 1])

        futures = [self._pool.submit(work) for _ in range(min(self.count, len(edges) - 1))]
        for fault in [future.exception() for future in futures]:  # all, for none may go on while the next step begins
            if fault is not None:
                raise fault


class Room(threading.local):
    """Arrays that are kept by name and made anew only when they must grow; each thread has its own."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Give an array of arbitrary content."""
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < math.prod(shape):
            kept = self._kept[name, dtype] = torch.empty(int(math.prod(shape) * ROOM_TO_GROW), dtype=dtype)
        return kept[: math.prod(shape)].view(shape)


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
        shape, start = plane.weight.shape, np.append(plane.start, len(plane.order))
        place = np.empty(len(plane.order), np.int64)
        place[plane.order] = np.repeat(np.arange(len(plane.occupied)), np.diff(start))
        hidden = grid_kernels.cells_around(plane.occupied, *shape)
        around = grid_kernels.windows(hidden, plane.occupied, *shape)
        back = grid_kernels.windows(plane.occupied, hidden, *shape)
        return cls(place=place, order=plane.order, start=start, around=around, hidden=back)

    def parts(self, points: int) -> list[int]:
        """Split the occupied cells where about so many points each lie between: edges from 0 to M."""
        edges = np.searchsorted(self.start, np.arange(0, len(self.order), points))
        return [*np.unique(edges).tolist(), len(self.start) - 1]


class Linear:
    """x ↦ x·Wᵀ + b on rows. In bfloat16, factors and product are rounded, the sums between them are not."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, room: Room) -> None:
        self._weight, self._bias, self._rounded_bias = weight.t().to(dtype).contiguous(), bias, bias.to(dtype)
        self._dtype, self._room = dtype, room

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the product; it lies in memory that the next call of any layer in this thread overwrites."""
        factor = self._rounded(x)
        out = self._room.take("product", (len(factor), self._weight.shape[1]), self._dtype)
        return torch.addmm(self._rounded_bias, factor, self._weight, out=out)[: len(x)]

    def add_to(self, sum_nC: Tensor, x: Tensor) -> None:
        """Add the product to what is there."""
        if self._dtype == sum_nC.dtype:
            sum_nC.add_(self._bias).addmm_(x, self._weight)
            return
        factor = self._rounded(x)
        addend = self._room.take("addend", (len(factor), self._weight.shape[1]), self._dtype)
        addend = torch.mm(factor, self._weight, out=addend)[: len(x)]
        if self._dtype == torch.bfloat16:
            point_kernels.add(array(addend), self._bias.numpy(), sum_nC.numpy())
        else:
            sum_nC.add_(self._bias).add_(addend)

    def _rounded(self, x: Tensor) -> Tensor:
        """Give a factor in the dtype of the product; what lies in rows beyond those of x means nothing."""
        if self._dtype == torch.float32:
            return x
        rounded = self._room.take("rounded", (multiple(len(x), SAME_ROWS), x.shape[1]), self._dtype)
        rounded[: len(x)] = x
        return rounded


def multiple(count: int, of: int) -> int:
    """Round up to a multiple."""
    return -(-count // of) * of


def array(x: Tensor) -> np.ndarray:
    """View a tensor as an array; bfloat16, which NumPy does not know, as its bits."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


class EmbeddingWeights(NamedTuple):
    """token_i = P x_i + p + Wf₂ max_j Wb ReLU(A (x_j − x_i) + a).

    point: P, (C, I). bias: p. relative: A, (C, I). shift: a. mix: Wb, highest: Wf₂, (C, C).
    """

    point: Tensor
    bias: Tensor
    relative: Tensor
    shift: Tensor
    mix: Tensor
    highest: Tensor


def embedding_weights(model: WaffleIron) -> EmbeddingWeights:
    """Fold all norms of the embedding into its products."""
    embed: Any = model.embed
    gain_I, shift_I = gain_and_shift(embed.norm)
    relative_norm, expand, expand_norm, _, mix = embed.conv2
    relative_gain_I, relative_shift_I = gain_and_shift(relative_norm)
    hidden_gain_C, hidden_shift_C = gain_and_shift(expand_norm)
    expand_CI = hidden_gain_C[:, None] * expand.weight.flatten(1)
    of_point, of_neighbours = embed.final.weight.flatten(1).chunk(2, dim=1)
    point_CI = of_point @ embed.conv1.weight.flatten(1)
    return EmbeddingWeights(
        point=point_CI * gain_I,
        bias=point_CI @ shift_I + of_point @ embed.conv1.bias + embed.final.bias,
        relative=expand_CI * relative_gain_I * gain_I,
        shift=expand_CI @ relative_shift_I + hidden_shift_C,
        mix=mix.weight.flatten(1),
        highest=of_neighbours,
    )


class Embedding:
    """The embedding of a chunk of points, by the formula of `EmbeddingWeights`.

    In bfloat16 only the product with Wb is: 50 m is a quarter of a metre there, and Wf₂ costs next to nothing.
    """

    def __init__(self, model: WaffleIron, dtype: torch.dtype, room: Room) -> None:
        weights = embedding_weights(model)
        of_points = weights.relative.t(), weights.shift, weights.point.t(), weights.bias
        self._of_points = [weight.contiguous().numpy() for weight in of_points]
        self._rounds = dtype == torch.bfloat16
        self._dtype = torch.bfloat16 if self._rounds else torch.float32
        self._expand = point_kernels.expansion(model.config.inputs, self._rounds)
        self._mix, self._highest = weights.mix.t().to(self._dtype).contiguous(), weights.highest.t().contiguous()
        self._room = room

    def write(self, begin: int, end: int, prepared: NetworkInput, tokens_NC: Tensor) -> None:
        """Embed the points begin … end."""
        x_NI, neighbours_nK, tokens_nC = prepared.features, prepared.neighbours[begin:end], tokens_NC[begin:end]
        points, count = neighbours_nK.shape
        shape = (multiple(points * count, SAME_ROWS) if self._rounds else points * count, tokens_nC.shape[1])
        hidden, mixed = (self._room.take(name, shape, self._dtype) for name in ("hidden", "mixed"))
        hidden_nKC, mixed_nKC = (rows[: points * count].unflatten(0, (points, count)) for rows in (hidden, mixed))
        highest = self._room.take("highest", tokens_nC.shape)
        self._expand(x_NI[begin:end], x_NI, neighbours_nK, *self._of_points, array(hidden_nKC), tokens_nC.numpy())
        torch.mm(hidden, self._mix, out=mixed)
        if self._rounds:
            point_kernels.highest_of(array(mixed_nKC), highest.numpy())
        else:
            torch.amax(mixed_nKC, 1, out=highest)
        tokens_nC.addmm_(highest, self._highest)


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


def kernel_and_bias(convolution: Any) -> tuple[Tensor, Tensor]:
    """Give a depthwise 3×3 convolution as (9, C) and (C,)."""
    return convolution.weight.flatten(1).t().contiguous(), convolution.bias


class ChannelMix:
    """tokens ← tokens + W₂ act(W₁ normal tokens + b₁) + b₂; gain and shift of the norm are folded into W₁ and b₁."""

    def __init__(self, mix: Any, dtype: torch.dtype, room: Room) -> None:
        _, self.activation, last = mix.mlp
        self._epsilon = epsilon_of(mix.norm)
        self._first = Linear(*first_product(mix), dtype, room)
        self._last = Linear(last.weight.flatten(1), last.bias, dtype, room)
        self._room = room

    def update(self, tokens_nC: Tensor) -> None:
        """Replace the tokens of a chunk by those of the next layer."""
        x = tokens_nC
        if self._epsilon >= 0:
            x = self._room.take("normal", tokens_nC.shape)
            grid_kernels.normalise(tokens_nC.numpy(), self._epsilon, x.numpy())
        self._last.add_to(tokens_nC, activated(self.activation, self._first(x)))


def first_product(mix: Any) -> tuple[Tensor, Tensor]:
    """Give weight and bias of a folded channel mix's first product, with gain and shift of a layer norm in them."""
    weight, bias = mix.mlp[0].weight.flatten(1), mix.mlp[0].bias
    if epsilon_of(mix.norm) < 0:
        return weight, bias
    gain_C, shift_C = gain_and_shift(mix.norm)
    return weight * gain_C, bias + weight @ shift_C


def epsilon_of(norm: nn.Module) -> float:
    """Give a layer norm's epsilon; negative for a norm that has nothing to do on a token but gain and shift."""
    return norm.eps if isinstance(norm, nn.LayerNorm) else -1.0


def activated(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an activation, in place where that is possible."""
    if not isinstance(activation, nn.ReLU):
        return activation(x)
    if x.dtype == torch.bfloat16:
        # Negative numbers are negative integers, too, and on these the maximum takes an eighth of the time. So are some
        # NaN, but nothing overflows here that does not in float32, and the tokens would keep it.
        x.view(torch.int16).clamp_(min=0)
        return x
    return x.relu_()


def gain_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Write what a norm does at inference (a layer norm: after centring and scaling) as x · gain + shift."""
    if isinstance(norm, nn.LayerNorm):
        return norm.weight, norm.bias
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return gain, norm.bias - norm.running_mean * gain


class CpuWaffleIron:
    """A network made ready for inference on a CPU; not for two threads at once.

    dtype: float32, or bfloat16 for the products of C × C; tokens and grids are float32 in both.
    """

    most_clouds = 1  # every core is busy with one, and a chunk of another one's rows is the same work

    def __init__(self, model: WaffleIron, dtype: torch.dtype, threads: int) -> None:
        model = folded(model)
        room = Room()
        self._embedding = Embedding(model, dtype, room)
        mixes = zip(model.waffleiron.spatial_mix, model.waffleiron.channel_mix)
        self._layers = [(SpatialMix(spatial), ChannelMix(channel, dtype, room)) for spatial, channel in mixes]
        self._head, self.config = model.classif, model.config
        self._rows = max(CHUNK_VALUES // self.config.width, 1)
        self._room, self._workers = room, Workers(threads)

    def logits(self, prepared: NetworkInput) -> Tensor:
        """Compute logits (N, outputs) float32 of N ≥ 1 kept points."""
        points, planes = len(prepared), [Cells.on(plane) for plane in prepared.planes]
        tokens_NC = self._room.take("tokens", (points, self.config.width))
        logits = torch.empty(points, self.config.outputs)

        def embed(begin: int, end: int) -> None:
            self._embedding.write(begin, end, prepared, tokens_NC)

        def classify(begin: int, end: int) -> None:
            logits[begin:end] = self._head(tokens_NC[begin:end])

        # Two arrays are all that a chunk needs here, so it may be twice as large, and Python is called half as often.
        self._workers.share(edges(points, max(2 * self._rows // prepared.neighbours.shape[1], 1)), embed)
        for layer, (spatial_mix, channel_mix) in enumerate(self._layers):
            self._layer(tokens_NC, planes[layer % len(planes)], spatial_mix, channel_mix)
        self._workers.share(edges(points, self._rows), classify)
        return logits

    def logits_of(self, prepared: Sequence[NetworkInput]) -> list[Tensor]:
        """Compute the logits of several clouds one after the other."""
        return [self.logits(one) for one in prepared]

    def _layer(self, tokens_NC: Tensor, cells: Cells, spatial_mix: SpatialMix, channel_mix: ChannelMix) -> None:
        occupied, around, channels = len(cells.hidden), len(cells.around), tokens_NC.shape[1]
        mean_MC = self._room.take("mean", (occupied, channels)).numpy()
        hidden_GC = self._room.take("hidden", (around, channels))
        mixed_MC = self._room.take("mixed", (occupied, channels)).numpy()
        tokens, hidden, mix = tokens_NC.numpy(), hidden_GC.numpy(), spatial_mix
        rectify = isinstance(mix.activation, nn.ReLU)

        def flatten(begin: int, end: int) -> None:
            grid_kernels.flatten(
                begin, end, tokens, cells.order, cells.start, mix.gain, mix.shift, mix.epsilon, mean_MC
            )

        def first(begin: int, end: int) -> None:
            grid_kernels.convolve(begin, end, mean_MC, cells.around, *mix.first, rectify, hidden)
            if not rectify:
                hidden_GC[begin:end] = mix.activation(hidden_GC[begin:end])

        def last(begin: int, end: int) -> None:
            grid_kernels.convolve(begin, end, hidden, cells.hidden, *mix.last, False, mixed_MC)

        def update(begin: int, end: int) -> None:
            grid_kernels.inflate(begin, end, mixed_MC, cells.place, tokens)
            channel_mix.update(tokens_NC[begin:end])

        self._workers.share(cells.parts(self._rows), flatten)
        self._workers.share(edges(around, self._rows), first)
        self._workers.share(edges(occupied, self._rows), last)
        self._workers.share(edges(len(tokens_NC), self._rows), update)


def edges(rows: int, step: int) -> list[int]:
    """Split rows into chunks: 0, step, 2 · step, … rows."""
    return [*range(0, rows, step), rows]
