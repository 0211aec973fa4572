"""Solids as triangles, with what a lidar and a camera need to know of their surface."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_BOX_FACES = np.array(
    [
        [0, 1, 3],
        [0, 3, 2],
        [4, 6, 7],
        [4, 7, 5],
        [0, 4, 5],
        [0, 5, 1],
        [2, 3, 7],
        [2, 7, 6],
        [0, 2, 6],
        [0, 6, 4],
        [1, 5, 7],
        [1, 7, 3],
    ]
)


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What a solid is made of. color: 0..255. reflectivity: 0..1. glass: lets most of a lidar's light through."""

    class_id: int
    color: tuple[int, int, int]
    reflectivity: float = 0.5
    glass: bool = False


@dataclass
class Mesh:
    """Triangles collected solid by solid, in a local frame that `at` places."""

    triangles: list[np.ndarray] = field(default_factory=list)
    surfaces: list[Surface] = field(default_factory=list)

    def add(self, triangles: np.ndarray, surface: Surface) -> None:
        """Add (T, 3, 3) triangles of one surface."""
        self.triangles.append(triangles)
        self.surfaces.append(surface)

    def box(
        self, surface: Surface, center: tuple[float, ...], size: tuple[float, ...], yaw: float = 0.0, tilt: float = 0.0
    ) -> None:
        """Add a box; tilt turns it about its y axis, then yaw about z."""
        corners = (_CORNERS * size) @ _turn(yaw, tilt).T + center
        self.add(corners[_BOX_FACES], surface)

    def prism(
        self,
        surface: Surface,
        center: tuple[float, ...],
        radius: float,
        height: float,
        sides: int = 10,
        top: float = 1.0,
    ) -> None:
        """Add an upright prism or, with a narrower top, a frustum; center is the middle of its bottom."""
        angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
        circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(sides)], axis=1) * radius
        low, high = circle + center, circle * (top, top, 1) + center + np.array([0, 0, height])
        after = np.roll(np.arange(sides), -1)
        middle_low = np.broadcast_to(low.mean(axis=0), low.shape)
        middle_high = np.broadcast_to(high.mean(axis=0), high.shape)
        faces = [(low, low[after], high[after]), (low, high[after], high)]
        faces += [(low[after], low, middle_low), (high, high[after], middle_high)]
        self.add(np.concatenate([np.stack(face, axis=1) for face in faces]), surface)

    def ellipsoid(
        self, surface: Surface, center: tuple[float, ...], radii: tuple[float, ...], yaw: float = 0.0, tilt: float = 0.0
    ) -> None:
        """Add an ellipsoid of 10 × 6 facets."""
        u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 11), np.linspace(0, np.pi, 7), indexing="ij")
        unit = np.stack([np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v)], axis=-1)
        grid = (unit * radii) @ _turn(yaw, tilt).T + center
        a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
        faces = [np.stack(face, axis=2).reshape(-1, 3, 3) for face in ((a, b, c), (a, c, d))]
        self.add(np.concatenate(faces), surface)

    def leaves(
        self, surface: Surface, rng: np.random.Generator, center: np.ndarray, radii: np.ndarray, count: int
    ) -> None:
        """Add randomly turned leaf triangles, dense towards the border of an ellipsoid."""
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        position = center + direction * radii * rng.uniform(0.4, 1.0, (count, 1))
        size = rng.uniform(0.02, 0.07, (count, 1, 1))
        self.add(position[:, None] + rng.normal(size=(count, 3, 3)) * size, surface)

    def at(self, other: Mesh, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> None:
        """Put another mesh into this one."""
        turn = _turn(yaw, 0.0).T
        for triangles, surface in zip(other.triangles, other.surfaces):
            self.add(triangles @ turn + (x, y, z), surface)


def _turn(yaw: float, tilt: float) -> np.ndarray:
    c, s, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[ct, 0, st], [0, 1, 0], [-st, 0, ct]])
