"""Published data sets that are read as they lie on the disk, and the sequences they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.distill import kitti, nuscenes, semantic_itc
from lidar_semseg_ros.distill.recordings import Recording, SourceConfig


class Opener(Protocol):
    """Opens one sequence; images: it is to have its images. UserError says what it lacks."""

    def __call__(self, source: SourceConfig, cache: Path, *, images: bool) -> Recording:
        """Open what the path of the source names."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """is_at: whether a path belongs to it. sequences: their sweeps by path below; empty if the path is a sequence."""

    is_at: Callable[[Path], bool]
    sequences: Callable[[Path], dict[str, int]]
    open: Opener


DATA_SETS = {
    "SemanticKITTI": DataSet(is_at=kitti.is_at, sequences=kitti.sequences, open=kitti.KittiFolder),
    "nuScenes": DataSet(is_at=nuscenes.is_at, sequences=nuscenes.sequences, open=nuscenes.NuScenesScene),
    "Semantic-ITC": DataSet(
        is_at=semantic_itc.is_at, sequences=semantic_itc.sequences, open=semantic_itc.SemanticItcSequence
    ),
}
"""In the order in which a folder is tried: the looser descriptions come last."""


def data_set_at(path: Path) -> DataSet | None:
    """Find the data set that a folder is of; None for bags and what is not there."""
    return next((data_set for data_set in DATA_SETS.values() if data_set.is_at(path)), None)


def single_sequences(source: SourceConfig) -> tuple[SourceConfig, ...]:
    """Name each sequence that a source takes of a folder with several, with its share of the weight by its sweeps.

    A bag, and a folder that is one sequence, are given back as they are. UserError if no sequence is called so.
    """
    path = Path(source.path).expanduser()
    data_set = data_set_at(path)
    there = {} if data_set is None else data_set.sequences(path)
    if not there:
        return (source,)
    wanted = [pattern.strip() for pattern in source.sequence.split(",")] if source.sequence else ["*"]
    taken: dict[str, int] = {}
    for pattern in wanted:
        # A sequence goes by its name as well as by its path.
        fitting = {name: sweeps for name, sweeps in there.items() if _is_called(name, pattern)}
        if not fitting:
            some = ", ".join(list(there)[:5]) + (", …" if len(there) > 5 else "")
            raise UserError(f"{path} has no sequence '{pattern}'; it has {some}")
        taken |= fitting
    total = sum(taken.values())
    return tuple(
        replace(source, path=str(path / name), sequence="", weight=source.weight * sweeps / max(total, 1))
        for name, sweeps in sorted(taken.items())
    )


def _is_called(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(Path(name).name, pattern)
