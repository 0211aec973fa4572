"""What a teacher says of every pixel, in the classes that points get."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED


@dataclass(frozen=True, kw_only=True)
class PixelScores:
    """A teacher's opinion of one image: per pixel the leading target class, and how sure the teacher is of it.

    The grid may be coarser than the image (h ≤ height, w ≤ width); it covers the same field (`nearest_cells`).

    class_id: (h, w) uint8 target class; UNLABELLED where a class that is to be ignored leads, or nothing is known.
    confidence: (h, w) float32 in [0, 1], q = max / Σ of the scores by target; 0 where nothing is known. Where an
        ignored class leads, it is that class's, so that it can outvote other views.
    margin: (h, w) float32 in [0, 1], m = (largest − second largest) / Σ; 0 where nothing is known.
    image_size: (width, height) of the image in pixels.
    """

    class_id: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        shape = self.class_id.shape
        if len(shape) != 2 or 0 in shape:
            raise UserError(f"the classes of an image must have two dimensions, but their shape is {shape}")
        for name, dtype in (("class_id", np.uint8), ("confidence", np.float32), ("margin", np.float32)):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.dtype(dtype):
                raise UserError(
                    f"{name} must be {np.dtype(dtype)} of shape {shape}, but it is {array.dtype} of shape {array.shape}"
                )
        width, height = self.image_size
        if shape[0] > height or shape[1] > width:
            raise UserError(f"scores of {shape[1]}×{shape[0]} are finer than their image of {width}×{height} pixels")

    def at_full_size(self) -> np.ndarray:
        """Give the class of every pixel of the image, that of the cell its centre lies in: (height, width) uint8."""
        width, height = self.image_size
        # A row depends on v alone and a column on u, so that along both sides is enough.
        side_px = np.arange(max(width, height))
        row, column = nearest_cells(np.stack([side_px, side_px], axis=1), self.image_size, self.class_id.shape)
        return self.class_id[row[:height, None], column[:width]]


def nearest_cells(
    uv_px: np.ndarray, image_size: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the (rows, columns), int64, of a grid over an image at (M, 2) pixel coordinates inside the image.

    The cell in which the point lies: classes and segments cannot be interpolated. image_size: (width, height) in
    pixels, of which the first has its centre at (0, 0), so that the image spans −0.5 … width − 0.5. grid: (h, w).
    """
    h, w = grid
    width, height = image_size
    column = np.floor((uv_px[:, 0] + 0.5) * (w / width)).astype(np.int64)
    row = np.floor((uv_px[:, 1] + 0.5) * (h / height)).astype(np.int64)
    return np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)


def pixel_scores(scores_HWC: np.ndarray, remap: np.ndarray, image_size: tuple[int, int]) -> PixelScores:
    """Reduce dense scores of a teacher's classes to the leading target class, its confidence and its margin.

    scores_HWC: (h, w, C) of any float type, ≥ 0, not necessarily summing to 1; a (C, h, w) array seen through
        `np.moveaxis(scores, 0, -1)` costs nothing.
    remap: (C,) uint8, the target class of each class of the teacher; UNLABELLED for one to be ignored.
    image_size: (width, height) of the image in pixels, not of the scores.

    The scores of classes with one target are added before anything is compared, so that two names for one thing do
    not compete; the ignored classes are one such target, which leads as UNLABELLED. Pixels whose scores are all 0 are
    UNLABELLED with confidence and margin 0. UserError for scores that are negative or not finite.

    Scores added up by target elsewhere, such as on a GPU, pass with the ids of these targets as `remap`.
    """
    h, w, classes = scores_HWC.shape
    if remap.shape != (classes,) or remap.dtype != np.uint8:
        raise UserError(
            f"the map of classes must be uint8 of shape ({classes},), one for each class of the teacher, "
            f"but it is {remap.dtype} of shape {remap.shape}"
        )
    # Two targets at least, so that there is always a second largest; one that no class maps to scores 0.
    targets = np.union1d(remap, np.array([0, UNLABELLED], np.uint8))
    membership_TC = (targets[:, None] == remap).astype(np.float32)
    with np.errstate(invalid="ignore"):
        summed_TP = membership_TC @ scores_HWC.reshape(-1, classes).T.astype(np.float32, copy=False)
    total_P = summed_TP.sum(axis=0)
    # Written so that NaN fails too.
    if not (np.isfinite(total_P).all() and summed_TP.min(initial=0.0) >= 0):
        raise UserError("the teacher's scores must be finite and not negative; give probabilities, not logits")
    leader_P = summed_TP.argmax(axis=0)
    pixels = np.arange(h * w)
    most_P = summed_TP[leader_P, pixels]
    summed_TP[leader_P, pixels] = -1
    share_P = 1 / np.where(total_P > 0, total_P, 1)
    return PixelScores(
        class_id=np.where(total_P > 0, targets[leader_P], np.uint8(UNLABELLED)).reshape(h, w),
        confidence=np.minimum(most_P * share_P, 1).reshape(h, w),  # rounding may give a little more
        margin=((most_P - summed_TP.max(axis=0)) * share_P).reshape(h, w),
        image_size=image_size,
    )


def certain_scores(class_id: np.ndarray, image_size: tuple[int, int]) -> PixelScores:
    """Take (h, w) uint8 target classes as they are, such as masks from a file: confidence 1, and 0 where UNLABELLED."""
    known = (class_id != UNLABELLED).astype(np.float32)
    return PixelScores(class_id=class_id, confidence=known, margin=known, image_size=image_size)
