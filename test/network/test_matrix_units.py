"""Products by matrix units (AMX); test_tiles has what they share with vectors."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numba.core.errors import TypingError
from random_networks import INPUTS, cloud, random_network

from lidar_semseg_ros.network import inference, parts, tiles
from lidar_semseg_ros.network.inference import CpuWaffleIron
from lidar_semseg_ros.network.inputs import prepare
from lidar_semseg_ros.network.tile_instructions import (
    ADDED,
    BIASED,
    HIGHEST,
    RECTIFIED,
    UNITS,
    Tiling,
)
from lidar_semseg_ros.network.tiles import (
    has_matrix_units,
    may_use_matrix_units,
    packed,
    product,
    tiling_for,
)
from lidar_semseg_ros.network.waffleiron import WaffleIronConfig

IN_VECTORS = Tiling(16, 4)
FEATURES = "+avx512f,+avx512bf16,+amx-tile,+amx-bf16"
SMALL = WaffleIronConfig(inputs=5, width=64, depth=3, outputs=7)


@pytest.fixture
def multiplied(emulator: ctypes.CDLL) -> Callable[..., np.ndarray]:
    """Multiply by matrix units: rows and weights of bfloat16 given as float32."""

    def multiplied(form: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: np.ndarray) -> np.ndarray:
        done = emulator.emulated()
        product(UNITS, form)(bits(x), packed(weight, UNITS, torch.bfloat16), bias.numpy(), out)
        assert has_matrix_units() or emulator.emulated() > done
        assert not emulator.in_use()
        return out

    return multiplied


def bits(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).view(torch.int16).numpy()


def in_bfloat16(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16().float()


@pytest.mark.parametrize("form", [BIASED, RECTIFIED])
def test_what_is_written_as_bfloat16_is_rounded_as_pytorch_does(
    multiplied: Callable[..., np.ndarray], form: int
) -> None:
    factors = in_bfloat16(21, 64), in_bfloat16(64, 64), torch.randn(64)
    exact = multiplied(form, *factors, np.empty((21, 64), np.float32))
    rounded = multiplied(form, *factors, np.empty((21, 64), np.int16))
    assert np.array_equal(rounded, bits(torch.from_numpy(exact)))


def test_the_number_of_rows_does_not_change_the_last_bit(multiplied: Callable[..., np.ndarray]) -> None:
    x, *others = in_bfloat16(37, 128), in_bfloat16(128, 64), torch.randn(64)
    together = multiplied(BIASED, x, *others, np.empty((37, 64), np.float32))
    alone = [multiplied(BIASED, one[None], *others, np.empty((1, 64), np.float32)) for one in x]
    assert np.array_equal(together, np.concatenate(alone))


def test_rows_behind_the_last_one_are_neither_read_nor_written(emulator: ctypes.CDLL) -> None:
    factor, out = bits(torch.randn(32, 64)), np.full((32, 64), 7.0, np.float32)
    weight, bias = packed(torch.eye(64), UNITS, torch.bfloat16), np.zeros(64, np.float32)
    end = ctypes.c_void_p(factor.ctypes.data + factor.nbytes)
    for first, loads in ((18, 0), (17, 2)):  # the row before them, too, which lies in two units
        emulator.watch(ctypes.c_void_p(factor[first:].ctypes.data), end)
        product(UNITS, BIASED)(factor[:18], weight, bias, out[:18])
        assert has_matrix_units() or emulator.rows_watched() == loads
    assert (out[18:] == 7).all()


@pytest.mark.parametrize(("tiling", "inputs"), [(UNITS, 48), (IN_VECTORS, 5)])
def test_weights_that_do_not_fill_what_is_multiplied_at_once_are_refused(tiling: Tiling, inputs: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tiling} multiplies {2 if inputs == 5 else 32} rows")):
        packed(torch.ones(inputs, 64), tiling, torch.bfloat16)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("form", [ADDED, HIGHEST])
def test_arrays_that_a_unit_would_read_wrongly_are_refused(form: int) -> None:
    weight, bias = packed(torch.eye(64), UNITS, torch.bfloat16), np.zeros(64, np.float32)
    with pytest.raises(TypingError, match="a tile of matrix units takes contiguous int16"):
        product(UNITS, form)(np.zeros((16, 64), np.float32), weight, bias, np.zeros((16, 64), np.float32))
    with pytest.raises(TypingError, match="a tile of matrix units takes contiguous float32"):
        product(UNITS, form)(np.zeros((16, 64), np.int16), weight, bias, np.zeros((16, 64), np.int16))


@pytest.mark.parametrize(
    ("changes", "neighbours"),
    [({}, 16), ({"norm": "layer", "head": "norm_linear", "width": 128}, 18)],
    ids=["batch", "layer"],
)
@pytest.mark.parametrize("points", [1, 63, 700])
def test_a_network_is_the_same_to_the_rounding_of_bfloat16(
    emulator: ctypes.CDLL, changes: dict[str, object], neighbours: int, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prepared = (
        random_network(replace(SMALL, **changes)),
        prepare(cloud(points), replace(INPUTS, neighbours=neighbours)),
    )
    exact = CpuWaffleIron(model, torch.float32, threads=2).logits(prepared)
    monkeypatch.setattr(tiles, "has_matrix_units", lambda: False)
    in_vectors = CpuWaffleIron(model, torch.bfloat16, threads=2).logits(prepared)
    monkeypatch.setattr(tiles, "has_matrix_units", lambda: True)
    monkeypatch.setattr(inference, "MEASURED", (UNITS,))  # so that the libraries are not taken instead
    monkeypatch.setattr(parts, "available_cores", lambda: 3)
    assert tiling_for(model.config.width, torch.bfloat16) == UNITS
    done = emulator.emulated()
    in_units, by_one = (CpuWaffleIron(model, torch.bfloat16, threads=n).logits(prepared) for n in (2, 1))
    assert has_matrix_units() or emulator.emulated() > done
    assert torch.equal(in_units, by_one)
    assert not emulator.in_use()
    assert (in_units - exact).abs().max() < 2 * (in_vectors - exact).abs().max()


@pytest.mark.parametrize(
    ("features", "allowed", "expected"),
    [
        (FEATURES, True, UNITS),
        (FEATURES, False, IN_VECTORS),
        ("+avx512f,+avx512bf16,-amx-tile,-amx-bf16", True, IN_VECTORS),
        ("+avx512f,+avx512bf16,+amx-tile,-amx-bf16", True, IN_VECTORS),
    ],
)
def test_units_are_taken_where_the_processor_has_them_and_linux_lets_them_be_used(
    features: str, allowed: bool, expected: Tiling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "processor_features", lambda: frozenset(features.split(",")))
    monkeypatch.setattr(tiles, "may_use_matrix_units", lambda: allowed)
    assert tiling_for(256, torch.bfloat16) == expected
    assert tiling_for(256, torch.float32) == IN_VECTORS


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="asks Linux on x86-64")
def test_linux_refuses_units_that_the_processor_has_not() -> None:
    has_units = "amx_tile" in Path("/proc/cpuinfo").read_text()
    assert has_units or not may_use_matrix_units()
