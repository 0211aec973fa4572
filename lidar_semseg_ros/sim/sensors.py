"""Lidars and cameras in a building, by ray casting."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.core.geometry import quaternion_from_rotation, rotation_from_quaternion
from lidar_semseg_ros.sim.building import Building
from lidar_semseg_ros.sim.furniture import LIGHT

GLASS_RETURN = 0.25
"""Share of beams that a window pane sends back at normal incidence; the others go through."""


class Scene:
    """A building ready for rays."""

    def __init__(self, building: Building) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.building = building
        edges = building.triangles[:, 1:] - building.triangles[:, :1]
        normals = np.cross(edges[:, 0], edges[:, 1])
        length = np.linalg.norm(normals, axis=1)
        self.normals, self.area_m2 = normals / np.maximum(length, 1e-12)[:, None], length / 2
        self._everything = EmbreeScene()
        TriangleMesh(self._everything, building.triangles)
        self._solid = np.flatnonzero(~building.glass).astype(np.int32)
        self._without_glass = EmbreeScene()
        TriangleMesh(self._without_glass, building.triangles[self._solid])

    def hit(
        self, origins: np.ndarray, directions: np.ndarray, through_glass: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cast (R, 3) unit rays: range_m (R,) float32, inf for none, and triangle (R,) int32, -1 for none."""
        scene = self._without_glass if through_glass else self._everything
        origins = np.ascontiguousarray(origins, np.float32)
        found = scene.run(origins, np.ascontiguousarray(directions, np.float32), query="INTERSECT", output=1)
        triangle = found["primID"]
        range_m = np.where(triangle >= 0, found["tfar"], np.inf).astype(np.float32)
        return range_m, np.where(triangle >= 0, self._solid[triangle], -1) if through_glass else triangle


@dataclass(frozen=True, kw_only=True)
class LidarModel:
    """A lidar's beams and errors, after its data sheet.

    elevations_deg: one per ring, in the order of the driver's rings. columns: firings per turn.
    rosette: a Livox that draws another pattern in every sweep, of `columns` points, instead of rings.
    no_return: what the driver writes for a beam without a return, 0 or NaN.
    """

    elevations_deg: tuple[float, ...]
    columns: int
    range_noise_m: float
    min_range_m: float
    max_range_m: float
    rosette: bool = False
    no_return: float = 0.0
    dropout: float = 0.005
    period_s: float = 0.1


def _spread(low: float, high: float, rings: int) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, rings))


LIDARS = {
    "VLP-16": LidarModel(
        elevations_deg=_spread(-15, 15, 16),
        columns=1800,
        range_noise_m=0.012,
        min_range_m=0.4,
        max_range_m=100,
        no_return=np.nan,
    ),
    "OS1-64": LidarModel(
        elevations_deg=_spread(22.5, -22.5, 64), columns=1024, range_noise_m=0.01, min_range_m=0.3, max_range_m=120
    ),
    "OS0-128": LidarModel(
        elevations_deg=_spread(45, -45, 128), columns=1024, range_noise_m=0.015, min_range_m=0.3, max_range_m=50
    ),
    "XT-32": LidarModel(
        elevations_deg=_spread(15, -16, 32), columns=2000, range_noise_m=0.006, min_range_m=0.05, max_range_m=120
    ),
    "PandarQT64": LidarModel(
        elevations_deg=_spread(52, -52, 64), columns=600, range_noise_m=0.02, min_range_m=0.1, max_range_m=60
    ),
    "Mid-360": LidarModel(
        elevations_deg=(-7.0, 52.0), columns=20000, range_noise_m=0.015, min_range_m=0.1, max_range_m=40, rosette=True
    ),
}
"""By product name. Beams are evenly spaced, which the data sheets state within a tenth of a degree."""
KNOWN_LIDARS = f"{', '.join(LIDARS)}, or RINGSxCOLUMNS, such as 128x2048, for an OS1 of another resolution"


def lidar_named(name: str) -> LidarModel:
    """Give one of LIDARS, or an OS1 of a resolution; UserError for others."""
    if name in LIDARS:
        return LIDARS[name]
    resolution = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if resolution is None:
        raise UserError(f"a simulated lidar is {KNOWN_LIDARS}; got '{name}'")
    return scanner(int(resolution[1]), int(resolution[2]))


