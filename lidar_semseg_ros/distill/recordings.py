"""Recordings that a student learns from, all with the same face: a labelled sweep and its images by number."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage, LidarFrame
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.formats.dataset import camera_from_json
from lidar_semseg_ros.formats.images import ImageError, read_image
from lidar_semseg_ros.teacher.lifting import Trajectory

LABELS = ("pseudo", "exact", "none")
OPTIONAL = ("intensity", "ring", "time_s")
"""Columns that a sweep may lack."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A recording to learn from, as a training configuration names it."""

    path: str = setting("", "a bag, or a folder of SemanticKITTI, nuScenes or Semantic-ITC")
    labels: str = setting(
        "pseudo",
        "pseudo (of a teacher: `lidar-semseg label`), exact (of the simulator or of annotators) or none",
        choices=LABELS,
    )
    weight: float = setting(1.0, "how often sweeps are drawn from it, relative to the others", minimum=0.0)
    sequence: str = setting(
        "",
        "the drive that it is part of; empty: the name of the file or folder. Where a folder holds several: which of "
        "them, as scene-0061, or scene-00*, or several with commas; empty: all",
    )
    sweeps: str = setting("", "which of its sweeps, as 0:80 or 100: (the end is not taken); empty: all")
    topic: str = setting("", "topic of the clouds, or of the pseudo-labels, where there are several")
    calibration: str = setting("", "calibration file or preset; empty: what the teacher had, or the recording says")
    intensity_scale: float = setting(1.0, "factor from its intensities to those of the model's inputs", minimum=0.0)

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("a recording of the training configuration has no path; write 'path: FILE.mcap'")
        first, end = self.sweep_range
        if end is not None and end <= first:
            raise UserError(f"'sweeps: {self.sweeps}' takes no sweep at all; the end must lie behind the first one")

    @property
    def sweep_range(self) -> tuple[int, int | None]:
        """Give the first sweep that is taken, and the one that follows the last; None for the end of the recording."""
        if not self.sweeps:
            return 0, None
        parts = re.fullmatch(r"(\d*):(\d*)", self.sweeps)
        if parts is None:
            raise UserError(f"sweeps are taken as 0:80 or 100:, counted from 0, but got 'sweeps: {self.sweeps}'")
        first, end = parts.groups()
        return int(first or 0), int(end) if end else None

    @property
    def drive(self) -> str:
        """Name the sequence that must not be in two splits."""
        return self.sequence or Path(self.path).expanduser().resolve().stem


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image beside a sweep, still packed.

    key: its name among all images of all recordings. source: the topic, folder or channel that it is from. time_ns: on
    the clock of the sweep. file: bytes of a JPEG or PNG.
    """

    key: str
    source: str
    time_ns: int
    camera: Camera
    camera_from_lidar: np.ndarray
    file: np.ndarray

    def read(self) -> CameraImage:
        """Unpack the pixels; ImageError if there are none, or not those that the camera was calibrated for."""
        stamp = SimpleNamespace(sec=self.time_ns // 10**9, nanosec=self.time_ns % 10**9)
        header = SimpleNamespace(stamp=stamp, frame_id="")
        image = read_image(SimpleNamespace(header=header, format="jpeg or png", data=self.file.tobytes()))
        height, width = image.pixels.shape[:2]
        if (self.camera.width, self.camera.height) != (width, height):
            raise ImageError(
                f"image {self.key} has {width}×{height} pixels, but its calibration is for "
                f"{self.camera.width}×{self.camera.height}; calibrate at the resolution that was recorded"
            )
        return image


@dataclass(frozen=True, kw_only=True)
class LabelledSweep:
    """A sweep with what is said of its N points, and the images taken meanwhile.

    class_id: (N,) uint8, UNLABELLED where nothing is said. confidence: (N,) float32 in [0, 1], 0 there.
    """

    frame: LidarFrame
    class_id: np.ndarray
    confidence: np.ndarray
    images: tuple[StoredImage, ...] = ()


class Recording(Protocol):
    """Labelled sweeps by number.

    name: of the file or folder. classes: what the labels mean; None without labels. origin: who labelled, by key.
    key: changes with the content. stamps_ns: of the sweeps, (S,) int64; None where they were not recorded. trajectory
    and base_from_lidar: where the robot was; None where that is not known.
    """

    name: str
    key: str
    classes: ClassTable | None
    origin: Mapping[str, str]
    stamps_ns: np.ndarray | None
    trajectory: Trajectory | None
    base_from_lidar: np.ndarray

    def __len__(self) -> int:
        """Count the sweeps."""
        ...

    def sweep(self, index: int) -> LabelledSweep:
        """Read one sweep."""
        ...


class PartOfRecording:
    """Consecutive sweeps of a recording, numbered from 0; images and poses are those of the whole."""

    def __init__(self, whole: Recording, source: SourceConfig) -> None:
        """Take the sweeps that the source names; UserError if there are none of them."""
        first, end = source.sweep_range
        self._whole, self._sweeps = whole, range(len(whole))[first:end]
        if not self._sweeps or (end or 0) > len(whole):
            raise UserError(f"{whole.name} has {len(whole)} sweeps, so 'sweeps: {source.sweeps}' cannot be taken")
        self.name, self.key = f"{whole.name}[{source.sweeps}]", f"{whole.key}-{first}-{self._sweeps.stop}"
        self.classes, self.origin = whole.classes, whole.origin
        self.trajectory, self.base_from_lidar = whole.trajectory, whole.base_from_lidar
        self.stamps_ns = None if whole.stamps_ns is None else whole.stamps_ns[first:end]

    def __len__(self) -> int:
        return len(self._sweeps)

    def sweep(self, index: int) -> LabelledSweep:
        """Read one sweep."""
        return self._whole.sweep(self._sweeps[index])


class CachedRecording:
    """A recording laid out as memory-mapped arrays, which the processes of a machine share.

    The folder holds one .npy per column with the points of all sweeps one after the other, `start` (S + 1,) where each
    begins, the bytes of all images, and about.json.
    """

    def __init__(self, folder: Path, intensity_scale: float = 1.0) -> None:
        self._folder, self._scale = folder, np.float32(intensity_scale)
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.name, self.key = str(about["name"]), folder.name
        self.classes = ClassTable.from_mapping(about["classes"]) if about["classes"] else None
        self.origin: Mapping[str, str] = about["origin"]
        self._frame_id = str(about["frame_id"])
        # What was laid out before topics were told has none.
        self._cameras = [(camera.get("topic", "a camera"), *camera_from_json(camera)) for camera in about["cameras"]]
        self.base_from_lidar = np.reshape(about["base_from_lidar"], (4, 4))
        self.stamps_ns: np.ndarray | None = np.load(folder / "stamp_ns.npy")
        self.trajectory: Trajectory | None = None
        poses = np.load(folder / "map_from_base.npy")
        if len(poses):
            self.trajectory = Trajectory(stamps_ns=np.load(folder / "pose_ns.npy"), map_from_base=poses)
        self._map()

    def _map(self) -> None:
        self._columns: dict[str, np.ndarray] = {
            path.stem: np.load(path, mmap_mode="r") for path in self._folder.glob("*.npy") if path.stat().st_size > 128
        }

    def __getstate__(self) -> dict[str, Any]:
        # A process that is handed this maps the files itself; pickled arrays would be copies.
        return {name: value for name, value in vars(self).items() if name != "_columns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def __len__(self) -> int:
        return len(self._columns["start"]) - 1

    def sweep(self, index: int) -> LabelledSweep:
        """Read one sweep; its images stay packed."""
        begin, end = (int(place) for place in self._columns["start"][index : index + 2])
        points = {
            name: np.array(self._columns[name][begin:end]) if end > begin else _empty(name)
            for name in ("xyz", *OPTIONAL, "class_id", "confidence")
        }
        there = dict(zip(OPTIONAL, self._columns["has"][index]))
        frame = LidarFrame(
            stamp_ns=int(self._columns["stamp_ns"][index]),
            frame_id=self._frame_id,
            xyz=points["xyz"],
            intensity=points["intensity"] * self._scale if there["intensity"] else None,
            ring=points["ring"] if there["ring"] else None,
            time_s=points["time_s"] if there["time_s"] else None,
        )
        return LabelledSweep(
            frame=frame,
            class_id=points["class_id"],
            confidence=points["confidence"],
            images=self._images(index),
        )

    def _images(self, index: int) -> tuple[StoredImage, ...]:
        images: list[StoredImage] = []
        if not self._cameras:
            return ()
        for (topic, camera, camera_from_lidar), number in zip(self._cameras, self._columns["image_of"][index]):
            if number >= 0:
                begin, end = self._columns["image_start"][number : number + 2]
                images.append(
                    StoredImage(
                        key=f"{self.key}/{number}",
                        source=topic,
                        time_ns=int(self._columns["image_ns"][number]),
                        camera=camera,
                        camera_from_lidar=camera_from_lidar,
                        file=self._columns["image_bytes"][begin:end],
                    )
                )
        return tuple(images)


COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "xyz": ("<f4", (3,)),
    "intensity": ("<f4", ()),
    "ring": ("<u2", ()),
    "time_s": ("<f4", ()),
    "class_id": ("|u1", ()),
    "confidence": ("<f4", ()),
    "image_bytes": ("|u1", ()),
}
"""What grows with the recording: number format and shape of an entry."""


def _empty(name: str) -> np.ndarray:
    kind, tail = COLUMNS[name]
    return np.empty((0, *tail), np.dtype(kind))


class RecordingWriter:
    """Lays a recording out for CachedRecording; points go to disk as they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._files = {name: _GrowingArray(folder / f"{name}.npy", *COLUMNS[name]) for name in COLUMNS}
        self._start, self._stamp_ns, self._has = [0], list[int](), list[list[bool]]()
        self._image_start, self._image_ns, self._image_of = [0], list[int](), list[list[int]]()
        self._image_numbers: dict[tuple[int, int], int] = {}

    def add(
        self, frame: LidarFrame, class_id: np.ndarray, confidence: np.ndarray, images: list[tuple[int, bytes] | None]
    ) -> None:
        """Add a sweep with its labels and, per camera, time and file of its image or None."""
        columns = {name: getattr(frame, name) for name in ("xyz", *OPTIONAL)}
        for name, column in (columns | {"class_id": class_id, "confidence": confidence}).items():
            # A column that this sweep lacks is filled up, so that all columns have the same rows.
            self._files[name].append(np.zeros(len(frame), _empty(name).dtype) if column is None else column)
        self._start.append(self._start[-1] + len(frame))
        self._stamp_ns.append(frame.stamp_ns)
        self._has.append([columns[name] is not None for name in OPTIONAL])
        self._image_of.append([-1 if image is None else self._number(i, *image) for i, image in enumerate(images)])

    def _number(self, camera: int, time_ns: int, file: bytes) -> int:
        """Store an image unless the sweep before had the same, and give its number."""
        if (camera, time_ns) not in self._image_numbers:
            self._image_numbers[camera, time_ns] = len(self._image_ns)
            self._files["image_bytes"].append(np.frombuffer(file, np.uint8))
            self._image_start.append(self._image_start[-1] + len(file))
            self._image_ns.append(time_ns)
        return self._image_numbers[camera, time_ns]

    def close(self, trajectory: Trajectory | None, about: Mapping[str, Any]) -> None:
        """Write what is small, and complete the headers."""
        for file in self._files.values():
            file.close()
        small = {
            "start": np.array(self._start, np.int64),
            "stamp_ns": np.array(self._stamp_ns, np.int64),
            "has": np.array(self._has, bool).reshape(-1, len(OPTIONAL)),
            "image_start": np.array(self._image_start, np.int64),
            "image_ns": np.array(self._image_ns, np.int64),
            "image_of": np.array(self._image_of, np.int64).reshape(len(self._stamp_ns), -1),
            "pose_ns": np.empty(0, np.int64) if trajectory is None else trajectory.stamps_ns,
            "map_from_base": np.empty((0, 4, 4)) if trajectory is None else trajectory.map_from_base,
        }
        for name, array in small.items():
            np.save(self._folder / f"{name}.npy", array)
        (self._folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


class _GrowingArray:
    """A .npy file whose first axis grows; NumPy pads its header for that."""

    def __init__(self, path: Path, kind: str, tail: tuple[int, ...]) -> None:
        self._file, self._kind, self._tail, self._rows = path.open("wb"), kind, tail, 0
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": self._kind, "fortran_order": False, "shape": (self._rows, *self._tail)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, np.dtype(self._kind)).data)
        self._rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()


def require_other_sweeps(learned: Sequence[Recording], kept_apart: Sequence[Recording]) -> None:
    """Raise UserError if a recording that is kept apart has sweeps of one that is learned from.

    A drive that was labelled twice goes by two names; its sweeps have the same stamps and the same points.
    """
    for recording, other in product(learned, kept_apart):
        if recording.stamps_ns is None or other.stamps_ns is None:
            continue
        same, numbers, others = np.intersect1d(recording.stamps_ns, other.stamps_ns, return_indices=True)
        # Simulated drives all begin at one time, so stamps alone do not tell.
        if len(same) and _have_same_points(recording.sweep(int(numbers[0])), other.sweep(int(others[0]))):
            raise UserError(
                f"{recording.name}, which is learned from, and {other.name}, which is kept apart, are of one drive: "
                f"{len(same)} of their sweeps have the same stamps; take one of them out"
            )


def _have_same_points(one: LabelledSweep, other: LabelledSweep) -> bool:
    return np.array_equal(one.frame.xyz, other.frame.xyz, equal_nan=True)


def key_of_folder(folder: Path, files: Iterable[Path]) -> str:
    """Name a folder by its place and by name, size and time of those of its files that are there."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file()]
    described = json.dumps([str(folder.resolve()), stats])
    return f"{folder.name}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


def without_confidence(class_id: np.ndarray) -> np.ndarray:
    """Give labels that are certain, (N,) float32: 1 where there is one."""
    return (class_id != UNLABELLED).astype(np.float32)


def scaled(frame: LidarFrame, intensity_scale: float) -> LidarFrame:
    """Bring the intensities of a sweep to another unit."""
    if frame.intensity is None or intensity_scale == 1.0:
        return frame
    return replace(frame, intensity=frame.intensity * np.float32(intensity_scale))
