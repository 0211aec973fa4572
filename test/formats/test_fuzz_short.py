"""A short fuzz of every reader without atheris: small valid inputs, damaged at random, give a value or a UserError."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fuzz.fuzz_readers import FUZZED, SEEDS, run

ROUNDS = {"bag": 200}  # a recording takes twenty times as long as the rest


def damaged(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Change some bytes, cut the input, double a part of it, or go on with another input from some place."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, len(changed) + 1))
        end = place + int(rng.integers(0, 16))
        kind = rng.integers(0, 6)
        if kind == 0:
            changed[place : place + 1] = rng.bytes(1)
        elif kind == 1:
            changed[place:end] = bytes([rng.choice([0, 1, 127, 128, 255])]) * len(changed[place:end])
        elif kind == 2:
            del changed[place:end]
        elif kind == 3:
            del changed[place:]
        elif kind == 4:
            changed[place:place] = changed[place:end]
        else:
            other = others[rng.integers(len(others))]
            changed[place:] = other[int(rng.integers(0, len(other))) :]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", FUZZED)
def test_damaged_input_is_read_or_refused(target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    originals = list(SEEDS[target]().values())
    for _ in range(ROUNDS.get(target, 2000)):
        data = damaged(originals[rng.integers(len(originals))], originals, rng)
        try:
            run(target, data)
        except Exception as error:
            found = tmp_path / "found"
            found.write_bytes(data)
            raise AssertionError(
                f"{error!r}; again with test/fuzz/fuzz_readers.py --target {target} {found}"
            ) from error


@pytest.mark.parametrize("target", FUZZED)
def test_small_valid_inputs_are_valid(target: str) -> None:
    if target not in ("cloud", "image"):  # whose inputs are decisions, good and bad
        for data in SEEDS[target]().values():
            FUZZED[target](data)
