"""A robot that drives through a building and measures; and single views of many buildings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import OPTICAL_FROM_BODY, rigid, rotation_from_rpy
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.sim.building import Building, make_building
from lidar_semseg_ros.sim.furniture import CABINET, OTHER, TABLE
from lidar_semseg_ros.sim.sensors import KNOWN_LIDARS, LIDARS, LidarModel, Scene, lidar_named, render, scan

START_NS = 1_700_000_000_000_000_000
CAMERA_DELAY_S = 0.033
TURN_M, ROUNDING_M, SAMPLED_EVERY_M = 1.2, 0.35, 0.02
"""Over how much of its way the robot turns, by how much it cuts corners, and how finely its way is kept."""
VIEWS_PER_BUILDING = 8
"""As many of a building follow each other in an endless row of views."""
ON_FURNITURE = 0.35
"""Share of random views whose lidar stands on furniture."""


@dataclass(frozen=True, kw_only=True)
class SimConfig:
    """Settings of a simulated drive."""

    lidar: str = setting("OS1-64", f"the lidar: {KNOWN_LIDARS}")
    cameras: int = setting(1, "cameras around the robot, the first looks ahead", minimum=0, maximum=4)
    frames: int = setting(200, "sweeps to record", minimum=1)
    speed_mps: float = setting(0.8, "speed of the robot in m/s", minimum=0.0, maximum=5.0)
    lidar_height_m: float = setting(0.9, "height of the lidar above the floor", minimum=0.1, maximum=3.0)
    seed: int = setting(0, "of the building and of all noise", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera on the robot: where it is, in base_link, and its model."""

    name: str
    base_from_camera: np.ndarray
    model: PinholeCamera


@dataclass(frozen=True, kw_only=True)
class SimulatedFrame:
    """One sweep of a drive with all that is exactly known.

    labels: (N,) uint8 per row of the sweep. images: per camera its image and the class of every pixel (H, W) uint8.
    map_from_base: pose of the robot at the sweep's stamp.
    """

    frame: LidarFrame
    labels: np.ndarray
    map_from_base: np.ndarray
    base_from_lidar: np.ndarray
    images: tuple[tuple[Camera, CameraImage, np.ndarray], ...]


def drive(config: SimConfig) -> Iterator[SimulatedFrame]:
    """Drive along a building's way, there and back, at constant speed; the same seed gives the same bytes."""
    rng = np.random.default_rng(config.seed)
    building = make_building(rng)
    scene, lidar = Scene(building), lidar_named(config.lidar)
    base_from_lidar = rigid(np.eye(3), np.array([0.0, 0.0, config.lidar_height_m]))
    cameras = [_camera(index, config.lidar_height_m) for index in range(config.cameras)]
    track = _Track(building)
    for index in range(config.frames):
        stamp_ns = START_NS + round(index * lidar.period_s * 1e9)
        times_s = [index * lidar.period_s, (index + 1) * lidar.period_s, index * lidar.period_s + CAMERA_DELAY_S]
        start, end, exposed = (track.pose(time_s * config.speed_mps) for time_s in times_s)
        frame, labels = scan(
            scene, lidar, start @ base_from_lidar, end @ base_from_lidar, stamp_ns, "lidar", index, rng
        )
        images = []
        for camera in cameras:
            pixels, classes = render(scene, camera.model, exposed @ camera.base_from_camera, rng)
            image_ns = stamp_ns + round(CAMERA_DELAY_S * 1e9)
            images.append((camera, CameraImage(stamp_ns=image_ns, frame_id=camera.name, pixels=pixels), classes))
        yield SimulatedFrame(
            frame=frame, labels=labels, map_from_base=start, base_from_lidar=base_from_lidar, images=tuple(images)
        )


def random_views(
    rng: np.random.Generator, lidar: str | LidarModel | None = None
) -> Iterator[tuple[LidarFrame, np.ndarray]]:
    """Yield endless single sweeps with exact labels of ever new buildings, by a random lidar if it is None."""
    while True:
        building = BuildingViews(rng, lidar)
        for view in range(VIEWS_PER_BUILDING):
            yield building.view(rng, view)


class BuildingViews:
    """Single sweeps of one building: new places, heights, tilts and, if None, lidars.

    Most lidars stand where a robot goes; some stand on a table, a cabinet or a counter, among what lies there.
    """

    def __init__(self, rng: np.random.Generator, lidar: str | LidarModel | None = None) -> None:
        """Make up the building."""
        building = make_building(rng)
        self._scene, self._track, self._lidar = Scene(building), _Track(building), lidar

    def view(self, rng: np.random.Generator, stamp_ns: int = 0) -> tuple[LidarFrame, np.ndarray]:
        """Measure from a random place: a sweep, and its exact labels (N,) uint8."""
        place = place_on_furniture(self._scene, rng) if rng.random() < ON_FURNITURE else None
        if place is None:
            above_floor = np.array([*rng.normal(0, 0.15, 2), rng.uniform(0.25, 1.8)])
            place = (self._track.pose(rng.uniform(0, self._track.length_m)) @ rigid(np.eye(3), above_floor))[:3, 3]
        pose = rigid(rotation_from_rpy(*rng.normal(0, 0.02, 2), rng.uniform(-np.pi, np.pi)), place)
        names = list(LIDARS)
        lidar = self._lidar or names[rng.integers(len(names))]
        model = lidar_named(lidar) if isinstance(lidar, str) else lidar
        return scan(self._scene, model, pose, pose, stamp_ns, "lidar", int(rng.integers(1000)), rng)


