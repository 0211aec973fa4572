from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, rigid, rotation_from_rpy
from lidar_semseg_ros.teacher.lifting import LiftingConfig, Sighting, Trajectory
from lidar_semseg_ros.teacher.scores import PixelScores, certain_scores
from lidar_semseg_ros.teacher.voting import (
    View,
    Votes,
    VotingConfig,
    VotingWindow,
    coverage,
    elect,
    recalled,
    remembered,
    votes_of,
    voxel_keys,
)

ANY = VotingConfig(min_confidence=0.0)
CAMERA = PinholeCamera(
    width=64, height=48, matrix=np.array([[40.0, 0, 31.5], [0, 40, 23.5], [0, 0, 1]]), distortion=np.zeros(5)
)
CAMERA_FROM_BASE = rigid(OPTICAL_FROM_BODY, np.zeros(3))


def votes(*entries: tuple[int, int, float, float]) -> Votes:
    """One image's votes: (row, class, weight, confidence)."""
    row, class_id, weight, confidence = zip(*entries) if entries else ((), (), (), ())
    return Votes(
        row=np.array(row, np.int64),
        class_id=np.array(class_id, np.uint8),
        weight=np.array(weight, np.float32),
        confidence=np.array(confidence, np.float32),
    )


# --- votes of one image


def test_the_weight_of_a_vote_is_confidence_times_margin_times_nearness() -> None:
    scores = PixelScores(
        class_id=np.uint8([[3, 7]]),
        confidence=np.float32([[0.8, 0.5]]),
        margin=np.float32([[0.6, 0.0]]),
        image_size=(2, 1),
    )
    seen = Sighting(
        row=np.array([4, 9, 11]), uv_px=np.array([[0.0, 0], [1, 0], [0.2, 0]]), depth_m=np.float32([5, 5, 20])
    )
    cast = votes_of(seen, scores, max_depth_m=20.0)
    # The second has no margin and the third is at the end of the range: neither votes.
    assert cast.row.tolist() == [4] and cast.class_id.tolist() == [3]
    assert cast.weight == pytest.approx([0.8 * 0.6 * 0.75]) and cast.confidence == pytest.approx([0.8])


# --- acceptance


@pytest.mark.parametrize(
    ("first", "second", "accepted"), [(11, 9, True), (10.99, 9.01, False), (1, 0.5, True), (1, 1, False)]
)
def test_the_leading_class_needs_its_share_of_the_weight(first: float, second: float, accepted: bool) -> None:
    labels = elect([[votes((0, 2, first, 1)), votes((0, 5, second, 1))]], 1, ANY)
    assert labels.class_id.tolist() == [2 if accepted else UNLABELLED]
    assert labels.views.tolist() == [2]


@pytest.mark.parametrize(("agreeing", "sweeps", "accepted"), [(3, 5, True), (2, 4, False), (4, 7, False), (1, 1, True)])
def test_enough_sweeps_must_agree_however_heavy_the_votes_of_some_are(
    agreeing: int, sweeps: int, accepted: bool
) -> None:
    agree = [[votes((0, 1, 100, 1))] for _ in range(agreeing)]
    disagree = [[votes((0, 2, 1, 1))] for _ in range(sweeps - agreeing)]
    assert elect([*agree, *disagree], 1, ANY).class_id.tolist() == [1 if accepted else UNLABELLED]


def test_cameras_of_one_sweep_need_not_agree_by_number() -> None:
    one_sweep = [votes((0, 1, 10, 1)), votes((0, 2, 1, 1)), votes((0, 2, 1, 1))]
    assert elect([one_sweep], 1, ANY).class_id.tolist() == [1]
    assert elect([[image] for image in one_sweep], 1, ANY).class_id.tolist() == [UNLABELLED]


@pytest.mark.parametrize(("confidence", "accepted"), [(0.5, True), (0.49, False)])
def test_labels_below_the_least_confidence_are_left_out(confidence: float, accepted: bool) -> None:
    labels = elect([[votes((0, 3, 1, confidence))]], 1, VotingConfig(min_confidence=0.5))
    assert labels.class_id.tolist() == [3 if accepted else UNLABELLED]
    assert labels.probability[0] == pytest.approx(confidence if accepted else 0)


def test_contradiction_lowers_the_confidence() -> None:
    labels = elect([[votes((0, 3, 3, 0.8)), votes((0, 4, 1, 0.9))]], 1, ANY)
    assert labels.class_id.tolist() == [3] and labels.probability[0] == pytest.approx(0.6)


