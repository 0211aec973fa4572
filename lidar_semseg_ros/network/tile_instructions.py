"""The innermost step of a matrix product, told to LLVM, which numba brings: a tile of a few rows and columns of it.

The sums of a tile stay in a core's registers while one factor after the other is added to them, and are finished before
they are written. Vectors do this on most processors; where a core has matrix units, which multiply sixteen rows at a
time, these sum up products of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic

ROWS = 4
"""Rows of a tile; with the vectors of a row, as many sums as hide the time that one addition takes."""
BIASED, ADDED, RECTIFIED, HIGHEST = 0, 1, 2, 4
"""What is done besides x·W + b: add what is there; ReLU; only keep the largest of the rows, and of it and what is
there."""

FLOAT, BITS, WORD, SIZE = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Tiling(NamedTuple):
    """How a processor's registers are used: vectors of so many float32 each, so many of them in a row of a tile."""

    lanes: int
    vectors: int

    @property
    def columns(self) -> int:
        """Tell the columns of a tile."""
        return self.lanes * self.vectors


WIDE = Tiling(16, 4)
UNITS = Tiling(32, 2)
"""Stands for matrix units (AMX) and panels as WIDE has them; no processor has such vectors."""
UNIT_ROWS, UNIT_PAIRS, UNIT_BYTES = 16, 16, 64
"""A unit holds up to so many rows of a factor or of sums, or pairs of rows of weights, each of so many bytes."""


