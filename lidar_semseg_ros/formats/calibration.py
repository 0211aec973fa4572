"""The calibration file: what the stamps of a recording mean, what its cameras are, and where they sit.

lidars:
  os1:                                  # any name
    topic: /os1_cloud_node1/points      # optional
    stamp: end                          # start | middle | end of the sweep
    stamp_offset_s: 0.0                 # optional; added to every stamp
cameras:
  left:
    topic: /left/image_raw              # optional
    stamp_offset_s: 0.0                 # optional; added to every stamp
    lidar: os1                          # which one the transform is for; may be left out if there is only one
    # The camera: either camera_info_topic, where the recording brings it, or all of this.
    width: 752
    height: 480
    model: plumb_bob                    # plumb_bob | rational_polynomial | equidistant
    distortion: [-0.28, 0.07, 0.0, 0.0] # 4 or 5 | 8 | 4 numbers, in OpenCV's order
    fx: 425.0                           # fx, fy, cx, cy; or K, 9 numbers row by row
    fy: 426.8
    cx: 386.0
    cy: 241.9
    # With `rectified: true`, the images are rectified already: model and distortion are left out.
    # The transform, in metres: `transform: tf_static`, where the recording brings it, or `direction` with either
    # `matrix`, 4×4 row by row; or `translation` and `quaternion` with `quaternion_order: xyzw | wxyz`; or
    # `translation` and `rpy` in radians about the fixed axes x, y, z.
    direction: camera_from_lidar        # p_camera = matrix · p_lidar; or lidar_from_camera
    translation: [0.1, 0.0, -0.2]
    quaternion: [0.5, -0.5, 0.5, 0.5]
    quaternion_order: xyzw
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.core.camera import MODELS, Camera, camera_of_model
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.geometry import invert_rigid, rigid, rotation_from_quaternion, rotation_from_rpy
from lidar_semseg_ros.formats.config_files import config_file, read_yaml

SHARE_OF_SWEEP = {"start": 0.0, "middle": 0.5, "end": 1.0}
"""How much of the sweep has passed at the time its message is stamped with."""
DIRECTIONS = ("camera_from_lidar", "lidar_from_camera")
QUATERNION_ORDERS = {"xyzw": [0, 1, 2, 3], "wxyz": [1, 2, 3, 0]}
"""Where x, y, z and w stand."""
MAX_ROTATION_DEVIATION = 1e-3
"""Rotations written with few digits deviate less from orthonormal ones than this; slips of the pen deviate more."""

LARGEST_NUMBER = float(np.finfo(np.float64).max)
CENTURY_S = 3.2e9

LIDAR_KEYS = ("topic", "stamp", "stamp_offset_s")
FOCAL_KEYS = ("fx", "fy", "cx", "cy")
INTRINSIC_KEYS = ("model", "width", "height", "K", *FOCAL_KEYS, "distortion")
TRANSFORMS: dict[str, tuple[str, ...]] = {
    "matrix": ("direction",),
    "quaternion": ("quaternion_order", "translation", "direction"),
    "rpy": ("translation", "direction"),
    "transform": (),
}
"""The ways to write a transform, and the keys that go with each."""
CAMERA_KEYS = (
    *("topic", "stamp_offset_s", "lidar", "camera_info_topic", "rectified"),
    *INTRINSIC_KEYS,
    *TRANSFORMS,
    *TRANSFORMS["quaternion"],
)


@dataclass(frozen=True, kw_only=True)
class LidarCalibration:
    """What the stamps of a lidar mean.

    stamp: the part of the sweep that messages are stamped with, of SHARE_OF_SWEEP.
    stamp_offset_s: added to stamps, gives time on the clock that all sensors of the file share.
    """

    stamp: str
    stamp_offset_s: float = 0.0
    topic: str | None = None

    def start_ns(self, stamp_ns: int, sweep_s: float) -> int:
        """Find when a sweep that takes sweep_s began, from the stamp of its message."""
        return stamp_ns + round((self.stamp_offset_s - SHARE_OF_SWEEP[self.stamp] * sweep_s) * 1e9)

    def middle_ns(self, stamp_ns: int, sweep_s: float) -> int:
        """Find the middle of a sweep that takes sweep_s, which images are paired with."""
        return self.start_ns(stamp_ns, sweep_s) + round(sweep_s / 2 * 1e9)


@dataclass(frozen=True, kw_only=True)
class CameraCalibration:
    """A camera, what its stamps mean, and where it sits.

    lidar: name of the lidar that the transform is for.
    camera: None where CameraInfo messages on camera_info_topic bring it.
    camera_from_lidar: (4, 4), p_camera = R · p_lidar + t; None where the recording's /tf_static brings it.
    rectified: whether the images are free of distortion; a CameraInfo is then read for the rectified image.
    stamp_offset_s: added to stamps, gives time on the clock that all sensors of the file share.
    """

    lidar: str
    camera: Camera | None
    camera_from_lidar: np.ndarray | None
    rectified: bool = False
    stamp_offset_s: float = 0.0
    topic: str | None = None
    camera_info_topic: str | None = None

    def time_ns(self, stamp_ns: int) -> int:
        """Find when an image was taken, from its stamp."""
        return stamp_ns + round(self.stamp_offset_s * 1e9)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The lidars and cameras of a calibration file by name, in its order."""

    lidars: Mapping[str, LidarCalibration]
    cameras: Mapping[str, CameraCalibration]

    def lidar_on(self, topic: str) -> str:
        """Name the lidar whose clouds are on a topic, or the only one; UserError if none fits."""
        by_topic = {lidar.topic: name for name, lidar in self.lidars.items() if lidar.topic is not None}
        name = by_topic.get(topic, next(iter(self.lidars)) if len(self.lidars) == 1 else None)
        if name is None:
            raise UserError(
                f"the calibration names the lidar topics {', '.join(by_topic)}, but the clouds are on {topic}"
            )
        return name


