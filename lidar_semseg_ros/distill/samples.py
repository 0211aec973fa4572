"""Batches by their step: sweeps drawn, augmented and prepared, with what images show and segments join.

A batch is a function of seed, step and place in the batch alone, whoever makes it; a run that goes on from a
checkpoint, or that is shared among more processes, sees the same sweeps in the same way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import invert_rigid
from lidar_semseg_ros.distill.augment import (
    boxes_swapped,
    intensity_shifted,
    points_dropped,
    points_jittered,
    sectors_swapped,
)
from lidar_semseg_ros.distill.batches import Batch, Sample, collate, training_sample
from lidar_semseg_ros.distill.mixture import Mixture
from lidar_semseg_ros.distill.plan import DistillConfig, ObjectiveConfig
from lidar_semseg_ros.distill.recordings import LabelledSweep, Recording, StoredImage
from lidar_semseg_ros.formats.images import ImageError
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.teacher.lifting import points_in_camera, sighting
from lidar_semseg_ros.teacher.superpixels import SegmentConfig, segments_of_sweeps, slic_superpixels

logger = logging.getLogger(__name__)

MOST_DRAWS = 100
"""Sweeps without a single usable point are drawn anew so often."""

NO_LABEL = {
    "pseudo": "its teacher accepted none: label it anew, with a smaller --voting-min-confidence perhaps",
    "exact": "look whether its labels and clouds have the same stamps or file names",
}
"""What to do where not one point is labelled, by who labelled."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What an image shows of the points of a batch.

    point: (M,) int64, rows of the batch. uv_px: (M, 2) float64. superpixel: (M,) int64, −1 for none. features:
    (h, w, D) float16 of the whole image. Where a model must be asked for these first, they are None and image is given.
    """

    key: str
    point: np.ndarray
    uv_px: np.ndarray
    superpixel: np.ndarray | None
    image_size: tuple[int, int]
    features: np.ndarray | None
    image: CameraImage | None


class TaughtBatch(NamedTuple):
    """A batch with all that teaches; N points of all its sweeps.

    weights: (N,) float32, confidence of the labels. segment: (N,) int64, −1 for none; is_later: (N,) bool, whether the
    point is of a later sweep. names: of the sweeps. left_out: why, by key, of the images that cannot be used.
    """

    batch: Batch
    weights: Tensor
    views: list[View]
    segment: Tensor
    is_later: Tensor
    names: list[str]
    left_out: Mapping[str, str]


class Store:
    """Arrays on disk by key, one file each; a file is there as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str) -> np.ndarray | None:
        """Give an array, or None if it is not stored or its file is damaged."""
        path = self._folder / f"{key}.npy"
        try:
            array: np.ndarray = np.load(path)
            return array
        except FileNotFoundError:
            return None
        except (EOFError, ValueError) as error:
            logger.warning("%s is damaged (%s) and made anew", path, error)
            return None

    def write(self, key: str, array: np.ndarray) -> None:
        """Store an array; where that fails, it is only made again when it is next needed."""
        path = self._folder / f"{key}.npy"
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.save(file, array)
            part.replace(path)
        except OSError as error:
            logger.warning("%s was not stored: %s", path, error)
            part.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A sample with its weights (N,), segments (N,) and views whose points are rows of the sample.

    left_out: as in a TaughtBatch.
    """

    sample: Sample
    weights: np.ndarray
    segment: np.ndarray
    is_later: bool
    views: list[View]
    left_out: Mapping[str, str]
    name: str


class Sweeps(Protocol):
    """What batches are drawn from."""

    def draw(self, rng: np.random.Generator, step: int, slot: int) -> tuple[Recording, int]:
        """Draw a recording and one of its sweeps for a place in the batch of a step, by these alone."""
        ...


Draw = Callable[[], tuple[Recording, int]]
"""Draws another sweep for the same place."""


class TaughtBatches(Dataset[TaughtBatch]):
    """The batch of every step, for one of several processes."""

    def __init__(
        self,
        sweeps: Sweeps,
        inputs: InputConfig,
        config: DistillConfig,
        features: Store | None = None,
        masks: Store | None = None,
        rank: int = 0,
    ) -> None:
        """Take what to draw from; features and masks: what the models of images have said, where they are asked."""
        self._sweeps, self._inputs, self._config = sweeps, inputs, config
        self._features, self._masks = features, masks
        self._rank = rank
        cache = Path(config.cache).expanduser()
        self._superpixels = Store(cache / f"slic-{config.objectives.superpixel_count}")
        self._segments = Store(cache / f"segments-{config.objectives.later_sweeps}")

    def __len__(self) -> int:
        return self._config.steps

    def __getitem__(self, step: int) -> TaughtBatch:
        taken: list[_Taken] = []
        for slot in range(self._rank * self._config.batch, (self._rank + 1) * self._config.batch):
            rng = np.random.default_rng([self._config.seed, step, slot])
            taken += self._drawn(partial(self._sweeps.draw, rng, step, slot), rng)
        batch = collate([one.sample for one in taken])
        offsets = np.cumsum([0, *(len(one.weights) for one in taken)])
        views = [replace(view, point=view.point + at) for one, at in zip(taken, offsets) for view in one.views]
        # Two sweeps of a pair have the same segments; those of another pair are others.
        most = 1 + max(int(one.segment.max(initial=0)) for one in taken)
        pair = np.cumsum([not one.is_later for one in taken]) - 1
        segments = [np.where(one.segment >= 0, one.segment + p * most, -1) for one, p in zip(taken, pair)]
        return TaughtBatch(
            batch=batch,
            weights=torch.from_numpy(np.concatenate([one.weights for one in taken])),
            views=views,
            segment=torch.from_numpy(np.concatenate(segments)),
            is_later=torch.from_numpy(np.concatenate([np.full(len(one.weights), one.is_later) for one in taken])),
            names=[one.name for one in taken],
            left_out={key: why for one in taken for key, why in one.left_out.items()},
        )

    def _drawn(self, draw: Draw, rng: np.random.Generator) -> list[_Taken]:
        for _ in range(MOST_DRAWS):
            taken = self._taken(draw, rng)
            if all(len(one.weights) for one in taken):
                return taken
        raise UserError(
            f"{MOST_DRAWS} sweeps in a row had no point inside the inputs' field of view; check 'inputs' of the "
            "training configuration, and that the recordings are in metres with z up"
        )

    def _taken(self, draw: Draw, rng: np.random.Generator) -> list[_Taken]:
        recording, index = draw()
        sweep = recording.sweep(index)
        if rng.random() < self._config.augment.mix:
            other_recording, number = draw()
            sweep = mixed_sweep(sweep, other_recording.sweep(number), rng)
        if not self._config.objectives.needs_segments:
            return [self._one(recording, index, sweep, None, rng)]
        # Backwards where the drive ends.
        further = self._config.objectives.later_sweeps
        other = index + further if index + further < len(recording) else index - further
        segment, other_segment = self._joint_segments(recording, index, other)
        return [
            self._one(recording, index, sweep, segment, rng),
            self._one(recording, other, recording.sweep(other), other_segment, rng, is_later=True),
        ]

    def _changed(self, frame: LidarFrame, rng: np.random.Generator) -> LidarFrame:
        augment = self._config.augment
        if augment.jitter_m:
            frame = points_jittered(frame, rng, augment.jitter_m)
        if augment.drop:
            frame = points_dropped(frame, rng, augment.drop)
        return intensity_shifted(frame, rng, augment.intensity_shift) if augment.intensity_shift else frame

    def _one(
        self,
        recording: Recording,
        index: int,
        sweep: LabelledSweep,
        segment: np.ndarray | None,
        rng: np.random.Generator,
        is_later: bool = False,
    ) -> _Taken:
        frame = self._changed(sweep.frame, rng)
        sample = training_sample(frame, sweep.class_id, self._inputs, self._config.max_points, rng)
        row = sample.row
        views, left_out = ([], {}) if self._features is None else self._views(recording, sweep, row, rng)
        return _Taken(
            sample=sample,
            # The later sweep was not drawn: its labels may be none of the share that is learned from.
            weights=sweep.confidence[row] * np.float32(not is_later),
            segment=np.full(len(row), -1) if segment is None else segment[row].astype(np.int64),
            is_later=is_later,
            views=views,
            left_out=left_out,
            name=f"{recording.name}[{index}]",
        )

    def _joint_segments(self, recording: Recording, index: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        """Segment the points of two sweeps and of those between together; the result is stored."""
        first, last = sorted((index, other))
        key = f"{recording.key}/{first}"
        both = self._segments.read(key)
        if both is None:
            assert recording.trajectory is not None  # `require_what_is_taught`
            segments = segments_of_sweeps(
                [recording.sweep(number).frame for number in range(first, last + 1)],
                recording.base_from_lidar,
                recording.trajectory,
                SegmentConfig(),
                np.random.default_rng(first),
            )
            both = np.concatenate([segments[0], segments[-1]])
            self._segments.write(key, both)
        points = len(recording.sweep(first).frame)
        of_first, of_last = both[:points], both[points:]
        return (of_first, of_last) if index == first else (of_last, of_first)

    def _views(
        self, recording: Recording, sweep: LabelledSweep, row: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[View], dict[str, str]]:
        """Give what the images show, and why, by key, of those that cannot be used."""
        if not sweep.images:
            return [], {}
        images = sweep.images
        if not self._config.objectives.xmodel:
            images = (images[int(rng.integers(len(images)))],)
        place = np.full(len(sweep.frame), -1)
        place[row] = np.arange(len(row))
        views: list[View] = []
        left_out: dict[str, str] = {}
        for image in images:
            try:
                views.append(self._view(recording, sweep, image, place))
            except ImageError as error:
                left_out[image.key] = f"an image of {recording.name}, {image.source}, is left out: {error}"
        return views, left_out

    def _view(self, recording: Recording, sweep: LabelledSweep, image: StoredImage, place: np.ndarray) -> View:
        assert self._features is not None
        camera_from_base = image.camera_from_lidar @ invert_rigid(recording.base_from_lidar)
        xyz = points_in_camera(
            sweep.frame, image.time_ns, camera_from_base, recording.base_from_lidar, recording.trajectory
        )
        seen = sighting(xyz, image.camera, self._config.lifting)
        here = place[seen.row] >= 0
        features = self._features.read(image.key)
        superpixel = self._superpixel(sweep, image, seen.row[here], seen.uv_px[here])
        return View(
            key=image.key,
            point=place[seen.row[here]],
            uv_px=seen.uv_px[here],
            superpixel=superpixel,
            image_size=(image.camera.width, image.camera.height),
            features=features,
            image=image.read() if features is None or superpixel is None else None,
        )

    def _superpixel(
        self, sweep: LabelledSweep, image: StoredImage, row: np.ndarray, uv_px: np.ndarray
    ) -> np.ndarray | None:
        objectives = self._config.objectives
        if not objectives.seal_superpixels:
            return np.full(len(row), -1)
        if objectives.superpixels == "classes":
            class_id = sweep.class_id[row].astype(np.int64)
            return np.where(class_id == UNLABELLED, -1, class_id)
        store = self._superpixels if self._masks is None else self._masks
        ids = store.read(image.key)
        if ids is None and self._masks is None:
            ids = slic_superpixels(image.read().pixels, objectives.superpixel_count).astype(np.int16)
            store.write(image.key, ids)
        return None if ids is None else ids_at(ids, uv_px)


def mixed_sweep(one: LabelledSweep, other: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
    """Give the first sweep with a sector of the second (PolarMix), or with what stands on a square of it (CutMix)."""
    exchange = sectors_swapped if rng.random() < 0.5 else boxes_swapped
    rows, points = np.arange(len(one.frame) + len(other.frame)), len(one.frame)
    frame, row = exchange((one.frame, rows[:points]), (other.frame, rows[points:]), rng)[0]
    return LabelledSweep(
        frame=frame,
        class_id=np.concatenate([one.class_id, other.class_id])[row],
        confidence=np.concatenate([one.confidence, other.confidence])[row],
    )


def ids_at(ids: np.ndarray, uv_px: np.ndarray) -> np.ndarray:
    """Look up (height, width) ids at (M, 2) pixels: (M,) int64."""
    column, line = np.floor(uv_px + 0.5).astype(np.int64).T
    found: np.ndarray = ids[line.clip(0, ids.shape[0] - 1), column.clip(0, ids.shape[1] - 1)]
    return found.astype(np.int64)


def require_what_is_taught(mixture: Mixture, config: DistillConfig) -> None:
    """Raise UserError if a recording lacks what an objective learns from, or if the share has no labels at all."""
    for recording in mixture.recordings:
        if config.objectives.needs_labels:
            _require_labels(recording, config.objectives)
        if config.objectives.needs_features:
            _require_images(recording)
        if config.objectives.needs_segments and (
            recording.trajectory is None or len(recording) <= 2 * config.objectives.later_sweeps
        ):
            raise UserError(
                f"{recording.name} holds no poses or too few sweeps, so segments cannot be followed; set "
                " objectives.seal_temporal and seal_segments to 0, or leave it out"
            )
    drawn = zip(mixture.recordings, mixture.sweeps)
    taken = (recording.sweep(number) for recording, sweeps in drawn for number in sweeps.tolist())
    if config.objectives.needs_labels and not _has_labels(taken):
        raise UserError(f"none of the {len(mixture)} sweeps in a share of {config.share:g} has a label; raise 'share'")


def _require_labels(recording: Recording, objectives: ObjectiveConfig) -> None:
    learns = "objectives.pseudo_labels" if objectives.pseudo_labels else "objectives.superpixels: classes"
    if recording.classes is None:
        raise UserError(
            f"{recording.name} has no labels, which {learns} learns from; label it with `lidar-semseg label` and write "
            "'labels: pseudo', or set that objective to 0"
        )
    if not _has_labels(_sweeps_of(recording)):
        raise UserError(
            f"none of the {len(recording)} sweeps of {recording.name} has a label at any point, so {learns} learns "
            f"nothing from it; {NO_LABEL[recording.origin['labels']]}, or leave it out"
        )


def _require_images(recording: Recording) -> None:
    """Raise UserError if there is no image that can be used; images are read only until one is found."""
    fault = None
    for image in (image for sweep in _sweeps_of(recording) for image in sweep.images):
        try:
            image.read()
            return
        except ImageError as error:
            fault = error
    if fault is not None:
        raise UserError(f"no image of {recording.name} can be used: {fault}; or leave it out") from fault
    raise UserError(
        f"none of the {len(recording)} sweeps of {recording.name} has an image near its time, so no feature "
        "can be learned from it; look at the stamps of its cameras, or leave it out"
    )


def _sweeps_of(recording: Recording) -> Iterable[LabelledSweep]:
    return (recording.sweep(index) for index in range(len(recording)))


def _has_labels(sweeps: Iterable[LabelledSweep]) -> bool:
    """Tell whether some point is labelled; sweeps are read only until one is found."""
    return any(((sweep.class_id != UNLABELLED) & (sweep.confidence > 0)).any() for sweep in sweeps)