def test_where_ignored_things_lead_nothing_else_is_accepted() -> None:
    labels = elect([[votes((0, UNLABELLED, 3, 1)), votes((0, 4, 1, 1), (1, 4, 1, 1))]], 2, ANY)
    assert labels.class_id.tolist() == [UNLABELLED, 4]


@pytest.mark.parametrize("sweeps", [[], [[]], [[votes()]]])
def test_without_votes_nothing_is_labelled(sweeps: list[list[Votes]]) -> None:
    for points in (0, 3):
        labels = elect(sweeps, points, ANY)
        assert len(labels) == points and (labels.class_id == UNLABELLED).all()
        assert not labels.probability.any() and not labels.views.any()


def test_more_views_than_fit_are_255() -> None:
    assert elect([[votes((0, 1, 1, 1))] * 300], 1, ANY).views.tolist() == [255]


def test_random_votes_are_counted_as_a_slow_twin_counts_them() -> None:
    rng = np.random.default_rng(0)
    config = VotingConfig(min_share=0.5, min_agreement=0.5, min_confidence=0.3)
    sweeps = []
    for _ in range(5):
        images = []
        for _ in range(rng.integers(0, 4)):
            rows = np.sort(rng.choice(200, rng.integers(0, 120), replace=False))
            classes = rng.choice([0, 1, 7, UNLABELLED], len(rows), p=[0.5, 0.2, 0.2, 0.1])
            images.append(votes(*zip(rows, classes, rng.random(len(rows)) + 1e-3, rng.random(len(rows)))))
        sweeps.append(images)
    labels = elect(sweeps, 200, config)
    for point in range(200):
        weight: dict[int, float] = defaultdict(float)
        sure: dict[int, float] = defaultdict(float)
        leaders: Counter[int] = Counter()
        views = 0
        for images in sweeps:
            of_sweep: dict[int, float] = defaultdict(float)
            for image in images:
                for nth in np.flatnonzero(image.row == point):
                    views += 1
                    class_id, its_weight = int(image.class_id[nth]), float(image.weight[nth])
                    of_sweep[class_id] += its_weight
                    weight[class_id] += its_weight
                    sure[class_id] += its_weight * float(image.confidence[nth])
            if of_sweep:
                leaders[max(of_sweep, key=lambda class_id: of_sweep[class_id])] += 1
        expected, confidence = UNLABELLED, 0.0
        if weight:
            leader, total = max(weight, key=lambda class_id: weight[class_id]), sum(weight.values())
            agreed = leaders[leader] >= 0.5 * leaders.total()
            if weight[leader] >= 0.5 * total and agreed and sure[leader] / total >= 0.3 and leader != UNLABELLED:
                expected, confidence = leader, sure[leader] / total
        assert labels.class_id[point] == expected
        assert labels.probability[point] == pytest.approx(confidence, abs=1e-6)
        assert labels.views[point] == views
    assert 40 < (labels.class_id != UNLABELLED).sum() < 160


def test_coverage_counts_measured_points_only() -> None:
    labelled = np.uint8([1, UNLABELLED, 3, 4])
    assert coverage(labelled, np.array([True, True, True, False])) == pytest.approx(2 / 3)
    assert np.isnan(coverage(labelled, np.zeros(4, bool)))


# --- votes remembered by place


def test_points_of_one_cube_share_a_key_and_others_do_not() -> None:
    key = voxel_keys(
        np.float32([[0.01, 0.01, 0.01], [0.09, 0.05, 0.02], [-0.01, 0.01, 0.01], [0.11, 0.01, 0.01], [np.nan, 0, 0]]),
        0.1,
    )
    assert key[0] == key[1] and len({*key.tolist()}) == 4 and key[4] == -1


def test_a_point_that_is_too_far_away_to_be_a_place_has_no_key_and_the_others_keep_theirs() -> None:
    near = np.float32([[0.01, 0.01, 0.01], [104_000, -104_000, 3]])
    far = np.float32([[2e5, 0, 0], [0, -2e5, 0], [0, 0, 3e38], [np.inf, 0, 0]])
    key = voxel_keys(np.concatenate([near, far]), 0.1)
    assert key[2:].tolist() == [-1] * 4
    assert key[:2].tolist() == voxel_keys(near, 0.1).tolist() and (key[:2] >= 0).all()


def test_votes_for_a_point_without_a_place_are_not_remembered() -> None:
    memory = remembered(votes((0, 1, 0.5, 1.0), (1, 1, 0.7, 0.5), (2, 4, 0.3, 0.2)), np.array([-1, 7, -1]))
    assert memory.key.tolist() == [7] and memory.weight == pytest.approx([0.7])
    (found,) = recalled([memory], np.array([-1, -1, 7]))
    assert found.row.tolist() == [2]
    assert len(remembered(votes((0, 1, 0.5, 1.0)), np.array([-1])).key) == 0


