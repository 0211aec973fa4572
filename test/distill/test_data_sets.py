"""Published data sets as they lie on the disk: nuScenes with lidarseg, Semantic-ITC, folders of sequences."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from taught import write_feature_teacher

from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.geometry import invert_rigid, quaternion_from_rotation, transform_points
from lidar_semseg_ros.distill import nuscenes
from lidar_semseg_ros.distill.data_sets import single_sequences
from lidar_semseg_ros.distill.mixture import require_separate_splits
from lidar_semseg_ros.distill.plan import read_plan
from lidar_semseg_ros.distill.recordings import Recording, SourceConfig
from lidar_semseg_ros.distill.sources import open_recording
from lidar_semseg_ros.formats.config_files import config_file
from lidar_semseg_ros.formats.images import jpeg_bytes
from lidar_semseg_ros.teacher.lifting import points_in_camera

# fmt: off
CATEGORIES = [
    "noise", "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck", "flat.driveable_surface",
    "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade", "static.other", "static.vegetation", "vehicle.ego",
]
# fmt: on
CHALLENGE = [0, 0, 7, 7, 7, 0, 7, 0, 0, 1, 0, 0, 8, 0, 2, 3, 3, 4, 5, 0, 0, 6, 9, 10, 11, 12, 13, 14, 15, 0, 16, 0]
"""The classes of the lidarseg challenge by category, 0 = ignored; from the table in its documentation."""
HALF = np.sqrt(0.5)
SIZE = (64, 48)


class Tables:
    """The tables of a tiny nuScenes."""

    def __init__(self, root: Path) -> None:
        self.root, self._numbers = root, count()
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, **row: Any) -> str:
        token = f"{table}-{next(self._numbers)}"
        self.rows.setdefault(table, []).append({"token": token, **row})
        return token

    def pose(self, timestamp: int, translation: list[float], rotation: list[float]) -> str:
        return self.add("ego_pose", timestamp=timestamp, translation=translation, rotation=rotation)

    def stand(self, channel: str, modality: str, translation: Any, rotation: Any, K: Any = ()) -> str:
        sensor = self.add("sensor", channel=channel, modality=modality)
        return self.add(
            "calibrated_sensor",
            sensor_token=sensor,
            translation=list(translation),
            rotation=list(rotation),
            camera_intrinsic=[list(row) for row in K],
        )

    def seen(
        self,
        sample: str,
        stand: str,
        pose: str,
        stamp: int,
        filename: str,
        size: tuple[int, int] = (0, 0),
        key: bool = True,
    ) -> str:
        (self.root / filename).parent.mkdir(parents=True, exist_ok=True)
        return self.add(
            "sample_data",
            sample_token=sample,
            ego_pose_token=pose,
            calibrated_sensor_token=stand,
            timestamp=stamp,
            filename=filename,
            is_key_frame=key,
            width=size[0],
            height=size[1],
        )

    def write(self, version: str) -> Path:
        (self.root / version).mkdir()
        for table, rows in self.rows.items():
            (self.root / version / f"{table}.json").write_text(json.dumps(rows))
        return self.root


def write_nuscenes(root: Path, *, lidarseg: bool = True) -> Path:
    """Two scenes; the ego drives 10 m/s along the map's x, and the camera is 50 ms later than the lidar."""
    tables = Tables(root)
    # The lidar's y looks ahead; it stands 1 m before and 2 m above the ego.
    lidar = tables.stand("LIDAR_TOP", "lidar", (1, 0, 2), (HALF, 0, 0, -HALF))
    # z looks ahead, x to the right.
    camera = tables.stand(
        "CAM_FRONT", "camera", (2, 0, 1), (0.5, -0.5, 0.5, -0.5), [[80, 0, 31.5], [0, 80, 23.5], [0, 0, 1]]
    )
    radar = tables.stand("RADAR_FRONT", "radar", (3, 0, 0), (1, 0, 0, 0))
    stamp = 1_000_000
    rng = np.random.default_rng(0)
    for scene, frames in (("scene-0001", 2), ("scene-0002", 1)):
        scene_token = tables.add("scene", name=scene, nbr_samples=frames, log_token="log")
        for number in range(frames):
            sample = tables.add("sample", scene_token=scene_token, timestamp=stamp)
            metres = [stamp * 1e-5, 0.0, 0.0]
            name = f"samples/LIDAR_TOP/{stamp}.pcd.bin"
            pose = tables.pose(stamp, metres, [1, 0, 0, 0])
            scan = tables.seen(sample, lidar, pose, stamp, name)
            points = np.zeros((32, 5), np.float32)
            points[:, :3] = rng.uniform(-3, 3, (32, 3))
            points[0, :3] = 0, 9.5, 0
            points[:, 3], points[:, 4] = 100 + number, np.arange(32)
            points.tofile(root / name)
            if lidarseg:
                labels = f"lidarseg/v1.0-tiny/{scan}_lidarseg.bin"
                (root / labels).parent.mkdir(parents=True, exist_ok=True)
                np.arange(32, dtype=np.uint8).tofile(root / labels)
                tables.add("lidarseg", sample_data_token=scan, filename=labels)
            tables.seen(sample, radar, pose, stamp, "samples/RADAR_FRONT/none.pcd")
            tables.seen(sample, lidar, pose, stamp + 1, "sweeps/LIDAR_TOP/none.pcd.bin", key=False)
            later = tables.pose(stamp + 50_000, [metres[0] + 0.5, 0, 0], [1, 0, 0, 0])
            image = f"samples/CAM_FRONT/{stamp + 50_000}.jpg"
            tables.seen(sample, camera, later, stamp + 50_000, image, SIZE)
            (root / image).write_bytes(jpeg_bytes(np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)))
            stamp += 500_000
    for index, category in enumerate(CATEGORIES):
        tables.add("category", name=category, **({"index": index} if lidarseg else {}))
    return tables.write("v1.0-tiny")