def random_images(rng: np.random.Generator, width: int, height: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield endless images (H, W, 3) uint8 with the class of every pixel (H, W) uint8 from new buildings and places.

    Cameras look anywhere around, slightly up or down, through a wide or a narrow lens.
    """
    while True:
        building = make_building(rng)
        scene, track = Scene(building), _Track(building)
        for _ in range(VIEWS_PER_BUILDING):
            focal_px = width * rng.uniform(0.45, 1.0)
            matrix = np.array([[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1]])
            # Without distortion: each lens would need the rays of its pixels anew.
            camera = PinholeCamera(width=width, height=height, matrix=matrix, distortion=np.zeros(5))
            turn = rotation_from_rpy(rng.normal(0, 0.03), rng.normal(0, 0.15), rng.uniform(-np.pi, np.pi))
            body = rigid(turn, np.array([*rng.normal(0, 0.15, 2), rng.uniform(0.3, 1.8)]))
            place = track.pose(rng.uniform(0, track.length_m))
            yield render(scene, camera, place @ body @ rigid(OPTICAL_FROM_BODY.T, np.zeros(3)), rng)


def place_on_furniture(scene: Scene, rng: np.random.Generator) -> np.ndarray | None:
    """Find a place (3,) closely above the top of some furniture with room above it; None where there is none."""
    building = scene.building
    height_m, size_m2 = building.triangles[..., 2].max(axis=1), scene.area_m2
    top = (np.abs(scene.normals[:, 2]) > 0.99) & (height_m > 0.4) & (height_m < 1.3) & (size_m2 > 0.1)
    for triangle in rng.permutation(np.flatnonzero(top & np.isin(building.class_id, (TABLE, CABINET, OTHER))))[:10]:
        corner_weights = rng.dirichlet(np.ones(3))
        place = corner_weights @ building.triangles[triangle] + (0, 0, rng.uniform(0.05, 0.35))
        range_m, _ = scene.hit(place[None], np.array([[0.0, 0.0, 1.0]]))
        if range_m[0] > 0.6:
            return place
    return None


def _camera(index: int, height_m: float) -> Camera:
    yaw = index * np.pi / 2
    body = rigid(rotation_from_rpy(0, 0, yaw), np.array([0.12 * np.cos(yaw), 0.12 * np.sin(yaw), height_m - 0.1]))
    model = PinholeCamera(
        width=640,
        height=480,
        matrix=np.array([[380.0, 0, 319.5], [0, 380.0, 239.5], [0, 0, 1]]),
        distortion=np.array([-0.08, 0.02, 0.0005, -0.0003, 0.0]),
    )
    return Camera(name=f"camera_{index}", base_from_camera=body @ rigid(OPTICAL_FROM_BODY.T, np.zeros(3)), model=model)


class _Track:
    """The way there and back as a function of the distance driven, with rounded corners.

    The robot looks where it goes; where it turns back, at either end or in a room, it does so over TURN_M of its way.
    """

    def __init__(self, building: Building) -> None:
        legs = np.linalg.norm(np.diff(building.waypoints, axis=0), axis=1)
        keep = np.concatenate([[True], legs > 1e-6])
        corners = building.waypoints[keep].astype(np.float64)
        at_m = np.concatenate([[0], np.cumsum(legs[keep[1:]])])
        self.length_m = float(at_m[-1])
        # Somewhat more than there and back, so that what is smoothed begins as it ends.
        self._sampled_m = np.arange(-TURN_M, 2 * self.length_m + TURN_M, SAMPLED_EVERY_M)
        rounding = np.linspace(-ROUNDING_M, ROUNDING_M, 9)
        around = self._sampled_m[:, None] + rounding
        folded = self.length_m - np.abs(np.mod(around, 2 * self.length_m) - self.length_m)
        self._places = np.stack([np.interp(folded, at_m, corners[:, axis]).mean(axis=1) for axis in (0, 1)], axis=1)
        steps = np.diff(self._places, axis=0, append=self._places[-1:])
        moves = np.linalg.norm(steps, axis=1) > 1e-6  # not where it turns back
        looks = np.arctan2(steps[moves, 1], steps[moves, 0])
        turns = np.mod(np.diff(looks) + 0.9 * np.pi, 2 * np.pi) - 0.9 * np.pi  # half turns to the left
        looks = looks[0] + np.concatenate([[0], np.cumsum(turns)])
        window = round(TURN_M / SAMPLED_EVERY_M / 2) * 2 + 1
        everywhere = np.pad(np.interp(self._sampled_m, self._sampled_m[moves], looks), window // 2, mode="edge")
        self._yaws = np.convolve(everywhere, np.full(window, 1 / window), mode="valid")

    def pose(self, distance_m: float) -> np.ndarray:
        """Give map_from_base (4, 4) after a distance."""
        along_m = distance_m % (2 * self.length_m)
        x, y, yaw = (np.interp(along_m, self._sampled_m, of) for of in (*self._places.T, self._yaws))
        return rigid(rotation_from_rpy(0, 0, float(yaw)), np.array([x, y, 0.0]))