def test_one_stray_point_far_away_changes_no_label_of_a_drive() -> None:
    def labels_of(stray: np.ndarray) -> list[np.ndarray]:
        window = VotingWindow(LiftingConfig(), VotingConfig())
        found = []
        for stamp_s in (0.0, 1.0):
            frame = room(stamp_s)[0]
            xyz = np.concatenate([frame.xyz, stray])
            seen = LidarFrame(stamp_ns=frame.stamp_ns, frame_id="lidar", xyz=xyz)
            found.append(window.label(seen, np.eye(4), [view_of(stamp_s, 2)], turned(0.0, 0.0)).class_id)
        return found

    plain, strayed = (labels_of(stray) for stray in (np.empty((0, 3), np.float32), np.float32([[-2e5, 0, 0]])))
    for without, beside in zip(plain, strayed):
        assert (without == 2).any() and beside.tolist() == [*without.tolist(), UNLABELLED]


def test_a_cube_has_the_same_key_from_whichever_corner_it_is_seen() -> None:
    xyz_map = np.float32([[0.05, 0.15, -0.05], [7.35, -3.25, 1.05]])
    for corner in ([0, 0, 0], [73, -32, 10], [-5, 1000, 3]):
        found = voxel_keys((xyz_map - 0.1 * np.array(corner)).astype(np.float32), 0.1, np.array(corner))
        assert (found == voxel_keys(xyz_map, 0.1)).all()
    # UTM coordinates hold 50 million cubes.
    far = np.array([4_712_345, 53_201_234, 0])
    assert len({*voxel_keys(xyz_map, 0.1, far).tolist()}) == 2


def test_a_place_remembers_one_vote_however_many_points_it_had() -> None:
    key = np.array([7, 7, 7, 9])
    memory = remembered(votes((0, 1, 0.5, 1.0), (1, 1, 0.7, 0.5), (2, 4, 0.3, 0.2), (3, 1, 0.9, 0.9)), key)
    assert list(zip(memory.key.tolist(), memory.class_id.tolist())) == [(7, 1), (7, 4), (9, 1)]
    assert memory.weight == pytest.approx([1.2 / 3, 0.3 / 3, 0.9])
    assert memory.confidence == pytest.approx([(0.5 * 1.0 + 0.7 * 0.5) / 1.2, 0.2, 0.9])


def test_points_find_the_votes_that_were_cast_for_their_place() -> None:
    memory = remembered(votes((0, 1, 0.5, 1.0), (1, 4, 0.25, 0.5), (2, 2, 1.0, 1.0)), np.array([7, 7, 9]))
    (found,) = recalled([memory], np.array([5, 7, -1, 7, 11]))
    cast = sorted(zip(found.row.tolist(), found.class_id.tolist(), found.weight.tolist()))
    assert cast == [(1, 1, 0.25), (1, 4, 0.125), (3, 1, 0.25), (3, 4, 0.125)]
    assert len(recalled([memory], np.empty(0, np.int64))[0].row) == 0


def room(stamp_s: float, yaw: float = 0.0) -> tuple[LidarFrame, np.ndarray]:
    """A wall 4 m ahead in the map, as a robot at the origin that has turned sees it; and its points in the map."""
    y, z = np.meshgrid(np.arange(-5, 5, 0.1) + 0.05, np.arange(-1, 1, 0.1) + 0.05)
    xyz_map = np.stack([np.full(y.size, 4.05), y.ravel(), z.ravel()], axis=1)
    xyz = xyz_map @ rotation_from_rpy(0, 0, yaw)
    return LidarFrame(stamp_ns=round(stamp_s * 1e9), frame_id="lidar", xyz=xyz.astype(np.float32)), xyz_map


def view_of(stamp_s: float, class_id: int) -> View:
    said = certain_scores(np.full((48, 64), class_id, np.uint8), (64, 48))
    return View(stamp_ns=round(stamp_s * 1e9), camera=CAMERA, camera_from_base=CAMERA_FROM_BASE, scores=said)


def turned(*yaws: float) -> Trajectory:
    return Trajectory(
        stamps_ns=np.arange(len(yaws)) * 10**9,
        map_from_base=np.stack([rigid(rotation_from_rpy(0, 0, yaw), np.zeros(3)) for yaw in yaws]),
    )