def source(path: Path, labels: str = "exact", **more: Any) -> SourceConfig:
    return SourceConfig(path=str(path), labels=labels, **more)


def in_camera(recording: Recording, index: int, camera: int) -> np.ndarray:
    """Bring the points of a sweep to one of its images, as batches do."""
    sweep = recording.sweep(index)
    image = sweep.images[camera]
    camera_from_base = image.camera_from_lidar @ invert_rigid(recording.base_from_lidar)
    return points_in_camera(
        sweep.frame, image.time_ns, camera_from_base, recording.base_from_lidar, recording.trajectory
    )


def test_a_scene_of_nuscenes_is_its_key_frames_with_the_classes_of_the_challenge(tmp_path: Path) -> None:
    root = write_nuscenes(tmp_path / "nuscenes")
    recording = open_recording(source(root, sequence="scene-0001"), tmp_path / "cache", images=False)
    assert len(recording) == 2 and recording.name == "scene-0001" and recording.classes.name == "nuscenes16"
    sweep = recording.sweep(1)
    assert sweep.frame.stamp_ns == 1_500_000_000 and sweep.images == ()
    assert recording.stamps_ns.tolist() == [1_000_000_000, 1_500_000_000]
    assert (sweep.frame.intensity == 101).all() and sweep.frame.ring.tolist() == list(range(32))
    assert sweep.class_id.tolist() == [UNLABELLED if index == 0 else index - 1 for index in CHALLENGE]
    assert sweep.confidence.tolist() == [float(index > 0) for index in CHALLENGE]


