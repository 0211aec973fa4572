"""Labels lifted in the simulator, where the class of every pixel and of every point is known exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, invert_rigid, rigid, rotation_from_rpy
from lidar_semseg_ros.sim.building import make_building
from lidar_semseg_ros.sim.sensors import LIDARS, Scene, render, scan
from lidar_semseg_ros.teacher.lifting import LiftingConfig, Trajectory, points_in_camera
from lidar_semseg_ros.teacher.scores import certain_scores, nearest_cells
from lidar_semseg_ros.teacher.voting import View, Votes, VotingConfig, elect, votes_of_view

CAMERA = PinholeCamera(
    width=640,
    height=480,
    matrix=np.array([[380.0, 0, 319.5], [0, 380.0, 239.5], [0, 0, 1]]),
    distortion=np.array([-0.08, 0.02, 0.0005, -0.0003, 0.0]),
)
BASE_FROM_LIDAR = rigid(np.eye(3), np.array([0, 0, 0.9]))
BASE_FROM_CAMERA = rigid(OPTICAL_FROM_BODY.T, np.array([0.12, 0, 0.8]))
EDGE_PX = 3
"""Noise of the range moves a point of the rim of a thing by up to so many pixels."""


@dataclass(frozen=True)
class Moment:
    frame: LidarFrame
    truth: np.ndarray
    pixel_class: np.ndarray
    trajectory: Trajectory

    def view(self) -> View:
        scores = certain_scores(self.pixel_class, (CAMERA.width, CAMERA.height))
        return View(stamp_ns=33_000_000, camera=CAMERA, camera_from_base=invert_rigid(BASE_FROM_CAMERA), scores=scores)


@cache
def moments(lidar: str, places: int = 5) -> list[Moment]:
    """Sweeps in places of a building while the robot turns by 1 rad/s, with an image a third into each sweep."""
    rng = np.random.default_rng(0)
    building = make_building(rng)
    scene, made = Scene(building), []
    for index in range(places):
        leg = rng.integers(len(building.waypoints) - 1)
        start, end = building.waypoints[leg : leg + 2]
        place, yaw = start + rng.random() * (end - start), rng.uniform(-np.pi, np.pi)
        poses = [
            rigid(rotation_from_rpy(0, 0, yaw + t), np.array([place[0] + 0.5 * t, place[1] + 0.3 * t, 0]))
            for t in (0.0, 0.1, 0.033)
        ]
        frame, truth = scan(
            scene, LIDARS[lidar], poses[0] @ BASE_FROM_LIDAR, poses[1] @ BASE_FROM_LIDAR, 0, "lidar", index, rng
        )
        _, pixel_class = render(scene, CAMERA, poses[2] @ BASE_FROM_CAMERA, rng)
        trajectory = Trajectory(stamps_ns=np.array([0, 100_000_000]), map_from_base=np.stack(poses[:2]))
        made.append(Moment(frame, truth, pixel_class, trajectory))
    return made


def away_from_edges(pixel_class: np.ndarray) -> np.ndarray:
    """Which pixels have only their own class within EDGE_PX."""
    height, width = pixel_class.shape
    around = np.pad(pixel_class, EDGE_PX, mode="edge")
    reach = range(2 * EDGE_PX + 1)
    same = [around[v : v + height, u : u + width] == pixel_class for v in reach for u in reach]
    return np.logical_and.reduce(same)


def accuracy(made: list[Moment], config: LiftingConfig, still: bool = False) -> tuple[float, int]:
    """Share of votes away from edges that are for the point's true class, and their number."""
    right: list[np.ndarray] = []
    for moment in made:
        trajectory = None if still else moment.trajectory
        cast = votes_of_view(moment.frame, BASE_FROM_LIDAR, moment.view(), trajectory, config)
        right.append((cast.class_id == moment.truth[cast.row])[_counted(moment, cast, trajectory)])
    together = np.concatenate(right)
    return float(together.mean()), len(together)


def _counted(moment: Moment, cast: Votes, trajectory: Trajectory | None) -> np.ndarray:
    """Votes for points with a true class, whose pixel by our camera model, tested elsewhere, is away from edges."""
    xyz = points_in_camera(moment.frame, 33_000_000, invert_rigid(BASE_FROM_CAMERA), BASE_FROM_LIDAR, trajectory)
    uv_px, _ = CAMERA.project(xyz[cast.row])
    inside = away_from_edges(moment.pixel_class)[nearest_cells(uv_px, (640, 480), (480, 640))]
    return inside & (moment.truth[cast.row] != UNLABELLED)


@pytest.mark.parametrize("lidar", ["OS1-64", "VLP-16", "Mid-360"])
def test_a_perfect_teacher_labels_points_away_from_edges_right_while_the_robot_turns(lidar: str) -> None:
    share, points = accuracy(moments(lidar), LiftingConfig())
    assert share >= 0.995 and points > 2000


def test_the_visibility_test_removes_most_mistakes_and_few_points() -> None:
    made = moments("OS1-64")
    with_it, kept = accuracy(made, LiftingConfig())
    without, everything = accuracy(made, LiftingConfig(visible_within_m=1e6))
    assert 1 - with_it < 0.2 * (1 - without)
    assert kept > 0.9 * everything


def test_taking_the_robot_to_stand_still_is_much_worse() -> None:
    made = moments("OS1-64")
    assert 1 - accuracy(made, LiftingConfig(), still=True)[0] > 10 * (1 - accuracy(made, LiftingConfig())[0])


def test_a_perfect_teacher_gives_labels_with_full_confidence() -> None:
    moment = moments("OS1-64", places=1)[0]
    cast = votes_of_view(moment.frame, BASE_FROM_LIDAR, moment.view(), moment.trajectory, LiftingConfig())
    labels = elect([[cast]], len(moment.frame), VotingConfig())
    assert labels.probability[labels.class_id != UNLABELLED] == pytest.approx(1)
    assert not labels.views[~moment.frame.has_return()].any()


def test_a_teacher_below_the_least_confidence_labels_nothing() -> None:
    moment = moments("VLP-16", places=1)[0]
    view = moment.view()
    unsure = replace(view.scores, confidence=view.scores.confidence * np.float32(0.39))
    cast = votes_of_view(
        moment.frame, BASE_FROM_LIDAR, replace(view, scores=unsure), moment.trajectory, LiftingConfig()
    )
    labels = elect([[cast]], len(moment.frame), VotingConfig())
    assert labels.views.any() and (labels.class_id == UNLABELLED).all()
