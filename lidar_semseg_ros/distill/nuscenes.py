"""nuScenes with nuScenes-lidarseg as it lies on the disk: one recording per scene, of its key frames.

The tables are those of the data set's documented schema: sensors stand on the ego vehicle (translation, quaternion w,
x, y, z), whose pose in the map is given for every image and every sweep at its own time. So points reach an image by
the pose at the sweep and the one at the image. Tables of the whole data set have millions of rows; what a reader needs
of them is kept per scene in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.classes import ClassMap, ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.geometry import invert_rigid, rigid, rotation_from_quaternion
from lidar_semseg_ros.distill.recordings import LabelledSweep, SourceConfig, StoredImage, scaled, without_confidence
from lidar_semseg_ros.formats.config_files import class_table, config_file, read_yaml
from lidar_semseg_ros.formats.loose_scans import read_scan
from lidar_semseg_ros.teacher.lifting import Trajectory

TABLE, LIDAR = "nuscenes16", "LIDAR_TOP"
LAYOUT = 1
"""Of the cache; another one makes it anew."""
TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor")
"""What a scene is put together from; category and lidarseg are only there with labels."""


def is_at(path: Path) -> bool:
    """Tell whether a folder is the data set, one of its versions, or (VERSION/SCENE) a scene of it."""
    return bool(_versions(path)) or ((path.parent / "scene.json").is_file() and not path.exists())


def sequences(path: Path) -> dict[str, int]:
    """Count the key frames of each scene, by VERSION/SCENE; empty where the path is a scene.

    UserError if the folder holds several versions: the same scene may be in two of them, and some have no labels.
    """
    versions = _versions(path)
    if len(versions) > 1:
        raise UserError(
            f"{path} holds several versions of nuScenes; name one of them, {' or '.join(map(str, versions))}, as path"
        )
    return {
        str((version / scene["name"]).relative_to(path)): int(scene["nbr_samples"])
        for version in versions
        for scene in sorted(_rows(version, "scene"), key=lambda row: str(row["name"]))
    }


def _versions(path: Path) -> list[Path]:
    return [path] if (path / "scene.json").is_file() else sorted(file.parent for file in path.glob("v*/scene.json"))


class NuScenesScene:
    """The key frames of a scene, with the images of its cameras and, if wanted, lidarseg's 16 classes."""

    def __init__(self, source: SourceConfig, cache: Path, *, images: bool) -> None:
        """Read what the tables say of the scene; UserError if that is not there or has no labels."""
        path = Path(source.path).expanduser()
        version, self.name = path.parent, path.name
        self._root, self._scale = version.parent, source.intensity_scale
        digest = _digest(version)
        self.key = f"{self.name}-{digest}"
        said = _of_scene(version, self.name, cache / f"{version.name}-{digest}")
        self._frames, self._sees = said["frames"], images
        self.origin: Mapping[str, str] = {"labels": source.labels}
        self.classes: ClassTable | None = None
        if source.labels != "none":
            self._require_labels(source, version)
            self.classes = class_table(TABLE)
            self._remap = _class_ids(version)
        self.base_from_lidar = np.reshape(said["base_from_lidar"], (4, 4))
        self._cameras = said["cameras"]
        stamps_us = np.array([frame["stamp_us"] for frame in self._frames], np.int64)
        self.stamps_ns: np.ndarray | None = stamps_us * 1000
        self.trajectory: Trajectory | None = Trajectory(
            stamps_ns=np.array([stamp for stamp, _ in said["poses"]], np.int64) * 1000,
            map_from_base=np.reshape([pose for _, pose in said["poses"]], (-1, 4, 4)),
        )

    def _require_labels(self, source: SourceConfig, version: Path) -> None:
        is_labelled = all(frame["labels"] for frame in self._frames)
        if source.labels == "pseudo" or not is_labelled:
            if is_labelled:
                raise UserError(
                    f"{source.path} holds labels of annotators; a training configuration says 'labels: exact'"
                )
            raise UserError(
                f"{source.path} has no labels in {version}; unpack nuScenes-lidarseg over nuScenes, or write "
                "'labels: none' in the training configuration"
            )

    def __len__(self) -> int:
        return len(self._frames)

    def sweep(self, index: int) -> LabelledSweep:
        """Read one key frame."""
        said = self._frames[index]
        frame = read_scan(self._root / said["lidar"], said["stamp_us"] * 1000, LIDAR)
        class_id = np.full(len(frame), UNLABELLED, np.uint8)
        if self.classes is not None:
            file = self._root / said["labels"]
            raw = np.frombuffer(_bytes(file), np.uint8)
            if len(raw) != len(frame):
                raise UserError(f"{said['lidar']} has {len(frame)} points, but {file} {len(raw)} labels")
            class_id = self._remap[raw]
        return LabelledSweep(
            frame=scaled(frame, self._scale),
            class_id=class_id,
            confidence=without_confidence(class_id),
            images=tuple(self._image(*image) for image in said["images"]) if self._sees else (),
        )

    def _image(self, channel: str, stamp_us: int, file: str) -> StoredImage:
        camera = self._cameras[channel]
        return StoredImage(
            key=f"{self.key}/{Path(file).stem}",
            source=channel,
            time_ns=stamp_us * 1000,
            camera=PinholeCamera(
                width=camera["width"], height=camera["height"], matrix=np.array(camera["K"]), distortion=np.zeros(5)
            ),
            camera_from_lidar=np.reshape(camera["camera_from_lidar"], (4, 4)),
            file=np.frombuffer(_bytes(self._root / file), np.uint8),
        )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}; unpack this part of the data set, too") from error


