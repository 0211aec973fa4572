"""What a study compares: trainings, the figures put side by side, and the claims of the papers about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import setting

FINE, COARSE = "OS1-64", "VLP-16"
"""The lidars: the one that all comparisons are made with, and another one to cross it with."""
TAUGHT, UNFILTERED, EXACT = "taught", "unfiltered", "exact"
"""Labels of the training drives: the teacher's that it accepts, all that it sees, and the simulator's."""
PROBE, FEW, FULL = "probe", "few-shot", "full"
"""How a network is brought to classes: its last layer from all exact labels, all of it from few, all of it at once."""


UNSEEN = 100
"""Added to the number of a building that is tested in, so that more buildings to learn in do not change it."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The budget of a study."""

    teacher: str = setting("teacher-small", "the vision teacher: a shipped one, or a folder; it must know features too")
    buildings: int = setting(8, "buildings to learn in, one drive with two cameras each", minimum=2, maximum=UNSEEN)
    unseen: int = setting(4, "other buildings to test in", minimum=1)
    frames: int = setting(20, "sweeps of each drive", minimum=5)
    speed_mps: float = setting(3.0, "speed of the drives: fast, for few sweeps are to show much", minimum=0.1)
    building_seed: int = setting(5000, "of the first building; the others follow", minimum=0)
    pretrain_steps: int = setting(150, "optimiser steps of a pre-training", minimum=1)
    probe_steps: int = setting(100, "optimiser steps of linear probing and of few-shot fine-tuning", minimum=1)
    full_steps: int = setting(300, "optimiser steps of a training from labels alone", minimum=1)
    share: float = setting(0.05, "few-shot: share of all sweeps whose labels are given", minimum=0.0)
    batch: int = setting(4, "sweeps per step", minimum=1)
    max_points: int = setting(2000, "points kept of a sweep", minimum=100)
    seeds: int = setting(3, "repetitions, with other weights and other draws", minimum=1)
    workers: int = setting(2, "trainings at the same time, each on one core", minimum=1)
    only: str = setting("", "comparisons to make, comma-separated; empty: all")

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"setting 'share' must lie above 0 and at most at 1, but got {self.share}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One row's training without its seed. start: name of the training that it begins with.

    lidars and labels: of the drives it learns from. settings: of the training configuration, by dotted name.
    """

    name: str
    settings: Mapping[str, Any]
    labels: str = TAUGHT
    lidars: tuple[str, ...] = (FINE,)
    depth: int = 6
    start: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table: for each row and column the name of a training and the lidar that it is tested with.

    claims: sentence, then (row, column) of what is said to be better and of what it is compared with.
    """

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[tuple[str, str], ...]]
    claims: tuple[tuple[str, tuple[str, str], tuple[str, str]], ...] = ()


_SEAL = {"seal_superpixels": 1.0, "superpixels": "classes", "seal_temporal": 1.0, "seal_segments": 1.0}
METHODS: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "SLidR-like (SLIC superpixels)": {"pseudo_labels": 0.0, "seal_superpixels": 1.0, "superpixels": "slic"},
    "Seal": {"pseudo_labels": 0.0, **_SEAL},
    "Seal without L_vfm": {"pseudo_labels": 0.0, **_SEAL, "seal_superpixels": 0.0},
    "Seal without L_tmp": {"pseudo_labels": 0.0, **_SEAL, "seal_temporal": 0.0},
    "Seal without L_p2s": {"pseudo_labels": 0.0, **_SEAL, "seal_segments": 0.0},
    "ScaLR": {"pseudo_labels": 0.0, "scalr": 1.0},
    "pseudo-labels": {"pseudo_labels": 1.0},
    "xModel-KD (pseudo-labels and fusion)": {"pseudo_labels": 1.0, "xmodel": 1.0},
}
"""Objectives of each pre-training. Seal's superpixels are the teacher's classes, one of each in a batch, so that none
is contrasted with its like; xModel-KD learns from pseudo-labels, so its row is to be read beside theirs."""
DEPTHS = (6, 12, 24)
BETWEEN = {FINE: (FINE,), COARSE: (COARSE,), f"{FINE} and {COARSE}": (FINE, COARSE)}


