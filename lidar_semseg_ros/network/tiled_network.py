"""A network whose products network/tiles.py knows, as one compiled function that all threads run together.

Letters as in network/waffleiron.py; L: layers, M: occupied cells of a plane, G: these and those around them, r: rows of
a block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba.core import types
from numba.extending import overload
from torch import Tensor
from torch.nn import functional as F

from lidar_semseg_ros.network.crew import begin_part, end_part, progress_of, telling, wait_for
from lidar_semseg_ros.network.grid_kernels import centre_and_scale, compiled, convolve, find_cells, flatten, most_around
from lidar_semseg_ros.network.inputs import CroppedPlane, NetworkInput
from lidar_semseg_ros.network.parts import together
from lidar_semseg_ros.network.point_kernels import rounded
from lidar_semseg_ros.network.tile_instructions import (
    ADDED,
    BIASED,
    HIGHEST,
    RECTIFIED,
    ROWS,
    UNIT_ROWS,
    UNITS,
    Tiling,
    release_units,
    use_units,
)
from lidar_semseg_ros.network.tiles import (
    byte_tiling_for,
    multiply,
    multiply_bytes,
    packed,
    packed_bytes,
    tiling_for,
    to_bytes,
)
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig
from lidar_semseg_ros.network.weights import (
    embedding_weights,
    epsilon_of,
    gain_and_shift,
    head_weights,
    kernel_and_bias,
    mix_weights,
)
from lidar_semseg_ros.network.workers import Room

BLOCK_ROWS = 64
"""So many tokens go through both products of a channel mix before the next ones do; they stay in the nearest cache."""
PART_VALUES = 2**15
"""Rows times channels of a part of a step."""
STEPS_PER_LAYER = 4


class EmbeddingArrays(NamedTuple):
    """The weights of `embedding_weights`, products packed (network/tiles.py); bias, shift, mix_gain: (C,).

    mix_gain: what a byte of mix is worth, where these are bytes.
    """

    point: np.ndarray
    bias: np.ndarray
    relative: np.ndarray
    shift: np.ndarray
    mix: np.ndarray
    mix_gain: np.ndarray
    highest: np.ndarray


class LayerArrays(NamedTuple):
    """The weights of L layers one behind the other: products packed, kernels (L, 9, C), epsilons (L,), others (L, C).

    An epsilon is negative where no norm has anything to do on a token. last_gain: as mix_gain, of last.
    """

    spatial_epsilon: np.ndarray
    gain: np.ndarray
    shift: np.ndarray
    first_kernel: np.ndarray
    first_bias: np.ndarray
    last_kernel: np.ndarray
    last_bias: np.ndarray
    channel_epsilon: np.ndarray
    first: np.ndarray
    first_mix_bias: np.ndarray
    last: np.ndarray
    last_gain: np.ndarray
    last_mix_bias: np.ndarray


class HeadArrays(NamedTuple):
    """Weights of the product that makes logits, packed, and its bias; both filled up to whole tiles."""

    weight: np.ndarray
    bias: np.ndarray


class PlaneArrays(NamedTuple):
    """What is known of a plane, and room for what `find_cells` finds.

    shape: (height, width). occupied: (M,). order: (N,). start: (M + 1,). place: (N,). around: (…, 9), of which
    hidden_total[0] rows are filled. hidden: (M, 9).
    """

    shape: np.ndarray
    occupied: np.ndarray
    order: np.ndarray
    start: np.ndarray
    place: np.ndarray
    around: np.ndarray
    hidden: np.ndarray
    hidden_total: np.ndarray


def fit(config: WaffleIronConfig, dtype: torch.dtype) -> bool:
    """Tell whether a network can be had here; exact GELU is left to PyTorch, which has vectors for it."""
    tiling = byte_tiling_for(config.width) if dtype == torch.int8 else tiling_for(config.width, dtype)
    return config.activation == "relu" and config.head != "mlp" and tiling is not None


class TiledNetwork:
    """The weights of a network that fits, and the function that computes with them.

    dtype: of the factors of C × C products; int8: of those that are not negative, the others are bfloat16 where the
    processor has it.
    """

    def __init__(self, model: WaffleIron, dtype: torch.dtype, threads: int) -> None:
        width, in_bytes = model.config.width, dtype == torch.int8
        if in_bytes:
            dtype = torch.bfloat16 if tiling_for(width, torch.bfloat16) is not None else torch.float32
        exact, tiling = (required_tiling(width, kind) for kind in (torch.float32, dtype))
        of_bytes = byte_tiling_for(width) if in_bytes else None

        def behind_relu(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
            if of_bytes is not None:
                return packed_bytes(weight.t(), of_bytes)
            return packed(weight.t(), tiling, dtype), np.ones(width, np.float32)

        of_head = Tiling(exact.lanes, 1)
        embedding = embedding_weights(model)
        point, relative, highest = (
            packed(weight.t(), exact, torch.float32)
            for weight in (embedding.point, embedding.relative, embedding.highest)
        )
        mix, mix_gain = behind_relu(embedding.mix)
        self._embedding = EmbeddingArrays(
            point=point,
            bias=embedding.bias.numpy(),
            relative=relative,
            shift=embedding.shift.numpy(),
            mix=mix,
            mix_gain=mix_gain,
            highest=highest,
        )
        self._layers = layer_arrays(model, lambda weight: packed(weight.t(), tiling, dtype), behind_relu)
        weight, bias = head_weights(model)
        beyond = -len(weight) % of_head.columns
        self._head = HeadArrays(
            packed(F.pad(weight, (0, 0, 0, beyond)).t(), of_head, torch.float32),
            F.pad(bias, (0, beyond)).numpy(),
        )
        self._depth, self._width, self._room, self._threads = model.config.depth, model.config.width, Room(), threads
        hidden = tiling if of_bytes is None else of_bytes
        self._compute = program(exact, tiling, hidden, of_head, dtype == torch.bfloat16, in_bytes)

    def write(self, prepared: NetworkInput, logits: Tensor) -> None:
        """Write logits (N, outputs)."""
        points, width, room = len(prepared), self._width, self._room
        planes = tuple(plane_arrays(plane, number, room) for number, plane in enumerate(prepared.planes))
        cells = max(len(plane.occupied) for plane in planes)
        arrays = (
            room.take("tokens", (points, width)),
            room.take("mean", (cells, width)),
            room.take("hidden cells", (max(len(plane.around) for plane in planes), width)),
            room.take("mixed", (cells, width)),
            logits,
        )
        progress = progress_of(2 + STEPS_PER_LAYER * self._depth)
        arguments = (
            progress,
            prepared.features,
            prepared.neighbours,
            planes,
            self._embedding,
            self._layers,
            self._head,
            *(array.numpy() for array in arrays),
        )
        try:
            together(telling(progress, lambda: self._compute(*arguments)), self._threads)
        except BaseException:
            self._room = Room()  # for a helper may still write to this one
            raise


def required_tiling(width: int, dtype: torch.dtype) -> Tiling:
    """Give the tiles for a network that has some."""
    tiling = tiling_for(width, dtype)
    if tiling is None:
        raise ValueError(f"no tiles are known for width {width} in {dtype} on this processor")
    return tiling


def layer_arrays(
    model: WaffleIron,
    as_first: Callable[[Tensor], np.ndarray],
    as_last: Callable[[Tensor], tuple[np.ndarray, np.ndarray]],
) -> LayerArrays:
    """Put the weights of all layers together; as_first, as_last: how those of a channel mix are packed."""
    layers = []
    mixes: Any = zip(model.waffleiron.spatial_mix, model.waffleiron.channel_mix)
    for spatial, channel in mixes:
        (first_weight, first_bias), (last_weight, last_bias) = mix_weights(channel)
        spatial_mix = [
            *gain_and_shift(spatial.norm),
            *kernel_and_bias(spatial.ffn[0]),
            *kernel_and_bias(spatial.ffn[2]),
        ]
        layers.append(
            [
                np.float64(epsilon_of(spatial.norm)),
                *(weight.numpy() for weight in spatial_mix),
                np.float64(epsilon_of(channel.norm)),
                as_first(first_weight),
                first_bias.numpy(),
                *as_last(last_weight),
                last_bias.numpy(),
            ]
        )
    return LayerArrays(*(np.stack(arrays) for arrays in zip(*layers)))


def plane_arrays(plane: CroppedPlane, number: int, room: Room) -> PlaneArrays:
    """Bring a plane into the form that compiled code takes."""
    points, cells = len(plane.order), len(plane.occupied)

    def space(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
        array: np.ndarray = room.take(f"{name} of plane {number}", shape, dtype).numpy()
        return array

    return PlaneArrays(
        shape=np.array(plane.weight.shape),
        occupied=plane.occupied,
        order=plane.order,
        start=np.append(plane.start, points),
        place=space("place", (points,), torch.int64),
        around=space("around", (most_around(cells, plane.weight.size), 9), torch.int32),
        hidden=space("hidden", (cells, 9), torch.int32),
        hidden_total=np.zeros(1, np.int64),
    )


class Scratch(NamedTuple):
    """What a thread writes to and nobody else reads.

    difference: (K, I) and neighbour: (K, C), of a point's neighbours, K filled up to whole tiles. most: (ROWS, C), the
    highest of these for some points. none: (C,) zeros, where there is no bias or no cell. factor, hidden:
    (BLOCK_ROWS, C), of a channel mix. whole: (…, C) uint8 and gain: (…,), of hidden or neighbour. logits:
    (BLOCK_ROWS, outputs), whole tiles.
    """

    difference: np.ndarray
    neighbour: np.ndarray
    most: np.ndarray
    none: np.ndarray
    factor: np.ndarray
    hidden: np.ndarray
    whole: np.ndarray
    gain: np.ndarray
    logits: np.ndarray


def multiply_hidden(
    lanes: int,
    vectors: int,
    form: int,
    hidden_nC: np.ndarray,
    scratch: Scratch,
    weight: np.ndarray,
    weight_gain_C: np.ndarray,
    bias_C: np.ndarray,
    out_nC: np.ndarray,
) -> None:
    """Multiply what is behind a ReLU as `multiply` does, as bytes if the weights are bytes; called in compiled code."""


@overload(multiply_hidden, prefer_literal=True)
def _by_type_of_weights(
    lanes: Any,
    vectors: Any,
    form: Any,
    hidden_nC: Any,
    scratch: Any,
    weight: Any,
    weight_gain_C: Any,
    bias_C: Any,
    out_nC: Any,
) -> Callable[..., None]:
    # numba compares the annotations of these with those above.
    def in_bytes(
        lanes: Any,
        vectors: Any,
        form: Any,
        hidden_nC: Any,
        scratch: Any,
        weight: Any,
        weight_gain_C: Any,
        bias_C: Any,
        out_nC: Any,
    ) -> None:
        rows = len(hidden_nC)
        whole, gain = scratch.whole[:rows], scratch.gain[:rows]
        if form & HIGHEST:
            gain[:] = to_bytes(hidden_nC, whole)
        else:
            for i in range(rows):
                gain[i] = to_bytes(hidden_nC[i : i + 1], whole[i : i + 1])
        multiply_bytes(lanes, vectors, form, whole, gain, weight, weight_gain_C, bias_C, out_nC)

    def as_it_is(
        lanes: Any,
        vectors: Any,
        form: Any,
        hidden_nC: Any,
        scratch: Any,
        weight: Any,
        weight_gain_C: Any,
        bias_C: Any,
        out_nC: Any,
    ) -> None:
        multiply(lanes, vectors, form, hidden_nC, weight, bias_C, out_nC)

    return in_bytes if weight.dtype == types.int8 else as_it_is


@compiled
def parts_of(rows: int, rows_of_part: int) -> int:
    """Tell how many parts rows make."""
    return (rows + rows_of_part - 1) // rows_of_part


@compiled
def embed(
    lanes: int,
    vectors: int,
    hidden_lanes: int,
    hidden_vectors: int,
    begin: int,
    end: int,
    x_NI: np.ndarray,
    neighbours_NK: np.ndarray,
    weights: EmbeddingArrays,
    scratch: Scratch,
    tokens_NC: np.ndarray,
) -> None:
    """Write the tokens of at most ROWS points begin … end, by the formula of `embedding_weights`.

    lanes, vectors: the tiling of float32. hidden_lanes, hidden_vectors: of the product with Wb.
    """
    last, points = neighbours_NK.shape[1] - 1, slice(begin, end)
    difference_KI, hidden_KC = scratch.difference, scratch.neighbour
    scratch.most[:] = -np.inf
    for i in range(begin, end):
        for k in range(len(difference_KI)):
            j = neighbours_NK[i, min(k, last)]  # the last again, which does not change the maximum
            for f in range(x_NI.shape[1]):
                difference_KI[k, f] = x_NI[j, f] - x_NI[i, f]
        multiply(lanes, vectors, RECTIFIED, difference_KI, weights.relative, weights.shift, hidden_KC)
        mix, mix_gain, most_1C = weights.mix, weights.mix_gain, scratch.most[i - begin : i - begin + 1]
        multiply_hidden(hidden_lanes, hidden_vectors, HIGHEST, hidden_KC, scratch, mix, mix_gain, scratch.none, most_1C)
    multiply(lanes, vectors, BIASED, x_NI[points], weights.point, weights.bias, tokens_NC[points])
    multiply(lanes, vectors, ADDED, scratch.most[: end - begin], weights.highest, scratch.none, tokens_NC[points])


@compiled
def find_cells_and_embed_all(
    progress: np.ndarray,
    step: int,
    lanes: int,
    vectors: int,
    hidden_lanes: int,
    hidden_vectors: int,
    rows: int,
    x_NI: np.ndarray,
    neighbours_NK: np.ndarray,
    planes: tuple[PlaneArrays, ...],
    weights: EmbeddingArrays,
    scratch: Scratch,
    tokens_NC: np.ndarray,
) -> None:
    """Find the cells of a plane in each of the first parts, and embed `rows` points in each of the others."""
    points = len(tokens_NC)
    parts = len(planes) + parts_of(points, rows)
    part = begin_part(progress, step)
    while part < parts:
        if part < len(planes):
            plane = planes[part]
            plane.hidden_total[0] = find_cells(
                plane.order, plane.start, plane.occupied, plane.shape, plane.place, plane.around, plane.hidden
            )
        else:
            first = (part - len(planes)) * rows
            for begin in range(first, min(first + rows, points), ROWS):
                embed(
                    lanes,
                    vectors,
                    hidden_lanes,
                    hidden_vectors,
                    begin,
                    min(begin + ROWS, points),
                    x_NI,
                    neighbours_NK,
                    weights,
                    scratch,
                    tokens_NC,
                )
        end_part(progress, step)
        part = begin_part(progress, step)
    wait_for(progress, step, parts)


@compiled
def inflate_and_normalise(
    cells_MC: np.ndarray,
    place_n: np.ndarray,
    epsilon: float,
    rounds: bool,
    tokens_nC: np.ndarray,
    factor_nC: np.ndarray,
) -> None:
    """Add to tokens the rows `place_n` of cells_MC, their cells, and write the first factor of their channel mix."""
    channels = tokens_nC.shape[1]
    for i in range(len(tokens_nC)):
        source = place_n[i]
        for c in range(channels):
            tokens_nC[i, c] += cells_MC[source, c]
        centre, scale = np.float32(0), np.float32(1)
        if epsilon >= 0:
            centre, scale = centre_and_scale(tokens_nC[i], epsilon)
        if rounds:
            for c in range(channels):
                factor_nC[i, c] = rounded((tokens_nC[i, c] - centre) * scale)
        else:
            for c in range(channels):
                factor_nC[i, c] = (tokens_nC[i, c] - centre) * scale


@compiled
def mix_channels(
    lanes: int,
    vectors: int,
    hidden_lanes: int,
    hidden_vectors: int,
    rounds: bool,
    layer: int,
    cells_MC: np.ndarray,
    place_n: np.ndarray,
    weights: LayerArrays,
    scratch: Scratch,
    tokens_nC: np.ndarray,
) -> None:
    """Add to at most BLOCK_ROWS tokens what their cells hold, and replace them by those of the next layer.

    place: the row of `cells_MC` that is the cell of each token. lanes, vectors, rounds: of the first product, whether
    its factors are rounded. hidden_lanes, hidden_vectors: of the second.
    """
    rows, last, last_gain_C = len(tokens_nC), weights.last[layer], weights.last_gain[layer]
    factor_nC, hidden_nC = scratch.factor[:rows], scratch.hidden[:rows]
    first_bias_C, last_bias_C = weights.first_mix_bias[layer], weights.last_mix_bias[layer]
    inflate_and_normalise(cells_MC, place_n, weights.channel_epsilon[layer], rounds, tokens_nC, factor_nC)
    multiply(lanes, vectors, RECTIFIED, factor_nC, weights.first[layer], first_bias_C, hidden_nC)
    multiply_hidden(hidden_lanes, hidden_vectors, ADDED, hidden_nC, scratch, last, last_gain_C, last_bias_C, tokens_nC)


@compiled
def flatten_all(
    progress: np.ndarray,
    step: int,
    rows: int,
    tokens_NC: np.ndarray,
    plane: PlaneArrays,
    layer: int,
    weights: LayerArrays,
    mean_MC: np.ndarray,
) -> None:
    """Write the means of all cells, those of about so many points in a part."""
    gain_C, shift_C, epsilon = weights.gain[layer], weights.shift[layer], weights.spatial_epsilon[layer]
    parts, occupied = parts_of(len(tokens_NC), rows), len(plane.occupied)
    part = begin_part(progress, step)
    while part < parts:
        edges = np.searchsorted(plane.start, np.array([part * rows, (part + 1) * rows]))
        end = min(edges[1], occupied)
        flatten(edges[0], end, tokens_NC, plane.order, plane.start, gain_C, shift_C, epsilon, mean_MC)
        end_part(progress, step)
        part = begin_part(progress, step)
    wait_for(progress, step, parts)


@compiled
def convolve_all(
    progress: np.ndarray,
    step: int,
    rows: int,
    cells: int,
    cells_MC: np.ndarray,
    window: np.ndarray,
    weight_9C: np.ndarray,
    bias_C: np.ndarray,
    none_C: np.ndarray,
    rectify: bool,
    out_MC: np.ndarray,
) -> None:
    """Convolve so many cells, `rows` in a part."""
    parts = parts_of(cells, rows)
    part = begin_part(progress, step)
    while part < parts:
        begin, end = part * rows, min((part + 1) * rows, cells)
        convolve(begin, end, cells_MC, window, weight_9C, bias_C, none_C, rectify, out_MC)
        end_part(progress, step)
        part = begin_part(progress, step)
    wait_for(progress, step, parts)


@compiled
def mix_all(
    progress: np.ndarray,
    step: int,
    lanes: int,
    vectors: int,
    hidden_lanes: int,
    hidden_vectors: int,
    rounds: bool,
    rows: int,
    layer: int,
    cells_MC: np.ndarray,
    place_N: np.ndarray,
    weights: LayerArrays,
    scratch: Scratch,
    tokens_NC: np.ndarray,
) -> None:
    """Bring all tokens through a channel mix, `rows`, a multiple of BLOCK_ROWS, in a part."""
    points = len(tokens_NC)
    parts = parts_of(points, rows)
    part = begin_part(progress, step)
    while part < parts:
        for begin in range(part * rows, min((part + 1) * rows, points), BLOCK_ROWS):
            end = min(begin + BLOCK_ROWS, points)
            mix_channels(
                lanes,
                vectors,
                hidden_lanes,
                hidden_vectors,
                rounds,
                layer,
                cells_MC,
                place_N[begin:end],
                weights,
                scratch,
                tokens_NC[begin:end],
            )
        end_part(progress, step)
        part = begin_part(progress, step)
    wait_for(progress, step, parts)


@compiled
def classify_all(
    progress: np.ndarray,
    step: int,
    lanes: int,
    vectors: int,
    rows: int,
    tokens_NC: np.ndarray,
    weights: HeadArrays,
    scratch: Scratch,
    logits_NO: np.ndarray,
) -> None:
    """Write the logits of all tokens, `rows`, a multiple of BLOCK_ROWS, in a part."""
    points, outputs = logits_NO.shape
    parts = parts_of(points, rows)
    part = begin_part(progress, step)
    while part < parts:
        for begin in range(part * rows, min((part + 1) * rows, points), BLOCK_ROWS):
            end = min(begin + BLOCK_ROWS, points)
            multiply(lanes, vectors, BIASED, tokens_NC[begin:end], weights.weight, weights.bias, scratch.logits)
            for i in range(begin, end):
                for output in range(outputs):
                    logits_NO[i, output] = scratch.logits[i - begin, output]
        end_part(progress, step)
        part = begin_part(progress, step)
    wait_for(progress, step, parts)


@cache
def program(
    exact: Tiling, first: Tiling, hidden: Tiling, head: Tiling, rounds: bool, in_bytes: bool
) -> Callable[..., None]:
    """Make `compute` for tiles.

    exact: of products in float32. first: of a channel mix's first one, whose factors are rounded or not. hidden: of
    those behind a ReLU, whose factors are bytes or like the first's. head: of the product that makes logits.
    """
    (lanes, vectors), (first_lanes, first_vectors) = exact, first
    (hidden_lanes, hidden_vectors), (head_lanes, head_vectors) = hidden, head
    factor_type, in_units = np.int16 if rounds else np.float32, UNITS in (first, hidden)
    hidden_type, at_once = np.float32 if in_bytes else factor_type, UNIT_ROWS if in_units else ROWS

    @compiled
    def compute(
        progress: np.ndarray,
        x_NI: np.ndarray,
        neighbours_NK: np.ndarray,
        planes: tuple[PlaneArrays, ...],
        embedding: EmbeddingArrays,
        layers: LayerArrays,
        head: HeadArrays,
        tokens_NC: np.ndarray,
        mean_MC: np.ndarray,
        hidden_GC: np.ndarray,
        mixed_MC: np.ndarray,
        logits_NO: np.ndarray,
    ) -> None:
        """Work on all steps; when any thread returns, the logits are written."""
        channels, count = tokens_NC.shape[1], parts_of(neighbours_NK.shape[1], at_once) * at_once
        # Before any part: if there is no memory, the others need not wait for one that this thread has begun.
        none_C = np.zeros(channels, np.float32)
        scratch = Scratch(
            np.empty((count, x_NI.shape[1]), np.float32),
            np.empty((count, channels), hidden_type),
            np.empty((ROWS, channels), np.float32),
            none_C,
            np.empty((BLOCK_ROWS, channels), factor_type),
            np.empty((BLOCK_ROWS, channels), hidden_type),
            np.empty((max(count, BLOCK_ROWS), channels), np.uint8),
            np.empty(max(count, BLOCK_ROWS), np.float32),
            np.empty((BLOCK_ROWS, len(head.bias)), np.float32),
        )
        if in_units:
            use_units(UNIT_ROWS)  # type: ignore[call-arg]
        rows = max(PART_VALUES // (channels * BLOCK_ROWS), 1) * BLOCK_ROWS
        cells, to_embed = max(rows // 4, 1), max(rows // (4 * count), 1) * ROWS
        find_cells_and_embed_all(
            progress,
            0,
            lanes,
            vectors,
            hidden_lanes,
            hidden_vectors,
            to_embed,
            x_NI,
            neighbours_NK,
            planes,
            embedding,
            scratch,
            tokens_NC,
        )
        step = 1
        for layer in range(len(layers.gain)):
            plane = planes[layer % len(planes)]
            occupied, around = len(plane.occupied), plane.hidden_total[0]
            flatten_all(progress, step, rows, tokens_NC, plane, layer, layers, mean_MC)
            window, kernel, bias = plane.around, layers.first_kernel[layer], layers.first_bias[layer]
            convolve_all(progress, step + 1, cells, around, mean_MC, window, kernel, bias, none_C, True, hidden_GC)
            window, kernel, bias = plane.hidden, layers.last_kernel[layer], layers.last_bias[layer]
            convolve_all(progress, step + 2, cells, occupied, hidden_GC, window, kernel, bias, none_C, False, mixed_MC)
            mix_all(
                progress,
                step + 3,
                first_lanes,
                first_vectors,
                hidden_lanes,
                hidden_vectors,
                rounds,
                rows,
                layer,
                mixed_MC,
                plane.place,
                layers,
                scratch,
                tokens_NC,
            )
            step += STEPS_PER_LAYER
        if in_units:
            release_units()
        classify_all(progress, step, head_lanes, head_vectors, rows, tokens_NC, head, scratch, logits_NO)

    return compute
