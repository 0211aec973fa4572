"""From the pixels of a camera to the points of a sweep: motion, projection, visibility, sampling.

A point is taken to where it was at the time of the image, projected through the full camera model (the image stays as
it is), kept if nothing nearer hides it, and looked up in the teacher's scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.camera import Camera, FisheyeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import invert_rigid, transform_points
from lidar_semseg_ros.core.options import setting

MOTION_STEPS = 16
"""Poses are computed at so many instants of a sweep and blended in between. At 1 rad/s a step turns by 6 mrad, and a
blend of two rotations is off by a eighth of its square: 5e-6 of the range."""

FARTHEST_POSE_S = 0.5
"""Poses farther than this from a sweep in time do not tell where the robot was."""

BUFFER_SIDE = 640
"""A degree of a usual camera is then seven cells or more, finer than any lidar's beams; and the time is bounded."""


@dataclass(frozen=True, kw_only=True)
class LiftingConfig:
    """Which points a camera shows."""

    min_depth_m: float = setting(0.2, "points nearer to the camera are not projected, in metres", minimum=0.0)
    max_depth_m: float = setting(
        30.0, "points farther from the camera get no label; towards it the weight of a vote sinks to 0", minimum=0.0
    )
    visible_within_m: float = setting(
        0.05, "a point is visible if it lies at most so much behind the nearest point around its pixel", minimum=0.0
    )
    splat_m: float = setting(0.03, "radius of the disc that a point stands for when it hides others", minimum=0.0)
    max_splat_deg: float = setting(1.25, "largest such radius as the camera sees it", minimum=0.0, maximum=45.0)
    splat_slope: float = setting(
        6.0,
        "depth that such a disc may gain per length sideways, so that floors and walls seen at a grazing angle do not "
        "hide themselves (a floor up to so many times its distance below the camera away); 0: discs face the camera",
        minimum=0.0,
    )

    def __post_init__(self) -> None:
        if not self.min_depth_m < self.max_depth_m:
            raise UserError(
                f"setting 'min_depth_m' ({self.min_depth_m}) must be less than 'max_depth_m' ({self.max_depth_m})"
            )


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Where the robot was: poses at increasing times, of any fixed frame (map, odom) and any frame of the robot.

    stamps_ns: (P,) int64, strictly increasing, P ≥ 1.
    map_from_base: (P, 4, 4) float64. Between two poses the robot turns by less than half a turn.
    """

    stamps_ns: np.ndarray
    map_from_base: np.ndarray

    def __post_init__(self) -> None:
        poses = len(self.stamps_ns)
        if poses < 1 or self.stamps_ns.shape != (poses,) or self.map_from_base.shape != (poses, 4, 4):
            raise UserError(
                f"a trajectory needs a (4, 4) pose for each time, but got times of shape {self.stamps_ns.shape} "
                f"and poses of shape {self.map_from_base.shape}"
            )
        if not np.all(np.diff(self.stamps_ns) > 0):
            raise UserError("the times of a trajectory must increase; sort its poses and leave out doubles")

    def at(self, stamps_ns: np.ndarray) -> np.ndarray:
        """Interpolate map_from_base at (T,) int64 times: (T, 4, 4), at constant velocity between two poses.

        Before the first pose and after the last one, the robot keeps the velocity that it has there, for the poses of
        an odometry come a little after the images.
        """
        if len(self.stamps_ns) == 1:
            return np.repeat(self.map_from_base, len(stamps_ns), axis=0)
        before = np.clip(np.searchsorted(self.stamps_ns, stamps_ns, side="right") - 1, 0, len(self.stamps_ns) - 2)
        span_ns = self.stamps_ns[before + 1] - self.stamps_ns[before]
        share = (stamps_ns - self.stamps_ns[before]) / span_ns
        first, second = self.map_from_base[before], self.map_from_base[before + 1]
        poses = first.copy()
        poses[:, :3, :3] = first[:, :3, :3] @ _part_of_rotation(
            np.swapaxes(first[:, :3, :3], 1, 2) @ second[:, :3, :3], share
        )
        poses[:, :3, 3] += share[:, None] * (second[:, :3, 3] - first[:, :3, 3])
        return poses

    def around(self, stamp_ns: int) -> Trajectory | None:
        """Give the poses that tell where the robot was at a time; None where that is not known.

        It is known within FARTHEST_POSE_S of a pose if another one tells the velocity. Two poses are bridged if all
        times between them are so near to one; beyond the rim of a longer gap the robot keeps its velocity, as it does
        live, where the poses after the gap have not come yet.
        """
        farthest_ns = round(FARTHEST_POSE_S * 1e9)
        nearest = int(np.abs(self.stamps_ns - stamp_ns).argmin())
        if abs(int(self.stamps_ns[nearest]) - stamp_ns) > farthest_ns:
            return None
        after_gap = np.flatnonzero(np.diff(self.stamps_ns) > 2 * farthest_ns) + 1
        start = after_gap[after_gap <= nearest].max(initial=0)
        end = after_gap[after_gap > nearest].min(initial=len(self.stamps_ns))
        if end - start < 2:
            return None
        return Trajectory(stamps_ns=self.stamps_ns[start:end], map_from_base=self.map_from_base[start:end])


def _part_of_rotation(rotation: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Turn by a share of each of (T, 3, 3) rotations about its own axis (Rodrigues' formula)."""
    skew = (rotation - np.swapaxes(rotation, 1, 2)) / 2
    sine = np.linalg.norm(skew, axis=(1, 2)) / np.sqrt(2)
    angle = share * np.arctan2(sine, (np.trace(rotation, axis1=1, axis2=2) - 1) / 2)
    axis = skew / np.where(sine > 0, sine, 1)[:, None, None]
    return np.eye(3) + np.sin(angle)[:, None, None] * axis + (1 - np.cos(angle))[:, None, None] * (axis @ axis)