def test_points_of_nuscenes_come_into_an_image_by_the_poses_of_both_times(tmp_path: Path) -> None:
    root = write_nuscenes(tmp_path / "nuscenes")
    recording = open_recording(source(root / "v1.0-tiny" / "scene-0002"), tmp_path / "cache", images=True)
    (image,) = recording.sweep(0).images
    assert image.read().pixels.shape == (48, 64, 3) and image.time_ns == 2_050_000_000
    # 9.5 m before the lidar, that is 10.5 m before the ego, and 10 m when it has gone on by 0.5 m; the camera is 2 m
    # before the ego and 1 m below the lidar.
    xyz = in_camera(recording, 0, 0)
    assert np.allclose(xyz[0], [0, -1, 8], atol=1e-5)
    assert np.allclose(image.camera.project(xyz[:1])[0], [[31.5, 23.5 - 80 / 8]], atol=1e-4)


def test_a_student_learns_labels_and_features_from_nuscenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="teachers need transformers, the extra 'teacher'")
    eyes = write_feature_teacher(tmp_path / "eyes")
    root = write_nuscenes(tmp_path / "nuscenes")
    plan = {
        "classes": "nuscenes16",
        "network": {"width": 16, "depth": 1},
        "inputs": {
            "voxel_size_m": 0.1,
            "fov_min_m": [-6, -6, -4],
            "fov_max_m": [6, 12, 4],
            "planes": ["z", "y", "x"],
            "grids": [[24, 24], [24, 8], [24, 8]],
        },
        "train": [{"path": str(root), "labels": "exact", "sequence": "scene-0001"}],
        "validation": [{"path": str(root), "labels": "exact", "sequence": "scene-0002"}],
        "settings": {
            **{"steps": 2, "batch": 2, "workers": 1, "validate": 2, "cache": str(tmp_path / "cache")},
            **{"objectives": {"scalr": 1.0}, "images": {"model": str(eyes), "px": 56}},
            **{"lifting": {"min_depth_m": 0.5}},
        },
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    main(["distill", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "s.safetensors")])
    said = capsys.readouterr().out
    assert "2 steps of 2 sweeps out of 2" in said and "best on 1 sweeps of 'validation'" in said
    header, *rows = ((tmp_path / "s.losses.csv").read_text()).splitlines()
    scalr = header.split(",").index("scalr")
    # Few of 32 points are in an image; where none is, there is nothing to learn.
    assert max(float(row.split(",")[scalr]) for row in rows) > 0


