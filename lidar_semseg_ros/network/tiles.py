"""Matrix products in a core's vector registers, with what comes before and after them.

Factors here are narrow, 64 to 768 columns, and on these the libraries' products reach two thirds to four fifths of what
a core computes; a bias, a ReLU, a sum, a rounding or a maximum is another pass over memory for each. Here LLVM, which
numba brings, is told the innermost step of a product: a tile of a few rows and columns of it, whose sums stay in
registers while one factor after the other is added to them, and which is finished before it is written.

bfloat16 is held as in network/point_kernels.py. Its products are of two factors at a time, so weights lie in pairs.
Factors that are not negative, as behind a ReLU, can be bytes: shares of the largest of their row. Their products with
bytes that have a sign are of four factors at a time, and sums are whole numbers until they are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.misc.special import literally
from torch import Tensor

from lidar_semseg_ros.network.grid_kernels import compiled

ROWS = 4
"""Rows of a tile; with the vectors of a row, as many sums as hide the time that one addition takes."""
BIASED, ADDED, RECTIFIED, HIGHEST = 0, 1, 2, 4
"""What is done besides x·W + b: add what is there; ReLU; only keep the largest of the rows, and of it and what is
there."""

MOST_BYTE, MOST_SIGNED = 255, 127
LEAST = np.float32(1e-30)
"""What is smaller counts as nothing when it becomes bytes."""

FLOAT, BITS, WORD, SIZE = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Tiling(NamedTuple):
    """How a processor's registers are used: vectors of so many float32 each, so many of them in a row of a tile."""

    lanes: int
    vectors: int

    @property
    def columns(self) -> int:
        """Tell the columns of a tile."""
        return self.lanes * self.vectors


def tiling_for(width: int, dtype: torch.dtype) -> Tiling | None:
    """Choose the tiles of networks of a width on this processor; None where the libraries' products are to be taken.

    These know processors on which nothing was measured here.
    """
    features = processor_features()
    if dtype == torch.bfloat16:
        known = Tiling(16, 4) if "+avx512bf16" in features else None
    elif dtype != torch.float32:
        known = None
    elif "+avx512f" in features:
        known = Tiling(16, 4)
    else:
        known = Tiling(8, 2) if {"+avx2", "+fma"} <= features else None
    return known if known is not None and width % known.columns == 0 else None


def byte_tiling_for(width: int) -> Tiling | None:
    """Choose the tiles of products of bytes; None where the processor has none (VNNI), or matrix units beside them."""
    if has_matrix_units():
        return None
    features = processor_features()
    known = Tiling(16, 4) if "+avx512vnni" in features else Tiling(8, 2) if "+avxvnni" in features else None
    return known if known is not None and width % known.columns == 0 else None


def has_matrix_units() -> bool:
    """Tell whether the processor has units for products in bfloat16 (AMX), which the libraries use and tiles do not."""
    return "+amx-bf16" in processor_features()


