"""How well a lidar and a camera are calibrated to each other: where the depth jumps, the image should have an edge.

The idea is that of Levinson and Thrun, "Automatic online calibration of cameras and lasers" (RSS 2013): a calibration
is right if small changes of it make the edges fit worse. The measure is our own: an edge has a direction, and lies
between the point in front and its neighbour behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lidar_semseg_ros.core.camera import Camera
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import rigid, rotation_from_rpy, transform_points
from lidar_semseg_ros.teacher.lifting import LiftingConfig, sighting

SIGHT = LiftingConfig(max_depth_m=80.0)
"""The usual limit of depth is for labels; edges far away tell most of angles."""
MAX_GAP_DEG = 1.5
"""Beams farther apart are no neighbours: between them an edge could be anywhere."""
ELEVATION_DEG = 0.25
"""Points whose elevations fall into the same such interval are taken for those of one beam where beams are unknown."""
MIN_JUMP_M, MAX_JUMP_M = 0.3, 3.0
"""Smaller jumps are noise or texture of the world; larger ones tell no more."""
SLOPE_FACTOR = 3.0
"""A jump exceeds the step on the other side of the point so many times; else it is a wall or floor seen edgewise."""
IMAGE_SIDE = 960
"""Images are reduced to at most so many pixels a side: finer than any lidar's beams, and free of noise."""
REACH_DEG = 0.3
"""Distance at which the effect of an image edge has sunk to 1/e: how far the rim of a thing is from a beam."""
SURROUNDINGS_DEG = 3.0
"""Edges count by how much they stand out from those around them, so that a tree does not attract everything."""

PERTURBATIONS = 200
TURNS_DEG, SHIFTS_M = (1.0, 3.0), (0.02, 0.10)
LARGEST_TURN_DEG = 5.0
FINER_STEPS_DEG = (1.0, 0.5, 0.25, 0.1)
CLEARLY_ABOVE = 2.5
"""By so many standard deviations of wrong calibrations a response stands out from their mean."""
FEWEST_EDGES = 50
SMALL_TURN_DEG = 1.0
"""A point 5 m away is then off by 9 cm at most, which the visibility test and the votes bear."""
ROLL_COUNTS = 0.5
"""About the axis of a camera, points at the rim of a usual image move by half the angle, and all others by less."""
CHECKS = 6
"""The image is divided into so many squares a side; the black and the white ones must ask for the same turn."""


@dataclass(frozen=True, kw_only=True)
class EdgeView:
    """The depth edges of a sweep and the edges of an image taken at the same time.

    xyz_camera: (M, 3) float64, places where the depth jumps. across: (M, 2), |cosine| and |sine| of the direction in
    the image in which it jumps. weight: (M,), larger for larger jumps. evidence: (2, h, w) float32, how much the image
    changes to the right and downwards near each cell, compared with its surroundings.
    """

    camera: Camera
    xyz_camera: np.ndarray
    across: np.ndarray
    weight: np.ndarray
    evidence: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How well a calibration fits.

    edges: depth edges that were compared. fit: mean response along them, in standard deviations above the mean of
    wrong calibrations nearby. percentile: how many of 100 of these fit worse. turn_deg: (3,), about the camera's axes x
    (right), y (down) and z (ahead), by which the points would have to be turned to fit best. turned_fit: the fit then.
    disagreement_deg: how much the turns differ that two halves of the edges ask for.
    """

    edges: int
    fit: float
    percentile: float
    turn_deg: np.ndarray
    turned_fit: float
    disagreement_deg: float

    @property
    def verdict(self) -> str:
        """Say in one word what this means: good, wrong, or unclear."""
        if self.edges < FEWEST_EDGES or self.turned_fit < CLEARLY_ABOVE:
            return "unclear"
        if self.off_by_deg <= SMALL_TURN_DEG and self.percentile >= 95:
            return "good"
        is_sure = self.disagreement_deg <= SMALL_TURN_DEG and self.off_by_deg > SMALL_TURN_DEG
        return "wrong" if is_sure else "unclear"

    @property
    def off_by_deg(self) -> float:
        """Tell by what angle points at the rim of the image are off."""
        return size_of_turn(self.turn_deg)


def size_of_turn(turn_deg: np.ndarray) -> float:
    """Tell by what angle a turn about the camera's axes moves points at the rim of the image."""
    return float(np.linalg.norm(turn_deg * (1, 1, ROLL_COUNTS)))


