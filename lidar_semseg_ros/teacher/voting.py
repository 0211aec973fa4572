"""From what several images say of a point to one label, or none: weights, acceptance, agreement, confidence gate."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.geometry import rigid
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.teacher.lifting import (
    LiftingConfig,
    Sighting,
    Trajectory,
    points_in,
    points_in_camera,
    sighting,
)
from lidar_semseg_ros.teacher.scores import PixelScores, nearest_cells

CLASS_IDS = 256
VOXEL_BITS = 21
"""Bits of a voxel's index along each axis: at 0.1 m, 100 km to either side."""
MAP_ORIGIN = np.zeros(3, np.int64)


@dataclass(frozen=True, kw_only=True)
class VotingConfig:
    """When the votes for a point make a label."""

    min_share: float = setting(
        0.55, "share of the weight of all votes that the leading class must hold", minimum=0.0, maximum=1.0
    )
    min_agreement: float = setting(
        0.6, "share of the sweeps that vote for a point which must agree on its class", minimum=0.0, maximum=1.0
    )
    min_confidence: float = setting(
        0.4, "points whose label is less sure are left unlabelled", minimum=0.0, maximum=1.0
    )
    window: int = setting(
        10, "past sweeps whose votes count, where the motion is known; 0: only the sweep itself", minimum=0
    )
    voxel_m: float = setting(
        0.1, "edge of the cubes of space by which points find the votes of past sweeps, in metres", minimum=0.001
    )


@dataclass(frozen=True, kw_only=True)
class Votes:
    """What one image says of the points of a sweep, one vote per row.

    row: (M,) int64, the point. class_id: (M,) uint8, UNLABELLED for a class to be ignored. weight: (M,) float32 > 0.
    confidence: (M,) float32 in [0, 1], q of the pixel.
    """

    row: np.ndarray
    class_id: np.ndarray
    weight: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """What the teacher says of N points, in the order of the sweep they belong to.

    class_id: (N,) uint8, UNLABELLED where no class was accepted. probability: (N,) float32 in [0, 1], the confidence
    in it; 0 where UNLABELLED. views: (N,) uint8, how many images voted for the point, whatever for; 255 or more: 255.
    """

    class_id: np.ndarray
    probability: np.ndarray
    views: np.ndarray

    def __len__(self) -> int:
        return len(self.class_id)


@dataclass(frozen=True, kw_only=True)
class View:
    """An image of a calibrated camera, as its teacher sees it. camera_from_base: (4, 4), of the robot's frame."""

    stamp_ns: int
    camera: Camera
    camera_from_base: np.ndarray
    scores: PixelScores


def coverage(class_id: np.ndarray, measured: np.ndarray) -> float:
    """Tell which share of the points with a return, (N,) bool, has a label; NaN if there is none."""
    return float((class_id[measured] != UNLABELLED).mean()) if measured.any() else float("nan")


def votes_of_view(
    frame: LidarFrame, base_from_lidar: np.ndarray, view: View, trajectory: Trajectory | None, config: LiftingConfig
) -> Votes:
    """Lift one image onto a sweep: motion, projection, visibility, and a vote for every point that the image shows."""
    xyz_camera = points_in_camera(frame, view.stamp_ns, view.camera_from_base, base_from_lidar, trajectory)
    return votes_of(sighting(xyz_camera, view.camera, config), view.scores, config.max_depth_m)


def votes_of(seen: Sighting, scores: PixelScores, max_depth_m: float) -> Votes:
    """Let each visible point's pixel vote, with weight q · m · (1 − depth / max_depth); those of weight 0 do not."""
    cell = nearest_cells(seen.uv_px, scores.image_size, scores.class_id.shape)
    confidence = scores.confidence[cell]
    weight = confidence * scores.margin[cell] * np.maximum(1 - seen.depth_m / np.float32(max_depth_m), 0)
    votes = weight > 0
    return Votes(
        row=seen.row[votes],
        class_id=scores.class_id[cell][votes],
        weight=weight[votes].astype(np.float32),
        confidence=confidence[votes],
    )


