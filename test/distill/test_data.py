"""What a student learns from: recordings laid out for fast access, KITTI folders, mixtures, shares and splits."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import taught
from taught import CAMERA, PERIOD_NS, STOREYS, two_storeys, write_taught

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.distill.mixture import mixed, nested_subset, require_classes, require_separate_splits
from lidar_semseg_ros.distill.recordings import Recording, SourceConfig, require_other_sweeps
from lidar_semseg_ros.distill.sources import open_recording
from lidar_semseg_ros.formats.pointcloud2 import pseudo_labelled_cloud


def source(path: Path, **more: object) -> SourceConfig:
    return SourceConfig(path=str(path), **more)


def test_a_teachers_recording_gives_any_sweep_with_its_labels_as_it_was_written(tmp_path: Path) -> None:
    written = write_taught(tmp_path / "a.mcap")
    recording = open_recording(source(tmp_path / "a.mcap"), tmp_path / "cache", images=False)
    assert len(recording) == 6 and recording.classes == STOREYS
    assert recording.origin == {"labels": "pseudo", "teacher model": "tiny", "teacher sha256": "00"}
    for index in (4, 0, 5):
        sweep, (frame, class_id, confidence) = recording.sweep(index), written[index]
        assert sweep.frame.stamp_ns == index * PERIOD_NS and sweep.images == ()
        for name in ("xyz", "intensity", "ring"):
            assert np.array_equal(getattr(sweep.frame, name), getattr(frame, name)), name
        assert np.array_equal(sweep.class_id, class_id) and np.array_equal(sweep.confidence, confidence)


def test_exact_labels_of_the_same_recording_are_certain(tmp_path: Path) -> None:
    written = write_taught(tmp_path / "a.mcap", taught=False)
    sweep = open_recording(source(tmp_path / "a.mcap", labels="exact"), tmp_path, images=False).sweep(2)
    assert np.array_equal(sweep.class_id, (written[2][0].xyz[:, 2] > 0).astype(np.uint8))
    assert (sweep.confidence == 1).all() and sweep.confidence.dtype == np.float32


def test_images_come_with_their_camera_and_place(tmp_path: Path) -> None:
    write_taught(tmp_path / "a.mcap", sweeps=3)
    (image,) = open_recording(source(tmp_path / "a.mcap"), tmp_path / "cache", images=True).sweep(1).images
    assert image.time_ns == PERIOD_NS and image.read().pixels.shape == (48, 64, 3)
    assert np.array_equal(image.camera.matrix, CAMERA.matrix)
    assert np.allclose(image.camera_from_lidar[2, :3], [1, 0, 0])  # it looks along the lidar's x


def test_the_cache_is_written_once_and_anew_for_a_changed_file(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.mcap", tmp_path / "cache"
    write_taught(path, sweeps=2)
    told: list[tuple[int, int]] = []
    open_recording(source(path), cache, images=False, on_sweep=lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]
    open_recording(source(path), cache, images=False, on_sweep=lambda *done: pytest.fail("written again"))
    os.utime(path, ns=(1, 1))
    assert len(open_recording(source(path), cache, images=False)) == 2
    assert len(list(cache.iterdir())) == 2


def test_a_recording_goes_to_another_process_without_its_points(tmp_path: Path) -> None:
    write_taught(tmp_path / "a.mcap", sweeps=4, points=5000)
    recording = open_recording(source(tmp_path / "a.mcap"), tmp_path / "cache", images=False)
    packed = pickle.dumps(recording)
    assert len(packed) < 10_000
    assert np.array_equal(pickle.loads(packed).sweep(3).frame.xyz, recording.sweep(3).frame.xyz)


def test_intensities_are_brought_to_the_models_unit(tmp_path: Path) -> None:
    written = write_taught(tmp_path / "a.mcap", sweeps=1)
    recording = open_recording(source(tmp_path / "a.mcap", intensity_scale=0.5), tmp_path / "cache", images=False)
    assert np.allclose(recording.sweep(0).frame.intensity, written[0][0].intensity * 0.5)


@pytest.mark.parametrize(
    ("made", "asked", "said"),
    [
        ({"taught": False}, {}, "make them with `lidar-semseg label`"),
        ({"taught": False}, {"labels": "none", "images": True, "camera": False}, "cannot teach features"),
        ({"images": False}, {"images": True}, "label --images"),
    ],
)
def test_a_recording_that_lacks_something_is_refused(
    tmp_path: Path, made: dict[str, bool], asked: dict[str, object], said: str
) -> None:
    camera = bool(asked.pop("camera", True))
    write_taught(tmp_path / "a.mcap", sweeps=1, camera=camera, **made)
    images = bool(asked.pop("images", False))
    with pytest.raises(UserError, match=said):
        open_recording(source(tmp_path / "a.mcap", **asked), tmp_path / "cache", images=images)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_recording_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recording .*gone\.mcap"):
        open_recording(source(tmp_path / "gone.mcap"), tmp_path, images=False)


def test_raw_ids_of_semantic_kitti_become_its_classes(tmp_path: Path) -> None:
    for folder in ("velodyne", "labels"):
        (tmp_path / "08" / folder).mkdir(parents=True)
    xyz = two_storeys(np.random.default_rng(0), 6)[0].xyz
    np.column_stack([xyz, np.full(6, 0.5)]).astype(np.float32).tofile(tmp_path / "08" / "velodyne" / "000000.bin")
    # Outlier, moving car, road with the number of a thing above, lane marking, traffic sign, an id that is none.
    np.array([1, 252, 40 + (7 << 16), 60, 81, 300], np.uint32).tofile(tmp_path / "08" / "labels" / "000000.label")
    recording = open_recording(
        source(tmp_path / "08", labels="exact", intensity_scale=255.0), tmp_path / "cache", images=False
    )
    sweep = recording.sweep(0)
    road = recording.classes.id_of("road")
    assert sweep.class_id.tolist() == [UNLABELLED, 0, road, road, 18, UNLABELLED]
    assert sweep.confidence.tolist() == [0, 1, 1, 1, 1, 0] and (sweep.frame.intensity == 127.5).all()


def test_a_real_sequence_of_kitti_with_its_image(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "01_kitti00_semantic_sequence"
    recording = open_recording(source(folder, labels="exact"), tmp_path, images=True)
    sweep = recording.sweep(0)
    assert len(recording) == 12 and len(sweep.frame) == 124668
    counted = np.bincount(sweep.class_id, minlength=256)
    # The training ids in the files count from 1.
    assert counted[8] == np.sum(np.load(folder / "labels" / "000000.npy") == 9) > 10_000
    assert counted[:19].sum() + counted[UNLABELLED] == len(sweep.frame)
    (image,) = sweep.images
    ahead = image.camera_from_lidar @ [10.0, 0, 0, 1]
    assert abs(ahead[0]) < 0.2 and 9 < ahead[2] < 10  # the camera looks where the lidar's x points, 27 cm before it
    assert image.read().pixels.shape == (376, 1241, 3)


def test_a_smaller_share_is_part_of_every_larger_one() -> None:
    shares = [nested_subset(200, share, seed=3) for share in (0.01, 0.05, 0.1, 0.25, 1.0)]
    assert [len(share) for share in shares] == [2, 10, 20, 50, 200]
    for smaller, larger in pairwise(shares):
        assert set(smaller) < set(larger) and np.all(np.diff(larger) > 0)
    assert set(nested_subset(200, 0.1, seed=4)) != set(shares[2])
    assert len(nested_subset(5, 0.01, seed=0)) == 1 and len(nested_subset(100, 0.07, seed=0)) == 7


def test_recordings_are_drawn_by_their_weights_and_only_from_their_share(tmp_path: Path) -> None:
    recordings = []
    for name in ("a", "b"):
        write_taught(tmp_path / f"{name}.mcap", points=20)
        recordings.append(open_recording(source(tmp_path / f"{name}.mcap"), tmp_path / "cache", images=False))
    mixture = mixed(recordings, [3.0, 1.0], share=0.5, seed=0)
    rng = np.random.default_rng(0)
    drawn = [mixture.draw(rng, step, 0) for step in range(800)]
    share_of_a = np.mean([recording is recordings[0] for recording, _ in drawn])
    assert 0.70 < share_of_a < 0.80  # three standard deviations of 800 draws are 0.046
    half = set(nested_subset(12, 0.5, 0).tolist())  # of the sweeps of both
    assert {6 * recordings.index(recording) + index for recording, index in drawn} == half and len(mixture) == 6
    one = mixed(recordings, [1.0, 1.0], share=0.08, seed=0)
    assert len(one) == 1 and {one.draw(rng, step, 0)[1] + 6 * one.weights.argmax() for step in range(20)} < half
    with pytest.raises(UserError, match="leaves no sweep"):
        mixed(recordings, (one.weights == 0).astype(float).tolist(), share=0.08, seed=0)
    with pytest.raises(UserError, match="nothing to train on"):
        mixed(recordings, [0.0, 0.0], share=1.0, seed=0)


def test_a_sequence_in_two_splits_is_refused() -> None:
    first, second = source(Path("x/drive.mcap")), source(Path("y/drive.mcap"))
    require_separate_splits({"train": [first, first], "test": [source(Path("z.mcap"))]})
    with pytest.raises(UserError, match="sequence 'drive' is in 'train' and in 'test'"):
        require_separate_splits({"train": [first], "test": [second]})
    require_separate_splits({"train": [first], "test": [replace(second, sequence="other")]})
    with pytest.raises(UserError, match=r"x/drive\.mcap' is in"):
        require_separate_splits({"train": [first], "test": [replace(first, sequence="other")]})


def test_a_drive_that_was_labelled_twice_is_found_under_another_name(tmp_path: Path) -> None:
    for name, seed in (("drive_1", 0), ("drive_1_eomt", 0), ("drive_2", 1)):
        write_taught(tmp_path / f"{name}.mcap", seed=seed, points=50)

    def opened(name: str, sweeps: str = "") -> Recording:
        return open_recording(source(tmp_path / f"{name}.mcap", sweeps=sweeps), tmp_path / "cache", images=False)

    learned = [opened("drive_2"), opened("drive_1", "0:4")]
    require_separate_splits({"train": [source(tmp_path / "drive_1.mcap")], "test": [source(tmp_path / "drive_1_eomt")]})
    with pytest.raises(UserError, match=r"drive_1\.mcap\[0:4\].* and drive_1_eomt\.mcap.*: 4 of their sweeps"):
        require_other_sweeps(learned, [opened("drive_1_eomt")])
    # Another drive began at the same time; other sweeps of the same one were parted on purpose.
    require_other_sweeps([opened("drive_1")], [opened("drive_2")])
    require_other_sweeps(learned, [opened("drive_1_eomt", "4:")])


@pytest.mark.parametrize("changed", ["velodyne/000000.bin", "labels/000000.label"])
def test_a_sequence_of_kitti_has_another_key_when_a_file_of_it_changes(tmp_path: Path, changed: str) -> None:
    for file, values in (
        ("velodyne/000000.bin", np.ones((4, 4), np.float32)),
        ("labels/000000.label", np.ones(4, "<u4")),
    ):
        (tmp_path / "08" / file).parent.mkdir(parents=True)
        values.tofile(tmp_path / "08" / file)

    def key() -> str:
        return open_recording(source(tmp_path / "08", labels="exact"), tmp_path / "cache", images=False).key

    before = key()
    assert key() == before
    os.utime(tmp_path / "08" / changed, ns=(1, 1))
    assert key() != before


def test_a_sweep_with_a_label_that_its_table_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cloud(cloud: object, class_id: np.ndarray, *rest: np.ndarray) -> object:
        return pseudo_labelled_cloud(cloud, np.where(class_id == 1, 9, class_id).astype(np.uint8), *rest)

    monkeypatch.setattr(taught, "pseudo_labelled_cloud", cloud)
    write_taught(tmp_path / "a.mcap", sweeps=1)
    with pytest.raises(UserError, match=r"cloud 0 of .*a\.mcap has the label 9, but its table storeys has 2 classes"):
        open_recording(source(tmp_path / "a.mcap"), tmp_path / "cache", images=False)


def test_recordings_with_other_classes_than_the_students_are_named_with_a_remedy(tmp_path: Path) -> None:
    write_taught(tmp_path / "a.mcap", sweeps=1)
    recording = open_recording(source(tmp_path / "a.mcap"), tmp_path / "cache", images=False)
    other = ClassTable(name="rooms", names=("kitchen", "bath"), colors=((0, 0, 0), (1, 1, 1)))
    require_classes([recording], STOREYS)
    with pytest.raises(UserError, match=r"a\.mcap is labelled with the classes of storeys .* rooms .*--classes rooms"):
        require_classes([recording], other)
