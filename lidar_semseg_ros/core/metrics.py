"""Confusion matrix, IoU, accuracy, coverage and calibration; UNLABELLED truth never counts.

Counts of several sweeps are added; what is said of them is computed from their sum.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count (classes, classes + 1) int64: row = true class, column = predicted class, last column = no prediction.

    Points whose truth is not a class id (UNLABELLED) are left out.
    """
    counted = truth < classes
    row = truth[counted].astype(np.int64)
    column = np.minimum(predicted[counted].astype(np.int64), classes)
    return np.bincount(row * (classes + 1) + column, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union per class, (classes,) float64; NaN for a class that is neither true nor predicted."""
    classes = len(confusion)
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=1) + confusion[:, :classes].sum(axis=0) - hits
    return np.divide(hits, union, out=np.full(classes, np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes that occur in the truth; NaN if none does."""
    present = confusion.sum(axis=1) > 0
    return float(iou_per_class(confusion)[present].mean()) if present.any() else float("nan")


def overall_accuracy(confusion: np.ndarray) -> float:
    """Share of counted points with the right class; NaN if none is counted."""
    total = confusion.sum()
    return float(np.trace(confusion[:, : len(confusion)]) / total) if total else float("nan")


def coverage(confusion: np.ndarray) -> float:
    """Share of counted points that have a prediction; NaN if none is counted."""
    total = confusion.sum()
    return float(confusion[:, : len(confusion)].sum() / total) if total else float("nan")


def with_prediction(confusion: np.ndarray) -> np.ndarray:
    """Leave out points without a prediction; `coverage` tells how many these are."""
    counted = confusion.copy()
    counted[:, -1] = 0
    return counted


def of_true_classes(confusion: np.ndarray, class_ids: Collection[int]) -> np.ndarray:
    """Leave out points whose true class is none of these, such as the classes that a teacher cannot name."""
    counted = np.zeros_like(confusion)
    kept = sorted(class_ids)
    counted[kept] = confusion[kept]
    return counted


CALIBRATION_BINS = 15


def calibration_counts(truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, classes: int) -> np.ndarray:
    """Count by confidence, (3, CALIBRATION_BINS) float64: points, those that are right, the sum of their confidences.

    The bins divide 0 … 1 evenly; a confidence on an edge lies in the bin above. Points without a true class or without
    a prediction are left out.
    """
    counted = (truth < classes) & (predicted < classes)
    sure = confidence[counted].astype(np.float64)
    place = np.clip((sure * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
    weights = (np.ones_like(sure), truth[counted] == predicted[counted], sure)
    return np.stack([np.bincount(place, weight, CALIBRATION_BINS) for weight in weights])


def expected_calibration_error(counts: np.ndarray) -> float:
    """Mean over the points of |accuracy − mean confidence| of their bin; NaN without a point.

    ECE = Σ_b n_b/N · |acc_b − conf_b|: Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.
    """
    points, right, confidence = counts
    return float(np.abs(right - confidence).sum() / points.sum()) if points.sum() else float("nan")