def test_a_real_key_frame_of_nuscenes_is_projected_as_its_publishers_say(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "03_nuscenes_sample_6cam"
    said = json.loads((folder / "calib_and_boxes.json").read_text())
    tables = Tables(tmp_path / "real")
    scene = tables.add("scene", name="scene-0061", nbr_samples=1, log_token="log")
    sample = tables.add("sample", scene_token=scene, timestamp=0)

    def parts(matrix: np.ndarray) -> tuple[list[float], list[float]]:
        x, y, z, w = quaternion_from_rotation(matrix[:3, :3]).tolist()
        return matrix[:3, 3].tolist(), [w, x, y, z]

    ego_from_lidar, map_from_ego = (np.array(said[a] if b is None else said[a][b]) for a, b in PLACES)
    stamp = round(said["timestamp"] * 1e6)
    scan = next(folder.glob("*.pcd.bin"))
    pose = tables.pose(stamp, *parts(map_from_ego))
    name = f"samples/LIDAR_TOP/{scan.name}"
    tables.seen(sample, tables.stand("LIDAR_TOP", "lidar", *parts(ego_from_lidar)), pose, stamp, name)
    (tables.root / name).symlink_to(scan)
    for channel, one in said["images"].items():
        ego_from_camera = np.array(one["cam2ego"])
        # Where the ego was at the image follows from the rest.
        map_from_later = (
            map_from_ego @ ego_from_lidar @ np.linalg.inv(one["lidar2cam"]) @ np.linalg.inv(ego_from_camera)
        )
        stand = tables.stand(channel, "camera", *parts(ego_from_camera), K=np.array(one["cam2img"])[:3, :3].tolist())
        later = round(one["timestamp"] * 1e6)
        file = f"samples/{channel}/{one['img_path']}"
        tables.seen(sample, stand, tables.pose(later, *parts(map_from_later)), later, file, (1600, 900))
        (tables.root / file).symlink_to(folder / one["img_path"])
    root = tables.write("v1.0-mini")
    recording = open_recording(source(root, labels="none"), tmp_path / "cache", images=True)
    sweep = recording.sweep(0)
    assert len(sweep.frame) == 34688 and len(sweep.images) == 6 and recording.classes is None
    for number, image in enumerate(sweep.images):
        channel = next(name for name in said["images"] if f"__{name}__" in image.key)
        expected = transform_points(np.array(said["images"][channel]["lidar2cam"]), sweep.frame.xyz)
        # The publishers' matrices are rounded to 1e-4 rad, and points are up to 100 m away.
        assert np.abs(in_camera(recording, 0, number) - expected).max() < 0.02
        assert image.read().pixels.shape == (900, 1600, 3)


PLACES = (("lidar_points", "lidar2ego"), ("ego2global", None))


def test_the_tables_of_nuscenes_are_laid_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write_nuscenes(tmp_path / "nuscenes"), tmp_path / "cache"
    open_recording(source(root, sequence="scene-0001"), cache, images=False)
    (laid_out,) = cache.iterdir()
    assert sorted(file.name for file in laid_out.iterdir()) == ["scene-0001.json", "scene-0002.json"]
    before = {file: file.stat().st_mtime_ns for file in laid_out.iterdir()}
    open_recording(source(root, sequence="scene-0002"), cache, images=False)
    assert before == {file: file.stat().st_mtime_ns for file in laid_out.iterdir()} and len(list(cache.iterdir())) == 1


def test_one_of_several_versions_of_nuscenes_is_to_be_named(tmp_path: Path) -> None:
    root = write_nuscenes(tmp_path / "nuscenes")
    shutil.copytree(root / "v1.0-tiny", root / "v1.0-whole")
    for sequence in ("", "scene-0001", "v1.0-tiny/*"):
        with pytest.raises(UserError, match=r"several versions.*/v1\.0-tiny or .*/v1\.0-whole, as path"):
            single_sequences(source(root, sequence=sequence))
    for one in ("v1.0-tiny", "v1.0-whole"):
        scenes = [Path(scene.path) for scene in single_sequences(source(root / one))]
        assert scenes == [root / one / "scene-0001", root / one / "scene-0002"]
    assert len(open_recording(source(root / "v1.0-tiny" / "scene-0001"), tmp_path / "cache", images=False)) == 2


def test_another_map_of_labels_holds_for_scenes_that_are_laid_out_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, cache = write_nuscenes(tmp_path / "nuscenes") / "v1.0-tiny" / "scene-0001", tmp_path / "cache"
    before = open_recording(source(scene), cache, images=False).sweep(0).class_id
    said = yaml.safe_load(config_file("labels", "nuscenes", "map of labels").read_text())
    said["ignore"] |= said["map"].pop("trailer")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(said))
    monkeypatch.setattr(nuscenes, "config_file", lambda *_: tmp_path / "other.yaml")
    after = open_recording(source(scene), cache, images=False).sweep(0).class_id
    trailer = CATEGORIES.index("vehicle.trailer")
    assert before[trailer] == CHALLENGE[trailer] - 1 and after[trailer] == UNLABELLED
    assert np.flatnonzero(before != after).tolist() == [trailer] and len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_said_in_words_that_hold_for_every_command(tmp_path: Path) -> None:
    root = write_nuscenes(tmp_path / "nuscenes")
    (tmp_path / "cache").touch()
    with pytest.raises(UserError, match=r"cannot lay .*v1\.0-tiny out in .*cache: .*; this folder must be writable"):
        open_recording(source(root, sequence="scene-0001"), tmp_path / "cache", images=False)


