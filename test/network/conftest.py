from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def compiled_emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    from lidar_semseg_ros.network.tile_instructions import processor_features

    if sys.platform != "linux" or "+avx512bf16" not in processor_features():
        pytest.skip("the emulator is for Linux on processors with AVX-512 and its bfloat16")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the emulator")
    path = tmp_path_factory.mktemp("emulator") / "amx.so"
    source = str(Path(__file__).with_name("amx_emulator.c"))
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(path), source], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def emulator(compiled_emulator: ctypes.CDLL) -> Iterator[ctypes.CDLL]:
    """What carries out the instructions of matrix units where the processor does not."""
    from lidar_semseg_ros.network.tiles import has_matrix_units

    if not has_matrix_units():
        compiled_emulator.begin_emulation()
    yield compiled_emulator
    compiled_emulator.end_emulation()
