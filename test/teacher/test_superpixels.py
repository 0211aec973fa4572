from __future__ import annotations

import numpy as np
import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.geometry import rigid, rotation_from_rpy
from lidar_semseg_ros.teacher.lifting import Trajectory
from lidar_semseg_ros.teacher.scores import certain_scores
from lidar_semseg_ros.teacher.superpixels import (
    SegmentConfig,
    class_superpixels,
    on_large_planes,
    segments_of_sweeps,
    slic_superpixels,
)


def test_superpixels_keep_to_the_edges_of_colours() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra [teacher])")
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, 37:] = (200, 30, 30)
    pixels[22:, 37:] = (20, 180, 220)
    part = np.zeros((60, 80), int)
    part[:, 37:], part[22:, 37:] = 1, 2
    ids = slic_superpixels(pixels, count=30)
    assert ids.shape == (60, 80) and ids.dtype == np.int32
    assert sorted(np.unique(ids)) == list(range(ids.max() + 1)) and 15 <= ids.max() + 1 <= 45
    assert all(len(np.unique(part[ids == number])) == 1 for number in range(ids.max() + 1))


CLASSES = np.uint8(
    [
        [0, 0, 7, 7],
        [0, UNLABELLED, UNLABELLED, 7],
        [3, 3, 0, UNLABELLED],
        [3, 3, UNLABELLED, 0],
    ]
)


def test_all_pixels_of_a_class_are_one_superpixel() -> None:
    ids = class_superpixels(certain_scores(CLASSES, (8, 8)), connected=False)
    assert ids.dtype == np.int32
    assert (ids == np.where(CLASSES == UNLABELLED, -1, CLASSES.astype(int))).all()


def test_each_connected_region_of_a_class_is_one_superpixel() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra [teacher])")
    ids = class_superpixels(certain_scores(CLASSES, (8, 8)), connected=True)
    assert ids.dtype == np.int32 and ((ids == -1) == (CLASSES == UNLABELLED)).all()
    regions = {frozenset(map(tuple, np.argwhere(ids == number).tolist())) for number in range(ids.max() + 1)}
    assert regions == {
        frozenset({(0, 0), (0, 1), (1, 0)}),
        frozenset({(2, 2), (3, 3)}),
        frozenset({(0, 2), (0, 3), (1, 3)}),
        frozenset({(2, 0), (2, 1), (3, 0), (3, 1)}),
    }