def scanner(rings: int, columns: int) -> LidarModel:
    """Make an OS1 of another resolution."""
    return replace(LIDARS["OS1-64"], elevations_deg=_spread(22.5, -22.5, rings), columns=columns)


def beams(lidar: LidarModel, sweep_index: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int], np.ndarray]:
    """Give directions (N, 3) in the sensor's frame, ring (N,), the cloud's shape, and time (N,) as share of a sweep."""
    if not lidar.rosette:
        return _ring_beams(lidar)
    phase = (sweep_index * lidar.columns + np.arange(lidar.columns)) / lidar.columns
    share = np.arange(lidar.columns) / lidar.columns
    # Two incommensurate turns: the head's about z and the prism's, which lifts the beam; four lasers side by side.
    azimuth = 2 * np.pi * (phase * 19.618) + (np.arange(lidar.columns) % 4) * 0.6
    low, high = np.radians(lidar.elevations_deg)
    elevation = low + (high - low) * (0.5 - 0.5 * np.cos(2 * np.pi * phase * 253.4142))
    ring = (np.arange(lidar.columns) % 4).astype(np.uint16)
    return _directions(azimuth, elevation), ring, (1, lidar.columns), share


@lru_cache(maxsize=8)
def _ring_beams(lidar: LidarModel) -> tuple[np.ndarray, np.ndarray, tuple[int, int], np.ndarray]:
    rings = len(lidar.elevations_deg)
    share = np.arange(lidar.columns) / lidar.columns
    # Spinning lidars turn clockwise seen from above; the sweep starts behind.
    azimuth = np.broadcast_to(np.pi - 2 * np.pi * share, (rings, lidar.columns))
    elevation = np.broadcast_to(np.radians(lidar.elevations_deg)[:, None], azimuth.shape)
    ring = np.repeat(np.arange(rings, dtype=np.uint16), lidar.columns)
    return _directions(azimuth.ravel(), elevation.ravel()), ring, (rings, lidar.columns), np.tile(share, rings)


def _directions(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    flat = np.cos(elevation)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)


def scan(
    scene: Scene,
    lidar: LidarModel,
    map_from_lidar_start: np.ndarray,
    map_from_lidar_end: np.ndarray,
    stamp_ns: int,
    frame_id: str,
    sweep_index: int,
    rng: np.random.Generator,
) -> tuple[LidarFrame, np.ndarray]:
    """Take one sweep while the sensor moves: the sweep and the exact class of every row, (N,) uint8.

    Each point is measured from the pose at its own time and given in the sensor's frame of that time, as a driver does
    that does not undo the motion. The stamp is the start of the sweep.
    """
    directions, ring, shape, share = beams(lidar, sweep_index)
    rotations, origins, pose = _poses_along(map_from_lidar_start, map_from_lidar_end, share)
    world = np.einsum("nij,nj->ni", rotations[pose], directions) if len(rotations) > 1 else directions @ rotations[0].T
    range_m, triangle = _measure(scene, origins[pose], world, rng)
    hit = triangle >= 0
    incidence = np.abs(np.einsum("ij,ij->i", scene.normals[triangle], world))
    reflectivity = scene.building.reflectivity[triangle]
    # Weak returns (dark or grazed surfaces, far away) are lost more often.
    strength = reflectivity * incidence / (1 + (range_m / lidar.max_range_m * 2) ** 2)
    lost = rng.random(len(world)) < lidar.dropout + 0.7 * np.exp(-strength / 0.012)
    range_m = range_m + rng.normal(0, lidar.range_noise_m, len(range_m)).astype(np.float32)
    hit &= ~lost & (range_m > lidar.min_range_m) & (range_m < lidar.max_range_m)
    xyz = np.where(hit[:, None], directions * np.where(hit, range_m, 0)[:, None], lidar.no_return)
    brightness = 255 * reflectivity * (0.25 + 0.75 * incidence) * rng.normal(0.6, 0.04, len(world))
    labels = np.where(hit, scene.building.class_id[triangle], UNLABELLED).astype(np.uint8)
    frame = LidarFrame(
        stamp_ns=stamp_ns,
        frame_id=frame_id,
        xyz=xyz.astype(np.float32),
        intensity=np.where(hit, np.clip(np.round(brightness), 0, 255), 0).astype(np.float32),
        ring=ring,
        time_s=(share * lidar.period_s).astype(np.float32),
        shape=shape,
    )
    return frame, labels


