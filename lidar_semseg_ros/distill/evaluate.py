"""How right labels are: a model's against exact ones and a teacher's, a teacher's against exact ones, and corrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame, PointLabels
from lidar_semseg_ros.core.metrics import (
    calibration_counts,
    confusion_matrix,
    coverage,
    expected_calibration_error,
    iou_per_class,
    mean_iou,
    of_true_classes,
    overall_accuracy,
    with_prediction,
)
from lidar_semseg_ros.distill.corruptions import SEVERITIES, corruptions
from lidar_semseg_ros.distill.recordings import Recording
from lidar_semseg_ros.formats.bags import Bag
from lidar_semseg_ros.formats.dataset import (
    CLASS_MAP_TOPIC,
    LABEL_TOPIC,
    PSEUDO_LABEL_ENDING,
    chosen_cloud_topic,
    chosen_pseudo_label_topic,
    exact_labels,
    labelled_sweeps,
    pseudo_label_topics,
    pseudo_labelled_sweeps,
    taught_classes,
    teacher_settings,
)

Segment = Callable[[LidarFrame], PointLabels]
EXACT, PSEUDO, TEACHER = "exact labels", "pseudo-labels", "teacher"
"""What is compared: the model with exact labels, the model with pseudo-labels, the pseudo-labels with exact ones."""


@dataclass(frozen=True, kw_only=True)
class JudgedSweep:
    """A sweep with what its N points are, in the ids of the model that is judged; UNLABELLED where it has no such id.

    exact: (N,) uint8. pseudo: (N,) uint8, with their confidence: (N,) float32. None where the recording has none.
    """

    frame: LidarFrame
    exact: np.ndarray | None
    pseudo: np.ndarray | None
    confidence: np.ndarray | None

    def truth(self) -> np.ndarray:
        """Give the exact labels, or the pseudo-labels of a sweep without."""
        truth = self.pseudo if self.exact is None else self.exact
        if truth is None:
            raise ValueError("a judged sweep has labels of one kind at least")
        return truth


class JudgedRecording:
    """A recording with exact labels, pseudo-labels or both.

    topic: of the clouds. sweeps: how many. taught: ids of the classes that its teacher can name; None without one.
    strange: classes of the recording that the model lacks; their points do not count.
    """

    def __init__(self, bag: Bag, topic: str | None, classes: ClassTable, source: str) -> None:
        """Look at the recording; classes: the model's. UserError if it has no labels, or none the model knows."""
        self._bag = bag
        taught = pseudo_label_topics(bag)
        self._is_taught = bool(taught) and topic in (None, *taught)
        if not self._is_taught and LABEL_TOPIC not in bag.topics:
            raise UserError(
                f"{source} holds no exact labels ({LABEL_TOPIC}) and no pseudo-labels (…{PSEUDO_LABEL_ENDING}); "
                "make them with `lidar-semseg simulate` or `lidar-semseg label`"
            )
        chosen = chosen_pseudo_label_topic if self._is_taught else chosen_cloud_topic
        self.topic = chosen(bag, topic, source)
        self.sweeps = bag.message_count(self.topic)
        self.taught: frozenset[int] | None = None
        tables = {}
        if LABEL_TOPIC in bag.topics:
            tables[EXACT] = _exact_classes(bag, source) or classes
        if self._is_taught:
            tables[PSEUDO] = taught_classes(bag, self.topic, source)
            unknown = teacher_settings(bag, self.topic).get("never_labelled", ())
            named = set(tables[PSEUDO].names) - set(unknown)
            self.taught = frozenset(classes.id_of(name) for name in named & set(classes.names))
        self._ids = {kind: _ids_by_name(table, classes, source) for kind, table in tables.items()}
        self.strange = tuple(
            sorted({name for table in tables.values() for name in table.names if name not in classes.names})
        )

    def __iter__(self) -> Iterator[JudgedSweep]:
        """Read the sweeps that have labels."""
        if self._is_taught:
            yield from self._taught_sweeps()
            return
        for frame, exact in labelled_sweeps(self._bag, self.topic):
            yield JudgedSweep(frame=frame, exact=self._ids[EXACT][exact], pseudo=None, confidence=None)

    def _taught_sweeps(self) -> Iterator[JudgedSweep]:
        truth = exact_labels(self._bag)
        for sweep in pseudo_labelled_sweeps(self._bag, self.topic):
            exact = truth.get(sweep.frame.stamp_ns)
            if exact is not None and len(exact) != len(sweep.frame):
                raise UserError(f"cloud {sweep.frame.stamp_ns} has {len(sweep.frame)} points, but {len(exact)} labels")
            yield JudgedSweep(
                frame=sweep.frame,
                exact=None if exact is None else self._ids[EXACT][exact],
                pseudo=self._ids[PSEUDO][sweep.class_id],
                confidence=sweep.probability,
            )


class JudgedSequences:
    """Sequences of a published data set with the labels of its annotators; the same face as JudgedRecording."""

    taught: frozenset[int] | None = None

    def __init__(self, recordings: Sequence[Recording], classes: ClassTable) -> None:
        """Look at the recordings; classes: the model's. UserError if a recording has no labels the model knows."""
        self._recordings = recordings
        self.sweeps = sum(len(recording) for recording in recordings)
        tables = [_labels_of(recording) for recording in recordings]
        self._ids = [_ids_by_name(table, classes, one.name) for one, table in zip(recordings, tables)]
        self.strange = tuple(sorted({name for table in tables for name in table.names if name not in classes.names}))

    def __iter__(self) -> Iterator[JudgedSweep]:
        """Read the sweeps that have labels."""
        for recording, ids in zip(self._recordings, self._ids):
            for number in range(len(recording)):
                sweep = recording.sweep(number)
                if (sweep.class_id != UNLABELLED).any():
                    yield JudgedSweep(frame=sweep.frame, exact=ids[sweep.class_id], pseudo=None, confidence=None)