def test_a_topic_is_refused_for_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    write_itc(tmp_path / "05", ["1"], [0])
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "indoor-small", str(tmp_path / "05"), "--topic", "/points"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "--topic chooses among the clouds of a bag, but" in said and "leave it out" in said


def test_what_nuscenes_lacks_is_said(tmp_path: Path) -> None:
    root, cache = write_nuscenes(tmp_path / "a", lidarseg=False), tmp_path / "cache"
    scene = root / "v1.0-tiny" / "scene-0001"
    assert open_recording(source(scene, labels="none"), cache, images=False).classes is None
    with pytest.raises(UserError, match=r"has no labels in .*unpack nuScenes-lidarseg over nuScenes"):
        open_recording(source(scene), cache, images=False)
    full = write_nuscenes(tmp_path / "b")
    with pytest.raises(UserError, match="holds labels of annotators; a training configuration says 'labels: exact'"):
        open_recording(source(full, labels="pseudo", sequence="scene-0001"), cache, images=False)
    with pytest.raises(UserError, match=r"no key frames of a scene 'scene-9'"):
        open_recording(source(root / "v1.0-tiny" / "scene-9"), cache, images=False)
    with pytest.raises(
        UserError, match=r"has no sequence 'scene-9'; it has v1.0-tiny/scene-0001, v1.0-tiny/scene-0002"
    ):
        open_recording(source(root, sequence="scene-9"), cache, images=False)
    with pytest.raises(UserError, match="holds 2 sequences; name one"):
        open_recording(source(root), cache, images=False)


def test_sequences_go_to_the_processes_that_make_batches(tmp_path: Path) -> None:
    write_itc(tmp_path / "05", ["1", "2"], [3])
    root = write_nuscenes(tmp_path / "nuscenes")
    for given in (source(tmp_path / "05", sweeps="1:"), source(root, sequence="scene-0002")):
        recording = open_recording(given, tmp_path / "cache", images=False)
        there = pickle.loads(pickle.dumps(recording))
        assert np.array_equal(there.sweep(0).frame.xyz, recording.sweep(0).frame.xyz)


def test_files_of_nuscenes_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    root, cache = write_nuscenes(tmp_path / "a"), tmp_path / "cache"
    version = root / "v1.0-tiny"
    recording = open_recording(source(root, sequence="scene-0002"), cache, images=True)
    for image in (root / "samples" / "CAM_FRONT").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"cannot read .*\.jpg.*unpack this part"):
        recording.sweep(0)
    for labels in (root / "lidarseg" / "v1.0-tiny").iterdir():
        labels.write_bytes(bytes(30))
    with pytest.raises(UserError, match=r"has 32 points, but .*_lidarseg\.bin 30 labels"):
        recording.sweep(0)
    for written, said in (
        ([{"name": "vehicle.car"}], r"category\.json has no 'index'"),
        ([{"index": 0}], r"category\.json has no 'name'"),
        ([{"name": "vehicle.boat", "index": 0}], r"knows no vehicle\.boat"),
        ([{"name": "vehicle.car", "index": 3}, {"name": "animal", "index": 3}], "ambiguous for index 3"),
    ):
        (version / "category.json").write_text(json.dumps(written))
        with pytest.raises(UserError, match=said):
            open_recording(source(root, sequence="scene-0001"), cache, images=False)
    (version / "sample.json").write_text(json.dumps([{"token": "another", "scene_token": "none"}]))
    (version / "lidarseg.json").unlink()
    with pytest.raises(UserError, match="do not fit together"):
        open_recording(source(root, sequence="scene-0001"), cache, images=False)
    (version / "sensor.json").write_text("[")
    with pytest.raises(UserError, match=r"cannot read the table .*sensor\.json"):
        open_recording(source(root, sequence="scene-0001"), cache, images=False)
    assert not list(cache.glob("*.part"))


