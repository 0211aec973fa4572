"""The embedding's loops: the formulas written out in NumPy, and the rounding of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lidar_semseg_ros.network import point_kernels


def bits(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).view(torch.int16).numpy()


def from_bits(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).view(torch.bfloat16).float()


@pytest.mark.parametrize(
    ("points", "inputs", "count", "channels"), [(1, 5, 16, 64), (7, 5, 16, 256), (4, 3, 5, 48), (2, 6, 1, 1)]
)
@pytest.mark.parametrize("rounds", [False, True])
def test_points_and_neighbours_are_expanded_as_the_formula_says(
    points: int, inputs: int, count: int, channels: int, rounds: bool
) -> None:
    rng = np.random.default_rng(0)
    x_NI = rng.normal(size=(points + 2, inputs)).astype(np.float32)
    neighbours = rng.integers(0, len(x_NI), (points, count))
    relative, point = rng.normal(size=(2, inputs, channels)).astype(np.float32)
    shift, bias = rng.normal(size=(2, channels)).astype(np.float32)
    hidden = np.empty((points, count, channels), np.int16 if rounds else np.float32)
    tokens = np.empty((points, channels), np.float32)
    expand = point_kernels.expansion(inputs, rounds)
    expand(x_NI[:points], x_NI, neighbours, relative, shift, point, bias, hidden, tokens)
    x = x_NI.astype(np.float64)
    expected = np.maximum((x[neighbours] - x[:points, None]) @ relative + shift, 0)
    found = from_bits(hidden).numpy() if rounds else hidden
    np.testing.assert_allclose(found, expected, rtol=2**-8 if rounds else 1e-5, atol=1e-5)
    np.testing.assert_allclose(tokens, x[:points] @ point + bias, rtol=1e-5, atol=1e-5)


def test_rounding_is_that_of_pytorch_also_at_ties_and_the_ends_of_the_range() -> None:
    upper = np.random.default_rng(0).integers(0, 2**16, 20000, dtype=np.uint32) << 16
    lower = np.random.default_rng(1).choice([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], 20000).astype(np.uint32)
    values = (upper | lower).view(np.float32)
    expected = torch.from_numpy(values).bfloat16()
    found = torch.tensor([point_kernels.rounded(value) for value in values], dtype=torch.int16).view(torch.bfloat16)
    number = ~expected.isnan()
    assert number.float().mean() > 0.9 and expected.isinf().any() and expected.isnan().any()
    assert torch.equal(found[number], expected[number]) and found[~number].isnan().all()


@pytest.mark.parametrize(("count", "channels"), [(16, 64), (5, 48), (1, 3)])
def test_the_highest_of_the_neighbours_is_found_and_nan_is_not_lost(count: int, channels: int) -> None:
    mixed = torch.randn((9, count, channels), generator=torch.Generator().manual_seed(0)).bfloat16()
    mixed[0, -1, 1], mixed[1, 0, 2], mixed[2, :, 0] = torch.nan, -torch.tensor(torch.nan), -torch.inf
    highest = np.empty((9, channels), np.float32)
    point_kernels.highest_of(bits(mixed), highest)
    np.testing.assert_array_equal(highest, mixed.amax(1).float().numpy())
    assert np.isnan(highest).sum() == 2


def test_what_was_rounded_is_added_to_tokens_that_are_not() -> None:
    addend, bias = torch.randn(3, 50).bfloat16(), torch.randn(50)
    tokens = torch.randn(3, 50)
    expected = tokens.double() + addend.double() + bias.double()
    point_kernels.add(bits(addend), bias.numpy(), tokens.numpy())
    assert (tokens - expected).abs().max() < 1e-6
