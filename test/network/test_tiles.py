"""Products in registers: the numbers of a product in float64, on every kind of processor that has tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba.core.errors import TypingError

from lidar_semseg_ros.network import tiles
from lidar_semseg_ros.network.tiles import ADDED, BIASED, HIGHEST, RECTIFIED, Tiling, packed, product, tiling_for

HAS_BFLOAT16 = tiling_for(64, torch.bfloat16) is not None
TILINGS = [
    pytest.param(Tiling(8, 2), torch.float32, id="AVX2"),
    pytest.param(Tiling(16, 4), torch.float32, id="AVX-512"),
    pytest.param(
        Tiling(16, 4),
        torch.bfloat16,
        id="AVX-512 bfloat16",
        marks=pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16 products of vectors"),
    ),
]
pytestmark = pytest.mark.skipif(tiling_for(64, torch.float32) is None, reason="for this processor no tiles are known")


def bits(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).view(torch.int16).numpy()


def as_held(x: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    return bits(x) if dtype == torch.bfloat16 else x.float().numpy()


@pytest.mark.parametrize(("tiling", "dtype"), TILINGS)
@pytest.mark.parametrize("rows", [1, 3, 4, 21])
@pytest.mark.parametrize("width", [64, 192])
@pytest.mark.parametrize("form", [BIASED, ADDED, RECTIFIED, HIGHEST])
def test_a_product_is_that_of_float64(tiling: Tiling, dtype: torch.dtype, rows: int, width: int, form: int) -> None:
    dice = torch.Generator().manual_seed(0)
    x, weight, bias, there = (
        torch.randn(shape, generator=dice) for shape in ((rows, width), (width, width), (width,), (rows, width))
    )
    x, weight = x.to(dtype).float(), weight.to(dtype).float()
    out = there[: 1 if form == HIGHEST else rows].numpy().copy()
    expected = x.double() @ weight.double() + bias
    if form == ADDED:
        expected += there
    elif form == RECTIFIED:
        expected = expected.relu()
    elif form == HIGHEST:
        expected = torch.cat([expected, there[:1]]).amax(0, keepdim=True)
    product(tiling, form)(as_held(x, dtype), packed(weight, tiling, dtype), bias.numpy(), out)
    assert np.abs(out - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("inputs", [1, 5])
@pytest.mark.parametrize("tiling", [Tiling(8, 2), Tiling(16, 4)])
def test_points_of_a_few_channels_may_be_multiplied_too(inputs: int, tiling: Tiling) -> None:
    x, weight = torch.randn(7, inputs), torch.randn(inputs, 64)
    out = np.empty((7, 64), np.float32)
    product(tiling, BIASED)(x.numpy(), packed(weight, tiling, torch.float32), np.zeros(64, np.float32), out)
    assert np.abs(out - (x.double() @ weight.double()).numpy()).max() < 1e-5


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16 products of vectors")
def test_what_is_written_as_bfloat16_is_rounded_as_pytorch_does() -> None:
    x, weight = torch.randn(9, 3), torch.randn(3, 64)
    exact, rounded = np.empty((9, 64), np.float32), np.empty((9, 64), np.int16)
    for out in (exact, rounded):
        factors = x.numpy(), packed(weight, Tiling(16, 4), torch.float32), np.zeros(64, np.float32)
        product(Tiling(16, 4), RECTIFIED)(*factors, out)
    assert np.array_equal(rounded, bits(torch.from_numpy(exact))) and (exact > 0).any() and (exact == 0).any()


@pytest.mark.parametrize(("tiling", "dtype"), TILINGS)
@pytest.mark.parametrize("form", [BIASED, ADDED, RECTIFIED, HIGHEST])
@pytest.mark.parametrize("row", [0, 2, 5])
def test_nan_is_not_lost(tiling: Tiling, dtype: torch.dtype, form: int, row: int) -> None:
    x = torch.ones(6, 64)
    x[row, 7] = torch.nan
    out = np.full((1 if form == HIGHEST else 6, 64), 2.0, np.float32)
    weight = packed(torch.eye(64), tiling, dtype)
    product(tiling, form)(as_held(x, dtype), weight, np.zeros(64, np.float32), out)
    assert np.isnan(out[0 if form == HIGHEST else row]).all()
    assert np.isnan(out).any(axis=1).sum() == 1


def test_the_number_of_rows_does_not_change_the_last_bit() -> None:
    tiling, x, weight = Tiling(16, 4), torch.randn(11, 64), torch.randn(64, 64)
    factors = packed(weight, tiling, torch.float32), np.zeros(64, np.float32)
    together, alone = np.empty((2, 11, 64), np.float32)
    product(tiling, BIASED)(x.numpy(), *factors, together)
    for i in range(11):
        product(tiling, BIASED)(x[i : i + 1].numpy(), *factors, alone[i : i + 1])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize(
    ("features", "dtype", "width", "expected"),
    [
        ("+avx512f,+avx2,+fma,+avx512bf16,-amx-bf16", torch.float32, 64, Tiling(16, 4)),
        ("+avx512f,+avx2,+fma,+avx512bf16,-amx-bf16", torch.bfloat16, 256, Tiling(16, 4)),
        ("+avx512f,+avx2,+fma,+avx512bf16,+amx-bf16", torch.bfloat16, 256, None),
        ("+avx512f,+avx2,+fma,-avx512bf16", torch.bfloat16, 256, None),
        ("+avx512f,+avx2,+fma,+avx512bf16,-amx-bf16", torch.float16, 256, None),
        ("+avx512f,+avx2,+fma", torch.float32, 48, None),
        ("-avx512f,+avx2,+fma", torch.float32, 48, Tiling(8, 2)),
        ("-avx512f,+avx2,-fma", torch.float32, 64, None),
        ("+neon", torch.float32, 64, None),
    ],
)
def test_tiles_are_taken_where_they_are_known_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, features: str, dtype: torch.dtype, width: int, expected: Tiling | None
) -> None:
    monkeypatch.setattr(tiles, "processor_features", lambda: frozenset(features.split(",")))
    assert tiling_for(width, dtype) == expected


@pytest.mark.parametrize(
    ("form", "factor", "bias", "out"),
    [
        (BIASED, np.zeros((4, 64)), np.zeros(64, np.float32), np.zeros((4, 64), np.float32)),
        (BIASED, np.zeros((4, 64), np.float32, "F"), np.zeros(64, np.float32), np.zeros((4, 64), np.float32)),
        (BIASED, np.zeros((4, 64), np.float32), np.zeros(64), np.zeros((4, 64), np.float32)),
        (ADDED, np.zeros((4, 64), np.float32), np.zeros(64, np.float32), np.zeros((4, 64), np.int16)),
        (HIGHEST, np.zeros((4, 64), np.float32), np.zeros(64, np.float32), np.zeros((1, 64), np.int16)),
    ],
    ids=["double", "by columns", "double bias", "sum in bfloat16", "maximum in bfloat16"],
)
def test_arrays_that_a_tile_would_read_wrongly_are_refused(
    form: int, factor: np.ndarray, bias: np.ndarray, out: np.ndarray
) -> None:
    weight = packed(torch.eye(64), Tiling(16, 4), torch.float32)
    with pytest.raises(TypingError, match="a tile takes contiguous"):
        product(Tiling(16, 4), form)(factor, weight, bias, out)