def points_in_camera(
    frame: LidarFrame,
    stamp_ns: int,
    camera_from_base: np.ndarray,
    base_from_lidar: np.ndarray,
    trajectory: Trajectory | None,
) -> np.ndarray:
    """Give the points of a sweep as the camera has them at stamp_ns, (N, 3) float32; NaN = no return.

    The world is taken to stand still. Without a trajectory, so is the robot. base is the frame of the robot whose
    poses the trajectory holds; where they are the lidar's own, base_from_lidar is the identity.
    """
    if trajectory is None:
        xyz = np.where(frame.has_return()[:, None], frame.xyz, np.float32(np.nan))
        return transform_points(camera_from_base @ base_from_lidar, xyz)
    base_from_map = invert_rigid(trajectory.at(np.array([stamp_ns]))[0])
    return points_in(camera_from_base @ base_from_map, frame, base_from_lidar, trajectory)


def points_in(
    target_from_map: np.ndarray, frame: LidarFrame, base_from_lidar: np.ndarray, trajectory: Trajectory
) -> np.ndarray:
    """Give the points of a sweep in a frame that is at rest in the map, (N, 3) float32; NaN = no return.

    Each point is taken from where the lidar was at the point's own time if the frame has times, else at its stamp; a
    point whose time is not known is nowhere. A driver that has undone the motion already may leave times that no
    longer hold: take them out of such a frame.
    """
    time_s = np.zeros(len(frame), np.float32) if frame.time_s is None else frame.time_s
    measured = frame.has_time()
    start_s, end_s = (float(edge(time_s[measured], initial=0.0)) for edge in (np.min, np.max))
    steps = MOTION_STEPS if end_s > start_s else 0
    instants_ns = frame.stamp_ns + np.rint(np.linspace(start_s, end_s, steps + 1) * 1e9).astype(np.int64)
    target_from_lidar = target_from_map @ trajectory.at(instants_ns) @ base_from_lidar
    xyz = np.full_like(frame.xyz, np.nan)
    if steps == 0:
        xyz[measured] = transform_points(target_from_lidar[0], frame.xyz[measured])
    else:
        position = (time_s[measured] - start_s) * (steps / (end_s - start_s))
        xyz[measured] = _blended(target_from_lidar, position, frame.xyz[measured])
    return xyz


