"""Products in registers: the numbers of a product in float64, on every kind of processor that has tiles."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from llvmlite import binding, ir
from numba.core.errors import TypingError

from lidar_semseg_ros.network import tiles
from lidar_semseg_ros.network.grid_kernels import compiled
from lidar_semseg_ros.network.tile_instructions import (
    ADDED,
    BIASED,
    HIGHEST,
    RECTIFIED,
    ROWS,
    UNITS,
    Tiling,
    _Tile,
)
from lidar_semseg_ros.network.tiles import (
    byte_tiling_for,
    multiply_bytes,
    packed,
    packed_bytes,
    product,
    tiling_for,
    to_bytes,
)

HAS_BFLOAT16 = tiling_for(64, torch.bfloat16) is not None
TILINGS = [
    pytest.param(Tiling(4, 4), torch.float32, id="NEON"),
    pytest.param(Tiling(8, 2), torch.float32, id="AVX2"),
    pytest.param(Tiling(16, 4), torch.float32, id="AVX-512"),
    pytest.param(
        Tiling(16, 4),
        torch.bfloat16,
        id="AVX-512 bfloat16",
        marks=pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16 products of vectors"),
    ),
    pytest.param(UNITS, torch.bfloat16, id="AMX"),
]
WIDE_BYTES = pytest.mark.skipif(byte_tiling_for(64) != Tiling(16, 4), reason="this processor has no wide bytes")
BYTE_TILINGS = [Tiling(8, 2), pytest.param(Tiling(16, 4), marks=WIDE_BYTES)]
pytestmark = pytest.mark.skipif(tiling_for(64, torch.float32) is None, reason="for this processor no tiles are known")


@pytest.fixture
def able(request: pytest.FixtureRequest) -> None:
    """See to it that this processor can multiply with the tiling of a test."""
    if request.node.callspec.params["tiling"] == UNITS:
        request.getfixturevalue("emulator")


def bits(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).view(torch.int16).numpy()


def as_held(x: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    return bits(x) if dtype == torch.bfloat16 else x.float().numpy()


@pytest.mark.usefixtures("able")
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
@pytest.mark.parametrize("tiling", [Tiling(4, 4), Tiling(8, 2), Tiling(16, 4)])
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


@pytest.mark.usefixtures("able")
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


@WIDE_BYTES
def test_the_number_of_rows_of_bytes_does_not_change_the_last_bit() -> None:
    tiling, whole = Tiling(16, 4), np.random.default_rng(0).integers(0, 256, (11, 64)).astype(np.uint8)
    gain, (weight, of_weight) = np.linspace(0.1, 1, 11, dtype=np.float32), packed_bytes(torch.randn(64, 64), tiling)
    factors = weight, of_weight, np.ones(64, np.float32)
    together, alone = np.empty((2, 11, 64), np.float32)
    product_of_bytes(tiling, BIASED, whole, gain, *factors, together)
    for i in range(11):
        product_of_bytes(tiling, BIASED, whole[i : i + 1], gain[i : i + 1], *factors, alone[i : i + 1])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("form", [BIASED, ADDED, RECTIFIED, HIGHEST])
def test_on_arm_the_sums_of_a_tile_stay_in_registers(form: int) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    try:
        processor = binding.Target.from_triple(triple).create_target_machine(cpu="cortex-a76", opt=3)
    except RuntimeError as error:
        pytest.skip(f"LLVM cannot compile for ARM here: {error}")
    module, whole, real = ir.Module(), ir.IntType(64), ir.FloatType().as_pointer()
    module.triple = triple
    arguments = [whole] * 5 + [real] * 4
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    rows, inputs, width, row, panel, factor, weight, bias, out = function.args

    def array(data: ir.Value, *shape: ir.Value) -> SimpleNamespace:
        """Describe an array of float32 as numba does."""
        strides = [whole(4)]
        for size in shape[:0:-1]:
            strides.insert(0, builder.mul(strides[0], size))
        both = [ir.Constant(ir.ArrayType(whole, len(shape)), ir.Undefined)] * 2
        for place, values in enumerate(zip(shape, strides)):
            both = [builder.insert_value(one, value, place) for one, value in zip(both, values)]
        return SimpleNamespace(data=data, shape=both[0], strides=both[1])

    tiling = Tiling(4, 4)
    views = {
        "factor": array(factor, rows, inputs),
        "weight": array(weight, width, inputs, whole(tiling.columns)),
        "bias": array(bias, width),
        "out": array(out, rows, width),
    }
    _Tile(builder, *tiling, ROWS, form, rounds_factor=False, rounds_out=False).write(views, row, panel, row)
    builder.ret_void()
    compiled_module = binding.parse_assembly(str(module))
    options = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(processor, options)
    passes.getModulePassManager().run(compiled_module, passes)
    assembly = processor.emit_assembly(compiled_module)
    loop = re.search(r"(\.LBB0_\d+):(.*?)b\.\w+\s+\1", assembly, re.DOTALL)
    assert loop is not None and loop[2].count("fmla") == ROWS * tiling.vectors
    assert "[sp" not in loop[2] and not re.search(r"st[rp]\s", loop[2])


@pytest.mark.parametrize(
    ("features", "dtype", "width", "expected"),
    [
        ("+avx512f,+avx2,+fma,+avx512bf16,-amx-bf16", torch.float32, 64, Tiling(16, 4)),
        ("+avx512f,+avx2,+fma,+avx512bf16,-amx-bf16", torch.bfloat16, 256, Tiling(16, 4)),
        ("+avx512f,+avx2,+fma,-avx512bf16", torch.bfloat16, 256, None),
        ("+avx512f,+avx2,+fma,+avx512bf16,-amx-bf16", torch.float16, 256, None),
        ("+avx512f,+avx2,+fma", torch.float32, 48, None),
        ("-avx512f,+avx2,+fma", torch.float32, 48, Tiling(8, 2)),
        ("-avx512f,+avx2,-fma", torch.float32, 64, None),
        ("+neon,+fp-armv8", torch.float32, 48, Tiling(4, 4)),
        ("+neon,+fp-armv8", torch.float32, 40, None),
        ("+neon,+bf16", torch.bfloat16, 64, None),
        ("+sse4.2", torch.float32, 64, None),
    ],
)
def test_tiles_are_taken_where_the_processor_has_their_instructions(
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


@pytest.mark.parametrize(
    ("features", "width", "expected"),
    [
        ("+avx512f,+avx512vnni", 64, Tiling(16, 4)),
        ("+avx512f,+avx512vnni,+avxvnni", 256, Tiling(16, 4)),
        ("+avx512f,+avx512vnni", 48, None),
        ("+avx2,+fma,+avxvnni", 48, Tiling(8, 2)),
        ("+avx512f,+avx512vnni,+avx512bf16,+amx-tile,+amx-bf16", 64, None),
        ("+avx512f,-avx512vnni,-avxvnni", 64, None),
    ],
)
def test_processors_with_products_of_bytes_are_known(
    features: str, width: int, expected: Tiling | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "processor_features", lambda: frozenset(features.split(",")))
    monkeypatch.setattr(tiles, "may_use_matrix_units", lambda: True)
    assert byte_tiling_for(width) == expected


def product_of_bytes(tiling: Tiling, form: int, *arrays: np.ndarray) -> None:
    lanes, vectors = tiling

    @compiled
    def of_rows(
        factor: np.ndarray,
        gain: np.ndarray,
        weight: np.ndarray,
        of_weight: np.ndarray,
        bias: np.ndarray,
        out: np.ndarray,
    ) -> None:
        multiply_bytes(lanes, vectors, form, factor, gain, weight, of_weight, bias, out)

    of_rows(*arrays)


@pytest.mark.skipif(byte_tiling_for(64) is None, reason="this processor has no products of bytes")
@pytest.mark.parametrize("tiling", BYTE_TILINGS)
@pytest.mark.parametrize("form", [BIASED, ADDED, HIGHEST])
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (7, 64), (16, 192)])
def test_a_product_of_bytes_is_that_of_what_they_are_worth(tiling: Tiling, form: int, rows: int, width: int) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(rows, width)).clip(0).astype(np.float32), torch.randn(width, width)
    bias, there = (rng.normal(size=shape).astype(np.float32) for shape in (width, (rows, width)))
    whole, gain = np.empty((rows, width), np.uint8), np.empty(rows, np.float32)
    for i in range(rows):
        gain[i] = to_bytes(x[i : i + 1], whole[i : i + 1])
    if form == HIGHEST:
        gain[:], bias[:] = to_bytes(x, whole), 0
    packed_weight, of_weight = packed_bytes(weight, tiling)
    rounded = (weight / torch.from_numpy(of_weight)).round().double().numpy() * of_weight
    expected = (whole * gain[:, None].astype(np.float64)) @ rounded + bias
    out = there[: 1 if form == HIGHEST else rows].copy()
    if form == ADDED:
        expected += there
    elif form == HIGHEST:
        expected = np.maximum(expected.max(axis=0, keepdims=True), there[:1])
    product_of_bytes(tiling, form, whole, gain, packed_weight, of_weight, bias, out)
    assert np.abs(out - expected).max() < 1e-4
    # Half of a byte's worth is the most that each factor is off, and likewise each weight.
    assert (np.abs(whole * gain[:, None] - x) <= gain[:, None] * 0.501).all()
    assert (np.abs(rounded - weight.numpy()) <= of_weight * 0.501).all()


@pytest.mark.parametrize(
    ("value", "gain", "byte"), [(-0.0, 0.0, 0), (1e-35, 0.0, 0), (2.55, 0.01, 255), (0.004, None, 1)]
)
def test_values_become_bytes(value: float, gain: float | None, byte: int) -> None:
    values, whole = np.full((3, 64), value, np.float32), np.full((3, 64), 9, np.uint8)
    if gain is None:
        values[1, 7] = 1.0
    assert to_bytes(values, whole) == pytest.approx(1 / 255 if gain is None else gain)
    assert (np.delete(whole, 64 + 7) == byte).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_what_is_not_finite_is_worth_nan(value: float) -> None:
    values = np.ones((4, 64), np.float32)
    values[2, 3] = value
    assert np.isnan(to_bytes(values, np.empty((4, 64), np.uint8)))


@WIDE_BYTES
def test_bytes_of_another_type_are_refused() -> None:
    wrong = np.zeros((4, 64), np.int8), np.ones(4, np.float32)
    weight, of_weight = packed_bytes(torch.ones(64, 64), Tiling(16, 4))
    others = weight, of_weight, np.zeros(64, np.float32), np.zeros((4, 64), np.float32)
    with pytest.raises(TypingError, match="a tile of bytes takes contiguous uint8"):
        product_of_bytes(Tiling(16, 4), BIASED, *wrong, *others)
    with pytest.raises(TypingError, match="no ReLU"):
        product_of_bytes(Tiling(16, 4), RECTIFIED, np.zeros((4, 64), np.uint8), wrong[1], *others)
