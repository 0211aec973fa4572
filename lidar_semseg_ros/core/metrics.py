"""Confusion matrix, IoU and accuracy; UNLABELLED truth never counts."""

from __future__ import annotations

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
