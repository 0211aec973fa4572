"""lidar-semseg inspect: what a recording of a teacher holds."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar_semseg_ros.cli.outputs import require_folder
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.metrics import (
    confusion_matrix,
    iou_per_class,
    mean_iou,
    of_true_classes,
    overall_accuracy,
    with_prediction,
)
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.dataset import (
    PseudoLabelledSweep,
    chosen_pseudo_label_topic,
    exact_labels,
    pseudo_labelled_sweeps,
    taught_classes,
    teacher_settings,
)
from lidar_semseg_ros.view.paint import birds_eye, legend, save_png, side_by_side, titled
from lidar_semseg_ros.view.report import text_table

BINS = 10
BAR = 40


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a recording of a teacher holds.

    coverage: mean share of the points with a return that have a label; NaN without any. points: by class, (C,).
    histogram: (BINS,) labels by confidence from 0 to 1. confusion: against the exact labels, (C, C + 1), its last
    column the points without a label; None where the recording has none.
    """

    classes: ClassTable
    never_labelled: tuple[str, ...]
    clouds: int
    coverage: float
    points: np.ndarray
    histogram: np.ndarray
    confusion: np.ndarray | None
    middle: PseudoLabelledSweep | None
    teacher: str


def inspection(path: Path, topic: str | None = None) -> Inspection:
    """Read a recording of a teacher through; UserError if it is none, or topic names none of several."""
    with open_bag(path) as bag:
        topic = chosen_pseudo_label_topic(bag, topic, str(path))
        classes, settings = taught_classes(bag, topic, str(path)), teacher_settings(bag, topic)
        truth = exact_labels(bag)
        points, histogram = np.zeros(len(classes), np.int64), np.zeros(BINS, np.int64)
        confusion = np.zeros((len(classes), len(classes) + 1), np.int64)
        shares, middle, count = [], None, bag.message_count(topic)
        for number, sweep in enumerate(pseudo_labelled_sweeps(bag, topic)):
            labelled = sweep.class_id != UNLABELLED
            points += np.bincount(sweep.class_id[labelled], minlength=len(classes))[: len(classes)]
            histogram += np.histogram(sweep.probability[labelled], BINS, (0, 1))[0]
            if sweep.frame.has_return().any():
                shares.append(float(labelled[sweep.frame.has_return()].mean()))
            exact = truth.get(sweep.frame.stamp_ns)
            if exact is not None and len(exact) == len(sweep.frame):
                confusion += confusion_matrix(exact, sweep.class_id, len(classes))
            if number == count // 2:
                middle = sweep
    teacher = settings.get("teacher", {})
    return Inspection(
        classes=classes,
        never_labelled=tuple(settings.get("never_labelled", ())),
        clouds=count,
        coverage=float(np.mean(shares)) if shares else float("nan"),
        points=points,
        histogram=histogram,
        confusion=confusion if confusion.any() else None,
        middle=middle,
        teacher=f"{teacher.get('model', 'unknown')} {teacher.get('sha256', '')[:12]}".strip(),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recording", type=Path, help="what `label`, or the teacher and the recorder, have written")
    parser.add_argument("--topic", help="the topic of the pseudo-labels (default: the only one)")
    parser.add_argument("--picture", type=Path, help="the .png file to draw the middle cloud into")


def run(args: argparse.Namespace) -> None:
    """Print what the recording holds."""
    require_folder(args.picture)
    print_inspection(args.recording, args.picture, args.topic)


def print_inspection(path: Path, picture: Path | None, topic: str | None = None) -> None:
    """Print coverage, classes, confidence and, with exact labels, how right the teacher is; draw the middle cloud."""
    found = inspection(path, topic)
    print(f"{path}: {found.clouds} clouds, {found.coverage:.1%} of their points labelled, taught by {found.teacher}")
    labels = int(found.points.sum())
    iou = np.full(len(found.classes), np.nan) if found.confusion is None else accepted_iou(found)
    rows = [
        [name, f"{count:,}", f"{count / labels:.1%}", "–" if np.isnan(of_class) else f"{of_class:.1%}"]
        for name, count, of_class in zip(found.classes.names, found.points, iou)
        if count or not np.isnan(of_class)
    ]
    if rows:
        print(text_table(["class", "labels", "share", "IoU"], rows))
        print("confidence")
        for number, count in enumerate(found.histogram):
            bar = "█" * round(BAR * count / max(found.histogram.max(), 1))
            print(f"  {number / BINS:.1f} … {(number + 1) / BINS:.1f}  {count / labels:6.1%}  {bar}")
    if found.confusion is not None:
        accepted = reachable(found)
        print(
            f"against the exact labels: mIoU {mean_iou(accepted):.1%}, accuracy {overall_accuracy(accepted):.1%} of "
            "the labels given"
        )
    if found.never_labelled:
        print(f"the teacher has no {', '.join(found.never_labelled)}; the mean leaves them out")
    if picture is not None:
        if found.middle is None:
            raise UserError(f"{path} holds no cloud to draw")
        save_png(picture, _drawn(found.classes, found.middle))
        print(f"picture: {picture}")


def reachable(found: Inspection) -> np.ndarray:
    """Take from the confusion the points with a label whose true class the teacher knows: (C, C + 1)."""
    assert found.confusion is not None
    known = [number for number, name in enumerate(found.classes.names) if name not in found.never_labelled]
    return of_true_classes(with_prediction(found.confusion), known)


def accepted_iou(found: Inspection) -> np.ndarray:
    """Give the IoU of each class over the points with a label, (C,); NaN for a class that is not there."""
    confusion = reachable(found)
    iou = iou_per_class(confusion)
    iou[confusion.sum(axis=1) == 0] = np.nan
    return iou


def _drawn(classes: ClassTable, sweep: PseudoLabelledSweep) -> np.ndarray:
    palette = classes.palette()
    measured = sweep.frame.xyz[sweep.frame.has_return()]
    extent_m = (
        float(np.clip(np.percentile(np.abs(measured[:, :2]).max(axis=1), 97), 3.0, 60.0)) if len(measured) else 10
    )
    below_m = float(np.percentile(measured[:, 2], 80)) if len(measured) else float("inf")
    labels = birds_eye(sweep.frame.xyz, palette[sweep.class_id], half_extent_m=extent_m, below_m=below_m)
    gray = (40 + 215 * sweep.probability[:, None]).astype(np.uint8).repeat(3, axis=1)
    sure = birds_eye(sweep.frame.xyz, gray, half_extent_m=extent_m, below_m=below_m)
    both = side_by_side([titled(labels, "pseudo-labels"), titled(sure, "confidence")])
    given = [int(number) for number in np.unique(sweep.class_id) if number != UNLABELLED]
    return np.concatenate([both, legend(classes, given, both.shape[1])])
