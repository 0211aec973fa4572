"""Commands that are interrupted while they work."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOOKS_EVERY_S = 0.01


def wait_midway(process: subprocess.Popen, is_midway: Callable[[], bool], within_s: float = 120.0) -> None:
    """Wait until something is so while a process runs; at most until it ends, or so long."""
    deadline = time.monotonic() + within_s
    while not is_midway() and time.monotonic() < deadline:
        try:
            process.wait(LOOKS_EVERY_S)
        except subprocess.TimeoutExpired:
            continue
        return


def kill_midway(command: Sequence[str], is_midway: Callable[[], bool], env: Mapping[str, str] | None = None) -> None:
    """Run a command and kill it as soon as something is so."""
    silent = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=silent, stderr=silent) as process:
        wait_midway(process, is_midway)
        process.kill()
