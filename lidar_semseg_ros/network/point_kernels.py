"""Compiled loops of the embedding, from points and their neighbours to what the wide product takes, and back.

Gathering the neighbours, subtracting, multiplying by a matrix of five rows, rectifying and rounding are as many passes
over memory in PyTorch, which together took half as long as the wide product after them; here they are one.

bfloat16 is the upper half of float32; NumPy does not know it, and its bits are int16 here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from lidar_semseg_ros.network.grid_kernels import compiled

NAN = np.int16(0x7FC0)


@compiled
def rounded(value: np.float32) -> np.int16:
    """Round to the nearest bfloat16, of two equally near ones to the even one."""
    bits = np.float32(value).view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.int16(upper) if value == value else NAN  # a NaN of all ones would become 0


@compiled
def widened(bits: np.int16) -> np.float32:
    """Give the float32 that a bfloat16 is."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@cache
def expansion(inputs: int, rounds: bool) -> Callable[..., None]:
    """Make `expand` for points of so many channels: a sum of known length stays in the processor's registers.

    rounds: hidden is written as bits of bfloat16 (int16), otherwise as float32.
    """

    @compiled
    def expand(
        x_nI: np.ndarray,
        x_NI: np.ndarray,
        neighbours_nK: np.ndarray,
        relative_IC: np.ndarray,
        shift_C: np.ndarray,
        point_IC: np.ndarray,
        bias_C: np.ndarray,
        hidden_nKC: np.ndarray,
        tokens_nC: np.ndarray,
    ) -> None:
        """Write hidden_ik = ReLU(A (x_j − x_i) + a), j the k-th neighbour of i, and tokens_i = P x_i + p."""
        points, count, channels = hidden_nKC.shape
        difference = np.empty(inputs, np.float32)
        for i in range(points):
            for k in range(count):
                for f in range(inputs):
                    difference[f] = x_NI[neighbours_nK[i, k], f] - x_nI[i, f]
                for c in range(channels):
                    total = shift_C[c]
                    for f in range(inputs):
                        total += difference[f] * relative_IC[f, c]
                    total = max(total, np.float32(0))
                    hidden_nKC[i, k, c] = rounded(total) if rounds else total
            for c in range(channels):
                total = bias_C[c]
                for f in range(inputs):
                    total += x_nI[i, f] * point_IC[f, c]
                tokens_nC[i, c] = total

    return expand


@compiled
def highest_of(mixed_nKC: np.ndarray, highest_nC: np.ndarray) -> None:
    """Find the largest of K bfloat16 in every channel, as float32; NaN where one is NaN."""
    points, count, channels = mixed_nKC.shape
    for i in range(points):
        for c in range(channels):
            highest_nC[i, c] = widened(mixed_nKC[i, 0, c])
        for k in range(1, count):
            for c in range(channels):
                value = widened(mixed_nKC[i, k, c])
                if value > highest_nC[i, c] or value != value:
                    highest_nC[i, c] = value


@compiled
def add(addend_nC: np.ndarray, bias_C: np.ndarray, tokens_nC: np.ndarray) -> None:
    """Add bfloat16 and a bias to tokens."""
    for i in range(len(tokens_nC)):
        for c in range(tokens_nC.shape[1]):
            tokens_nC[i, c] += widened(addend_nC[i, c]) + bias_C[c]