def processor_features() -> frozenset[str]:
    """List what numba compiles for, each as +feature or -feature."""
    return frozenset(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


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
    kinds = ((types.float32, types.int16), (factor.dtype,), (types.float32,), _kinds_of_out(constants[3]))
    _require("a tile", (factor, weight, bias, out), kinds)
    signature = types.void(lanes, vectors, rows, form, factor, row, weight, panel, bias, out, out_row)
    rounds = {"rounds_factor": factor.dtype == types.int16, "rounds_out": out.dtype == types.int16}
    return signature, _generator(lambda builder, _: _Tile(builder, *constants, **rounds), TILE_ARGUMENTS)


TILE_ARGUMENTS = ("lanes", "vectors", "rows", "form", "factor", "row", "weight", "panel", "bias", "out", "out_row")


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
    names = (*TILE_ARGUMENTS, "factor_gain", "weight_gain")
    return signature, _generator(lambda builder, _: _ByteTile(builder, *constants), names)


@intrinsic(prefer_literal=True)
def unit_tile(
    _: Any, form: Any, factor: Any, row: Any, rows: Any, weight: Any, panel: Any, bias: Any, out: Any, out_row: Any
) -> Any:
    """Compute one tile as `tile` does, of so many rows ≤ UNIT_ROWS, by matrix units.

    `use_units` made them ready for as many in this thread; else the processor ends the process.
    """
    (constant,) = _constants(form)
    kinds = ((types.int16,), (types.int16,), (types.float32,), _kinds_of_out(constant))
    _require("a tile of matrix units", (factor, weight, bias, out), kinds)
    signature = types.void(form, factor, types.intp, types.intp, weight, types.intp, bias, out, types.intp)
    names, rounds_out = ("form", "factor", "row", "rows", *TILE_ARGUMENTS[6:]), out.dtype == types.int16
    return signature, _generator(lambda builder, given: _UnitTile(builder, given["rows"], constant, rounds_out), names)


def _constants(*given: Any) -> tuple[int, ...]:
    if not all(isinstance(one, types.IntegerLiteral) for one in given):
        raise TypingError("lanes, vectors, rows and form of a tile are constants")
    return tuple(one.literal_value for one in given)


def _kinds_of_out(form: int) -> tuple[Any, ...]:
    """List what a form can be written as: what is added up, or compared, with what is there is not rounded."""
    return (types.float32,) if form & (ADDED | HIGHEST) else (types.float32, types.int16)


def _require(what: str, arrays: Sequence[Any], kinds: Sequence[tuple[Any, ...]]) -> None:
    """Raise TypingError unless arrays are contiguous and of one of the kinds known for each."""
    for array, known in zip(arrays, kinds):
        if array.layout != "C" or array.dtype not in known:
            raise TypingError(f"{what} takes contiguous {' or '.join(map(str, known))}, but got {array}")


def _generator(make: Callable[[ir.IRBuilder, dict[str, ir.Value]], _Tile], names: Sequence[str]) -> Callable[..., Any]:
    """Give what numba calls for the instructions of a tile; names: of its arguments."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        given = dict(zip(names, arguments))
        arrays = {name: kind for name, kind in zip(names, signature.args) if isinstance(kind, types.Array)}
        views = {name: context.make_array(kind)(context, builder, given[name]) for name, kind in arrays.items()}
        make(builder, given).write(views, given["row"], given["panel"], given["out_row"])
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
        self._finish(self._summed(self._start(views["bias"], columns, places), views, row, panel), places)

    def _finish(self, sums: list[list[ir.Value]], places: list[list[ir.Value]]) -> None:
        """Write sums that the bias is added to already."""
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


class _UnitTile(_Tile):
    """The instructions of one tile that matrix units sum up and vectors finish, row by row."""

    def __init__(self, builder: ir.IRBuilder, in_tile: ir.Value, form: int, rounds_out: bool) -> None:
        super().__init__(builder, *WIDE, 1, form, rounds_factor=True, rounds_out=rounds_out)
        self.in_tile = in_tile

    def write(self, views: dict[str, Any], row: ir.Value, panel: ir.Value, out_row: ir.Value) -> None:
        """Sum all products up, then add the bias and finish."""
        builder, columns, sums = self.builder, self._columns(panel), self._sums(views, row, panel)
        with cgutils.for_range(builder, self.in_tile) as loop:
            to = out_row if self.form & HIGHEST else builder.add(out_row, loop.index)
            places = self._places(views["out"], to, columns)
            (start,) = self._start(views["bias"], columns, places)
            first = builder.mul(loop.index, SIZE(self.shape.columns))
            at = [builder.add(first, SIZE(v * self.shape.lanes)) for v in range(self.shape.vectors)]
            self._finish([[builder.fadd(x, self._load(sums, i, self.vector)) for x, i in zip(start, at)]], places)

    def _sums(self, views: dict[str, Any], row: ir.Value, panel: ir.Value) -> ir.Value:
        """Give the address of (UNIT_ROWS, 64) float32 on the stack: four units of sums stand side by side."""
        builder, weight = self.builder, views["weight"]
        with builder.goto_entry_block():
            sums = builder.alloca(FLOAT, UNIT_ROWS * self.shape.columns)
            sums.align = UNIT_BYTES
        # $0: factor, with stride $3. $1: weights. $2: steps still to do. $5: sums, with the stride of weights, $4.
        # $6, $7: how far a step goes in factor and weights. tmm0 to 3 hold sums, 4 the factor, 5 to 7 weights.
        text = """
            tilezero %tmm0
            tilezero %tmm1
            tilezero %tmm2
            tilezero %tmm3
        1:
            tileloadd ($0,$3), %tmm4
            tileloadd ($1,$4), %tmm5
            tdpbf16ps %tmm5, %tmm4, %tmm0
            tileloadd 64($1,$4), %tmm6
            tdpbf16ps %tmm6, %tmm4, %tmm1
            tileloadd 128($1,$4), %tmm7
            tdpbf16ps %tmm7, %tmm4, %tmm2
            tileloadd 192($1,$4), %tmm5
            tdpbf16ps %tmm5, %tmm4, %tmm3
            addq $6, $0
            addq $7, $1
            decq $2
            jnz 1b
            tilestored %tmm0, ($5,$4)
            tilestored %tmm1, 64($5,$4)
            tilestored %tmm2, 128($5,$4)
            tilestored %tmm3, 192($5,$4)"""
        steps, line_bytes = builder.udiv(builder.extract_value(weight.shape, 1), SIZE(UNIT_PAIRS)), 4 * UNITS.columns
        begin = [
            self._address(views["factor"], [row, SIZE(0)]),
            self._address(weight, [panel, *[SIZE(0)] * 3]),
            steps,
        ]
        fixed = [builder.extract_value(views["factor"].strides, 0), SIZE(line_bytes), sums]
        advance = [SIZE(UNIT_BYTES), SIZE(UNIT_PAIRS * line_bytes)]
        values = [*fixed, *advance, *begin]
        byte = ir.IntType(8).as_pointer()
        moved = ir.LiteralStructType([byte, byte, SIZE])  # the loop moves these on, so they are given back
        constraints = "=&r,=&r,=&r,r,r,r,i,i,0,1,2,~{memory},~{flags}"
        builder.asm(ir.FunctionType(moved, [v.type for v in values]), text, constraints, values, side_effect=True)
        return sums


@intrinsic
def use_units(_: Any, rows: Any) -> Any:
    """Make the matrix units of this thread ready for so many rows of a factor, 1 to UNIT_ROWS, and its sums."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        byte, palette = ir.IntType(8), 1  # eight units of at most 16 rows of 64 bytes
        with builder.goto_entry_block():
            shapes = builder.alloca(byte, 64)
        everything = ir.ArrayType(byte, 64)
        builder.store(ir.Constant(everything, None), builder.bitcast(shapes, everything.as_pointer()))
        wanted = [(0, byte(palette))]
        for unit in range(8):
            rows = builder.trunc(arguments[0], byte) if unit < 5 else byte(UNIT_ROWS)
            wanted += [(16 + 2 * unit, byte(UNIT_BYTES)), (48 + unit, rows)]
        for place, value in wanted:
            builder.store(value, builder.gep(shapes, [SIZE(place)]))
        kind = ir.FunctionType(ir.VoidType(), [shapes.type])
        builder.asm(kind, "ldtilecfg ($0)", "r,~{memory}", [shapes], side_effect=True)
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def release_units(_: Any) -> Any:
    """Let go of the matrix units of this thread: what they hold is saved whenever another one runs."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        builder.asm(ir.FunctionType(ir.VoidType(), []), "tilerelease", "", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), generate
