"""Matrix products in the registers of a core, with what comes before and after them.

Factors here are narrow, 64 to 768 columns, and on these the libraries' products reach two thirds to four fifths of what
a core computes; a bias, a ReLU, a sum, a rounding or a maximum is another pass over memory for each. Here a product is
made of tiles (network/tile_instructions.py), each of which is finished before it is written.

bfloat16 is held as in network/point_kernels.py. Its products are of two factors at a time, so weights lie in pairs.
Factors that are not negative, as behind a ReLU, can be bytes: shares of the largest of their row. Their products with
bytes that have a sign are of four factors at a time, and sums are whole numbers until they are finished.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.core import types
from numba.extending import overload
from numba.misc.special import literally
from torch import Tensor

from lidar_semseg_ros.network.grid_kernels import compiled
from lidar_semseg_ros.network.tile_instructions import (
    HIGHEST,
    ROWS,
    UNIT_PAIRS,
    UNIT_ROWS,
    UNITS,
    WIDE,
    Tiling,
    byte_tile,
    processor_features,
    release_units,
    tile,
    unit_tile,
    use_units,
)

MEASURED = (WIDE, Tiling(8, 2))
"""Tiles that were measured to be quicker than the libraries' products; of others a robot finds out at the start."""
MOST_BYTE, MOST_SIGNED = 255, 127
LEAST = np.float32(1e-30)
"""What is smaller counts as nothing when it becomes bytes."""

ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


def tiling_for(width: int, dtype: torch.dtype) -> Tiling | None:
    """Choose the tiles of networks of a width on this processor; None where there are only the libraries' products."""
    features = processor_features()
    if dtype == torch.bfloat16:
        known = UNITS if has_matrix_units() else WIDE if "+avx512bf16" in features else None
    elif dtype != torch.float32:
        known = None
    elif "+avx512f" in features:
        known = WIDE
    elif {"+avx2", "+fma"} <= features:
        known = Tiling(8, 2)
    else:
        known = Tiling(4, 4) if "+neon" in features else None
    return known if known is not None and width % known.columns == 0 else None


def byte_tiling_for(width: int) -> Tiling | None:
    """Choose the tiles of products of bytes; None where the processor has none (VNNI), or matrix units beside them."""
    if has_matrix_units():
        return None
    features = processor_features()
    known = WIDE if "+avx512vnni" in features else Tiling(8, 2) if "+avxvnni" in features else None
    return known if known is not None and width % known.columns == 0 else None


def has_matrix_units() -> bool:
    """Tell whether the processor has units for products in bfloat16 (AMX); if so, ask Linux for leave to use them."""
    needed = {"+amx-bf16", "+amx-tile", "+avx512bf16"}
    return sys.platform == "linux" and needed <= processor_features() and may_use_matrix_units()


@cache
def may_use_matrix_units() -> bool:
    """Ask Linux for room for what matrix units hold, without which their first instruction ends the process.

    The answer holds for all threads, whose stacks for signals have to be large enough for that room from then on.
    Source: Linux, Documentation/arch/x86/xstate.rst.
    """
    call = [ctypes.c_long(value) for value in (ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)]
    return bool(ctypes.CDLL(None).syscall(*call) == 0)


def packed(weight_KC: Tensor, tiling: Tiling, dtype: torch.dtype) -> np.ndarray:
    """Order weights as tiles read them: (C / columns, K, columns) float32, or (…, K / 2, columns, 2) bfloat16.

    ValueError if K is odd in bfloat16, or no multiple of 32 for matrix units.
    """
    at_once = 2 * UNIT_PAIRS if tiling == UNITS else 2 if dtype == torch.bfloat16 else 1
    if len(weight_KC) % at_once:
        raise ValueError(
            f"{tiling} multiplies {at_once} rows of weights at a time in {dtype}, but got {len(weight_KC)}"
        )
    panels = weight_KC.float().unflatten(1, (-1, tiling.columns)).transpose(0, 1)
    if dtype == torch.bfloat16:
        pairs = panels.unflatten(1, (-1, 2)).transpose(2, 3).to(dtype)
        return pairs.contiguous().view(torch.int16).numpy()
    return panels.contiguous().numpy()


def packed_bytes(weight_KC: Tensor, tiling: Tiling) -> tuple[np.ndarray, np.ndarray]:
    """Round weights to bytes, K a multiple of 4: (C / columns, K / 4, columns, 4) int8, and what one is worth, (C,)."""
    gain_C = weight_KC.abs().amax(0).clamp(min=1e-30) / MOST_SIGNED
    fours = (weight_KC / gain_C).round().unflatten(1, (-1, tiling.columns)).transpose(0, 1).unflatten(1, (-1, 4))
    return fours.transpose(2, 3).to(torch.int8).contiguous().numpy(), gain_C.numpy()


@compiled
def to_bytes(values_nK: np.ndarray, bytes_nK: np.ndarray) -> np.float32:
    """Round values that are not negative to bytes of the same gain, which is returned; NaN where one is not finite."""
    values, rounded_values = values_nK.reshape(-1), bytes_nK.reshape(-1)
    bits, most = values.view(np.int32), np.int32(0)  # of which the maximum is quicker
    for i in range(len(bits)):
        one = bits[i] & np.int32(0x7FFFFFFF)  # without the sign of -0; a NaN is larger than all
        most = np.int32(one) if one > most else most
    largest = np.int32(most).view(np.float32)
    share = np.float32(MOST_BYTE) / largest if LEAST < largest < np.inf else np.float32(0)
    for i in range(len(values)):
        rounded_values[i] = np.uint8(values[i] * share + np.float32(0.5))
    return largest / np.float32(MOST_BYTE) if largest < np.inf else np.float32(np.nan)