def _blended(b_from_a: np.ndarray, position: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Transform (N, 3) points by the (S + 1, 4, 4) transforms blended at their positions 0 … S."""
    step = np.minimum(position.astype(np.int64), len(b_from_a) - 2)
    matrix = b_from_a[:, :3].astype(np.float32)
    change = np.diff(matrix, axis=0)
    blended = np.empty_like(xyz)
    for number in range(len(change)):
        rows = np.flatnonzero(step == number)
        share = (position[rows] - number).astype(np.float32)[:, None]
        at_start, moved = (xyz[rows] @ part[:, :3].T + part[:, 3] for part in (matrix[number], change[number]))
        blended[rows] = at_start + share * moved
    return blended


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """The points of a sweep that one image shows.

    row: (M,) int64, which points, increasing. uv_px: (M, 2) float64, where. depth_m: (M,) float32, how far away:
    along z for a pinhole, in distance for a fisheye.
    """

    row: np.ndarray
    uv_px: np.ndarray
    depth_m: np.ndarray


def sighting(xyz_camera: np.ndarray, camera: Camera, config: LiftingConfig) -> Sighting:
    """Find which of (N, 3) points, in the camera's optical frame, its image shows; NaN rows are never shown.

    A point is visible if its depth exceeds the nearest depth around its pixel by at most `visible_within_m`. Around
    its pixel means: every point hides what lies behind it within a square of radius splat_m · focal length / depth, at
    most max_splat_deg, so that the near things of a sparse sweep have no holes through which far points would be seen.
    Depths are compared on a grid of at most BUFFER_SIDE cells a side.
    """
    depth_m = _depth(xyz_camera, camera)
    # The camera model takes its time, and most points of a lidar that looks around are behind it.
    row = np.flatnonzero((depth_m >= config.min_depth_m) & (depth_m < config.max_depth_m))
    uv_px, shown = camera.project(xyz_camera[row], config.min_depth_m)
    row, uv_px = row[shown], uv_px[shown]
    depth_m = depth_m[row]
    cell_px = -(-max(camera.width, camera.height) // BUFFER_SIDE)
    grid = (-(-camera.height // cell_px), -(-camera.width // cell_px))
    cell = np.floor((uv_px + 0.5) / cell_px).astype(np.int64)
    focal_cells = float(camera.matrix[0, 0]) / cell_px
    radius = (focal_cells * np.minimum(config.splat_m / depth_m, np.radians(config.max_splat_deg))).astype(np.int64)
    nearest_m = nearest_depth(cell, depth_m, radius, grid, 1 + config.splat_slope / focal_cells)
    visible = depth_m <= nearest_m[cell[:, 1], cell[:, 0]] + np.float32(config.visible_within_m)
    return Sighting(row=row[visible], uv_px=uv_px[visible], depth_m=depth_m[visible])


def _depth(xyz_camera: np.ndarray, camera: Camera) -> np.ndarray:
    if isinstance(camera, FisheyeCamera):
        return np.sqrt(np.einsum("ij,ij->i", xyz_camera, xyz_camera))
    return xyz_camera[:, 2]


def nearest_depth(
    cell: np.ndarray, depth_m: np.ndarray, radius: np.ndarray, grid: tuple[int, int], growth: float
) -> np.ndarray:
    """Draw (M, 2) cells (column, row) as squares of their radius: the nearest depth per cell, inf where none.

    radius: (M,) int64 ≥ 0 in cells; a square has 2 · radius + 1 cells a side. grid: (rows, columns). growth: ≥ 1, by
    which the depth of a square is multiplied with every cell away from its centre.

    The points with the largest radius are drawn first, as single cells; every further step grows what there is by one
    cell and adds the points with the next smaller radius.
    """
    buffer = np.full(grid, np.inf, np.float32)
    place = cell[:, 1] * grid[1] + cell[:, 0]
    for step in range(int(radius.max(initial=0)), -1, -1):
        here = radius == step
        np.minimum.at(buffer.reshape(-1), place[here], depth_m[here])
        if step > 0:
            buffer = _grown(buffer, growth)
    return buffer


def _grown(buffer: np.ndarray, growth: float) -> np.ndarray:
    """Take the minimum of each cell and of its eight neighbours times `growth`."""
    wide = buffer.copy()
    np.minimum(wide[:, 1:], buffer[:, :-1], out=wide[:, 1:])
    np.minimum(wide[:, :-1], buffer[:, 1:], out=wide[:, :-1])
    grown = wide.copy()
    np.minimum(grown[1:], wide[:-1], out=grown[1:])
    np.minimum(grown[:-1], wide[1:], out=grown[:-1])
    grown *= np.float32(growth)
    return np.minimum(buffer, grown, out=grown)