def edge_view(
    pixels: np.ndarray, camera: Camera, frame: LidarFrame, xyz_camera: np.ndarray, origin_camera: np.ndarray
) -> EdgeView:
    """Find the edges of an image, (H, W, 3) uint8, and of a sweep with its points (N, 3) in the camera's frame.

    origin_camera: (3,), where the lidar is in that frame. xyz_camera: NaN = no return.
    """
    seen = np.zeros(len(frame), bool)
    seen[sighting(xyz_camera, camera, SIGHT).row] = True
    front, behind = depth_jumps(frame)
    front, behind = front[seen[front]], behind[seen[front]]
    rays = xyz_camera.astype(np.float64) - origin_camera
    range_m = np.linalg.norm(rays, axis=1)
    # What hides is as far as the point in front; its rim lies somewhere between the two beams.
    beside = rays[behind] * (range_m[front] / range_m[behind])[:, None] + origin_camera
    rim = (xyz_camera[front] + beside) / 2
    step = beside[:, :2] / beside[:, 2:] - xyz_camera[front, :2] / xyz_camera[front, 2:]
    length = np.hypot(*step.T)
    jump_m = np.minimum(range_m[behind] - range_m[front], MAX_JUMP_M)
    kept = np.isfinite(length) & (length > 0)
    return EdgeView(
        camera=camera,
        xyz_camera=rim[kept],
        across=np.abs(step[kept]) / length[kept, None],
        weight=np.sqrt(jump_m[kept]),
        evidence=image_evidence(pixels, camera),
    )


def depth_jumps(frame: LidarFrame) -> tuple[np.ndarray, np.ndarray]:
    """Find where a thing in front ends: rows of points, (M,) int64, and of their neighbours behind.

    Neighbours are the next points on the same beam and those of the next beams in the same direction, if they are
    close. Without `ring` or rows, points that follow each other are taken for those of a beam; where these are not
    close, points of about the same elevation are. Then there are no next beams.
    """
    rows = np.flatnonzero(frame.has_return())
    xyz = frame.xyz[rows].astype(np.float64)
    range_m = np.linalg.norm(xyz, axis=1)
    directions = xyz / range_m[:, None]
    fronts, behinds = [], []
    lines, gap = _lines(frame, rows, directions)
    for line in lines:
        for before, here, after in (line, line[::-1]):
            cosines = (np.einsum("ij,ij->i", directions[here], directions[other]) for other in (before, after))
            adjoining = np.logical_and(*(cosine > np.cos(gap) for cosine in cosines))
            step_m = np.abs(range_m[here] - range_m[before])
            jumps = adjoining & (range_m[after] - range_m[here] > MIN_JUMP_M + SLOPE_FACTOR * step_m)
            fronts.append(rows[here[jumps]])
            behinds.append(rows[after[jumps]])
    return np.concatenate(fronts), np.concatenate(behinds)


def _lines(frame: LidarFrame, rows: np.ndarray, directions: np.ndarray) -> tuple[list[tuple[np.ndarray, ...]], float]:
    """Give points three in a row, (T,) int64 each, along beams and, where these are known, across them.

    Not all of them lie close: the angle in radians tells which do.
    """
    gap = np.radians(MAX_GAP_DEG)
    everything = np.arange(len(rows))
    if frame.ring is not None:
        beam, is_known = frame.ring[rows].astype(np.int64), True
    elif frame.shape is not None and min(frame.shape) > 1:
        beam, is_known = rows // frame.shape[1], True
    elif (step := _median_step(directions)) < gap:
        # Where one beam ends and the next begins, the step is another.
        return [(everything[:-2], everything[1:-1], everything[2:])], min(gap, 2 * step)
    else:
        elevation_deg = np.degrees(np.arcsin(np.clip(directions[:, 2], -1, 1)))
        beam, is_known = np.floor(elevation_deg / ELEVATION_DEG).astype(np.int64), False
    azimuth = np.arctan2(directions[:, 1], directions[:, 0])
    place = beam * 8.0 + azimuth  # azimuths lie within ±π, so that beams do not mix
    order = np.argsort(place, kind="stable")
    along = (order[:-2], order[1:-1], order[2:])
    if not is_known:
        return [along], gap
    above, below = (order[_nearest(place[order], place + step)] for step in (8.0, -8.0))
    return [along, (below, everything, above)], gap