@compiled
def multiply(
    lanes: int,
    vectors: int,
    form: int,
    factor_nK: np.ndarray,
    weight: np.ndarray,
    bias_C: np.ndarray,
    out_nC: np.ndarray,
) -> None:
    """Multiply rows (n, K) by packed weights (K, C) and add a bias (C,).

    lanes, vectors: a Tiling; before and after those of UNITS, the thread calls `use_units` and `release_units`.
    form: what else is done, of BIASED, ADDED and RECTIFIED; or HIGHEST, whose `out_nC` has one row. The sum of K
    products is taken in an order that is the same whatever n is.
    """
    multiply_by(literally(lanes), literally(vectors), literally(form), factor_nK, weight, bias_C, out_nC)


def multiply_by(
    lanes: int,
    vectors: int,
    form: int,
    factor_nK: np.ndarray,
    weight: np.ndarray,
    bias_C: np.ndarray,
    out_nC: np.ndarray,
) -> None:
    """Multiply by vectors or by matrix units, as the constant `lanes` tells; called in compiled code."""


@overload(multiply_by, prefer_literal=True)
def _by_lanes(
    lanes: Any, vectors: Any, form: Any, factor_nK: Any, weight: Any, bias_C: Any, out_nC: Any
) -> Callable[..., None] | None:
    def in_vectors(lanes: Any, vectors: Any, form: Any, factor_nK: Any, weight: Any, bias_C: Any, out_nC: Any) -> None:
        moves = 0 if form & HIGHEST else 1
        whole = len(factor_nK) // ROWS * ROWS
        for panel in range(len(weight)):
            for row in range(0, whole, ROWS):
                out_row = moves * row
                tile(lanes, vectors, ROWS, form, factor_nK, row, weight, panel, bias_C, out_nC, out_row)  # type: ignore
            for row in range(whole, len(factor_nK)):
                out_row = moves * row
                tile(lanes, vectors, 1, form, factor_nK, row, weight, panel, bias_C, out_nC, out_row)  # type: ignore

    def in_units(lanes: Any, vectors: Any, form: Any, factor_nK: Any, weight: Any, bias_C: Any, out_nC: Any) -> None:
        moves, rest = 0 if form & HIGHEST else 1, len(factor_nK) % UNIT_ROWS
        whole = len(factor_nK) - rest
        for panel in range(len(weight)):
            for row in range(0, whole, UNIT_ROWS):
                out_row = moves * row
                unit_tile(form, factor_nK, row, UNIT_ROWS, weight, panel, bias_C, out_nC, out_row)  # type: ignore
        if rest:
            use_units(rest)  # type: ignore[call-arg]
            for panel in range(len(weight)):
                out_row = moves * whole
                unit_tile(form, factor_nK, whole, rest, weight, panel, bias_C, out_nC, out_row)
            use_units(UNIT_ROWS)

    if not isinstance(lanes, types.IntegerLiteral):
        return None
    return in_units if lanes.literal_value == UNITS.lanes else in_vectors


@compiled
def multiply_bytes(
    lanes: int,
    vectors: int,
    form: int,
    factor_nK: np.ndarray,
    factor_gain_n: np.ndarray,
    weight: np.ndarray,
    weight_gain_C: np.ndarray,
    bias_C: np.ndarray,
    out_nC: np.ndarray,
) -> None:
    """Multiply rows of bytes (n, K) of `to_bytes` by weights of `packed_bytes`, and add a bias, as `multiply` does.

    HIGHEST: all rows have the gain of the first, and there is no bias. RECTIFIED is refused.
    """
    in_vector, in_row, kind = literally(lanes), literally(vectors), literally(form)
    moves = 0 if kind & HIGHEST else 1
    whole = len(factor_nK) // ROWS * ROWS
    of_factor, of_weight = factor_gain_n, weight_gain_C
    for panel in range(len(weight)):
        for row in range(0, whole, ROWS):
            out_row = moves * row
            byte_tile(  # type: ignore[call-arg]
                in_vector,
                in_row,
                ROWS,
                kind,
                factor_nK,
                row,
                weight,
                panel,
                bias_C,
                out_nC,
                out_row,
                of_factor,
                of_weight,
            )
        for row in range(whole, len(factor_nK)):
            out_row = moves * row
            byte_tile(  # type: ignore[call-arg]
                in_vector, in_row, 1, kind, factor_nK, row, weight, panel, bias_C, out_nC, out_row, of_factor, of_weight
            )


@cache
def product(tiling: Tiling, form: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]:
    """Make `multiply` of a tiling and a form, for callers that are not compiled."""
    (lanes, vectors), in_units = tiling, tiling == UNITS

    @compiled
    def of_rows(factor_nK: np.ndarray, weight: np.ndarray, bias_C: np.ndarray, out_nC: np.ndarray) -> None:
        if in_units:
            use_units(UNIT_ROWS)  # type: ignore[call-arg]
        multiply(lanes, vectors, form, factor_nK, weight, bias_C, out_nC)
        if in_units:
            release_units()

    return of_rows
