"""Sweep in, labels out: the three middle steps of a message, the same live and offline.

Where a GPU does all of them, clouds come as bytes and go as those of labelled clouds (core/packed.py).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame, PointLabels
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.core.packed import PackedCloud, packed_frame, point_labels
from lidar_semseg_ros.core.sensor import SensorConfig, feeds_intensity, levelling, normalised
from lidar_semseg_ros.network.backends import BACKENDS, PRECISIONS, Backend
from lidar_semseg_ros.network.inputs import prepare, to_points
from lidar_semseg_ros.network.parts import at_most
from lidar_semseg_ros.network.trial import trial_sweep

if TYPE_CHECKING:
    from lidar_semseg_ros.network.device_segmenter import DeviceSegmenter

L = TypeVar("L")

OUTPUT_LAYOUTS = ("aligned", "autoware", "append")
STAGES = ("convert", "prepare", "network", "finish", "publish", "total")
"""The steps of a message that the node times. Where a device does them all, convert only finds out where the values lie
in the bytes, and publish hands on bytes that are finished."""
MODEL_SETTINGS = ("model", "device", "precision", "threads")
"""What two segmenters must agree in to share a loaded model."""
DROP_CAUSES = ("busy", "stale", "invalid", "no_transform", "failed")
"""Why a cloud may get no labels: a newer one came, it was too old, it was malformed, nothing told how the lidar
stands, labelling it failed."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How the labelled cloud is written."""

    layout: str = setting(
        "aligned",
        "fields of the labelled cloud: aligned (x y z rgb probability entropy class_id, 28 bytes), autoware "
        "(x y z class_id probability entropy, 21 bytes) or append (the input's bytes and the labels behind them)",
        choices=OUTPUT_LAYOUTS,
        live=True,
    )


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Settings of the segmenter, live and offline."""

    model: str = setting("indoor-small", "path of a .safetensors or .onnx model, or the name of a shipped one")
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda, cuda:N, or tensorrt for .onnx models")
    precision: str = setting(
        "auto",
        "arithmetic of the network; int8: of factors behind a ReLU, on CPUs with VNNI and no AMX; auto: the fastest "
        "here in which nearly all labels of a trial sweep stay what they are",
        choices=PRECISIONS,
    )
    threads: int = setting(
        0, "CPU threads that label a sweep, at most one a core; 0: the library's choice", minimum=0, maximum=1024
    )
    min_score: float = setting(
        0.0, "points whose class probability is lower are left unlabelled", minimum=0.0, maximum=1.0, live=True
    )
    input: SensorConfig = SensorConfig()
    output: OutputConfig = OutputConfig()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|tensorrt(:\d+)?", self.device):
            raise UserError(f"setting 'device' takes auto, cpu, cuda, cuda:N or tensorrt, but got '{self.device}'")


@dataclass(frozen=True, kw_only=True)
class Segmentation(Generic[L]):
    """Labels of a sweep, and how long each step took in milliseconds of the segmenter's clock.

    labels: of a LidarFrame PointLabels; of a PackedCloud the labelled points, (N,) of its dtype `labelled`.
    Where a device does all steps, prepare begins with the copy to it and ends when it has chosen the points; network
    ends when the labelled points are back, and finish takes the labels of a LidarFrame out of them.
    """

    labels: L
    prepare_ms: float
    network_ms: float
    finish_ms: float


class Segmenter:
    """A loaded model that labels sweeps one by one; not for two threads at once, as its backend is.

    backend: what runs the network. config may be replaced between two sweeps by one that differs in what is live
    (core/options.py). clock: what the steps are timed by, seconds.
    """

    def __init__(self, config: SegmenterConfig, models: Path, beside: Segmenter | None = None) -> None:
        """Load the model; `models` is the folder of the shipped ones.

        beside: a segmenter, for another thread, whose model is shared; UserError where the settings want another.
        """
        self.config = config
        self.clock: Callable[[], float] = time.perf_counter
        self.path = model_path(config.model, models)
        self._version = hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]
        self.backend: Backend = _loaded(self.path, config) if beside is None else _shared(beside, config)
        self.description, self.device = self.backend.description, self.backend.device
        if self.description.classes is None:
            raise UserError(f"{self.path} predicts features, not classes; distill it into a model with classes first")
        self.classes = self.description.classes
        if beside is None:
            # Compiles what is compiled on first use, and makes room for a whole sweep, so that the first need not wait.
            trial = prepare(trial_sweep(self.description.inputs), self.description.inputs)
            if len(trial):  # a field of view may lie beside the sensor
                to_points(self.backend.logits(trial), trial)

    def class_map(self) -> str:
        """Tell as JSON what the class ids mean: id, name and colour of each, and the model and its version."""
        return json.dumps({"model": self.description.name, "version": self._version, **self.classes.to_mapping()})

    @property
    def takes_bytes(self) -> bool:
        """Tell whether a device reads and writes the points itself, so that the host need not."""
        return self.backend.on_device is not None

    @overload
    def segment(self, sweep: LidarFrame, level_from_lidar: np.ndarray | None = None) -> Segmentation[PointLabels]: ...

    @overload
    def segment(self, sweep: PackedCloud, level_from_lidar: np.ndarray | None = None) -> Segmentation[np.ndarray]: ...

    def segment(self, sweep: LidarFrame | PackedCloud, level_from_lidar: np.ndarray | None = None) -> Segmentation[Any]:
        """Label every row of a sweep; a PackedCloud only where `takes_bytes`.

        level_from_lidar: (4, 4), where the lidar is above the floor; None: as the settings say. FloatingPointError
        where the network gives no numbers.
        """
        start = self.clock()
        on_device = self.backend.on_device
        if on_device is not None:
            labels, ready, computed = self._on(on_device, sweep, level_from_lidar)
        elif isinstance(sweep, LidarFrame):
            with at_most(self.config.threads):
                labels, ready, computed = self._on_host(sweep, level_from_lidar)
        else:
            raise TypeError(f"{self.path.name} on {self.device} takes sweeps as LidarFrame")
        finished = self.clock()
        return Segmentation(
            labels=labels,
            prepare_ms=(ready - start) * 1e3,
            network_ms=(computed - ready) * 1e3,
            finish_ms=(finished - computed) * 1e3,
        )

    def _on_host(self, frame: LidarFrame, level_from_lidar: np.ndarray | None) -> tuple[PointLabels, float, float]:
        """Label a sweep, the host doing all but the network; when the inputs and when the logits were ready, in s."""
        inputs = self.description.inputs
        levelled = normalised(frame, self.config.input, inputs.sensor_height_m, level_from_lidar)
        prepared = prepare(levelled, inputs, self.config.input.max_points)
        ready = self.clock()
        logits = self.backend.logits(prepared) if len(prepared) else np.empty((0, len(self.classes)), np.float32)
        self._require(bool(np.isfinite(logits).all()))
        computed = self.clock()
        return with_min_score(to_points(logits, prepared), self.config.min_score), ready, computed

    def _on(
        self, device: DeviceSegmenter, sweep: LidarFrame | PackedCloud, level_from_lidar: np.ndarray | None
    ) -> tuple[PointLabels | np.ndarray, float, float]:
        """Label a sweep on a device; when the points were chosen and when the labels were there, in s."""
        sensor, trained_height_m = self.config.input, self.description.inputs.sensor_height_m
        cloud = packed_frame(sweep) if isinstance(sweep, LidarFrame) else sweep
        if not feeds_intensity(cloud.has_intensity(), sensor.intensity):
            cloud = cloud.without_intensity()
        with device.turn:
            model_from_lidar = levelling(sensor, trained_height_m, level_from_lidar)
            kept = device.prepare(cloud, sensor, model_from_lidar, self.config.min_score)
            ready = self.clock()
            points, is_finite = device.compute(kept)
            computed = self.clock()
        self._require(is_finite)
        return point_labels(points) if isinstance(sweep, LidarFrame) else points, ready, computed

    def _require(self, is_finite: bool) -> None:
        if not is_finite:
            raise FloatingPointError(f"{self.path.name} gave NaN or infinity in {self.backend.precision}; take float32")


def _loaded(path: Path, config: SegmenterConfig) -> Backend:
    return BACKENDS[path.suffix](path, device=config.device, precision=config.precision, threads=config.threads)


def _shared(beside: Segmenter, config: SegmenterConfig) -> Backend:
    for name in MODEL_SETTINGS:
        theirs, ours = getattr(beside.config, name), getattr(config, name)
        if ours != theirs:
            raise UserError(
                f"lidars of one process share a model, but setting '{name}' is {theirs!r} for the first and {ours!r} "
                "for another; set it alike for all (/**), or start a process for each"
            )
    return beside.backend


def with_min_score(labels: PointLabels, min_score: float) -> PointLabels:
    """Leave points UNLABELLED whose probability is below min_score."""
    if min_score <= 0:
        return labels
    low = labels.probability < min_score
    return PointLabels(
        class_id=np.where(low, np.uint8(UNLABELLED), labels.class_id),
        probability=np.where(low, np.float32(0), labels.probability),
        entropy=np.where(low, np.float32(1), labels.entropy),
    )


def model_path(model: str, models: Path) -> Path:
    """Find a model by path, or by name among the shipped: `.safetensors` where PyTorch is installed, else `.onnx`."""
    path = Path(model).expanduser()
    if path.suffix in BACKENDS:
        if not path.is_file():
            raise UserError(f"there is no model file {path.absolute()}")
        return path
    suffix = ".safetensors" if importlib.util.find_spec("torch") else ".onnx"
    shipped = models / (model + suffix)
    if path.suffix or not model or not shipped.is_file():
        known = sorted({file.stem for file in models.glob("*") if file.suffix in BACKENDS})
        raise UserError(
            f"'{model}' is neither a .safetensors or .onnx file nor a shipped model; shipped are {', '.join(known)}"
        )
    return shipped