def _measure(
    scene: Scene, origins: np.ndarray, directions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cast rays of which most pass through glass, the more the steeper they meet it."""
    range_m, triangle = scene.hit(origins, directions)
    at_glass = np.flatnonzero((triangle >= 0) & scene.building.glass[triangle])
    normal = np.einsum("ij,ij->i", scene.normals[triangle[at_glass]], directions[at_glass])
    through = at_glass[rng.random(len(at_glass)) > GLASS_RETURN * np.abs(normal) ** 4]
    if len(through):
        range_m[through], triangle[through] = scene.hit(origins[through], directions[through], through_glass=True)
    return range_m, triangle


def _poses_along(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolate poses in 64 steps: rotations (S, 3, 3), origins (S, 3), and the step of each point (N,)."""
    if np.array_equal(start, end):
        return start[None, :3, :3], start[None, :3, 3], np.zeros(len(share), np.int64)
    steps = (np.arange(64) + 0.5) / 64
    first, last = quaternion_from_rotation(start[:3, :3]), quaternion_from_rotation(end[:3, :3])
    last = last if first @ last >= 0 else -last
    rotations = np.stack([rotation_from_quaternion(first + (last - first) * step) for step in steps])
    origins = start[:3, 3] + (end[:3, 3] - start[:3, 3]) * steps[:, None]
    return rotations, origins, (share * 64).astype(np.int64)


def render(
    scene: Scene, camera: PinholeCamera, map_from_camera: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Render an image (H, W, 3) uint8 and the exact class of every pixel (H, W) uint8."""
    directions = _pixel_rays(camera.width, camera.height, camera.matrix.tobytes(), camera.distortion.tobytes())
    rotation, origin = map_from_camera[:3, :3], map_from_camera[:3, 3]
    world = directions @ rotation.T
    origins = np.broadcast_to(origin, world.shape)
    range_m, triangle = scene.hit(origins, world, through_glass=True)
    building = scene.building
    normals = scene.normals[triangle]
    facing = np.abs(np.einsum("ij,ij->i", normals, world))
    points = origin + world * np.where(np.isfinite(range_m), range_m, 0)[:, None]
    # Light from the ceiling and from the camera, a little darker in the distance; grain fixed to the surface.
    light = 0.35 + 0.3 * np.abs(normals[:, 2]) + 0.35 * facing
    light *= 1 / (1 + 0.0015 * np.minimum(range_m, 60) ** 2)
    grain = np.sin(points[:, 0] * 91.7 + np.sin(points[:, 1] * 73.1)) * np.sin(
        points[:, 1] * 57.3 + points[:, 2] * 83.9
    )
    light *= 1 + 0.05 * grain
    light = np.where(building.class_id[triangle] == LIGHT, 1.25, light)
    color = building.color[triangle] * light[:, None]
    color[triangle < 0] = (176, 205, 235)
    color += rng.normal(0, 2.5, color.shape)
    labels = np.where(triangle >= 0, building.class_id[triangle], UNLABELLED).astype(np.uint8)
    size = (camera.height, camera.width)
    return np.clip(color, 0, 255).astype(np.uint8).reshape(*size, 3), labels.reshape(size)


@lru_cache(maxsize=8)
def _pixel_rays(width: int, height: int, matrix: bytes, distortion: bytes) -> np.ndarray:
    """Find the unit ray of every pixel, (H · W, 3), by inverting the distortion step by step."""
    k = np.frombuffer(matrix).reshape(3, 3)
    k1, k2, p1, p2, k3 = np.frombuffer(distortion)
    v, u = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
    bent_y = (v - k[1, 2]) / k[1, 1]
    bent_x = (u - k[0, 2] - k[0, 1] * bent_y) / k[0, 0]
    x, y = bent_x, bent_y
    for _ in range(20):
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        x, y = (
            (bent_x - 2 * p1 * x * y - p2 * (r2 + 2 * x * x)) / radial,
            (bent_y - p1 * (r2 + 2 * y * y) - 2 * p2 * x * y) / radial,
        )
    rays = np.stack([x, y, np.ones_like(x)], axis=1)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)
