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
from torch import Tensor
from torch.nn import functional as F

from lidar_semseg_ros.network.crew import begin_part, end_part, progress_of, wait_for
from lidar_semseg_ros.network.grid_kernels import centre_and_scale, compiled, convolve, find_cells, flatten, most_around
from lidar_semseg_ros.network.inputs import CroppedPlane, NetworkInput
from lidar_semseg_ros.network.parts import together
from lidar_semseg_ros.network.point_kernels import rounded
from lidar_semseg_ros.network.tiles import (
    ADDED,
    BIASED,
    HIGHEST,
    RECTIFIED,
    ROWS,
    Tiling,
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

        def behind_relu(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
            of_bytes = byte_tiling_for(width)
            if in_bytes and of_bytes is not None:
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
        of_bytes = byte_tiling_for(width) if in_bytes else None
        self._compute = program(exact, tiling, of_head, of_bytes, dtype == torch.bfloat16)

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
        arguments = (
            progress_of(1 + STEPS_PER_LAYER * self._depth),
            prepared.features,
            prepared.neighbours,
            planes,
            self._embedding,
            self._layers,
            self._head,
            *(array.numpy() for array in arrays),
        )
        try:
            together(lambda: self._compute(*arguments), self._threads)
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


@compiled
def subtract(i: int, x_NI: np.ndarray, neighbours_NK: np.ndarray, difference_KI: np.ndarray) -> None:
    """Write the differences of a point's neighbours to it, the last one's again, which changes no maximum."""
    last = neighbours_NK.shape[1] - 1
    for k in range(len(difference_KI)):
        j = neighbours_NK[i, min(k, last)]
        for f in range(x_NI.shape[1]):
            difference_KI[k, f] = x_NI[j, f] - x_NI[i, f]


@compiled
def embed(
    lanes: int,
    vectors: int,
    mix_lanes: int,
    mix_vectors: int,
    begin: int,
    end: int,
    x_NI: np.ndarray,
    neighbours_NK: np.ndarray,
    weights: EmbeddingArrays,
    difference_KI: np.ndarray,
    hidden_KC: np.ndarray,
    most_rC: np.ndarray,
    no_bias_C: np.ndarray,
    tokens_NC: np.ndarray,
) -> None:
    """Write the tokens of the points begin … end, by the formula of `embedding_weights`.

    lanes, vectors: the tiling of float32. mix_lanes, mix_vectors: of the product with Wb, whose factors hidden_KC are.
    """
    for first in range(begin, end, ROWS):
        last = min(first + ROWS, end)
        most_rC[:] = -np.inf
        for i in range(first, last):
            subtract(i, x_NI, neighbours_NK, difference_KI)
            multiply(lanes, vectors, RECTIFIED, difference_KI, weights.relative, weights.shift, hidden_KC)
            most_1C = most_rC[i - first : i - first + 1]
            multiply(mix_lanes, mix_vectors, HIGHEST, hidden_KC, weights.mix, no_bias_C, most_1C)
        finish_embedding(lanes, vectors, x_NI[first:last], most_rC, no_bias_C, weights, tokens_NC[first:last])


@compiled
def embed_in_bytes(
    lanes: int,
    vectors: int,
    mix_lanes: int,
    mix_vectors: int,
    begin: int,
    end: int,
    x_NI: np.ndarray,
    neighbours_NK: np.ndarray,
    weights: EmbeddingArrays,
    difference_KI: np.ndarray,
    hidden_KC: np.ndarray,
    bytes_KC: np.ndarray,
    gain_K: np.ndarray,
    most_rC: np.ndarray,
    no_bias_C: np.ndarray,
    tokens_NC: np.ndarray,
) -> None:
    """Do what `embed` does, with bytes as factors of the product with Wb; a point's neighbours have one gain."""
    for first in range(begin, end, ROWS):
        last = min(first + ROWS, end)
        most_rC[:] = -np.inf
        for i in range(first, last):
            subtract(i, x_NI, neighbours_NK, difference_KI)
            multiply(lanes, vectors, RECTIFIED, difference_KI, weights.relative, weights.shift, hidden_KC)
            gain_K[:] = to_bytes(hidden_KC, bytes_KC)
            of_weight, most_1C = weights.mix_gain, most_rC[i - first : i - first + 1]
            multiply_bytes(
                mix_lanes, mix_vectors, HIGHEST, bytes_KC, gain_K, weights.mix, of_weight, no_bias_C, most_1C
            )
        finish_embedding(lanes, vectors, x_NI[first:last], most_rC, no_bias_C, weights, tokens_NC[first:last])


@compiled
def finish_embedding(
    lanes: int,
    vectors: int,
    x_nI: np.ndarray,
    most_rC: np.ndarray,
    no_bias_C: np.ndarray,
    weights: EmbeddingArrays,
    tokens_nC: np.ndarray,
) -> None:
    """Write tokens from points and from what is highest among their neighbours."""
    multiply(lanes, vectors, BIASED, x_nI, weights.point, weights.bias, tokens_nC)
    multiply(lanes, vectors, ADDED, most_rC[: len(x_nI)], weights.highest, no_bias_C, tokens_nC)


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
    layer: int,
    weights: LayerArrays,
    factor_nC: np.ndarray,
    hidden_rC: np.ndarray,
    tokens_nC: np.ndarray,
) -> None:
    """Replace at most BLOCK_ROWS tokens by those of the next layer."""
    first_bias_C, last_bias_C = weights.first_mix_bias[layer], weights.last_mix_bias[layer]
    multiply(lanes, vectors, RECTIFIED, factor_nC, weights.first[layer], first_bias_C, hidden_rC)
    multiply(lanes, vectors, ADDED, hidden_rC[: len(factor_nC)], weights.last[layer], last_bias_C, tokens_nC)


@compiled
def mix_channels_in_bytes(
    lanes: int,
    vectors: int,
    byte_lanes: int,
    byte_vectors: int,
    layer: int,
    weights: LayerArrays,
    factor_nC: np.ndarray,
    hidden_rC: np.ndarray,
    bytes_rC: np.ndarray,
    gain_r: np.ndarray,
    tokens_nC: np.ndarray,
) -> None:
    """Do what `mix_channels` does, with bytes as factors of the second product; each row has its gain."""
    first_bias_C, last_bias_C = weights.first_mix_bias[layer], weights.last_mix_bias[layer]
    multiply(lanes, vectors, RECTIFIED, factor_nC, weights.first[layer], first_bias_C, hidden_rC)
    for i in range(len(factor_nC)):
        gain_r[i] = to_bytes(hidden_rC[i : i + 1], bytes_rC[i : i + 1])
    bytes_nC, of_weight = bytes_rC[: len(factor_nC)], weights.last_gain[layer]
    multiply_bytes(
        byte_lanes, byte_vectors, ADDED, bytes_nC, gain_r, weights.last[layer], of_weight, last_bias_C, tokens_nC
    )


@compiled
def parts_of(rows: int, rows_of_part: int) -> int:
    """Tell how many parts rows make."""
    return (rows + rows_of_part - 1) // rows_of_part


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
    rectify: bool,
    out_MC: np.ndarray,
) -> None:
    """Convolve so many cells, `rows` in a part."""
    parts = parts_of(cells, rows)
    part = begin_part(progress, step)
    while part < parts:
        begin, end = part * rows, min((part + 1) * rows, cells)
        convolve(begin, end, cells_MC, window, weight_9C, bias_C, rectify, out_MC)
        end_part(progress, step)
        part = begin_part(progress, step)
    wait_for(progress, step, parts)


