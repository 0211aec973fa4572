"""Metrics against scikit-learn, on random answers and where there is little to count."""

from __future__ import annotations

import numpy as np
import pytest

from lidar_semseg_ros.core.frame import UNLABELLED
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

CLASSES = 6
RNG = np.random.default_rng(11)


def answers(truth_ids: list[int], predicted_ids: list[int], points: int = 500) -> tuple[np.ndarray, np.ndarray]:
    return RNG.choice(np.uint8(truth_ids), points), RNG.choice(np.uint8(predicted_ids), points)


TRUTH = RNG.integers(0, CLASSES, 300).astype(np.uint8)
CASES = {
    "random": answers([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
    "some without truth": answers([0, 1, 2, 3, 4, 5, UNLABELLED], [0, 1, 2, 3, 4, 5]),
    "some without prediction": answers([0, 1, 2, 3, 4, 5, UNLABELLED], [0, 1, 2, 3, 4, 5, UNLABELLED]),
    "perfect": (TRUTH, TRUTH),
    "all wrong": (TRUTH, (TRUTH + 1) % CLASSES),
    "a class that is neither true nor predicted": answers([0, 1, 2, 4], [0, 1, 2, 4]),
    "a class that is predicted only": answers([0, 1, 2, 4], [0, 1, 2, 3, 4, 5]),
    "a class that is true only": answers([0, 1, 2, 3, 4, 5], [0, 2]),
    "one class": answers([3], [3]),
    "nothing predicted": answers([0, 1], [UNLABELLED]),
    "one point": (np.uint8([2]), np.uint8([2])),
}


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_scikit_learn(name: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (extra [teacher])")
    truth, predicted = CASES[name]
    confusion = confusion_matrix(truth, predicted, CLASSES)
    known = truth != UNLABELLED
    # For scikit-learn, no prediction is a seventh class that is never true.
    true, said = truth[known].astype(int), np.minimum(predicted[known], CLASSES).astype(int)
    expected = metrics.confusion_matrix(true, said, labels=range(CLASSES + 1))
    assert np.array_equal(confusion, expected[:CLASSES])
    assert overall_accuracy(confusion) == pytest.approx(metrics.accuracy_score(true, said))
    iou = iou_per_class(confusion)
    somewhere = np.union1d(true, said)
    for class_id in range(CLASSES):
        if class_id in somewhere:
            alone = metrics.jaccard_score(true, said, labels=[class_id], average="macro", zero_division=0)
            assert iou[class_id] == pytest.approx(alone)
        else:
            assert np.isnan(iou[class_id])
    present = np.unique(true)
    mean = metrics.jaccard_score(true, said, labels=present, average="macro", zero_division=0)
    assert mean_iou(confusion) == pytest.approx(mean)


@pytest.mark.parametrize("truth", [np.uint8([]), np.full(9, UNLABELLED, np.uint8)])
def test_without_truth_nothing_can_be_said(truth: np.ndarray) -> None:
    predicted = np.zeros(len(truth), np.uint8)
    confusion = confusion_matrix(truth, predicted, CLASSES)
    assert confusion.sum() == 0 and np.isnan(iou_per_class(confusion)).all()
    assert np.isnan([mean_iou(confusion), overall_accuracy(confusion), coverage(confusion)]).all()
    counts = calibration_counts(truth, predicted, np.ones(len(truth), np.float32), CLASSES)
    assert np.isnan(expected_calibration_error(counts))


def test_coverage_and_accuracy_of_what_is_covered_by_hand() -> None:
    # Three of four points have a prediction, two of these are right.
    confusion = confusion_matrix(np.uint8([0, 0, 1, 1, 255]), np.uint8([0, 1, 1, 255, 0]), 2)
    assert coverage(confusion) == 3 / 4 and overall_accuracy(confusion) == 2 / 4
    assert coverage(with_prediction(confusion)) == 1 and overall_accuracy(with_prediction(confusion)) == 2 / 3


def test_a_class_that_cannot_be_named_neither_counts_in_the_mean_nor_spoils_another() -> None:
    # Class 2 is called 0, since the teacher lacks it. IoU of 0: 2/4 with it, 2/2 without it; of 1: 1/1.
    confusion = confusion_matrix(np.uint8([0, 0, 1, 2, 2]), np.uint8([0, 0, 1, 0, 0]), 3)
    assert mean_iou(confusion) == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert mean_iou(of_true_classes(confusion, {0, 1})) == 1


def test_calibration_error_by_hand() -> None:
    # Two points are 90 % sure, one of them right: |1/2 − 0.9| = 0.4. Two are 25 % sure, none right: 0.25.
    # One is 100 % sure and right: 0. The last two have no truth or no prediction.
    truth = np.uint8([0, 0, 1, 1, 2, 255, 0])
    predicted = np.uint8([0, 1, 0, 2, 2, 0, 255])
    confidence = np.float32([0.9, 0.9, 0.25, 0.25, 1.0, 0.3, 0.0])
    counts = calibration_counts(truth, predicted, confidence, 3)
    assert counts[0].sum() == 5
    assert expected_calibration_error(counts) == pytest.approx((2 * 0.4 + 2 * 0.25 + 0) / 5)


def test_calibration_error_as_loops_and_added_over_sweeps() -> None:
    truth, predicted = answers([0, 1, 2, UNLABELLED], [0, 1, 2, UNLABELLED], 2000)
    confidence = RNG.random(2000).astype(np.float32)
    error, counted = 0.0, 0
    for b in range(15):
        inside = [
            n
            for n in range(2000)
            if truth[n] != UNLABELLED and predicted[n] != UNLABELLED and b / 15 <= float(confidence[n]) < (b + 1) / 15
        ]
        counted += len(inside)
        error += abs(sum(truth[n] == predicted[n] for n in inside) - sum(float(confidence[n]) for n in inside))
    halves = [
        calibration_counts(truth[half], predicted[half], confidence[half], 3) for half in (slice(900), slice(900, None))
    ]
    assert expected_calibration_error(halves[0] + halves[1]) == pytest.approx(error / counted)


def test_one_who_is_as_often_right_as_he_says_has_no_calibration_error() -> None:
    truth = np.zeros(4, np.uint8)
    counts = calibration_counts(truth, np.uint8([0, 0, 0, 1]), np.full(4, 0.75, np.float32), 2)
    assert expected_calibration_error(counts) == 0
