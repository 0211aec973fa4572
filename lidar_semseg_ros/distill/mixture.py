"""Which sweeps a student sees: recordings mixed by weight, nested shares of them, splits that do not overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.distill.recordings import Recording, SourceConfig


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Recordings with the sweeps of each that take part, (S,) increasing, and how often each is drawn from."""

    recordings: tuple[Recording, ...]
    sweeps: tuple[np.ndarray, ...]
    weights: np.ndarray

    def draw(self, rng: np.random.Generator, step: int, slot: int) -> tuple[Recording, int]:
        """Draw a recording by its weight, and one of its sweeps; every place of every batch is drawn alike."""
        chosen = int(rng.choice(len(self.recordings), p=self.weights))
        return self.recordings[chosen], int(rng.choice(self.sweeps[chosen]))

    def __len__(self) -> int:
        return sum(len(sweeps) for sweeps in self.sweeps)


def mixed(recordings: Sequence[Recording], weights: Sequence[float], share: float, seed: int) -> Mixture:
    """Mix recordings; `share` of all their sweeps take part. UserError if there is nothing to draw from.

    A recording of which none takes part is not drawn from.
    """
    if not recordings or not np.sum(weights) > 0:
        raise UserError("there is nothing to train on; give recordings with a positive 'weight'")
    empty = [recording.name for recording in recordings if len(recording) == 0]
    if empty:
        raise UserError(f"{', '.join(empty)} has no sweeps; leave it out of the training configuration")
    first = np.cumsum([0, *(len(recording) for recording in recordings)])
    chosen = nested_subset(int(first[-1]), share, seed)
    sweeps = tuple(chosen[(chosen >= begin) & (chosen < end)] - begin for begin, end in pairwise(first))
    drawn = np.where([len(of_one) > 0 for of_one in sweeps], np.asarray(weights, float), 0.0)
    if not drawn.sum() > 0:
        raise UserError(
            f"a share of {share:g} leaves no sweep of the recordings with a positive 'weight'; raise 'share'"
        )
    return Mixture(recordings=tuple(recordings), sweeps=sweeps, weights=drawn / drawn.sum())


def nested_subset(count: int, share: float, seed: int) -> np.ndarray:
    """Choose ⌈share · count⌉ of `count` sweeps, increasing; with one seed, a smaller share is part of a larger one."""
    # A share such as 0.07 of 100 is 7.000000000000001 in floating point.
    chosen = max(1, int(np.ceil(round(share * count, 9))))
    return np.sort(np.random.default_rng(seed).permutation(count)[:chosen])


def require_separate_splits(splits: Mapping[str, Sequence[SourceConfig]]) -> None:
    """Raise UserError if a sequence is in two splits, for neighbouring sweeps are nearly the same.

    Parts of one file or folder that have no sweep in common may be in two: then they were parted on purpose.
    """
    seen: dict[str, list[tuple[str, SourceConfig]]] = defaultdict(list)
    for split, sources in splits.items():
        for source in sources:
            # A file is one sequence, however it is called.
            for drive in sorted({source.drive, _place(source)}, key=len):
                for other_split, other in seen[drive]:
                    if other_split != split and not _are_parted(source, other):
                        raise UserError(
                            f"sequence '{drive}' is in '{other_split}' and in '{split}'; keep it in one of them, name "
                            "the sequences ('sequence: …') if these are two drives, or take parts of it that do not "
                            "overlap ('sweeps: 0:80' and 'sweeps: 100:')"
                        )
                seen[drive].append((split, source))


def _place(source: SourceConfig) -> str:
    return str(Path(source.path).expanduser().resolve())


def _are_parted(one: SourceConfig, other: SourceConfig) -> bool:
    """Whether two sources are parts of the same file or folder that have no sweep in common."""
    if _place(one) != _place(other):
        return False
    (first, end), (other_first, other_end) = one.sweep_range, other.sweep_range
    return (end is not None and end <= other_first) or (other_end is not None and other_end <= first)


def require_classes(recordings: Sequence[Recording], table: ClassTable) -> None:
    """Raise UserError if a recording's labels have other classes than `table`."""
    for recording in recordings:
        if recording.classes is not None and recording.classes.names != table.names:
            raise UserError(
                f"{recording.name} is labelled with the classes of {recording.classes.name} "
                f"({', '.join(recording.classes.names[:3])}, …), but the student learns those of {table.name} "
                f"({', '.join(table.names[:3])}, …); set 'classes: {recording.classes.name}', or label it anew with "
                f"--classes {table.name}"
            )