def room(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A room of 8×6×3 m: points on its six sides and on four balls inside; and what each is, −1 or 0 … 3."""
    low, high = np.array([-4.0, -3, -1]), np.array([4.0, 3, 2])
    sides = []
    for axis in range(3):
        for end in (low, high):
            area_m2 = np.prod(np.delete(high - low, axis))
            points = rng.uniform(low, high, (int(area_m2 * 60), 3))
            points[:, axis] = end[axis]
            sides.append(points)
    centers = np.array([[2.5, 1.5, 0], [-2.5, 1.5, 0.3], [-2.5, -1.5, 0], [2.5, -1.5, 0.3]])
    outward = rng.normal(size=(4, 400, 3))
    balls = centers[:, None] + 0.5 * outward / np.linalg.norm(outward, axis=2, keepdims=True)
    xyz = np.concatenate([*sides, balls.reshape(-1, 3)]) + 0
    what = np.concatenate([np.full(sum(map(len, sides)), -1), np.repeat(np.arange(4), 400)])
    return xyz + rng.normal(0, 0.01, xyz.shape), what


def tilted() -> np.ndarray:
    return rigid(rotation_from_rpy(0.3, -0.2, 0.7), np.array([0.4, -0.3, 0.2]))


def test_floor_ceiling_and_walls_are_all_large_planes_and_things_are_not() -> None:
    xyz, what = room(np.random.default_rng(0))
    found = on_large_planes(xyz @ tilted()[:3, :3].T, SegmentConfig(), np.random.default_rng(1))
    # The tolerance is six times the noise; the balls keep clear of all sides.
    assert found[what == -1].all() and not found[what >= 0].any()


def test_planes_with_a_smaller_share_stay() -> None:
    xyz, what = room(np.random.default_rng(0))
    # The largest sides, floor and ceiling, have 48 of 180 m² of the room.
    found = on_large_planes(xyz, SegmentConfig(min_plane_share=0.2), np.random.default_rng(1))
    flat = (np.abs(xyz[:, 2] + 1) < 0.03) | (np.abs(xyz[:, 2] - 2) < 0.03)
    assert found[flat & (what == -1)].all() and found[~flat].mean() < 0.05
    assert not on_large_planes(xyz, SegmentConfig(min_plane_share=0.5), np.random.default_rng(1)).any()


@pytest.mark.parametrize(
    "xyz", [np.empty((0, 3)), np.zeros((1, 3)), np.zeros((5, 3)), np.arange(60.0).reshape(20, 3)], ids=str
)
def test_points_that_span_no_plane_do_not_upset_the_search(xyz: np.ndarray) -> None:
    assert on_large_planes(xyz, SegmentConfig(), np.random.default_rng(0)).shape == (len(xyz),)


def sweeps(parts: int) -> tuple[list[LidarFrame], Trajectory, np.ndarray, list[np.ndarray]]:
    """The room seen in several sweeps by a robot that moves; what each point is."""
    rng = np.random.default_rng(2)
    xyz_map, what = room(rng)
    base_from_lidar = tilted()
    poses = [rigid(rotation_from_rpy(0, 0, 0.4 * i), np.array([5000 + 0.3 * i, -200, 0])) for i in range(parts)]
    xyz_map = xyz_map + np.array([5000, -200, 0])
    frames, truths = [], []
    for index, rows in enumerate(np.array_split(rng.permutation(len(xyz_map)), parts)):
        lidar_from_map = np.linalg.inv(poses[index] @ base_from_lidar)
        xyz = xyz_map[rows] @ lidar_from_map[:3, :3].T + lidar_from_map[:3, 3]
        xyz = np.concatenate([xyz, np.zeros((3, 3)), np.full((2, 3), np.nan)]).astype(np.float32)
        frames.append(LidarFrame(stamp_ns=index * 10**8, frame_id="lidar", xyz=xyz))
        truths.append(np.concatenate([what[rows], np.full(5, -1)]))
    stamps_ns = np.arange(parts) * 10**8
    return frames, Trajectory(stamps_ns=stamps_ns, map_from_base=np.stack(poses)), base_from_lidar, truths


def test_things_keep_their_segment_from_sweep_to_sweep_and_sides_have_none() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra [teacher])")
    frames, trajectory, base_from_lidar, truths = sweeps(3)
    found = segments_of_sweeps(frames, base_from_lidar, trajectory, SegmentConfig(), np.random.default_rng(0))
    assert [len(ids) for ids in found] == [len(frame) for frame in frames]
    assert all(ids.dtype == np.int32 for ids in found)
    together, what = np.concatenate(found), np.concatenate(truths)
    assert (together[what == -1] == -1).all()
    segments = [np.unique(together[(what == thing) & (together >= 0)]) for thing in range(4)]
    assert [len(ids) for ids in segments] == [1, 1, 1, 1] and len(np.unique(np.concatenate(segments))) == 4
    assert (together[what >= 0] >= 0).mean() > 0.95
    for ids in found:
        assert set(ids) == {-1, *np.concatenate(segments).tolist()}


def test_a_stray_point_far_away_has_no_segment_and_the_others_keep_theirs() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra [teacher])")
    frames, trajectory, base_from_lidar, _ = sweeps(2)
    stray = np.float32([[2e5, 0, 0]])
    strayed = [
        LidarFrame(stamp_ns=frame.stamp_ns, frame_id="lidar", xyz=np.concatenate([frame.xyz, stray]))
        for frame in frames
    ]
    plain, beside = (
        segments_of_sweeps(some, base_from_lidar, trajectory, SegmentConfig(), np.random.default_rng(5))
        for some in (frames, strayed)
    )
    assert all(b.tolist() == [*a.tolist(), -1] for a, b in zip(plain, beside))


def test_the_same_seed_gives_the_same_segments() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra [teacher])")
    frames, trajectory, base_from_lidar, _ = sweeps(2)
    one, two = (
        segments_of_sweeps(frames, base_from_lidar, trajectory, SegmentConfig(), np.random.default_rng(5))
        for _ in range(2)
    )
    assert all((a == b).all() for a, b in zip(one, two))


def test_sweeps_with_few_points_or_none_have_no_segments() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra [teacher])")
    still = Trajectory(stamps_ns=np.array([0]), map_from_base=np.eye(4)[None])
    assert segments_of_sweeps([], np.eye(4), still, SegmentConfig(), np.random.default_rng(0)) == []
    for rows in (0, 1, 4):
        xyz = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
        frame = LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz)
        (ids,) = segments_of_sweeps([frame], np.eye(4), still, SegmentConfig(), np.random.default_rng(0))
        assert ids.tolist() == [-1] * rows


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.segmentation", None)
    with pytest.raises(UserError, match=r"lidar_semseg_ros\[teacher\]"):
        slic_superpixels(np.zeros((4, 4, 3), np.uint8))