def write_itc(folder: Path, names: list[str], labels: list[int]) -> None:
    folder.mkdir(parents=True)
    row = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "u1"), ("label", "u1")])
    for number, name in enumerate(names):
        points = np.zeros(len(labels), row)
        points["x"], points["intensity"], points["label"] = number + 1, 200, labels
        points.tofile(folder / f"{name}.bin")


def test_frames_of_semantic_itc_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    write_itc(tmp_path / "train" / "05", ["999.5", "1000.25", "1000.5"], [0, 11, 15])
    recording = open_recording(source(tmp_path / "train" / "05", intensity_scale=0.5), tmp_path, images=False)
    assert len(recording) == 3 and recording.classes.name == "indoor16" and recording.trajectory is None
    for index in range(3):
        sweep = recording.sweep(index)
        assert sweep.frame.xyz.tolist() == [[index + 1, 0, 0]] * 3 and sweep.frame.stamp_ns == index * 100_000_000
        assert (sweep.frame.intensity == 100).all() and sweep.class_id.tolist() == [0, 11, 15]


def test_a_sequence_of_semantic_itc_has_another_key_when_a_frame_changes(tmp_path: Path) -> None:
    write_itc(tmp_path / "05", ["0", "1"], [3])
    keys = []
    for changed_ns in (1, 1, 2):
        os.utime(tmp_path / "05" / "1.bin", ns=(changed_ns, changed_ns))
        keys.append(open_recording(source(tmp_path / "05"), tmp_path / "cache", images=False).key)
    assert keys[0] == keys[1] != keys[2]


def test_files_that_are_not_those_of_semantic_itc_are_named_with_what_they_hold(tmp_path: Path) -> None:
    write_itc(tmp_path / "05", ["1"], [0, 16])
    with pytest.raises(UserError, match=r"1\.bin has the label 16, but indoor16 has 16 classes"):
        open_recording(source(tmp_path / "05"), tmp_path, images=False).sweep(0)
    (tmp_path / "05" / "1.bin").write_bytes(bytes(32))
    with pytest.raises(UserError, match=r"1\.bin has 32 bytes, .*rows of 14 .*could be rows of x, y, z, intensity as"):
        open_recording(source(tmp_path / "05"), tmp_path, images=False).sweep(0)
    with pytest.raises(UserError, match="has no images"):
        open_recording(source(tmp_path / "05"), tmp_path, images=True)
    with pytest.raises(UserError, match="a training configuration says 'labels: exact'"):
        open_recording(source(tmp_path / "05", labels="pseudo"), tmp_path, images=False)


def test_a_folder_of_sequences_is_one_source_each_with_its_share_of_the_weight(tmp_path: Path) -> None:
    for split, name, frames in (("train", "01", 3), ("train", "02", 1), ("val", "03", 2)):
        write_itc(tmp_path / split / name, [str(number) for number in range(frames)], [0])
    found = single_sequences(source(tmp_path, sequence="train/*", weight=2.0))
    assert [(one.path, one.weight, one.drive) for one in found] == [
        (str(tmp_path / "train" / "01"), 1.5, "01"),
        (str(tmp_path / "train" / "02"), 0.5, "02"),
    ]
    assert [one.drive for one in single_sequences(source(tmp_path / "val"))] == ["03"]
    assert [one.drive for one in single_sequences(source(tmp_path, sequence="03, 01"))] == ["01", "03"]
    for name in ("00", "08"):
        (tmp_path / "kitti" / name / "velodyne").mkdir(parents=True)
        np.zeros((2, 4), np.float32).tofile(tmp_path / "kitti" / name / "velodyne" / "000000.bin")
    assert [one.drive for one in single_sequences(source(tmp_path / "kitti"))] == ["00", "08"]
    root = write_nuscenes(tmp_path / "nuscenes")
    assert [one.weight for one in single_sequences(source(root, weight=3.0))] == [2.0, 1.0]