def _digest(version: Path) -> str:
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(version.glob("*.json"))]
    return hashlib.sha256(json.dumps([LAYOUT, str(version.resolve()), stats]).encode()).hexdigest()[:16]


def _of_scene(version: Path, scene: str, folder: Path) -> dict[str, Any]:
    """Read what the cache keeps of a scene; all scenes of the version are laid out first if they are not yet."""
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        try:
            part.mkdir(parents=True)
            for name, put_together in _scenes(version).items():
                (part / f"{name}.json").write_text(json.dumps(put_together), encoding="utf-8")
            part.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster
                raise UserError(
                    f"cannot lay {version} out in {folder.parent}: {error}; this folder must be writable and have room "
                    "(only `distill` can take another one, by 'cache')"
                ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the tables of {version} do not fit together ({error!r}); unpack them anew") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    try:
        said: dict[str, Any] = json.loads((folder / f"{scene}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{version} has no key frames of a scene '{scene}'; its scene.json names those there are"
        ) from None
    return said


def _rows(version: Path, table: str, of: tuple[str, Collection[Any]] | None = None) -> list[dict[str, Any]]:
    """Read a table; of: a column and the values it is to have, for other rows are not even kept while reading."""

    def kept(row: dict[str, Any]) -> dict[str, Any] | None:
        return row if of is None or row.get(of[0]) in of[1] else None

    path = version / f"{table}.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"), object_hook=kept)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the table {path}: {error}; unpack the data set's metadata anew") from error
    return [row for row in rows if row is not None]


def _scenes(version: Path) -> dict[str, dict[str, Any]]:
    """Put every scene together from the tables, by name."""
    sensors = {row["token"]: row for row in _rows(version, "sensor")}
    stands = {row["token"]: row for row in _rows(version, "calibrated_sensor")}
    for row in stands.values():
        row["channel"], row["modality"] = (sensors[row["sensor_token"]][key] for key in ("channel", "modality"))
    scene_of = {row["token"]: row["scene_token"] for row in _rows(version, "sample")}
    seen = [
        row
        for row in _rows(version, "sample_data", ("is_key_frame", (True,)))
        if stands[row["calibrated_sensor_token"]]["modality"] in ("lidar", "camera")
    ]
    poses = {
        row["token"]: row for row in _rows(version, "ego_pose", ("token", {row["ego_pose_token"] for row in seen}))
    }
    labels: dict[str, str] = {}
    if (version / "lidarseg.json").is_file():
        labels = {row["sample_data_token"]: row["filename"] for row in _rows(version, "lidarseg")}
    by_scene = defaultdict(list)
    for row in seen:
        by_scene[scene_of[row["sample_token"]]].append(row)
    return {
        scene["name"]: _scene(by_scene[scene["token"]], stands, poses, labels)
        for scene in _rows(version, "scene")
        if by_scene[scene["token"]]
    }


