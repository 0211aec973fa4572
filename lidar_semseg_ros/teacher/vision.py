"""Teachers that look at images: a foundation model loaded from disk, or masks that were made elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lidar_semseg_ros.core.classes import ClassMap, ClassTable, classes_never_given
from lidar_semseg_ros.core.errors import UserError, missing_package
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.teacher import vision_models as models
from lidar_semseg_ros.teacher.scores import PixelScores, certain_scores

PRECISIONS = ("float32", "bfloat16", "float16")

TEACHERS: dict[str, type[models.VisionModel]] = {
    "EomtForUniversalSegmentation": models.Eomt,
    "OneFormerForUniversalSegmentation": models.OneFormer,
    "Mask2FormerForUniversalSegmentation": models.Mask2Former,
    "SegformerForSemanticSegmentation": models.Segformer,
    "CLIPSegForImageSegmentation": models.ClipSeg,
    "Dinov2Model": models.PatchEncoder,
    "Dinov2WithRegistersModel": models.PatchEncoder,
    "DINOv3ViTModel": models.PatchEncoder,
    "Sam2Model": models.Sam2,
    "Sam2VideoModel": models.Sam2,
}
"""The architecture that config.json names, and who runs it. SAM 2's checkpoints name their video model."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """What a vision model is loaded with."""

    model: str = setting(
        "tue-mps/ade20k_semantic_eomt_large_512", "folder of a model with its config.json, or its id on the hub"
    )
    download: bool = setting(False, "fetch a model that is not on this machine yet")
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    precision: str = setting("float32", "arithmetic of the model; its outputs are always float32", choices=PRECISIONS)
    compile: bool = setting(
        False, "have torch.compile make the model faster: at the first image of a size that takes a minute or more"
    )
    scores_px: int = setting(640, "longer side of the grid of pixel labels; 0 labels every pixel", minimum=0)
    features_px: int = setting(448, "shorter side that an image is resized to for patch features", minimum=14)
    points_per_side: int = setting(
        32, "automatic masks: the model is asked at this number of points squared", minimum=1
    )
    min_mask_iou: float = setting(0.88, "automatic masks: least quality as the model predicts it", minimum=0, maximum=1)
    min_mask_stability: float = setting(
        0.95, "automatic masks: least overlap of a mask with itself at shifted thresholds", minimum=0, maximum=1
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(f"setting 'device' takes auto, cpu, cuda or cuda:N, but got '{self.device}'")


class Teacher(Protocol):
    """Who says something of images. Asked for what it does not give, a teacher raises UserError.

    gives: of 'labels', 'features' and 'segments', what it can say.
    never_labelled: the target classes that this teacher cannot give.
    """

    gives: tuple[str, ...]
    never_labelled: tuple[str, ...]

    def label(self, images: Sequence[CameraImage]) -> list[PixelScores]:
        """Give the target class of every pixel of each image."""
        ...

    def features(self, images: Sequence[CameraImage]) -> list[models.PatchFeatures]:
        """Give a map of features of each image."""
        ...

    def segments(self, images: Sequence[CameraImage]) -> list[np.ndarray]:
        """Give the id of the segment of every pixel of each image: (height, width) int32, −1 where there is none."""
        ...


def load_teacher(config: VisionConfig, table: ClassTable | None, class_map: ClassMap | None = None) -> Teacher:
    """Load the model of a config for the classes of `table`; its architecture is read off its config.json.

    table: None for a model that is not asked for labels.
    class_map: what the model's classes mean; None where they are called as in the table. A model that is asked in
        words is asked for the names in the map.
    UserError where the model is not on this machine, is none that is known here, or its classes do not fit.
    """
    try:
        checkpoint = models.read_checkpoint(config.model, download=config.download)
        architecture = next((name for name in checkpoint.architectures if name in TEACHERS), None)
        if architecture is None:
            raise UserError(
                f"{config.model} is a {' / '.join(checkpoint.architectures) or 'model without an architecture'}, "
                f"which cannot be a teacher; these can: {', '.join(TEACHERS)}"
            )
        teacher = TEACHERS[architecture](checkpoint, architecture, config)
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    if table is not None and isinstance(teacher, models.LabelModel):
        teacher.answer_in(table, class_map)
    return teacher


class MaskFiles:
    """Masks made by a model that runs elsewhere: one file per image, named after its stamp in nanoseconds."""

    def __init__(
        self,
        files: Sequence[Path],
        read: Callable[[Path], np.ndarray],
        table: ClassTable | None = None,
        class_map: ClassMap | None = None,
    ) -> None:
        """Take the files of one camera, and `read`, which gives (h, w) int32.

        table and class_map: what the numbers in the files mean, UNLABELLED where the map ends; without a table they
        are segments, and without a map they are the ids of the table.
        """
        if not files:
            raise UserError("there are no mask files; give a folder with a .png or .npy for each image")
        unnamed = [file.name for file in files if not file.stem.isdecimal()]
        if unnamed:
            raise UserError(f"mask file {unnamed[0]} is not named after the stamp of its image in nanoseconds")
        self._files, self._read = {int(file.stem): file for file in files}, read
        self.gives: tuple[str, ...] = ("segments",)
        self.never_labelled: tuple[str, ...] = ()
        if table is not None:
            class_map = class_map or ClassMap.of_same_names(table, table.names)
            self.gives, self._remap = ("labels",), class_map.remap_by_id(table)
            self.never_labelled = classes_never_given(table, self._remap)

    def label(self, images: Sequence[CameraImage]) -> list[PixelScores]:
        """Give the target classes in the masks of the images, all of them certain."""
        if "labels" not in self.gives:
            raise UserError("these mask files hold segments without classes; say what their numbers mean")
        labels = []
        for image in images:
            ids = self._ids(image)
            known = (ids >= 0) & (ids < len(self._remap))
            classes = np.where(known, self._remap[np.where(known, ids, 0)], np.uint8(UNLABELLED))
            labels.append(certain_scores(classes, image.pixels.shape[1::-1]))
        return labels

    def segments(self, images: Sequence[CameraImage]) -> list[np.ndarray]:
        """Give the numbers in the masks of the images, (height, width) int32 each."""
        return [self._ids(image) for image in images]

    def features(self, images: Sequence[CameraImage]) -> list[models.PatchFeatures]:
        """Refuse: masks hold no features."""
        raise UserError("mask files give labels or segments, not features; choose a model such as Dinov2Model")

    def _ids(self, image: CameraImage) -> np.ndarray:
        file = self._files.get(image.stamp_ns)
        if file is None:
            raise UserError(f"no mask file for the image at {image.stamp_ns} ns; name it {image.stamp_ns}.png")
        ids = self._read(file)
        height, width = image.pixels.shape[:2]
        if ids.shape != (height, width):
            raise UserError(
                f"{file} has {ids.shape[1]}×{ids.shape[0]} pixels, but its image has {width}×{height}; "
                "make masks of the size of the images"
            )
        return ids


class MaskFolders:
    """Mask files of several cameras, by the frame of their images."""

    def __init__(self, by_frame: Mapping[str, MaskFiles]) -> None:
        self._by_frame = by_frame
        self.gives: tuple[str, ...] = ("labels",)
        never = [set(files.never_labelled) for files in by_frame.values()]
        self.never_labelled = tuple(sorted(set.intersection(*never)))

    def label(self, images: Sequence[CameraImage]) -> list[PixelScores]:
        """Give the target classes in the masks of the images, all of them certain."""
        return [self._of(image).label([image])[0] for image in images]

    def segments(self, images: Sequence[CameraImage]) -> list[np.ndarray]:
        """Give the numbers in the masks of the images, (height, width) int32 each."""
        return [self._of(image).segments([image])[0] for image in images]

    def features(self, images: Sequence[CameraImage]) -> list[models.PatchFeatures]:
        """Refuse: masks hold no features."""
        return [self._of(image).features([image])[0] for image in images]

    def _of(self, image: CameraImage) -> MaskFiles:
        if image.frame_id not in self._by_frame:
            raise UserError(
                f"there are masks for the frames {', '.join(self._by_frame)}, but an image is of '{image.frame_id}'; "
                "name the folders of masks after the frames of the cameras"
            )
        return self._by_frame[image.frame_id]
