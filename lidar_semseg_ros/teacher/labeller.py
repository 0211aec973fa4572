"""Images and a sweep in, pseudo-labels out: what the teacher node and the offline command share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.classes import ClassMap, ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import invert_rigid
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.core.pairing import PairingConfig
from lidar_semseg_ros.core.sensor import FieldNames
from lidar_semseg_ros.teacher.lifting import LiftingConfig, Trajectory
from lidar_semseg_ros.teacher.scores import PixelScores
from lidar_semseg_ros.teacher.vision import Teacher, VisionConfig, load_teacher
from lidar_semseg_ros.teacher.voting import PseudoLabels, View, VotingConfig, VotingWindow

WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Settings of the teacher, live and offline."""

    classes: str = setting("indoor17", "classes that points get: a shipped class table, or a .yaml file")
    class_map: str = setting(
        "ade20k",
        "what the model's classes mean: a shipped map, or a .yaml file; empty: they are called as in the class table",
    )
    fields: FieldNames = FieldNames()
    vision: VisionConfig = VisionConfig()
    sync: PairingConfig = PairingConfig()
    lifting: LiftingConfig = LiftingConfig()
    voting: VotingConfig = VotingConfig()


@dataclass(frozen=True, kw_only=True)
class TakenImage:
    """An image with the camera that took it: its time on the clock of the sweep, and where the camera sits.

    camera_from_lidar: (4, 4), between two sensors that are fixed to each other.
    """

    time_ns: int
    image: CameraImage
    camera: Camera
    camera_from_lidar: np.ndarray

    def __post_init__(self) -> None:
        height, width = self.image.pixels.shape[:2]
        if (self.camera.width, self.camera.height) != (width, height):
            raise UserError(
                f"the image has {width}×{height} pixels, but its calibration is for "
                f"{self.camera.width}×{self.camera.height}; calibrate at the resolution that is published"
            )


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Pseudo-labels of a sweep, what the teacher saw in each image, and how long vision and lifting took."""

    labels: PseudoLabels
    scores: Mapping[str, PixelScores]
    vision_ms: float
    lifting_ms: float


class Labeller:
    """Labels the sweeps of a drive one after the other; not for two threads at once."""

    def __init__(self, teacher: Teacher, lifting: LiftingConfig, voting: VotingConfig) -> None:
        self._teacher, self._lifting, self._voting = teacher, lifting, voting
        self.clear()

    def clear(self) -> None:
        """Forget past votes, as after a jump in time or place."""
        self._window = VotingWindow(self._lifting, self._voting)

    def label(
        self,
        frame: LidarFrame,
        images: Mapping[str, TakenImage],
        base_from_lidar: np.ndarray,
        trajectory: Trajectory | None,
    ) -> Taught:
        """Label a sweep from the images of its cameras, by name, and, with a trajectory, from past sweeps' votes.

        base_from_lidar: (4, 4), base being the frame whose poses the trajectory holds.
        """
        start = time.perf_counter()
        scores = self._teacher.label([taken.image for taken in images.values()]) if images else []
        seen = time.perf_counter()
        views = [
            View(
                stamp_ns=taken.time_ns,
                camera=taken.camera,
                camera_from_base=taken.camera_from_lidar @ invert_rigid(base_from_lidar),
                scores=of_image,
            )
            for taken, of_image in zip(images.values(), scores)
        ]
        labels = self._window.label(frame, base_from_lidar, views, trajectory)
        return Taught(
            labels=labels,
            scores=dict(zip(images, scores)),
            vision_ms=(seen - start) * 1e3,
            lifting_ms=(time.perf_counter() - seen) * 1e3,
        )


def chosen_teacher(config: TeacherConfig, table: ClassTable, class_map: ClassMap | None, models: Path) -> Teacher:
    """Load the teacher of the settings; `models` is the folder of the shipped ones. UserError as `load_teacher`."""
    vision = replace(config.vision, model=teacher_place(config.vision.model, models))
    return load_teacher(vision, table, class_map)


def teacher_identity(model: str, models: Path) -> dict[str, str]:
    """Tell which model taught: its name, and the sha256 of its weights."""
    from transformers.utils.hub import cached_file

    config = cached_file(teacher_place(model, models), "config.json", local_files_only=True)
    digest = hashlib.sha256()
    for file in sorted(Path(str(config)).parent.glob("*")):
        if file.suffix in WEIGHTS:
            with file.open("rb") as opened:
                while block := opened.read(2**22):
                    digest.update(block)
    return {"model": model, "sha256": digest.hexdigest()}


def teacher_place(model: str, models: Path) -> str:
    """Give the folder of a shipped model, or what was named: a folder or an id of the hub."""
    shipped = models / model
    return str(shipped) if model and shipped.is_dir() else model
