"""The student while it learns: the network with its heads, and the objectives on what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_semseg_ros.distill.batches import Batch
from lidar_semseg_ros.distill.losses import (
    feature_distillation,
    knowledge_distillation,
    point_to_segment,
    superpixel_contrast,
    temporal_contrast,
    view_contrast,
    weighted_cross_entropy_and_lovasz,
)
from lidar_semseg_ros.distill.plan import ObjectiveConfig
from lidar_semseg_ros.distill.samples import View
from lidar_semseg_ros.network.waffleiron import WaffleIron
from lidar_semseg_ros.teacher.vision_models import PatchFeatures

MOST_SUPERPIXELS = 2**20
"""Of one image."""


class Lesson(NamedTuple):
    """What the objectives learn from, on the student's device; N points, M of them in the pixels of images.

    labels: (N,) int64. weights: (N,) float32. point: (M,) int64, a point as often as images show it; pixels: (M, D)
    float32, what the teacher says there; superpixel: (M,) int64. seen: (P,) int64, points that are contrasted;
    views: (V, P, D) float32 and shows: (V, P) bool, what each image says of them. segment: (N,) int64. is_later: (N,).
    """

    labels: Tensor
    weights: Tensor
    point: Tensor
    pixels: Tensor
    superpixel: Tensor
    seen: Tensor
    views: Tensor
    shows: Tensor
    segment: Tensor
    is_later: Tensor


class Said(NamedTuple):
    """What the student says of N points, float32.

    logits: (N, outputs), which mean classes only where labels are learned. projected: (N, D), features in the teacher's
    space. fused: None without a fusion.
    """

    logits: Tensor
    projected: Tensor
    fused: Fused | None


class Fused(NamedTuple):
    """What the fusion says of P points. points: φ3D, (P, F). views: φ2D, (V, P, F). features: of both, (P, F).

    student: (P, F), what the student alone makes of the points. logits: (P, classes), of both.
    """

    points: Tensor
    views: Tensor
    features: Tensor
    student: Tensor
    logits: Tensor


class Fusion(nn.Module):
    """A teacher of points and images together: fused = MLP([φ3D(p); mean over the views v that see p of φ2D(π_v(p))]).

    xModel-KD's details are not public; this is our reading. The student learns φ of the fusion without images.
    """

    def __init__(self, width: int, features: int, fused: int, classes: int) -> None:
        super().__init__()
        self.of_points = nn.Linear(width, fused)
        self.of_pixels = nn.Sequential(nn.Linear(features, fused), nn.ReLU(), nn.Linear(fused, fused))
        self.join = nn.Sequential(nn.Linear(2 * fused, fused), nn.ReLU(), nn.Linear(fused, fused))
        self.student = nn.Linear(width, fused)
        self.classify = nn.Linear(fused, classes)

    def forward(self, tokens_PC: Tensor, views_VPD: Tensor, shows_VP: Tensor) -> Fused:
        points, views = self.of_points(tokens_PC), self.of_pixels(views_VPD)
        times_PV = shows_VP.sum(0).clamp(min=1)[:, None]
        mean = (views * shows_VP[..., None]).sum(0) / times_PV
        features = self.join(torch.cat([points, mean], 1))
        return Fused(
            points=points,
            views=views,
            features=features,
            student=self.student(tokens_PC),
            logits=self.classify(features),
        )


class Student(nn.Module):
    """The network that is kept, and the heads that only its teachers need.

    Where no labels are learned, the head of the network is the projection into the teacher's space.
    """

    def __init__(
        self, network: WaffleIron, objectives: ObjectiveConfig, features: int, precision: str, seed: int
    ) -> None:
        """Take a network; features: D of the teacher, 0 without one. seed: of the heads' weights."""
        super().__init__()
        self.network = network
        self._autocast = precision == "bfloat16"
        width, classes = network.config.width, network.config.outputs if objectives.pseudo_labels else 0
        # Here, for no weight was drawn before where all of the network's come from a file.
        torch.manual_seed(seed)
        self.projection = nn.Linear(width, features or width) if objectives.projects and classes else None
        self.fusion = Fusion(width, features, objectives.fusion_width, classes) if objectives.xmodel else None

    def forward(self, batch: Batch, lesson: Lesson) -> Said:
        """Say what the objectives ask for."""
        device = batch.features.device.type
        # Coordinates in bfloat16 would be off by decimetres.
        tokens = self.network.embed(batch.features, batch.neighbours)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._autocast):
            tokens = self.network.waffleiron(tokens, batch.planes)
            head = self.network.classif(tokens)
            projected = head if self.projection is None else self.projection(tokens)
            fused = None
            if self.fusion is not None:
                fused = self.fusion(F.embedding(lesson.seen, tokens), lesson.views, lesson.shows)
        return Said(
            logits=head.float(),
            projected=projected.float(),
            fused=None if fused is None else Fused(*(part.float() for part in fused)),
        )