def elect(sweeps: Sequence[Sequence[Votes]], points: int, config: VotingConfig) -> PseudoLabels:
    """Decide on the label of each of `points` points from the votes of all images, grouped by sweep.

    The class with the largest sum of weights is accepted if it holds at least `min_share` of all weight and if, of the
    sweeps that vote for the point, at least `min_agreement` have it as their own leading class (of equal ones, the
    lowest id leads). Its confidence is the mean of the pixels' q, weighted like the votes, in which votes for other
    classes count as 0: the confidence of a single vote is its q, and contradiction lowers it. Below `min_confidence`
    the point is UNLABELLED. Votes for UNLABELLED take part like those for a class: where people or glass lead, nothing
    else is accepted.
    """
    everything = [votes for sweep in sweeps for votes in sweep]
    row, classes = (
        _occurring([v.row for v in everything], points),
        _occurring([v.class_id for v in everything], CLASS_IDS),
    )
    labels = PseudoLabels(
        class_id=np.full(points, UNLABELLED, np.uint8),
        probability=np.zeros(points, np.float32),
        views=_views(everything, points),
    )
    if len(row) == 0:
        return labels
    rank_of_row, rank_of_class = _ranks(row, points), _ranks(classes, CLASS_IDS)
    weight, sure, leads = (np.zeros((len(row), len(classes))) for _ in range(3))
    voting_sweeps = np.zeros(len(row))
    for sweep in sweeps:
        weight_of_sweep = np.zeros_like(weight)
        for votes in sweep:
            place = rank_of_row[votes.row] * len(classes) + rank_of_class[votes.class_id]
            weight_of_sweep += np.bincount(place, votes.weight, weight.size).reshape(weight.shape)
            sure += np.bincount(place, votes.weight * votes.confidence, weight.size).reshape(weight.shape)
        votes_at_all = np.flatnonzero(weight_of_sweep.any(axis=1))
        leads[votes_at_all, weight_of_sweep[votes_at_all].argmax(axis=1)] += 1
        voting_sweeps[votes_at_all] += 1
        weight += weight_of_sweep
    first, each = weight.argmax(axis=1), np.arange(len(row))
    total = weight.sum(axis=1)
    confidence = sure[each, first] / total
    accepted = (
        (weight[each, first] >= config.min_share * total)
        & (leads[each, first] >= config.min_agreement * voting_sweeps)
        & (confidence >= config.min_confidence)
        & (classes[first] != UNLABELLED)
    )
    labels.class_id[row[accepted]] = classes[first[accepted]]
    labels.probability[row[accepted]] = confidence[accepted]
    return labels


def _occurring(ids: Sequence[np.ndarray], count: int) -> np.ndarray:
    """List, in order, which of the numbers 0 … count − 1 occur."""
    occurs = np.zeros(count, bool)
    for array in ids:
        occurs[array] = True
    return np.flatnonzero(occurs)


def _ranks(ids: np.ndarray, count: int) -> np.ndarray:
    rank = np.zeros(count, np.int64)
    rank[ids] = np.arange(len(ids))
    return rank