def _scene(
    seen: Iterable[dict[str, Any]],
    stands: Mapping[str, dict[str, Any]],
    poses: Mapping[str, dict[str, Any]],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """Put a scene together from what was seen (rows of sample_data), where sensors stand, and the ego's poses."""
    frames: dict[str, dict[str, Any]] = {}
    images = defaultdict(list)
    cameras: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    base_from_lidar = None
    for row in sorted(seen, key=lambda row: (row["timestamp"], row["filename"])):
        stand = stands[row["calibrated_sensor_token"]]
        if stand["channel"] != LIDAR:
            images[row["sample_token"]].append((stand["channel"], row["timestamp"], row["filename"]))
            cameras[stand["channel"]] = row, stand
            continue
        base_from_lidar = _rigid(stand)
        frames[row["sample_token"]] = {
            "stamp_us": row["timestamp"],
            "lidar": row["filename"],
            "labels": labels.get(row["token"]),
        }
    if base_from_lidar is None:
        raise ValueError(f"no {LIDAR}")
    by_time = {poses[row["ego_pose_token"]]["timestamp"]: _rigid(poses[row["ego_pose_token"]]) for row in seen}
    return {
        "frames": [{**frame, "images": sorted(images[sample])} for sample, frame in frames.items()],
        "base_from_lidar": base_from_lidar.tolist(),
        "cameras": {
            channel: {
                "width": row["width"],
                "height": row["height"],
                "K": stand["camera_intrinsic"],
                "camera_from_lidar": (invert_rigid(_rigid(stand)) @ base_from_lidar).tolist(),
            }
            for channel, (row, stand) in cameras.items()
        },
        "poses": [(stamp, by_time[stamp].tolist()) for stamp in sorted(by_time)],
    }


def _rigid(row: Mapping[str, Any]) -> np.ndarray:
    w, x, y, z = row["rotation"]
    return rigid(rotation_from_quaternion(np.array([x, y, z, w])), np.array(row["translation"], float))


def _class_ids(version: Path) -> np.ndarray:
    """Give the class id of each byte in the files of labels: (256,) uint8; their meaning is in category.json.

    Never from the cache, for it also depends on our own map of labels and table of classes.
    """
    path = config_file("labels", "nuscenes", "map of labels")
    meant = ClassMap.from_mapping(read_yaml(path), source=str(path))
    table = class_table(TABLE)
    target = {name: meant.targets[number] for number, names in meant.names.items() for name in names}
    ids = np.full(256, UNLABELLED, np.uint8)
    categories = _rows(version, "category")
    lacking = [key for key in ("index", "name") if not all(key in row for row in categories)]
    if lacking:
        raise UserError(
            f"{version}/category.json has no '{lacking[0]}'; take the one that comes with nuScenes-lidarseg"
        )
    twice = [index for index, count in Counter(row["index"] for row in categories).items() if count > 1]
    unknown = [row["name"] for row in categories if row["name"] not in target]
    if twice or unknown:
        said = f"knows no {unknown[0]}" if unknown else f"would be ambiguous for index {twice[0]}"
        raise UserError(f"{path} {said}, which {version}/category.json has; take that of nuScenes-lidarseg v1.0")
    for row in categories:
        name = target[row["name"]]
        ids[row["index"]] = UNLABELLED if name is None else table.id_of(name)
    return ids