def _median_step(directions: np.ndarray) -> float:
    """Give the angle between directions that follow each other, in radians."""
    steps = np.einsum("ij,ij->i", directions[1:], directions[:-1])
    return float(np.arccos(np.clip(np.median(steps), -1, 1))) if len(steps) else 0.0


def _nearest(increasing: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Find the index of the number nearest to each value."""
    left = np.clip(np.searchsorted(increasing, values) - 1, 0, max(len(increasing) - 2, 0))
    right = np.minimum(left + 1, len(increasing) - 1)  # the same one if it is alone
    return np.where(values - increasing[left] < increasing[right] - values, left, right)


def image_evidence(pixels: np.ndarray, camera: Camera) -> np.ndarray:
    """Measure how much an image changes to the right and downwards near each cell: (2, h, w) float32.

    e(p) = max over q of |∂I(q)| · exp(−|p − q|₁ / REACH_DEG), less its mean within SURROUNDINGS_DEG, divided by the
    mean over the image. Cells are blocks of pixels, so many that h and w are at most IMAGE_SIDE.
    """
    block = -(-max(pixels.shape[:2]) // IMAGE_SIDE)
    height, width = (side // block * block for side in pixels.shape[:2])
    gray = pixels[:height, :width].astype(np.float32).mean(axis=2)
    gray = gray.reshape(height // block, block, width // block, block).mean(axis=(1, 3))
    cells_per_deg = float(camera.matrix[0, 0]) / block * np.pi / 180
    evidence = np.zeros((2, *gray.shape), np.float32)
    evidence[0, :, 1:-1] = np.abs(gray[:, 2:] - gray[:, :-2])
    evidence[1, 1:-1] = np.abs(gray[2:] - gray[:-2])
    decay = np.float32(np.exp(-1 / (REACH_DEG * cells_per_deg)))
    for one in evidence:
        _spread(one, decay)
        _spread(one.T, decay)
        one -= _mean_around(one, max(round(SURROUNDINGS_DEG * cells_per_deg), 1))
        one /= max(float(np.abs(one).mean()), 1e-6)
    return evidence


def _spread(values: np.ndarray, decay: np.float32) -> None:
    """Let every row have effect on those above and below it, in place: the maximum of all, faded by distance."""
    for row in range(1, len(values)):
        np.maximum(values[row], values[row - 1] * decay, out=values[row])
    for row in range(len(values) - 2, -1, -1):
        np.maximum(values[row], values[row + 1] * decay, out=values[row])


def _mean_around(values: np.ndarray, radius: int) -> np.ndarray:
    """Average (h, w) values over squares, cut off at the rim."""
    sums = np.pad(values.astype(np.float64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    count = np.ones(values.shape)
    (top, bottom), (left, right) = (
        (np.clip(np.arange(side) - radius, 0, side), np.clip(np.arange(side) + radius + 1, 0, side))
        for side in values.shape
    )
    count = (bottom - top)[:, None] * (right - left)
    total = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    return (total / count).astype(np.float32)


def response(views: Sequence[EdgeView], moved_from_camera: np.ndarray) -> float:
    """Average the evidence at the depth edges after moving them by a transform (4, 4) in the camera's frame.

    views: of one camera; 0 where the camera sees none of the edges.
    """
    if not views:
        return 0.0
    camera = views[0].camera
    xyz = transform_points(moved_from_camera, np.concatenate([view.xyz_camera for view in views]))
    uv_px, shown = camera.project(xyz)
    block = -(-max(camera.width, camera.height) // IMAGE_SIDE)
    column, row = np.floor((np.nan_to_num(uv_px) + 0.5) / block).astype(np.int64).T
    total = weights = 0.0
    start = 0
    for view in views:
        here = np.arange(len(view.weight))[shown[start : start + len(view.weight)]]
        h, w = view.evidence.shape[1:]
        r, c = np.minimum(row[start + here], h - 1), np.minimum(column[start + here], w - 1)
        found = np.einsum("im,mi->m", view.evidence[:, r, c], view.across[here])
        total += float(view.weight[here] @ found)
        weights += float(view.weight[here].sum())
        start += len(view.weight)
    return total / weights if weights else 0.0


def perturbations(rng: np.random.Generator) -> list[np.ndarray]:
    """Make wrong calibrations nearby, (4, 4) each: turned by TURNS_DEG and shifted by SHIFTS_M in any direction."""
    made = []
    for _ in range(PERTURBATIONS):
        axis, direction = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
        turn = rotation_from_rpy(*np.radians(axis * rng.uniform(*TURNS_DEG)))
        made.append(rigid(turn, direction * rng.uniform(*SHIFTS_M)))
    return made


def alignment(views: Sequence[EdgeView], rng: np.random.Generator) -> Alignment:
    """Compare a calibration with wrong ones nearby, and look for the turn that fits best."""
    given = response(views, np.eye(4))
    others = np.array([response(views, wrong) for wrong in perturbations(rng)])
    turn_deg, turned = best_turn(views)
    black, white = (best_turn(half)[0] for half in _halves(views))
    spread = max(float(others.std()), 1e-6)
    return Alignment(
        edges=sum(len(view.weight) for view in views),
        fit=(given - float(others.mean())) / spread,
        percentile=100 * float((others < given).mean()),
        turn_deg=turn_deg,
        turned_fit=(turned - float(others.mean())) / spread,
        disagreement_deg=size_of_turn(black - white),
    )


def _halves(views: Sequence[EdgeView]) -> list[list[EdgeView]]:
    """Divide the edges like the squares of a chessboard over the image, so that no thing is seen by both halves."""
    halves: list[list[EdgeView]] = [[], []]
    for view in views:
        uv_px, shown = view.camera.project(view.xyz_camera)
        side_px = max(view.camera.width, view.camera.height) / CHECKS
        is_black = np.floor(np.nan_to_num(uv_px) / side_px).sum(axis=1) % 2 == 0
        for half, chosen in zip(halves, (shown & is_black, shown & ~is_black)):
            half.append(
                replace(
                    view, xyz_camera=view.xyz_camera[chosen], across=view.across[chosen], weight=view.weight[chosen]
                )
            )
    return halves


def best_turn(views: Sequence[EdgeView]) -> tuple[np.ndarray, float]:
    """Look for the turn about the camera's axes, (3,) in degrees, with the largest response, and give that, too.

    From a grid over pitch and yaw, uphill in ever finer steps; a shift of the camera looks much like a turn.
    """
    grid = np.arange(-LARGEST_TURN_DEG + 1, LARGEST_TURN_DEG)
    best = max((np.array([x, y, 0.0]) for x in grid for y in grid), key=lambda turn: _turned(views, turn))
    height = _turned(views, best)
    for step_deg in FINER_STEPS_DEG:
        while True:
            around = [best + sign * step_deg * axis for axis in np.eye(3) for sign in (1, -1)]
            found = [_turned(views, turn) if np.abs(turn).max() <= LARGEST_TURN_DEG else -np.inf for turn in around]
            if max(found) <= height:
                break
            best, height = around[int(np.argmax(found))], max(found)
    return best, height


def _turned(views: Sequence[EdgeView], turn_deg: np.ndarray) -> float:
    return response(views, rigid(rotation_from_rpy(*np.radians(turn_deg)), np.zeros(3)))