def processor_features() -> frozenset[str]:
    """List what numba compiles for, each as +feature or -feature."""
    return frozenset(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


def packed(weight_KC: Tensor, tiling: Tiling, dtype: torch.dtype) -> np.ndarray:
    """Order weights as tiles read them: (C / columns, K, columns) float32, or (…, K / 2, columns, 2) bfloat16."""
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


@intrinsic(prefer_literal=True)
def tile(
    _: Any,
    lanes: Any,
    vectors: Any,
    rows: Any,
    form: Any,
    factor: Any,
    row: Any,
    weight: Any,
    panel: Any,
    bias: Any,
    out: Any,
    out_row: Any,
) -> Any:
    """Compute one tile: rows from `row` on of factor (n, K ≥ 1) times weight[panel] go to out (n, C) from `out_row` on.

    TypingError, when it is compiled, for arrays that are not contiguous or of other types than those of a form.
    """
    constants = _constants(lanes, vectors, rows, form)
    out_types = (types.float32,) if constants[3] & (ADDED | HIGHEST) else (types.float32, types.int16)
    kinds = ((types.float32, types.int16), (factor.dtype,), (types.float32,), out_types)
    _require("a tile", (factor, weight, bias, out), kinds)
    signature = types.void(lanes, vectors, rows, form, factor, row, weight, panel, bias, out, out_row)
    rounds = {"rounds_factor": factor.dtype == types.int16, "rounds_out": out.dtype == types.int16}
    return signature, _generator(lambda builder: _Tile(builder, *constants, **rounds), ARRAY_PLACES)


ARRAY_PLACES = {"factor": 4, "weight": 6, "bias": 8, "out": 9}


@intrinsic(prefer_literal=True)
def byte_tile(
    _: Any,
    lanes: Any,
    vectors: Any,
    rows: Any,
    form: Any,
    factor: Any,
    row: Any,
    weight: Any,
    panel: Any,
    bias: Any,
    out: Any,
    out_row: Any,
    factor_gain: Any,
    weight_gain: Any,
) -> Any:
    """Compute one tile as `tile` does, of bytes: factor uint8, weight int8, and what one of each is worth, float32.

    factor_gain: (n,), of a row, HIGHEST: of all rows of the tile. weight_gain: (C,).
    """
    constants = _constants(lanes, vectors, rows, form)
    if constants[3] & RECTIFIED:
        raise TypingError("a tile of bytes has no ReLU")
    kinds = (types.uint8, types.int8, *[types.float32] * 4)
    _require("a tile of bytes", (factor, weight, bias, out, factor_gain, weight_gain), [(kind,) for kind in kinds])
    signature = types.void(
        lanes, vectors, rows, form, factor, row, weight, panel, bias, out, out_row, factor_gain, weight_gain
    )
    places = ARRAY_PLACES | {"factor_gain": 11, "weight_gain": 12}
    return signature, _generator(lambda builder: _ByteTile(builder, *constants), places)


def _constants(*given: Any) -> tuple[int, ...]:
    if not all(isinstance(one, types.IntegerLiteral) for one in given):
        raise TypingError("lanes, vectors, rows and form of a tile are constants")
    return tuple(one.literal_value for one in given)


def _require(what: str, arrays: Sequence[Any], kinds: Sequence[tuple[Any, ...]]) -> None:
    """Raise TypingError unless arrays are contiguous and of one of the kinds known for each."""
    for array, known in zip(arrays, kinds):
        if array.layout != "C" or array.dtype not in known:
            raise TypingError(f"{what} takes contiguous {' or '.join(map(str, known))}, but got {array}")


def _generator(make: Callable[[ir.IRBuilder], _Tile], places: dict[str, int]) -> Callable[..., Any]:
    """Give what numba calls for the instructions of a tile; places: of its arrays among the arguments."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        arrays = {name: context.make_array(signature.args[place]) for name, place in places.items()}
        views = {name: array(context, builder, arguments[places[name]]) for name, array in arrays.items()}
        make(builder).write(views, row=arguments[5], panel=arguments[7], out_row=arguments[10])
        return context.get_dummy_value()

    return generate


class _Tile:
    """The instructions of one tile."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        lanes: int,
        vectors: int,
        rows: int,
        form: int,
        *,
        rounds_factor: bool,
        rounds_out: bool,
    ) -> None:
        self.builder, self.shape, self.rows, self.form = builder, Tiling(lanes, vectors), rows, form
        self.rounds_factor, self.rounds_out = rounds_factor, rounds_out
        self.vector = self.sum = ir.VectorType(FLOAT, lanes)

    def write(self, views: dict[str, Any], row: ir.Value, panel: ir.Value, out_row: ir.Value) -> None:
        """Start from the bias, add the products of one factor, or of two, after the other, and finish."""
        columns = self._columns(panel)
        places = self._places(views["out"], out_row, columns)
        sums = self._summed(self._start(views["bias"], columns, places), views, row, panel)
        if self.form & RECTIFIED:
            sums = [[self._larger(ir.Constant(self.vector, [0.0] * self.shape.lanes), x) for x in one] for one in sums]
        if self.form & HIGHEST:
            sums = [[self._highest([self._vector_at(at), *column]) for at, column in zip(places[0], zip(*sums))]]
        for values, there in zip(sums, places):
            for value, at in zip(values, there):
                self._store(value, at)

    def _columns(self, panel: ir.Value) -> list[ir.Value]:
        first = self.builder.mul(panel, SIZE(self.shape.columns))
        return [self.builder.add(first, SIZE(v * self.shape.lanes)) for v in range(self.shape.vectors)]

    def _places(self, out: Any, out_row: ir.Value, columns: list[ir.Value]) -> list[list[ir.Value]]:
        out_rows = [self.builder.add(out_row, SIZE(r)) for r in range(1 if self.form & HIGHEST else self.rows)]
        return [[self._address(out, [one, column]) for column in columns] for one in out_rows]

    def _start(self, bias: Any, columns: list[ir.Value], places: list[list[ir.Value]]) -> list[list[ir.Value]]:
        """Give what the products are added to: the bias, and what is there."""
        start = [self._vector_at(self._address(bias, [column])) for column in columns]
        if self.form & ADDED:
            return [[self.builder.fadd(x, self._vector_at(at)) for x, at in zip(start, there)] for there in places]
        return [list(start) for _ in range(self.rows)]

    def _summed(
        self, sums: list[list[ir.Value]], views: dict[str, Any], row: ir.Value, first_panel: ir.Value
    ) -> list[list[ir.Value]]:
        builder, element = self.builder, WORD if self.rounds_factor else FLOAT
        factor, weight = views["factor"], views["weight"]
        factor_rows = [self._address(factor, [builder.add(row, SIZE(r)), SIZE(0)]) for r in range(self.rows)]
        panel = self._address(weight, [first_panel, *[SIZE(0)] * (len(weight.strides.type) - 1)])
        steps = builder.extract_value(weight.shape, 1)
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(SIZE)
        step.add_incoming(SIZE(0), before)
        running = [[builder.phi(self.sum) for _ in one] for one in sums]
        line = builder.mul(step, SIZE(self.shape.columns))
        weights = [
            self._load(panel, builder.add(line, SIZE(v * self.shape.lanes)), ir.VectorType(element, self.shape.lanes))
            for v in range(self.shape.vectors)
        ]
        products = []
        for row, one in zip(factor_rows, running):
            factor = self._spread(self._load(row, step, element))
            products.append([self._multiplied_and_added(w, factor, x) for w, x in zip(weights, one)])
        following = builder.add(step, SIZE(1))
        step.add_incoming(following, loop)
        for phis, starts, ends in zip(running, sums, products):
            for phi, start, end in zip(phis, starts, ends):
                phi.add_incoming(start, before)
                phi.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
        builder.position_at_end(after)
        return products

    def _multiplied_and_added(self, weights: ir.Value, factor: ir.Value, total: ir.Value) -> ir.Value:
        builder = self.builder
        if self.rounds_factor:  # two products of bfloat16 in every lane; LLVM's names for it changed over time
            kind = ir.FunctionType(self.vector, [self.vector, weights.type, weights.type])
            return builder.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [total, weights, factor], side_effect=False)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fma.v{self.shape.lanes}f32"
        fused = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(fused, [weights, factor, total])

    def _highest(self, values: list[ir.Value]) -> ir.Value:
        highest = values[0]
        for value in values[1:]:  # one that is NaN, and stays
            larger = self.builder.fcmp_unordered(">", value, highest)
            is_nan = self.builder.fcmp_unordered("uno", highest, highest)
            highest = self.builder.select(self.builder.and_(larger, self.builder.not_(is_nan)), value, highest)
        return highest

    def _larger(self, least: ir.Value, value: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.fcmp_ordered(">", least, value), least, value)

    def _store(self, value: ir.Value, at: ir.Value) -> None:
        builder = self.builder
        if self.rounds_out:
            half = ir.VectorType(BITS, self.shape.lanes)
            kind = ir.FunctionType(half, [self.vector])
            value = builder.asm(kind, "vcvtneps2bf16 $1, $0", "=v,v", [value], side_effect=False)
        builder.store(value, builder.bitcast(at, value.type.as_pointer()), align=2)

    def _address(self, array: Any, place: list[ir.Value]) -> ir.Value:
        """Point to the element of an array at a place."""
        builder, offset = self.builder, SIZE(0)
        for axis, index in enumerate(place):
            offset = builder.add(offset, builder.mul(index, builder.extract_value(array.strides, axis)))
        return builder.gep(builder.bitcast(array.data, ir.IntType(8).as_pointer()), [offset])

    def _load(self, address: ir.Value, index: ir.Value, kind: Any) -> ir.Value:
        """Load a value or vector, the index-th of its elements from an address on."""
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        at = self.builder.gep(self.builder.bitcast(address, element.as_pointer()), [index])
        return self.builder.load(self.builder.bitcast(at, kind.as_pointer()), align=2)

    def _vector_at(self, address: ir.Value) -> ir.Value:
        return self._load(address, SIZE(0), self.vector)

    def _spread(self, value: ir.Value) -> ir.Value:
        """Fill a vector with a value."""
        nothing = ir.Constant(ir.VectorType(value.type, self.shape.lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, value, WORD(0))
        return self.builder.shuffle_vector(
            first, nothing, ir.Constant(ir.VectorType(WORD, self.shape.lanes), [0] * self.shape.lanes)
        )


class _ByteTile(_Tile):
    """The instructions of one tile of bytes, whose sums are whole numbers."""

    def __init__(self, builder: ir.IRBuilder, lanes: int, vectors: int, rows: int, form: int) -> None:
        super().__init__(builder, lanes, vectors, rows, form, rounds_factor=True, rounds_out=False)
        self.sum = ir.VectorType(WORD, lanes)

    def write(self, views: dict[str, Any], row: ir.Value, panel: ir.Value, out_row: ir.Value) -> None:
        """Sum the products, then weigh the sums, or the highest of them, and add the bias."""
        builder, columns = self.builder, self._columns(panel)
        places = self._places(views["out"], out_row, columns)
        nothing = ir.Constant(self.sum, [0] * self.shape.lanes)
        sums = self._summed([[nothing] * self.shape.vectors for _ in range(self.rows)], views, row, panel)
        gains = [self._vector_at(self._address(views["weight_gain"], [column])) for column in columns]
        if self.form & HIGHEST:
            highest = sums[0]
            for one in sums[1:]:
                highest = [builder.select(builder.icmp_signed(">", x, h), x, h) for x, h in zip(one, highest)]
            sums = [highest]
            start = [[ir.Constant(self.vector, [0.0] * self.shape.lanes)] * self.shape.vectors]
        else:
            start = self._start(views["bias"], columns, places)
        for r, (one, starts, there) in enumerate(zip(sums, start, places)):
            of_row = self._load(self._address(views["factor_gain"], [builder.add(row, SIZE(r))]), SIZE(0), FLOAT)
            for x, s, gain, at in zip(one, starts, gains, there):
                worth = builder.fmul(self._spread(of_row), gain)
                value = builder.fadd(builder.fmul(builder.sitofp(x, self.vector), worth), s)
                if self.form & HIGHEST:
                    value = self._highest([self._vector_at(at), value])
                self._store(value, at)

    def _multiplied_and_added(self, weights: ir.Value, factor: ir.Value, total: ir.Value) -> ir.Value:
        kind = ir.FunctionType(self.sum, [self.sum] * 3)  # four products in every lane
        # The same instruction has two encodings, and most processors know one of them.
        name = "vpdpbusd" if "+avx512vnni" in processor_features() else "{vex} vpdpbusd"
        arguments = [total, weights, factor]
        return self.builder.asm(kind, f"{name} $2, $3, $0", "=v,0,v,v", arguments, side_effect=False)


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

    lanes, vectors: a Tiling. form: what else is done, of BIASED, ADDED and RECTIFIED; or HIGHEST, whose `out_nC` has
    one row. The sum of K products is taken in their order, whatever n is.
    """
    in_vector, in_row, kind = literally(lanes), literally(vectors), literally(form)
    moves = 0 if kind & HIGHEST else 1
    whole = len(factor_nK) // ROWS * ROWS
    for panel in range(len(weight)):
        for row in range(0, whole, ROWS):
            out_row = moves * row
            tile(in_vector, in_row, ROWS, kind, factor_nK, row, weight, panel, bias_C, out_nC, out_row)  # type: ignore
        for row in range(whole, len(factor_nK)):
            out_row = moves * row
            tile(in_vector, in_row, 1, kind, factor_nK, row, weight, panel, bias_C, out_nC, out_row)  # type: ignore


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
    lanes, vectors = tiling

    @compiled
    def of_rows(factor_nK: np.ndarray, weight: np.ndarray, bias_C: np.ndarray, out_nC: np.ndarray) -> None:
        multiply(lanes, vectors, form, factor_nK, weight, bias_C, out_nC)

    return of_rows