def terms(said: Said, lesson: Lesson, objectives: ObjectiveConfig) -> dict[str, Tensor]:
    """Compute each objective whose weight is not 0, before it is weighted."""
    found: dict[str, Tensor] = {}
    if objectives.pseudo_labels:
        found["pseudo_labels"] = weighted_cross_entropy_and_lovasz(said.logits, lesson.labels, lesson.weights)
    if objectives.scalr or objectives.seal_superpixels:
        points = F.embedding(lesson.point, said.projected)  # a point may be in several images
        if objectives.scalr:
            found["scalr"] = feature_distillation(points, lesson.pixels)
        if objectives.seal_superpixels:
            found["seal_superpixels"] = superpixel_contrast(points, lesson.pixels, lesson.superpixel)
    if objectives.seal_temporal:
        now, later = ~lesson.is_later, lesson.is_later
        found["seal_temporal"] = temporal_contrast(
            said.projected[now], lesson.segment[now], said.projected[later], lesson.segment[later]
        )
    if objectives.seal_segments:
        found["seal_segments"] = point_to_segment(said.projected, lesson.segment)
    if said.fused is not None:
        found["xmodel"] = _xmodel(said, said.fused, lesson, objectives.temperature)
    return found


def _xmodel(said: Said, fused: Fused, lesson: Lesson, temperature: float) -> Tensor:
    """Teach the fusion by agreement of its views and by labels, and the student by the fusion."""
    labels, weights = lesson.labels[lesson.seen], lesson.weights[lesson.seen]
    student_logits = F.embedding(lesson.seen, said.logits)
    return (
        view_contrast(fused.points, fused.views, lesson.shows)
        + weighted_cross_entropy_and_lovasz(fused.logits, labels, weights)
        + feature_distillation(fused.student, fused.features.detach())
        + knowledge_distillation(student_logits, fused.logits.detach(), temperature)
    )


def pixel_features(
    views: Sequence[View], features: int, of_classes: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Look up what the teachers say: rows of the batch (M,), features (M, D) float32 and superpixels (M,).

    Superpixels of different images get different numbers, unless they are classes: what is of one class in two images
    must not be contrasted.
    """
    values = [
        PatchFeatures(values=view.features.astype(np.float32), image_size=view.image_size).at(view.uv_px)
        for view in views
        if view.features is not None
    ]
    superpixels = [
        np.where(view.superpixel >= 0, view.superpixel + (0 if of_classes else number * MOST_SUPERPIXELS), -1)
        for number, view in enumerate(views)
        if view.superpixel is not None
    ]
    return (
        np.concatenate([np.empty(0, np.int64), *(view.point for view in views)]),
        np.concatenate([np.empty((0, features), np.float32), *values]),
        np.concatenate([np.empty(0, np.int64), *superpixels]),
    )


def by_view(point_M: np.ndarray, pixels_MD: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gather what images say by point: points (P ≤ most,), features (V, P, D) and which are there (V, P) bool.

    Of more points than `most`, evenly many stay.
    """
    seen, inverse, count = np.unique(point_M, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    nth = np.empty(len(point_M), np.int64)
    nth[order] = np.arange(len(point_M)) - np.repeat(np.cumsum(count) - count, count)
    kept = np.linspace(0, len(seen) - 1, min(most, len(seen))).astype(np.int64)
    place = np.full(len(seen), -1)
    place[kept] = np.arange(len(kept))
    views = np.zeros((max(1, count.max(initial=0)), len(kept), pixels_MD.shape[1]), np.float32)
    shows = np.zeros(views.shape[:2], bool)
    stays = place[inverse] >= 0
    views[nth[stays], place[inverse[stays]]] = pixels_MD[stays]
    shows[nth[stays], place[inverse[stays]]] = True
    return seen[kept], views, shows