def test_points_that_left_the_image_keep_the_label_of_their_place() -> None:
    window = VotingWindow(LiftingConfig(), VotingConfig())
    track = turned(0.0, 3.0)
    first = window.label(room(0.0)[0], np.eye(4), [view_of(0.0, 2)], track)
    again = window.label(room(1.0, 3.0)[0], np.eye(4), [view_of(1.0, 5)], track)
    assert 0.3 < coverage(first.class_id, np.ones(len(first), bool)) < 1
    assert (again.class_id == first.class_id).all() and set(first.class_id) == {2, UNLABELLED}


def test_without_a_trajectory_or_a_window_past_sweeps_do_not_count() -> None:
    frame, view = room(0.0)[0], view_of(0.0, 2)
    for voting, track in ((VotingConfig(), None), (VotingConfig(window=0), turned(0.0, 0.0))):
        window = VotingWindow(LiftingConfig(), voting)
        assert (window.label(frame, np.eye(4), [view], track).class_id == 2).any()
        assert (window.label(frame, np.eye(4), [], track).class_id == UNLABELLED).all()


def test_a_sweep_forgets_what_is_older_than_the_window() -> None:
    window = VotingWindow(LiftingConfig(), VotingConfig(window=2))
    track = turned(0.0, 0.0, 0.0, 0.0)
    window.label(room(0.0)[0], np.eye(4), [view_of(0.0, 2)], track)
    counts = [(window.label(room(t)[0], np.eye(4), [], track).class_id == 2).sum() for t in (1.0, 2.0, 3.0)]
    assert counts[0] == counts[1] > 0 and counts[2] == 0


@pytest.mark.parametrize("begin", [0, 1])
def test_labels_depend_on_the_sweeps_of_the_window_not_on_where_it_began(begin: int) -> None:
    # A robot that has turned and moved a little, in a map whose origin is far away.
    poses = [rigid(rotation_from_rpy(0, 0, 0.3 * n), np.array([4e5 + 0.137 * n, 5e6, 0.01 * n])) for n in range(4)]
    track = Trajectory(stamps_ns=np.arange(4) * 10**9, map_from_base=np.stack(poses))
    rng = np.random.default_rng(0)
    world = np.array([4e5, 5e6, 0]) + rng.uniform((2, -3, -2), (6, 3, 2), (3000, 3))
    said = [rng.integers(0, 3, (48, 64)).astype(np.uint8) for _ in range(4)]

    def labels_from(first: int) -> tuple[bytes, bytes, bytes]:
        window = VotingWindow(LiftingConfig(visible_within_m=1.0), VotingConfig(window=1, min_confidence=0.0))
        for n in range(first, 4):
            xyz = ((world - poses[n][:3, 3]) @ poses[n][:3, :3]).astype(np.float32)
            frame = LidarFrame(stamp_ns=n * 10**9, frame_id="lidar", xyz=xyz)
            view = replace(view_of(float(n), 0), scores=certain_scores(said[n], (64, 48)))
            found = window.label(frame, np.eye(4), [view], track)
        assert found.views.max() == 2
        return found.class_id.tobytes(), found.probability.tobytes(), found.views.tobytes()

    assert labels_from(begin) == labels_from(2)


def test_sweeps_whose_motion_is_not_known_take_a_place_in_the_window() -> None:
    window = VotingWindow(LiftingConfig(), VotingConfig(window=2))
    track = turned(0.0, 0.0, 0.0, 0.0)
    window.label(room(0.0)[0], np.eye(4), [view_of(0.0, 2)], track)
    window.label(room(1.0)[0], np.eye(4), [], None)
    counts = [(window.label(room(t)[0], np.eye(4), [], track).class_id == 2).sum() for t in (2.0, 3.0)]
    assert counts[0] > 0 and counts[1] == 0


def test_sweeps_that_disagree_on_a_place_leave_it_unlabelled() -> None:
    window = VotingWindow(LiftingConfig(), VotingConfig())
    track = turned(0.0, 0.0)
    window.label(room(0.0)[0], np.eye(4), [view_of(0.0, 2)], track)
    assert (window.label(room(1.0)[0], np.eye(4), [view_of(1.0, 3)], track).class_id == UNLABELLED).all()


def test_one_point_and_none_can_be_labelled() -> None:
    for xyz in (np.float32([[4, 0, 0]]), np.empty((0, 3), np.float32), np.float32([[-4, 0, 0]])):
        window = VotingWindow(LiftingConfig(), VotingConfig())
        frame = LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz)
        for _ in range(2):
            labels = window.label(frame, np.eye(4), [view_of(0.0, 2)], turned(0.0, 0.0))
        expected = [2] if len(xyz) and xyz[0, 0] > 0 else [UNLABELLED] * len(xyz)
        assert labels.class_id.tolist() == expected
