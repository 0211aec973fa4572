"""The products of a network on a CPU whose tiles network/tiles.py knows, finished where they are computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidar_semseg_ros.network.grid_kernels import centre_and_scale, compiled
from lidar_semseg_ros.network.inputs import NetworkInput
from lidar_semseg_ros.network.point_kernels import rounded
from lidar_semseg_ros.network.tiles import ADDED, BIASED, HIGHEST, RECTIFIED, ROWS, Tiling, multiply, packed, tiling_for
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig
from lidar_semseg_ros.network.weights import embedding_weights, epsilon_of, mix_weights
from lidar_semseg_ros.network.workers import Room

BLOCK_ROWS = 64
"""So many tokens go through both products of a channel mix before the next ones do; they stay in the nearest cache."""


def fit(config: WaffleIronConfig, dtype: torch.dtype) -> bool:
    """Tell whether a network's products can be had here; exact GELU is left to PyTorch, which has vectors for it."""
    return config.activation == "relu" and tiling_for(config.width, dtype) is not None


class ChannelMix:
    """As that of network/library_products.py, all in one pass."""

    def __init__(self, mix: Any, dtype: torch.dtype, _: Room) -> None:
        weights = mix_weights(mix)
        tiling = required_tiling(len(weights[0][1]), dtype)
        self._weights = [
            array for weight, bias in weights for array in (packed(weight.t(), tiling, dtype), bias.numpy())
        ]
        self._update = channel_mix(tiling, dtype == torch.bfloat16, epsilon_of(mix.norm))

    def update(self, begin: int, end: int, cells_MC: np.ndarray, place: np.ndarray, tokens_NC: Tensor) -> None:
        """Replace the tokens begin … end by those of the next layer."""
        self._update(begin, end, cells_MC, place, *self._weights, tokens_NC.numpy())


@cache
def channel_mix(tiling: Tiling, rounds: bool, epsilon: float) -> Callable[..., None]:
    """Make `update` for these tiles, with factors rounded or not, and a layer norm if epsilon is not negative."""
    lanes, vectors = tiling
    factor_type = np.int16 if rounds else np.float32
    has_norm = epsilon >= 0

    @compiled
    def update(
        begin: int,
        end: int,
        cells_MC: np.ndarray,
        place: np.ndarray,
        first: np.ndarray,
        first_bias_C: np.ndarray,
        last: np.ndarray,
        last_bias_C: np.ndarray,
        tokens_NC: np.ndarray,
    ) -> None:
        channels = tokens_NC.shape[1]
        factor_rC = np.empty((BLOCK_ROWS, channels), factor_type)
        hidden_rC = np.empty((BLOCK_ROWS, channels), factor_type)
        for start in range(begin, end, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, end - start)
            tokens_rC = tokens_NC[start : start + rows]
            for i in range(rows):
                source = place[start + i]
                for c in range(channels):
                    tokens_rC[i, c] += cells_MC[source, c]
                centre, scale = np.float32(0), np.float32(1)
                if has_norm:
                    centre, scale = centre_and_scale(tokens_rC[i], epsilon)
                for c in range(channels):
                    value = (tokens_rC[i, c] - centre) * scale
                    factor_rC[i, c] = rounded(value) if rounds else value
            multiply(lanes, vectors, RECTIFIED, factor_rC[:rows], first, first_bias_C, hidden_rC)
            multiply(lanes, vectors, ADDED, hidden_rC[:rows], last, last_bias_C, tokens_rC)

    return update


class Embedding:
    """As that of network/library_products.py, for widths and dtypes that have tiles."""

    def __init__(self, model: WaffleIron, dtype: torch.dtype, _: Room) -> None:
        weights = embedding_weights(model)
        tiling = required_tiling(model.config.width, dtype)
        exact = required_tiling(model.config.width, torch.float32)
        point, relative, highest = (
            packed(weight.t(), exact, torch.float32) for weight in (weights.point, weights.relative, weights.highest)
        )
        mix = packed(weights.mix.t(), tiling, dtype)
        self._weights = point, weights.bias.numpy(), relative, weights.shift.numpy(), mix, highest
        self._embed = embedding(exact, tiling, dtype == torch.bfloat16)

    def write(self, begin: int, end: int, prepared: NetworkInput, tokens_NC: Tensor) -> None:
        """Embed the points begin … end."""
        self._embed(begin, end, prepared.features, prepared.neighbours, *self._weights, tokens_NC.numpy())


def required_tiling(width: int, dtype: torch.dtype) -> Tiling:
    """Give the tiles for a network that has some."""
    tiling = tiling_for(width, dtype)
    if tiling is None:
        raise ValueError(f"no tiles are known for width {width} in {dtype} on this processor")
    return tiling


@cache
def embedding(exact: Tiling, tiling: Tiling, rounds: bool) -> Callable[..., None]:
    """Make `embed` for these tiles of the float32 products and of that with Wb, whose factors are rounded or not."""
    hidden_type = np.int16 if rounds else np.float32
    (lanes, vectors), (mix_lanes, mix_vectors) = exact, tiling

    @compiled
    def embed(
        begin: int,
        end: int,
        x_NI: np.ndarray,
        neighbours_NK: np.ndarray,
        point: np.ndarray,
        bias_C: np.ndarray,
        relative: np.ndarray,
        shift_C: np.ndarray,
        mix: np.ndarray,
        highest: np.ndarray,
        tokens_NC: np.ndarray,
    ) -> None:
        """Write the tokens of the points begin … end; weights are packed."""
        inputs, channels, last = x_NI.shape[1], tokens_NC.shape[1], neighbours_NK.shape[1] - 1
        count = (last + ROWS) // ROWS * ROWS  # whole tiles
        difference_KI = np.empty((count, inputs), np.float32)
        hidden_KC = np.empty((count, channels), hidden_type)
        most_rC, no_bias_C = np.empty((ROWS, channels), np.float32), np.zeros(channels, np.float32)
        for first in range(begin, end, ROWS):
            points = slice(first, min(first + ROWS, end))
            most_rC[:] = -np.inf
            for i in range(points.start, points.stop):
                for k in range(count):
                    j = neighbours_NK[i, min(k, last)]  # the last again, which does not change the maximum
                    for f in range(inputs):
                        difference_KI[k, f] = x_NI[j, f] - x_NI[i, f]
                multiply(lanes, vectors, RECTIFIED, difference_KI, relative, shift_C, hidden_KC)
                most_1C = most_rC[i - first : i - first + 1]
                multiply(mix_lanes, mix_vectors, HIGHEST, hidden_KC, mix, no_bias_C, most_1C)
            multiply(lanes, vectors, BIASED, x_NI[points], point, bias_C, tokens_NC[points])
            multiply(lanes, vectors, ADDED, most_rC[: points.stop - first], highest, no_bias_C, tokens_NC[points])

    return embed