def _labels_of(recording: Recording) -> ClassTable:
    if recording.classes is None:
        raise UserError(f"{recording.name} has no labels to compare with; evaluate a part of the data set that has")
    return recording.classes


def _exact_classes(bag: Bag, source: str) -> ClassTable | None:
    """Read what the exact labels mean; None where the recording does not tell."""
    recorded = next(bag.messages([CLASS_MAP_TOPIC]), None) if CLASS_MAP_TOPIC in bag.topics else None
    if recorded is None:
        return None
    return ClassTable.from_mapping(json.loads(recorded.message().data), source=f"{source} {CLASS_MAP_TOPIC}")


def _ids_by_name(recorded: ClassTable, model: ClassTable, source: str) -> np.ndarray:
    """Give for each recorded id the model's id of the class of this name: (256,) uint8."""
    ids = np.full(256, UNLABELLED, np.uint8)
    for number, name in enumerate(recorded.names):
        if name in model.names:
            ids[number] = model.id_of(name)
    if (ids == UNLABELLED).all():
        raise UserError(
            f"the model has the classes of {model.name}, but {source} is labelled with {recorded.name}, and they have "
            "no name in common; take a recording that is labelled with the classes of the model"
        )
    return ids


@dataclass(frozen=True, kw_only=True)
class Score:
    """Counts of answers: confusion (C, C + 1) and calibration (3, bins), both of core/metrics.py; they add up."""

    confusion: np.ndarray
    calibration: np.ndarray

    def __add__(self, other: Score) -> Score:
        return Score(
            confusion=self.confusion + other.confusion,
            calibration=self.calibration + other.calibration,
        )


def score(truth: np.ndarray, class_id: np.ndarray, confidence: np.ndarray, classes: int) -> Score:
    """Count how right (N,) answers are; points without a truth are left out."""
    return Score(
        confusion=confusion_matrix(truth, class_id, classes),
        calibration=calibration_counts(truth, class_id, confidence, classes),
    )


def scores(sweep: JudgedSweep, labels: PointLabels, classes: int) -> dict[str, Score]:
    """Compare a model's labels of a sweep, and its teacher's, with whatever labels it has."""
    found = {}
    if sweep.exact is not None:
        found[EXACT] = score(sweep.exact, labels.class_id, labels.probability, classes)
    if sweep.pseudo is not None:
        found[PSEUDO] = score(sweep.pseudo, labels.class_id, labels.probability, classes)
    if sweep.exact is not None and sweep.pseudo is not None and sweep.confidence is not None:
        found[TEACHER] = score(sweep.exact, sweep.pseudo, sweep.confidence, classes)
    return found


def figures(counted: Score, classes: ClassTable, taught: Collection[int] | None) -> dict[str, Any]:
    """Compute what a score says, ready for JSON; shares and IoU from 0 to 1, NaN as None.

    miou is over the classes that occur in the truth, miou_taught over those of them that a teacher can name (without
    the points of the others; None without a teacher), miou_given and accuracy_given over the points with a prediction.
    """
    confusion = counted.confusion
    points, iou = confusion.sum(axis=1), iou_per_class(confusion)
    given = with_prediction(confusion)
    taught_miou = None if taught is None else mean_iou(of_true_classes(confusion, taught))
    found = {
        "points": int(points.sum()),
        "miou": mean_iou(confusion),
        "miou_taught": taught_miou,
        "miou_given": mean_iou(given),
        "accuracy": overall_accuracy(confusion),
        "accuracy_given": overall_accuracy(given),
        "coverage": coverage(confusion),
        "ece": expected_calibration_error(counted.calibration),
        "absent": [name for name, count in zip(classes.names, points) if not count],
        "untaught": [] if taught is None else [name for i, name in enumerate(classes.names) if i not in taught],
        "iou": {name: float(iou[i]) for i, name in enumerate(classes.names) if points[i]},
        "points_of": {name: int(points[i]) for i, name in enumerate(classes.names) if points[i]},
        "confusion": confusion.tolist(),
    }
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in found.items()}


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Mean IoU of a model on the same sweeps: clean, and by corruption for its severities 1, 2 and 3."""

    clean: float
    corrupted: dict[str, list[float]]


def robustness(
    segment: Segment,
    sweeps: Sequence[tuple[LidarFrame, np.ndarray]],
    classes: ClassTable,
    seed: int,
    on_run: Callable[[str], None] = lambda name: None,
) -> Robustness:
    """Label sweeps as they are and under every corruption and severity; the same seed corrupts alike.

    sweeps: each with its labels (N,) uint8. on_run(name) is called after each of the 1 + 9 · 3 runs.
    """

    def miou(judged: Iterable[tuple[LidarFrame, np.ndarray]]) -> float:
        confusion = np.zeros((len(classes), len(classes) + 1), np.int64)
        for frame, truth in judged:
            confusion += confusion_matrix(truth, segment(frame).class_id, len(classes))
        return mean_iou(confusion)

    clean = miou(sweeps)
    on_run("clean")
    found: dict[str, list[float]] = {}
    for kind, (name, corrupt) in enumerate(corruptions(classes).items()):
        found[name] = []
        for severity in SEVERITIES:
            generators = (np.random.default_rng([seed, kind, severity, number]) for number in range(len(sweeps)))
            found[name].append(miou(corrupt(*sweep, severity, rng) for sweep, rng in zip(sweeps, generators)))
            on_run(f"{name} {severity}")
    return Robustness(clean=clean, corrupted=found)