@cache
def program(
    exact: Tiling, tiling: Tiling, of_head: Tiling, of_bytes: Tiling | None, rounds: bool
) -> Callable[..., None]:
    """Make `compute` for tiles: of products in float32, with factors rounded or not, of the head, and of bytes."""
    (lanes, vectors), (mix_lanes, mix_vectors), (head_lanes, head_vectors) = exact, tiling, of_head
    in_bytes, (byte_lanes, byte_vectors) = of_bytes is not None, of_bytes or tiling
    factor_type = np.int16 if rounds else np.float32
    hidden_type = np.float32 if in_bytes else factor_type

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
        points, channels = tokens_NC.shape
        depth, outputs, count = len(layers.gain), logits_NO.shape[1], parts_of(neighbours_NK.shape[1], ROWS) * ROWS
        # Before any part: if there is no memory, the others need not wait for one that this thread has begun.
        difference_KI = np.empty((count, x_NI.shape[1]), np.float32)
        neighbour_KC = np.empty((count, channels), hidden_type)
        most_rC, no_bias_C = np.empty((ROWS, channels), np.float32), np.zeros(channels, np.float32)
        factor_rC = np.empty((BLOCK_ROWS, channels), factor_type)
        hidden_rC = np.empty((BLOCK_ROWS, channels), hidden_type)
        most_bytes = max(count, BLOCK_ROWS)
        bytes_rC, gain_r = np.empty((most_bytes, channels), np.uint8), np.empty(most_bytes, np.float32)
        logits_rO = np.empty((BLOCK_ROWS, len(head.bias)), np.float32)
        rows = max(PART_VALUES // (channels * BLOCK_ROWS), 1) * BLOCK_ROWS
        cells, to_embed = max(rows // 4, 1), max(rows // (4 * count), 1) * ROWS

        step, parts = 0, len(planes) + parts_of(points, to_embed)
        part = begin_part(progress, step)
        while part < parts:
            if part < len(planes):
                plane = planes[part]
                plane.hidden_total[0] = find_cells(
                    plane.order, plane.start, plane.occupied, plane.shape, plane.place, plane.around, plane.hidden
                )
            else:
                begin = (part - len(planes)) * to_embed
                end = min(begin + to_embed, points)
                if in_bytes:
                    embed_in_bytes(
                        lanes,
                        vectors,
                        byte_lanes,
                        byte_vectors,
                        begin,
                        end,
                        x_NI,
                        neighbours_NK,
                        embedding,
                        difference_KI,
                        neighbour_KC,
                        bytes_rC[:count],
                        gain_r[:count],
                        most_rC,
                        no_bias_C,
                        tokens_NC,
                    )
                else:
                    embed(
                        lanes,
                        vectors,
                        mix_lanes,
                        mix_vectors,
                        begin,
                        end,
                        x_NI,
                        neighbours_NK,
                        embedding,
                        difference_KI,
                        neighbour_KC,
                        most_rC,
                        no_bias_C,
                        tokens_NC,
                    )
            end_part(progress, step)
            part = begin_part(progress, step)
        wait_for(progress, step, parts)

        for layer in range(depth):
            plane = planes[layer % len(planes)]
            occupied, hidden = len(plane.occupied), plane.hidden_total[0]
            first, first_bias_C = layers.first_kernel[layer], layers.first_bias[layer]
            last, last_bias_C = layers.last_kernel[layer], layers.last_bias[layer]
            step = 1 + STEPS_PER_LAYER * layer
            flatten_all(progress, step, rows, tokens_NC, plane, layer, layers, mean_MC)
            convolve_all(progress, step + 1, cells, hidden, mean_MC, plane.around, first, first_bias_C, True, hidden_GC)
            convolve_all(
                progress, step + 2, cells, occupied, hidden_GC, plane.hidden, last, last_bias_C, False, mixed_MC
            )

            step, parts = step + 3, parts_of(points, rows)
            part = begin_part(progress, step)
            while part < parts:
                for begin in range(part * rows, min((part + 1) * rows, points), BLOCK_ROWS):
                    end = min(begin + BLOCK_ROWS, points)
                    tokens_nC, factor_nC, place_n = (
                        tokens_NC[begin:end],
                        factor_rC[: end - begin],
                        plane.place[begin:end],
                    )
                    epsilon = layers.channel_epsilon[layer]
                    inflate_and_normalise(mixed_MC, place_n, epsilon, rounds, tokens_nC, factor_nC)
                    if in_bytes:
                        mix_channels_in_bytes(
                            mix_lanes,
                            mix_vectors,
                            byte_lanes,
                            byte_vectors,
                            layer,
                            layers,
                            factor_nC,
                            hidden_rC,
                            bytes_rC,
                            gain_r,
                            tokens_nC,
                        )
                    else:
                        mix_channels(mix_lanes, mix_vectors, layer, layers, factor_nC, hidden_rC, tokens_nC)
                    if layer == depth - 1:
                        multiply(head_lanes, head_vectors, BIASED, tokens_nC, head.weight, head.bias, logits_rO)
                        logits_NO[begin:end] = logits_rO[: end - begin, :outputs]
                end_part(progress, step)
                part = begin_part(progress, step)
            wait_for(progress, step, parts)

    return compute
