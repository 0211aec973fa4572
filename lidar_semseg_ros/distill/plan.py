"""What a distillation is to do: settings, objectives, recordings, network, all from one YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import flattened, from_mapping, setting
from lidar_semseg_ros.distill.data_sets import single_sequences
from lidar_semseg_ros.distill.recordings import SourceConfig
from lidar_semseg_ros.formats.config_files import class_table, read_yaml
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.teacher.lifting import LiftingConfig
from lidar_semseg_ros.teacher.vision import PRECISIONS as VISION_PRECISIONS
from lidar_semseg_ros.teacher.vision import VisionConfig

SPLITS = ("train", "validation", "test")
"""Lists of recordings: learned from, looked at meanwhile if `validate` says so, and only kept apart from both."""
PARTS = ("classes", "start", "network", "inputs", "settings", *SPLITS)
PRECISIONS = ("float32", "bfloat16")
"""Of trainings; in float16, gradients would have to be scaled."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the student learns: the sum of these objectives by their weights; one with weight 0 costs nothing."""

    pseudo_labels: float = setting(1.0, "cross-entropy and Lovász on labels, by their confidence", minimum=0.0)
    scalr: float = setting(0.0, "features of the image teacher at points that an image shows (ScaLR)", minimum=0.0)
    seal_superpixels: float = setting(0.0, "contrast of superpixels (L_vfm of Seal)", minimum=0.0)
    seal_temporal: float = setting(0.0, "the same segment in a later sweep (L_tmp of Seal)", minimum=0.0)
    seal_segments: float = setting(0.0, "points and their segment (L_p2s of Seal)", minimum=0.0)
    xmodel: float = setting(
        0.0, "a teacher that fuses points and images, learned meanwhile (our reading of xModel-KD)", minimum=0.0
    )
    superpixels: str = setting(
        "slic",
        "superpixels: slic (by colour), classes (of the labels) or masks (of images.masks, which beat those by colour)",
        choices=("slic", "classes", "masks"),
    )
    superpixel_count: int = setting(150, "SLIC: about so many in an image", minimum=2)
    later_sweeps: int = setting(2, "L_tmp: the later sweep is so many further", minimum=1)
    contrast_points: int = setting(2048, "xmodel: most points of a batch that are contrasted", minimum=2)
    fusion_width: int = setting(64, "xmodel: dimensions of fused features", minimum=1)
    temperature: float = setting(2.0, "xmodel: of the logits that the student learns", minimum=0.01)

    def __post_init__(self) -> None:
        if not any(self.weights().values()):
            raise UserError("all objectives have weight 0; give one, as 'objectives.pseudo_labels: 1'")
        if self.xmodel and not self.pseudo_labels:
            raise UserError("objectives.xmodel learns its fusion from labels too; give pseudo_labels a weight")

    def weights(self) -> dict[str, float]:
        """Give the weight of each objective."""
        names = ("pseudo_labels", "scalr", "seal_superpixels", "seal_temporal", "seal_segments", "xmodel")
        return {name: getattr(self, name) for name in names}

    @property
    def needs_labels(self) -> bool:
        """Whether labels are learned from, or part the points into superpixels."""
        return self.pseudo_labels > 0 or (self.seal_superpixels > 0 and self.superpixels == "classes")

    @property
    def needs_features(self) -> bool:
        """Whether features of images are learned from."""
        return self.scalr > 0 or self.seal_superpixels > 0 or self.xmodel > 0

    @property
    def needs_segments(self) -> bool:
        """Whether segments of points are learned from."""
        return self.seal_temporal > 0 or self.seal_segments > 0

    @property
    def uses_masks(self) -> bool:
        """Whether superpixels come from a model of masks."""
        return self.seal_superpixels > 0 and self.superpixels == "masks"

    @property
    def projects(self) -> bool:
        """Whether the student's features go through a head into the teacher's space."""
        return self.scalr > 0 or self.seal_superpixels > 0 or self.needs_segments


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to sweeps beyond turning, mirroring, scaling, thinning of rings and changes of intensity."""

    jitter_m: float = setting(0.0, "standard deviation of a step of every point along each axis", minimum=0.0)
    drop: float = setting(0.0, "up to this share of the points is taken away", minimum=0.0, maximum=0.95)
    intensity_shift: float = setting(0.0, "up to ± this share of the largest intensity is added to all", minimum=0.0)
    mix: float = setting(
        0.0, "probability that a sweep exchanges a sector or a box with another; for labels only", minimum=0, maximum=1
    )


@dataclass(frozen=True, kw_only=True)
class ImageTeacherConfig:
    """The model whose features of images are learned."""

    model: str = setting("facebook/dinov2-small", "folder or hub id of a model with patch features (DINOv2, DINOv3)")
    masks: str = setting("", "folder or hub id of a model with masks (SAM 2), for objectives.superpixels: masks")
    download: bool = setting(False, "fetch a model that is not on this machine yet")
    px: int = setting(448, "shorter side that images are resized to", minimum=14)
    precision: str = setting("float32", "arithmetic of the model", choices=VISION_PRECISIONS)

    def vision(self, model: str, device: str) -> VisionConfig:
        """Give what one of the models is loaded with."""
        return VisionConfig(
            model=model, download=self.download, device=device, precision=self.precision, features_px=self.px
        )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of a distillation; optimiser and schedule are those of WaffleIron, on a shorter budget."""

    steps: int = setting(4000, "optimiser steps", minimum=1)
    batch: int = setting(4, "sweeps per step and process", minimum=1)
    max_points: int = setting(8000, "points kept of a sweep, those nearest to a random one", minimum=100)
    learning_rate: float = setting(2e-3, "peak of the cosine schedule", minimum=0.0)
    weight_decay: float = setting(3e-3, "of AdamW, on all parameters", minimum=0.0)
    warmup: int = setting(200, "steps of linear warm-up", minimum=0)
    clip: float = setting(10.0, "largest norm of the gradient; longer ones are shortened", minimum=1e-3)
    ema: float = setting(0.998, "decay of the averaged weights that are kept", minimum=0.0, maximum=1.0)
    precision: str = setting("float32", "arithmetic of the layers; coordinates stay float32", choices=PRECISIONS)
    train: str = setting(
        "all", "head: only the last layer learns (linear probing); all: everything does", choices=("all", "head")
    )
    share: float = setting(
        1.0, "share of the sweeps of all recordings together; smaller ones are in larger ones", minimum=0.0
    )
    checkpoint: int = setting(250, "steps between checkpoints, from which a killed run goes on", minimum=1)
    validate: int = setting(
        0, "steps between looks at the recordings of 'validation'; the best model is kept; 0: never", minimum=0
    )
    validation_sweeps: int = setting(40, "sweeps of 'validation' that are looked at, at most", minimum=1)
    workers: int = setting(1, "processes that make batches; 0 makes them in this one", minimum=0)
    seed: int = setting(0, "of weights, sweeps and augmentation", minimum=0)
    cache: str = setting(
        "~/.cache/lidar_semseg_ros", "folder for recordings laid out for fast access, and for what teachers say"
    )
    objectives: ObjectiveConfig = ObjectiveConfig()
    augment: AugmentConfig = AugmentConfig()
    images: ImageTeacherConfig = ImageTeacherConfig()
    lifting: LiftingConfig = LiftingConfig()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"setting 'share' must lie above 0 and at most at 1, but got {self.share}")
        others = [name for name, weight in self.objectives.weights().items() if weight and name != "pseudo_labels"]
        if self.objectives.uses_masks and not self.images.masks:
            raise UserError("objectives.superpixels are masks, but images.masks names no model for them; give a SAM 2")
        if self.validate and not self.objectives.pseudo_labels:
            raise UserError("validate compares labels, but objectives.pseudo_labels is 0; set validate to 0, too")
        if self.augment.mix and others:
            raise UserError(f"augment.mix is for labels, but {', '.join(others)} looks at images or poses; set it to 0")
        if self.train == "head" and others:
            raise UserError(f"train: head learns from labels only, but {', '.join(others)} has a weight; set it to 0")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training configuration. start: the model to begin with, or None. network: the shape, without its outputs.

    classes: None where only features are learned. splits: recordings by SPLITS.
    """

    classes: ClassTable | None
    start: Path | None
    network: Mapping[str, Any]
    inputs: InputConfig | None
    splits: Mapping[str, tuple[SourceConfig, ...]]
    config: DistillConfig


def read_plan(path: Path, overrides: Mapping[str, Any], *, data: Sequence[str] = (), start: Path | None = None) -> Plan:
    """Read a training configuration; overrides are settings by dotted name, `data` replaces the list of `train`.

    UserError names the file and the entry that is unknown or wrong, or --data.
    """
    values = read_yaml(path)
    unknown = sorted(set(values) - set(PARTS))
    if unknown:
        raise UserError(f"{path} has the unknown entry '{unknown[0]}'; there are {', '.join(PARTS)}")
    config = from_mapping(DistillConfig, {**dict(flattened(values.get("settings") or {})), **overrides})
    start = start or (Path(values["start"]).expanduser() if values.get("start") else None)
    if start is None and not ("network" in values and "inputs" in values):
        raise UserError(f"{path} describes no 'network' and 'inputs'; add them, or begin with a model (--start)")
    classes = class_table(values["classes"]) if config.objectives.pseudo_labels and values.get("classes") else None
    if config.objectives.pseudo_labels and classes is None:
        raise UserError(f"{path} names no 'classes', which labels are learned for; add 'classes: indoor17' or yours")
    splits = {name: _sources(f"{path}, '{name}'", values.get(name) or []) for name in SPLITS}
    if data:
        splits["train"] = _sources("--data", list(data))
    return Plan(
        classes=classes,
        start=start,
        network=dict(values.get("network") or {}),
        inputs=InputConfig.from_mapping(values["inputs"], str(path)) if "inputs" in values else None,
        splits=splits,
        config=config,
    )


def _sources(given_by: str, entries: Any) -> tuple[SourceConfig, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, (str, Mapping)) for entry in entries):
        raise UserError(f"{given_by}: must be a list of paths or of 'path: …' entries")
    try:
        return tuple(
            source
            for entry in entries
            for source in single_sequences(
                from_mapping(SourceConfig, {"path": entry} if isinstance(entry, str) else entry)
            )
        )
    except UserError as error:
        raise UserError(f"{given_by}: {error}") from error
