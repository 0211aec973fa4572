"""Semantic-ITC (arXiv 2609.18493) as it lies on the disk: one folder per sequence with a binary file per frame.

The layout is that of the data set's page "Getting Started": point_clouds_local_bin/{train,val,test}/SEQUENCE/TIME.bin,
rows of 14 bytes without padding, little-endian: x, y, z float32, intensity uint8, label uint8 (0–15). The archives with
images, calibrations and poses are announced, and their layout is not public yet; so there are neither images nor poses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.distill.recordings import (
    LabelledSweep,
    SourceConfig,
    key_of_folder,
    scaled,
    without_confidence,
)
from lidar_semseg_ros.formats.config_files import class_table
from lidar_semseg_ros.teacher.lifting import Trajectory

TABLE, PERIOD_NS = "indoor16", 100_000_000
ROW = np.dtype([("xyz", "<f4", (3,)), ("intensity", "u1"), ("label", "u1")])
OTHER_ROWS = {16: "x, y, z, intensity as float32, as in KITTI", 20: "five float32, as in nuScenes"}
"""What files of other row lengths probably are."""


def is_at(path: Path) -> bool:
    """Tell whether a folder is a sequence, or holds sequences one or two levels below."""
    return any(_is_frame(file) for pattern in ("*.bin", "*/*.bin", "*/*/*.bin") for file in path.glob(pattern))


def _is_frame(file: Path) -> bool:
    return not file.name.endswith(".pcd.bin")


def sequences(path: Path) -> dict[str, int]:
    """Count the frames of each sequence that a folder holds, by SEQUENCE or SPLIT/SEQUENCE; empty where it is one."""
    if any(path.glob("*.bin")):
        return {}
    folders = {file.parent for pattern in ("*/*.bin", "*/*/*.bin") for file in path.glob(pattern)}
    return {str(folder.relative_to(path)): len(list(folder.glob("*.bin"))) for folder in sorted(folders)}


class SemanticItcSequence:
    """The frames of a sequence in the order of their times; one every 0.1 s."""

    stamps_ns: np.ndarray | None = None
    trajectory: Trajectory | None = None

    def __init__(self, source: SourceConfig, cache: Path, *, images: bool) -> None:
        """Look at the folder; UserError if it lacks what is wanted. The cache is not needed."""
        folder = Path(source.path).expanduser()
        if images:
            raise UserError(f"{folder} has no images; features cannot be learned from it, leave it out")
        if source.labels == "pseudo":
            raise UserError(f"{folder} holds labels of annotators; a training configuration says 'labels: exact' of it")
        self.name = folder.name
        # Times count on: a longer number is a later one.
        self._frames = sorted(folder.glob("*.bin"), key=lambda file: (len(file.stem.partition(".")[0]), file.stem))
        self.key = key_of_folder(folder, self._frames)
        self._scale = source.intensity_scale
        self.origin: Mapping[str, str] = {"labels": source.labels}
        self.classes: ClassTable | None = class_table(TABLE) if source.labels == "exact" else None
        self.base_from_lidar = np.eye(4)

    def __len__(self) -> int:
        return len(self._frames)

    def sweep(self, index: int) -> LabelledSweep:
        """Read one frame; UserError names the file and what it holds instead."""
        rows = _rows(self._frames[index])
        frame = LidarFrame(
            stamp_ns=index * PERIOD_NS,
            frame_id="livox_frame",
            xyz=np.ascontiguousarray(rows["xyz"]),
            intensity=rows["intensity"].astype(np.float32),
        )
        class_id = np.full(len(rows), UNLABELLED, np.uint8)
        if self.classes is not None:
            class_id = rows["label"].copy()
            if class_id.max(initial=0) >= len(self.classes):
                raise UserError(
                    f"{self._frames[index]} has the label {class_id.max()}, but {TABLE} has {len(self.classes)} "
                    "classes; its rows are perhaps not x, y, z as float32, intensity and label as uint8"
                )
        return LabelledSweep(
            frame=scaled(frame, self._scale), class_id=class_id, confidence=without_confidence(class_id)
        )


def _rows(file: Path) -> np.ndarray:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if len(data) % ROW.itemsize:
        fitting = [text for size, text in OTHER_ROWS.items() if len(data) % size == 0]
        raise UserError(
            f"{file} has {len(data)} bytes, which are no rows of {ROW.itemsize} (x, y, z as float32, intensity and "
            f"label as uint8, as in Semantic-ITC){'; they could be rows of ' + ' or '.join(fitting) if fitting else ''}"
        )
    return np.frombuffer(data, ROW)