def _views(everything: Sequence[Votes], points: int) -> np.ndarray:
    views = np.zeros(points, np.int64)
    for votes in everything:
        seen = np.zeros(points, bool)
        seen[votes.row] = True
        views += seen
    return np.minimum(views, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class VoxelVotes:
    """What one image said of places: votes by cube of space and class, at most one per pair, sorted by key.

    key: (V,) int64 of the voxel. The others as in Votes; the weight is summed over the class and divided by the number
    of votes in the voxel, so that a place has one vote, however many points were measured there.
    """

    key: np.ndarray
    class_id: np.ndarray
    weight: np.ndarray
    confidence: np.ndarray


def voxel_keys(xyz: np.ndarray, voxel_m: float, corner: np.ndarray = MAP_ORIGIN) -> np.ndarray:
    """Say by number which cube of space each of (N, 3) points lies in: (N,) int64.

    −1 for a point that is not finite, or 2^(VOXEL_BITS − 1) cubes or more away: a stray value, not a place. corner:
    (3,) int64, the corner of cubes that the points are given from, so many cubes from the origin of the map; the number
    of a cube does not depend on it. Cubes that lie 2^VOXEL_BITS apart share a number.
    """
    half = 1 << (VOXEL_BITS - 1)
    with np.errstate(over="ignore"):  # what overflows is too far away, too
        index = np.floor(xyz / voxel_m)
    is_near = ((index >= -half) & (index < half)).all(axis=1)
    index = (index[is_near].astype(np.int64) + corner) & (2 * half - 1)
    key = np.full(len(xyz), -1, np.int64)
    key[is_near] = (index[:, 0] << 2 * VOXEL_BITS) | (index[:, 1] << VOXEL_BITS) | index[:, 2]
    return key


def remembered(votes: Votes, key: np.ndarray) -> VoxelVotes:
    """Gather an image's votes by the voxels, (N,) int64, of the points they were for; −1 is no place to remember."""
    placed = np.flatnonzero(key[votes.row] >= 0)
    vote_weight = votes.weight[placed]
    voxel, of_vote, count = np.unique(key[votes.row[placed]], return_inverse=True, return_counts=True)
    pair, of_vote_pair = np.unique(of_vote * CLASS_IDS + votes.class_id[placed], return_inverse=True)
    weight = np.bincount(of_vote_pair, vote_weight, len(pair))
    sure = np.bincount(of_vote_pair, vote_weight * votes.confidence[placed], len(pair))
    return VoxelVotes(
        key=voxel[pair // CLASS_IDS],
        class_id=(pair % CLASS_IDS).astype(np.uint8),
        weight=(weight / count[pair // CLASS_IDS]).astype(np.float32),
        confidence=(sure / weight).astype(np.float32),
    )


def recalled(past: Sequence[VoxelVotes], key: np.ndarray) -> list[Votes]:
    """Give past images' votes to the points whose voxels, (N,) int64, they were for: one Votes per image."""
    by_key = np.argsort(key, kind="stable")
    voxel, first, points_in_voxel = np.unique(key[by_key], return_index=True, return_counts=True)
    found = []
    for image in past:
        place = np.minimum(np.searchsorted(voxel, image.key), len(voxel) - 1)
        entry = np.flatnonzero(voxel[place] == image.key) if len(voxel) else np.empty(0, np.int64)
        repeats = points_in_voxel[place[entry]]
        entry_of_vote = np.repeat(entry, repeats)
        nth = np.arange(len(entry_of_vote)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        found.append(
            Votes(
                row=by_key[first[place[entry_of_vote]] + nth],
                class_id=image.class_id[entry_of_vote],
                weight=image.weight[entry_of_vote],
                confidence=image.confidence[entry_of_vote],
            )
        )
    return found


class VotingWindow:
    """Labels the sweeps of one drive in order, and remembers the votes of the last ones by place.

    A point of the current sweep also has the votes that were cast in past sweeps for the voxel it lies in. The
    alternative, to project the current points into past images, is dearer (every image again for every sweep) and
    wrong where something moved: a person who stands before a wall now would get the wall's pixels of a second ago,
    whereas a vote for a place was cast for what was measured there at that time, with visibility judged by the sweep
    of the same moment. Its price is that a voxel at an edge holds votes for both sides; they rarely reach the share.
    """

    def __init__(self, lifting: LiftingConfig, voting: VotingConfig) -> None:
        self.lifting, self.voting = lifting, voting
        self._past: deque[list[VoxelVotes]] = deque(maxlen=voting.window)

    def label(
        self, frame: LidarFrame, base_from_lidar: np.ndarray, views: Sequence[View], trajectory: Trajectory | None
    ) -> PseudoLabels:
        """Label a sweep from its own images and, with a trajectory, from those of the past sweeps of the window.

        All trajectories given to one window must be in one map frame; begin a new window where it jumps. The labels
        depend on the sweeps of the window only, not on where the drive began.
        """
        own = [votes_of_view(frame, base_from_lidar, view, trajectory, self.lifting) for view in views]
        if trajectory is None or self.voting.window == 0:
            self._past.append([])
            return elect([own], len(frame), self.voting)
        key = self._voxels(frame, base_from_lidar, trajectory)
        past = [image for sweep in self._past for image in sweep]
        votes = iter(recalled(past, key))
        sweeps = [own, *([next(votes) for _ in sweep] for sweep in self._past)]
        self._past.append([remembered(image, key) for image in own])
        return elect(sweeps, len(frame), self.voting)

    def _voxels(self, frame: LidarFrame, base_from_lidar: np.ndarray, trajectory: Trajectory) -> np.ndarray:
        """Say by number which cube of the map each of N points lies in: (N,) int64."""
        # Coordinates of a map may be too large for float32; those from a corner near the robot are not.
        robot_m = trajectory.at(np.array([frame.stamp_ns]))[0, :3, 3]
        corner = np.rint(robot_m / self.voting.voxel_m).astype(np.int64)
        corner_from_map = rigid(np.eye(3), -corner * self.voting.voxel_m)
        return voxel_keys(points_in(corner_from_map, frame, base_from_lidar, trajectory), self.voting.voxel_m, corner)