def comparisons(config: StudyConfig) -> dict[str, Comparison]:
    """Give the comparisons that are wanted. UserError if one of them is unknown."""
    probe, few = "linear probe", f"few-shot, {config.share:.0%}"
    after = (probe, few)
    taught, unfiltered, exact = "pseudo-labels, filtered", "pseudo-labels, all that is seen", "exact labels"
    known = {
        "labels": Comparison(
            title="A network from labels, the same frames for all",
            columns=("mIoU",),
            rows={
                taught: ((_full(), FINE),),
                unfiltered: ((_full(labels=UNFILTERED), FINE),),
                exact: ((_full(labels=EXACT), FINE),),
            },
            claims=(("filtering by confidence helps", (taught, "mIoU"), (unfiltered, "mIoU")),),
        ),
        "pretraining": Comparison(
            title="After pre-training without labels",
            columns=after,
            rows={name: tuple((f"{_key(name)}-{how}", FINE) for how in (PROBE, FEW)) for name in METHODS},
            claims=tuple(_claims_of_pretraining(after)),
        ),
        "sensors": Comparison(
            title="One lidar to learn with, another to drive with",
            columns=tuple(f"on {lidar}" for lidar in (FINE, COARSE)),
            rows={name: tuple((_full(lidars), lidar) for lidar in (FINE, COARSE)) for name, lidars in BETWEEN.items()},
            claims=tuple(
                (f"both lidars together are better for the {at} than the {other} alone", (both, f"on {at}"), alone)
                for both in (f"{FINE} and {COARSE}",)
                for at, other in ((FINE, COARSE), (COARSE, FINE))
                for alone in ((other, f"on {at}"),)
            ),
        ),
        "depth": Comparison(
            title="Depth of the network, the same steps for all",
            columns=("mIoU",),
            rows={f"{depth} layers": ((_full(depth=depth), FINE),) for depth in DEPTHS},
            claims=tuple(
                (f"{more} layers are better than {less}", (f"{more} layers", "mIoU"), (f"{less} layers", "mIoU"))
                for less, more in pairwise(DEPTHS)
            ),
        ),
    }
    wanted = [name.strip() for name in config.only.split(",") if name.strip()] or list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"there is no comparison '{name}'; there are {', '.join(known)}")
    return {name: known[name] for name in wanted}


def _claims_of_pretraining(columns: Sequence[str]) -> Iterator[tuple[str, tuple[str, str], tuple[str, str]]]:
    xmodel = "xModel-KD (pseudo-labels and fusion)"
    pairs = [(name, "nothing") for name in METHODS if name != "nothing"]
    pairs += [("Seal", name) for name in METHODS if name.startswith("Seal ")]
    pairs += [("Seal", "SLidR-like (SLIC superpixels)"), ("ScaLR", "Seal"), (xmodel, "pseudo-labels")]
    for better, worse in pairs:
        for column in columns:
            yield f"{better} is better than {worse} ({column})", (better, column), (worse, column)


def _key(method: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in method.split(" (")[0].lower())


def _full(lidars: tuple[str, ...] = (FINE,), labels: str = TAUGHT, depth: int = 6) -> str:
    return f"{FULL}-{labels}-{'-'.join(lidars).lower()}-{depth}"


def trainings(config: StudyConfig) -> dict[str, Training]:
    """Give every training that a comparison may name, each after the one that it begins with."""
    few = {"steps": config.probe_steps, "warmup": config.probe_steps // 10}
    found = []
    for method, objectives in METHODS.items():
        key = _key(method)
        if objectives is not None:
            learned = {f"objectives.{name}": value for name, value in objectives.items()}
            steps = {"steps": config.pretrain_steps, "warmup": config.pretrain_steps // 10}
            found.append(Training(name=key, settings={**steps, **learned, "images.model": config.teacher}))
        start = key if objectives is not None else None
        # One layer alone bears, and needs, larger steps.
        probing = {**few, "train": "head", "learning_rate": 1e-2}
        found.append(Training(name=f"{key}-{PROBE}", settings=probing, labels=EXACT, start=start))
        tuning = {**few, "train": "all", "share": config.share}
        found.append(Training(name=f"{key}-{FEW}", settings=tuning, labels=EXACT, start=start))
    steps = {"steps": config.full_steps, "warmup": config.full_steps // 10}
    variants: list[tuple[tuple[str, ...], str, int]] = [((FINE,), labels, 6) for labels in (UNFILTERED, EXACT)]
    variants += [((FINE,), TAUGHT, depth) for depth in DEPTHS]
    variants += [(lidars, TAUGHT, 6) for lidars in BETWEEN.values() if lidars != (FINE,)]
    for lidars, labels, depth in variants:
        name = _full(lidars, labels, depth)
        found.append(Training(name=name, settings=steps, labels=labels, lidars=lidars, depth=depth))
    return {training.name: training for training in found}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the repetitions say of a claim: the mean difference of pairs with one seed, its deviation, and who agrees.

    agree: of `seeds` repetitions. holds: all agree, and the mean is further from 0 than the deviation of single pairs.
    """

    claim: str
    mean: float
    deviation: float
    agree: int
    seeds: int

    @property
    def holds(self) -> bool:
        """Whether the study bears the claim out; a single repetition bears out nothing."""
        return self.seeds > 1 and self.agree == self.seeds and self.mean > self.deviation


MiouOf = Callable[[str, str], np.ndarray]
"""Gives the mIoU of a training, tested with a lidar: (seeds,)."""


def findings(comparison: Comparison, miou_of: MiouOf) -> list[Finding]:
    """Compare by pairs of the same seed, for both sides share drives and draws."""
    found = []
    for claim, better, worse in comparison.claims:
        at = [comparison.rows[row][comparison.columns.index(column)] for row, column in (better, worse)]
        difference = miou_of(*at[0]) - miou_of(*at[1])
        found.append(
            Finding(
                claim=claim,
                mean=float(difference.mean()),
                deviation=deviation(difference),
                agree=int((difference > 0).sum()),
                seeds=len(difference),
            )
        )
    return found


def deviation(values: np.ndarray) -> float:
    """Give the standard deviation of a sample, 0 for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