def test_a_training_configuration_keeps_sequences_of_one_folder_apart(tmp_path: Path) -> None:
    for name in ("01", "02", "03"):
        write_itc(tmp_path / "itc" / name, ["0"], [0])
    plan = tmp_path / "plan.yaml"
    text = "classes: indoor16\nnetwork: {width: 8, depth: 1}\ntrain: [{path: %s, labels: exact, sequence: '%s'}]\n"
    text += "test: [{path: %s, labels: exact, sequence: '03'}]\n"
    start = tmp_path / "model.safetensors"
    for wanted, is_refused in (("0[12]", False), ("*", True)):
        plan.write_text(text % (tmp_path / "itc", wanted, tmp_path / "itc"))
        splits = read_plan(plan, {}, start=start).splits
        assert [one.drive for one in splits["train"]] == (["01", "02", "03"] if is_refused else ["01", "02"])
        if is_refused:
            with pytest.raises(UserError, match="'03' is in 'train' and in 'test'"):
                require_separate_splits(splits)
        else:
            require_separate_splits(splits)


def test_what_is_wrong_with_sources_is_said_with_where_they_were_given(tmp_path: Path) -> None:
    write_itc(tmp_path / "train" / "01", ["0"], [0])
    plan, start = tmp_path / "plan.yaml", tmp_path / "model.safetensors"
    entry = {"path": str(tmp_path / "train"), "sequence": "09"}
    plan.write_text(yaml.safe_dump({"classes": "indoor16", "train": [entry]}))
    with pytest.raises(UserError, match=r"plan\.yaml, 'train': .*has no sequence '09'"):
        read_plan(plan, {}, start=start)
    plan.write_text("classes: indoor16\n")
    root = write_nuscenes(tmp_path / "nuscenes")
    shutil.copytree(root / "v1.0-tiny", root / "v1.0-whole")
    with pytest.raises(UserError, match=r"^--data: .* holds several versions"):
        read_plan(plan, {}, data=[str(root)], start=start)


def test_a_part_of_a_recording_is_numbered_from_0_and_has_a_key_of_its_own(tmp_path: Path) -> None:
    write_itc(tmp_path / "05", [str(number) for number in range(10)], [0])
    whole = open_recording(source(tmp_path / "05"), tmp_path, images=False)
    for sweeps, numbers in (("0:8", range(8)), ("8:", range(8, 10)), (":3", range(3)), ("4:5", range(4, 5))):
        part = open_recording(source(tmp_path / "05", sweeps=sweeps), tmp_path, images=False)
        assert len(part) == len(numbers) and part.key != whole.key and part.classes == whole.classes
        for index, number in enumerate(numbers):
            assert part.sweep(index).frame.xyz[0, 0] == whole.sweep(number).frame.xyz[0, 0] == number + 1
    for sweeps, said in (
        ("8:12", "has 10 sweeps"),
        ("10:", "has 10 sweeps"),
        ("3:3", "no sweep at all"),
        ("1", "0:80"),
    ):
        with pytest.raises(UserError, match=said):
            open_recording(source(tmp_path / "05", sweeps=sweeps), tmp_path, images=False)


def test_parts_of_one_folder_may_be_in_two_splits_if_they_do_not_overlap(tmp_path: Path) -> None:
    first, rest = source(tmp_path / "00", sweeps="0:8"), source(tmp_path / "00", sweeps="8:")
    require_separate_splits({"train": [first], "test": [rest]})
    require_separate_splits({"train": [rest], "test": [first]})
    for other in (source(tmp_path / "00"), source(tmp_path / "00", sweeps="7:9")):
        with pytest.raises(UserError, match=r"sequence '.*00' is in 'train' and in 'test'.*take parts of it"):
            require_separate_splits({"train": [first], "test": [rest, other]})
    elsewhere = source(tmp_path / "copy" / "00", sweeps="8:")
    with pytest.raises(UserError, match="'00' is in"):
        require_separate_splits({"train": [first], "test": [elsewhere]})
