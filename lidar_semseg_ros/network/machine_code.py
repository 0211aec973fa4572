"""Compiled functions whose machine code is kept on disk, also where the disk is full or what is kept is damaged.

Whoever waits for the compiler hears of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from llvmlite import binding
from numba import njit
from numba.core import event
from numba.core.caching import FunctionCache, IndexDataCacheFile

F = TypeVar("F", bound=Callable[..., Any])

QUIET_S = 5.0
"""So long nothing is said again of the compiler's progress."""

logger = logging.getLogger(__name__)

binding.initialize_native_asmparser()  # without which LLVM ends the process at an instruction that is given by name


def compiled(function: F, fastmath: Collection[str] = ()) -> F:
    """Compile on the first call, without the interpreter's lock, and keep the machine code where there is a folder.

    fastmath: what sums and products may do for speed, in LLVM's words.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath), "no_cfunc_wrapper": True}
    kept: Any = njit(**options)(function)
    # As njit(cache=True) does; no folder, neither beside the source nor in the user's cache, is a RuntimeError.
    with contextlib.suppress(RuntimeError):
        kept._cache = _MendingCache(function)
    return kept


class _Progress(event.Listener):
    """Tells when the compiler begins, and every few seconds how far it has come."""

    def __init__(self) -> None:
        self._functions, self._begun_s, self._told_s = 0, 0.0, 0.0

    def on_start(self, event: event.Event) -> None:
        """Hear that a function is compiled; what it calls is compiled within it."""
        now_s = time.monotonic()
        if self._functions == 0:
            logger.info("compiling for this processor; what is compiled is kept for later starts")
            self._begun_s = self._told_s = now_s
        elif now_s - self._told_s >= QUIET_S:
            logger.info("still compiling: %d functions in %.0f s", self._functions, now_s - self._begun_s)
            self._told_s = now_s
        self._functions += 1

    def on_end(self, event: event.Event) -> None:
        """Hear that it is compiled."""


event.register("numba:compile", _Progress())


class _MendingCache(FunctionCache):
    """Numba's cache, whose faults cost time and no more: a power cut leaves empty files, and a disk may be full.

    What is kept is good as long as no module of the same folder changes, for functions contain those that they call.
    File names tell the state that it is of; of other states nothing stays, so a process that still runs in one of them
    compiles anew.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = _stamp_of(Path(function.__code__.co_filename).parent)
        self._state = hashlib.sha256(repr(stamp).encode()).hexdigest()[:12]
        self._cache_file = IndexDataCacheFile(self.cache_path, f"{self._impl.filename_base}.{self._state}", stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Give what is kept for a signature; None, and a cache that is empty, if it cannot be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # pickle raises whatever the damage makes of the bytes
            logger.warning("compiled code in %s is damaged and made anew: %r", self.cache_path, error)
        with contextlib.suppress(OSError):
            self.flush()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for a signature, if it can be written, and nothing of another state."""
        try:
            for file in Path(self.cache_path).glob("*.nb[ci]"):
                if f".{self._state}." not in file.name:
                    file.unlink(missing_ok=True)
            super().save_overload(sig, data)
        except OSError as error:
            logger.warning("compiled code cannot be kept in %s, so every start compiles: %s", self.cache_path, error)


@cache
def _stamp_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """List the modules of a folder, when each was written, and how large it is."""
    found = []
    for file in sorted(folder.glob("[!.]*.py")):  # and not what an editor notes beside them
        with contextlib.suppress(OSError):
            state = file.stat()
            found.append((file.name, state.st_mtime_ns, state.st_size))
    return tuple(found)
