"""Steps that threads do together within compiled code, part by part, the next one by whoever is free.

Between two steps a thread waits for the parts that others have begun, and for nothing else: not for one that has not
come yet, nor for the interpreter's lock, which, when two want it at once, puts one to sleep for longer than many a step
takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import types
from numba.extending import intrinsic

from lidar_semseg_ros.network.machine_code import compiled
from lidar_semseg_ros.network.parts import UnfinishedPartError

LOOKS = 4000
"""So often a thread looks whether the others are done before it lets go of its core: 0.1 to 0.2 ms, by processor."""
NAP_US, MOST_NAPS = 30, 200_000
"""How long it sleeps then, each time, and how often at most: 10 to 20 s in all."""
BEGUN, DONE, FAILED, PLACES = 0, 8, 9, 16
"""Places of a step's counts in progress (steps, PLACES) int64, the first two so far apart that they share no line of a
cache. FAILED is not 0 when a thread failed that may have begun a part."""

RESTS = {"x86_64": "pause", "aarch64": "isb"}
"""The instruction by which a processor is told that a loop only waits."""


def progress_of(steps: int) -> np.ndarray:
    """Count the parts that are begun and done, of none so far: (steps, PLACES) int64."""
    return np.zeros((steps, PLACES), np.int64)


def telling(progress: np.ndarray, work: Callable[[], object]) -> Callable[[], None]:
    """Make work on parts tell, if it fails, those that wait for one of them."""

    def told() -> None:
        try:
            work()
        except BaseException:
            progress[:, FAILED] = 1
            raise

    return told


@compiled
def begin_part(progress: np.ndarray, step: int) -> int:
    """Take the next part of a step that nobody has begun; beyond the last one there is nothing to do."""
    return _add_one(progress, step, BEGUN)  # type: ignore[call-arg]


@compiled
def end_part(progress: np.ndarray, step: int) -> None:
    """Say that a part is done; what was written for it is seen by whoever has waited for the step."""
    _add_one(progress, step, DONE)  # type: ignore[call-arg]


@compiled
def wait_for(progress: np.ndarray, step: int, parts: int) -> None:
    """Wait until all parts of a step are done; UnfinishedPartError where one has failed, and after 10 to 20 s."""
    if not come(progress, step, parts, MOST_NAPS):
        raise UnfinishedPartError("a thread has begun a part of a step and not ended it")


@compiled
def come(progress: np.ndarray, step: int, parts: int, naps: int) -> bool:
    """Wait until so many parts of a step are done: False after so many naps, or when a thread has failed."""
    looks = 0
    while _now(progress, step, DONE) < parts:  # type: ignore[call-arg]
        looks += 1
        if looks > LOOKS:  # another program may have the core of one of the others
            if looks > LOOKS + naps or _now(progress, step, FAILED) != 0:
                return False
            _nap()
    return True


def _count_at(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    counts = context.make_array(signature.args[0])(context, builder, arguments[0])
    line = builder.mul(arguments[1], ir.Constant(ir.IntType(64), PLACES))
    return builder.gep(counts.data, [builder.add(line, arguments[2])])


@intrinsic
def _add_one(_: Any, progress: Any, step: Any, place: Any) -> Any:
    """Add one to a count, which no other thread does at the same time; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = _count_at(context, builder, signature, arguments)
        return builder.atomic_rmw("add", at, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(progress, types.int64, types.int64), generate


@intrinsic
def _now(_: Any, progress: Any, step: Any, place: Any) -> Any:
    """Read a count from memory, each time anew, after a rest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rest = RESTS.get(binding.get_process_triple().partition("-")[0])
        if rest is not None:
            builder.asm(ir.FunctionType(ir.VoidType(), []), rest, "", [], side_effect=True)
        return builder.load_atomic(_count_at(context, builder, signature, arguments), "acquire", align=8)

    return types.int64(progress, types.int64, types.int64), generate


@intrinsic
def _nap(_: Any) -> Any:
    """Sleep, so that another thread can have the core."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32)])
        sleep = builder.module.globals.get("usleep") or ir.Function(builder.module, kind, "usleep")
        builder.call(sleep, [ir.Constant(ir.IntType(32), NAP_US)])
        return context.get_dummy_value()

    return types.void(), generate