def calibration_file(name_or_path: str) -> Path:
    """Find a calibration: one that comes with the package by its name, any other by the path of its .yaml file."""
    return config_file("calibration", name_or_path, "calibration")


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file; UserError names file and key of what is missing, contradictory, unknown or mistyped."""
    entries = _Entries(path, "", read_yaml(path), ("lidars", "cameras"))
    lidars = {name: _read_lidar(one) for name, one in entries.sections("lidars", LIDAR_KEYS).items()}
    cameras = {name: _read_camera(one, lidars) for name, one in entries.sections("cameras", CAMERA_KEYS).items()}
    for kind, sensors in (("lidars", lidars), ("cameras", cameras)):
        _refuse_shared_topics(entries, kind, {name: sensor.topic for name, sensor in sensors.items()})
    return Calibration(lidars=lidars, cameras=cameras)


class _Entries:
    """One mapping of the file, which knows its place, so that every error names file and key."""

    def __init__(self, path: Path, place: str, values: object, known: Collection[str]) -> None:
        self._path, self._place = path, place
        if not isinstance(values, dict):
            raise UserError(f"{path}: {place} must hold 'name: value' lines, but it holds {values!r}")
        self._values = values
        for key in values:
            if known and key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                raise self.fault(key, f"is not known; {f'did you mean {near[0]}?' if near else _one_of(known)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def fault(self, key: object, said: str) -> UserError:
        return UserError(f"{self._path}: {self._place}{'.' if self._place else ''}{key} {said}")

    def sections(self, key: str, known: Collection[str]) -> dict[str, _Entries]:
        """Open the mappings of a mapping, by their names."""
        named = _Entries(self._path, key, self._given(key), ())
        if not named._values:
            raise self.fault(key, "is empty")
        for name in named._values:
            if not isinstance(name, str):
                raise named.fault(name, "is no name; write it in quotes")
        return {name: _Entries(self._path, f"{key}.{name}", values, known) for name, values in named._values.items()}

    def refuse(self, keys: Sequence[str], because: str) -> None:
        for key in keys:
            if key in self:
                raise self.fault(key, f"contradicts {because}; leave one of them out")

    def text(self, key: str) -> str:
        value = self._given(key)
        if not isinstance(value, str) or not value:
            raise self.fault(key, f"takes a text, but it is {value!r}")
        return value

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if key in self else None

    def choice(self, key: str, choices: Collection[str]) -> str:
        if key not in self:
            raise self.fault(key, f"is missing; {_one_of(choices)}")
        value = self._given(key)
        if not isinstance(value, str) or value not in choices:
            raise self.fault(key, f"is {value!r}; {_one_of(choices)}")
        return value

    def flag(self, key: str) -> bool:
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise self.fault(key, f"takes true or false, but it is {value!r}")
        return value

    def pixels(self, key: str) -> int:
        value = self._given(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fault(key, f"takes a whole number of pixels, but it is {value!r}")
        return value

    def number(self, key: str) -> float:
        return self._checked_number(key, self._given(key))

    def numbers(self, key: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """Read a list of numbers in one of the shapes; (3, 3) is a list of 3 lists of 3."""
        value = self._given(key)
        shape = _shape(value)
        if shape not in shapes:
            wanted = " or ".join("×".join(map(str, shape)) for shape in shapes)
            raise self.fault(key, f"takes a list of {wanted} numbers, but it is {value!r}")
        flat = value if len(shape) == 1 else [item for row in value for item in row]
        return np.array([self._checked_number(key, item) for item in flat], np.float64).reshape(shape)

    def _given(self, key: str) -> Any:
        if key not in self:
            raise self.fault(key, "is missing")
        return self._values[key]

    def _checked_number(self, key: str, value: object) -> float:
        if isinstance(value, str):
            raise self.fault(key, f"takes numbers, but '{value}' is a text; YAML writes powers of ten as 1.0e-3")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= LARGEST_NUMBER:
            raise self.fault(key, f"takes finite numbers, but there is {value!r}")
        return float(value)


def _one_of(choices: Collection[str]) -> str:
    return f"choose one of {', '.join(choices)}"


def _shape(value: object) -> tuple[int, ...]:
    """Give the shape of a list of values, or of a list of lists of equal length; () if it is none of these."""
    if not isinstance(value, list):
        return ()
    lengths = {len(row) if isinstance(row, list) else None for row in value}
    if lengths <= {None}:
        return (len(value),)
    width = lengths.pop()
    return () if lengths or width is None else (len(value), width)


def _read_lidar(entries: _Entries) -> LidarCalibration:
    return LidarCalibration(
        stamp=entries.choice("stamp", SHARE_OF_SWEEP),
        stamp_offset_s=_read_offset(entries),
        topic=entries.optional_text("topic"),
    )


def _read_camera(entries: _Entries, lidars: Mapping[str, LidarCalibration]) -> CameraCalibration:
    only_lidar = next(iter(lidars)) if len(lidars) == 1 and "lidar" not in entries else None
    return CameraCalibration(
        lidar=only_lidar or entries.choice("lidar", lidars),
        camera=_read_intrinsics(entries),
        camera_from_lidar=_read_transform(entries),
        rectified=entries.flag("rectified"),
        stamp_offset_s=_read_offset(entries),
        topic=entries.optional_text("topic"),
        camera_info_topic=entries.optional_text("camera_info_topic"),
    )


def _read_offset(entries: _Entries) -> float:
    offset_s = entries.number("stamp_offset_s") if "stamp_offset_s" in entries else 0.0
    if abs(offset_s) > CENTURY_S:
        raise entries.fault("stamp_offset_s", f"is in seconds, but {offset_s} is more than a century; convert it")
    return offset_s


def _read_intrinsics(entries: _Entries) -> Camera | None:
    if "camera_info_topic" in entries:
        entries.refuse(INTRINSIC_KEYS, "camera_info_topic, which brings the intrinsics")
        return None
    model, distortion = "plumb_bob", np.zeros(0)
    if entries.flag("rectified"):
        entries.refuse(("model", "distortion"), "rectified, which means that no distortion is left")
    else:
        model = entries.choice("model", MODELS)
        distortion = entries.numbers("distortion", *((count,) for count in MODELS[model][1]))
    width, height = entries.pixels("width"), entries.pixels("height")
    if "K" in entries:
        entries.refuse(FOCAL_KEYS, "K")
        matrix = entries.numbers("K", (9,), (3, 3)).reshape(3, 3)
    elif not any(key in entries for key in FOCAL_KEYS):
        raise entries.fault("K", "is missing; give it, or fx, fy, cx and cy")
    else:
        fx, fy, cx, cy = (entries.number(key) for key in FOCAL_KEYS)
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    try:
        return camera_of_model(model, width=width, height=height, matrix=matrix, distortion=distortion)
    except UserError as error:
        raise entries.fault("K" if "K" in entries else "fx", f"is wrong: {error}") from None


def _read_transform(entries: _Entries) -> np.ndarray | None:
    """Read camera_from_lidar (4, 4); None if the recording brings it."""
    ways = [way for way in TRANSFORMS if way in entries]
    if not ways:
        raise entries.fault(
            "matrix", "is missing; give it, or translation with quaternion or rpy, or 'transform: tf_static'"
        )
    way = ways[0]
    entries.refuse(ways[1:], way)
    entries.refuse([key for key in TRANSFORMS["quaternion"] if key not in TRANSFORMS[way]], way)
    if way == "transform":
        entries.choice("transform", ("tf_static",))
        return None
    matrix = {"matrix": _from_matrix, "quaternion": _from_quaternion, "rpy": _from_rpy}[way](entries)
    return matrix if entries.choice("direction", DIRECTIONS) == "camera_from_lidar" else invert_rigid(matrix)


def _from_matrix(entries: _Entries) -> np.ndarray:
    """Read a transform and give it the nearest orthonormal rotation, by its singular value decomposition."""
    matrix = entries.numbers("matrix", (16,), (4, 4)).reshape(4, 4)
    if matrix[3].tolist() != [0, 0, 0, 1]:
        raise entries.fault("matrix", f"must end in the row 0, 0, 0, 1, but it is {matrix[3].tolist()}; go row by row")
    rotation = matrix[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is no rotation either
        deviation, determinant = np.abs(rotation @ rotation.T - np.eye(3)).max(), np.linalg.det(rotation)
    if not (deviation <= MAX_ROTATION_DEVIATION and determinant > 0):
        raise entries.fault(
            "matrix",
            f"is no rotation: R · Rᵀ deviates from the identity by {deviation:.2g}, and the determinant is "
            f"{determinant:.4f} instead of 1; copy every digit",
        )
    left, _, right = np.linalg.svd(rotation)
    return rigid(left @ right, matrix[:3, 3])


def _from_quaternion(entries: _Entries) -> np.ndarray:
    order = QUATERNION_ORDERS[entries.choice("quaternion_order", QUATERNION_ORDERS)]
    quaternion = entries.numbers("quaternion", (4,))
    length = np.linalg.norm(quaternion)
    if not abs(length - 1) <= MAX_ROTATION_DEVIATION:
        raise entries.fault("quaternion", f"has length {length:.4f} instead of 1; copy every digit")
    return rigid(rotation_from_quaternion(quaternion[order]), entries.numbers("translation", (3,)))


def _from_rpy(entries: _Entries) -> np.ndarray:
    rpy = entries.numbers("rpy", (3,))
    if np.abs(rpy).max() > 2 * np.pi:
        raise entries.fault("rpy", f"is in radians, but {rpy.tolist()} is more than a turn; convert degrees")
    return rigid(rotation_from_rpy(*rpy), entries.numbers("translation", (3,)))


def _refuse_shared_topics(entries: _Entries, kind: str, topics: Mapping[str, str | None]) -> None:
    owners: dict[str, str] = {}
    for name, topic in topics.items():
        if topic in owners:
            raise entries.fault(f"{kind}.{name}.topic", f"is that of {kind}.{owners[topic]}; each has its own")
        if topic is not None:
            owners[topic] = name
