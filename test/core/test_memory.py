"""Freed memory that is used again: counted by the page faults the kernel reports."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from lidar_semseg_ros.core.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for sweep in range(12):
    if sweep == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_arrays_of_the_next_sweep_take_no_new_pages() -> None:
    faults = {}
    for which in ("as it is", "kept"):
        command = [sys.executable, "-c", SCRIPT, which]
        faults[which] = int(subprocess.check_output(command, cwd=Path(__file__).parents[2]))
    # Ten arrays of 64 MiB; with pages of 4 KiB each is 16,384 of them, with huge pages 32.
    assert faults["as it is"] >= 10 * 32 and faults["kept"] < 32
