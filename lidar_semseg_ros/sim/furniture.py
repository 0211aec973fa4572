"""Things that stand, hang and sit in buildings. Each stands on z = 0 around the origin, its back towards −y."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np

from lidar_semseg_ros.sim.shapes import Mesh, Surface

WALL, FLOOR, CEILING, COLUMN, BEAM, DOOR, STAIR, TABLE, CHAIR, SOFA, CABINET, DISPLAY, LIGHT, VEGETATION, BOARD = range(
    15
)
OTHER, PERSON = 15, 16
"""Class ids of config/classes/indoor17.yaml."""

Rng = np.random.Generator
Thing = tuple[Mesh, tuple[float, float]]
"""A mesh and its footprint (width along x, depth along y) in metres."""


def painted(
    rng: Rng, class_id: int, hue: tuple[float, float], saturation: float, value: tuple[float, float]
) -> Surface:
    """Draw a colour; lidars see near infrared, where reflectivity only loosely follows what the eye sees."""
    brightness = rng.uniform(*value)
    rgb = colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, saturation * rng.uniform(0.5, 1.0), brightness)
    reflectivity = np.clip(0.15 + 0.6 * brightness + rng.normal(0, 0.12), 0.04, 0.95)
    return Surface(
        class_id=class_id,
        color=(int(rgb[0] * 255), int(rgb[1] * 255), int(rgb[2] * 255)),
        reflectivity=float(reflectivity),
    )


def wooden(rng: Rng, class_id: int) -> Surface:
    """Draw a wood: beech to walnut, or painted white."""
    if rng.random() < 0.3:
        return painted(rng, class_id, (0.0, 1.0), 0.05, (0.75, 0.95))
    return painted(rng, class_id, (0.06, 0.11), 0.6, (0.35, 0.85))


def metal(rng: Rng, class_id: int) -> Surface:
    """Draw a metal or a dark plastic."""
    return painted(rng, class_id, (0.55, 0.65), 0.1, (0.1, 0.7))


def fabric(rng: Rng, class_id: int) -> Surface:
    """Draw a cloth of any colour."""
    return painted(rng, class_id, (0.0, 1.0), 0.6, (0.15, 0.8))


def _four_legs(mesh: Mesh, surface: Surface, width: float, depth: float, height: float, thickness: float) -> None:
    for x in (-1, 1):
        for y in (-1, 1):
            place = (x * (width / 2 - thickness), y * (depth / 2 - thickness), height / 2)
            mesh.box(surface, place, (thickness, thickness, height))


def table(rng: Rng) -> Thing:
    """Make a table with four legs, a trestle or a pedestal, sometimes round."""
    mesh, surface, legs = Mesh(), wooden(rng, TABLE), metal(rng, TABLE)
    height = rng.uniform(0.68, 0.78) if rng.random() < 0.8 else rng.uniform(0.38, 0.5)
    width, depth = rng.uniform(0.8, 2.0), rng.uniform(0.6, 1.0)
    if rng.random() < 0.3:
        radius = rng.uniform(0.4, 0.7)
        mesh.prism(surface, (0, 0, height - 0.03), radius, 0.03, sides=16)
        mesh.prism(legs, (0, 0, 0.02), 0.05, height - 0.05)
        mesh.prism(legs, (0, 0, 0), radius * 0.6, 0.03, sides=12)
        return mesh, (2 * radius, 2 * radius)
    mesh.box(surface, (0, 0, height - 0.015), (width, depth, 0.03))
    if rng.random() < 0.7:
        _four_legs(mesh, legs, width, depth, height - 0.03, rng.uniform(0.03, 0.07))
    else:
        for x in (-1, 1):
            mesh.box(surface, (x * (width / 2 - 0.05), 0, height / 2 - 0.02), (0.04, depth * 0.9, height - 0.04))
    small_things = Mesh()
    _lay_out(small_things, rng, width, depth)
    mesh.at(small_things, 0, 0, height)
    return mesh, (width, depth)


def chair(rng: Rng) -> Thing:
    """Make a chair with legs, or an office chair on castors."""
    mesh, seat, legs = Mesh(), fabric(rng, CHAIR), metal(rng, CHAIR)
    width, depth, height = rng.uniform(0.4, 0.52), rng.uniform(0.4, 0.5), rng.uniform(0.42, 0.5)
    back = rng.uniform(0.35, 0.6)
    mesh.box(seat, (0, 0, height - 0.03), (width, depth, 0.06))
    mesh.box(seat, (0, -depth / 2 + 0.03, height + back / 2 + 0.06), (width * 0.92, 0.05, back))
    if rng.random() < 0.5:
        _four_legs(mesh, legs, width, depth, height - 0.06, 0.035)
    else:
        mesh.prism(legs, (0, 0, 0.08), 0.04, height - 0.12)
        for angle in np.arange(5) * 2 * np.pi / 5:
            mesh.box(legs, (0.15 * np.cos(angle), 0.15 * np.sin(angle), 0.06), (0.3, 0.05, 0.05), yaw=angle)
    if rng.random() < 0.4:
        for x in (-1, 1):
            mesh.box(legs, (x * (width / 2 + 0.02), 0, height + 0.2), (0.05, depth * 0.7, 0.03))
            mesh.box(legs, (x * (width / 2 + 0.02), 0.05, height + 0.08), (0.04, 0.04, 0.22))
    return mesh, (width + 0.1, depth + 0.1)


def sofa(rng: Rng) -> Thing:
    """Make a sofa or an armchair."""
    mesh, cloth = Mesh(), fabric(rng, SOFA)
    width, depth = rng.choice([rng.uniform(0.8, 1.0), rng.uniform(1.5, 2.3)]), rng.uniform(0.75, 0.95)
    mesh.box(cloth, (0, 0.05, 0.25), (width, depth - 0.1, 0.32))
    mesh.box(cloth, (0, -depth / 2 + 0.1, 0.5), (width, 0.2, rng.uniform(0.6, 0.75)))
    for x in (-1, 1):
        mesh.box(cloth, (x * (width / 2 - 0.07), 0, 0.38), (0.14, depth, 0.42))
    for cushion in range(max(1, round(width / 0.7))):
        x = -width / 2 + (cushion + 0.5) * width / max(1, round(width / 0.7))
        mesh.box(cloth, (x, -depth / 2 + 0.25, 0.6), (width / 4, 0.12, 0.3), tilt=0.1)
    return mesh, (width, depth)


def cabinet(rng: Rng) -> Thing:
    """Make a closed cabinet, a sideboard or a wardrobe, with gaps between its doors."""
    mesh, wood = Mesh(), wooden(rng, CABINET)
    width, depth = rng.uniform(0.6, 1.8), rng.uniform(0.35, 0.6)
    height = rng.choice([rng.uniform(0.7, 1.2), rng.uniform(1.7, 2.2)])
    mesh.box(wood, (0, -0.01, height / 2), (width, depth - 0.02, height))
    doors = max(1, round(width / 0.5))
    for door in range(doors):
        x = -width / 2 + (door + 0.5) * width / doors
        mesh.box(wood, (x, depth / 2, height / 2), (width / doors - 0.02, 0.02, height - 0.06))
        mesh.box(metal(rng, CABINET), (x + 0.1, depth / 2 + 0.02, height / 2), (0.02, 0.03, 0.12))
    return mesh, (width, depth + 0.05)


def shelf(rng: Rng) -> Thing:
    """Make an open shelf with books and boxes in it."""
    mesh, wood = Mesh(), wooden(rng, CABINET)
    width, depth, height = rng.uniform(0.7, 1.6), rng.uniform(0.25, 0.4), rng.uniform(1.2, 2.2)
    for x in (-1, 1):
        mesh.box(wood, (x * width / 2, 0, height / 2), (0.03, depth, height))
    if rng.random() < 0.6:
        mesh.box(wood, (0, -depth / 2, height / 2), (width, 0.015, height))
    boards = int(rng.integers(3, 6))
    for board in range(boards + 1):
        z = 0.05 + board * (height - 0.07) / boards
        mesh.box(wood, (0, 0, z), (width, depth, 0.025))
        x = -width / 2 + 0.05
        while board < boards and x < width / 2 - 0.15 and rng.random() < 0.9:
            thick = rng.uniform(0.04, 0.25)
            tall = rng.uniform(0.12, 0.28)
            mesh.box(fabric(rng, CABINET), (x + thick / 2, 0.02, z + tall / 2), (thick, depth * 0.7, tall))
            x += thick + rng.choice([0.005, 0.15])
    return mesh, (width, depth)


def screen(rng: Rng, width: float) -> Mesh:
    """Make a flat display of a width, its back at y = 0, its middle at z = 0."""
    mesh = Mesh()
    dark = Surface(class_id=DISPLAY, color=(20, 22, 28), reflectivity=float(rng.uniform(0.04, 0.15)))
    frame = metal(rng, DISPLAY)
    mesh.box(frame, (0, 0.02, 0), (width, 0.04, width * 0.6))
    mesh.box(dark, (0, 0.045, 0), (width - 0.03, 0.01, width * 0.6 - 0.03))
    return mesh


def desk(rng: Rng) -> Thing:
    """Make a desk with one or two displays, a chair before it and small things on it."""
    mesh, wood, legs = Mesh(), wooden(rng, TABLE), metal(rng, TABLE)
    width, depth, height = rng.uniform(1.2, 1.9), rng.uniform(0.65, 0.85), rng.uniform(0.7, 0.76)
    mesh.box(wood, (0, -0.4, height - 0.015), (width, depth, 0.03))
    for x in (-1, 1):
        mesh.box(legs, (x * (width / 2 - 0.06), -0.4, height / 2), (0.06, depth * 0.85, height - 0.03))
    if rng.random() < 0.5:
        mesh.box(wood, (0, -0.4 - depth / 2 + 0.02, height * 0.65), (width * 0.9, 0.02, height * 0.5))
    for index in range(int(rng.integers(1, 3))):
        x = (index - 0.3) * 0.6
        size = rng.uniform(0.45, 0.65)
        mesh.at(screen(rng, size), x, -0.55, height + 0.1 + size * 0.3, yaw=rng.uniform(-0.3, 0.3))
        mesh.box(metal(rng, DISPLAY), (x, -0.54, height + 0.07), (0.06, 0.05, 0.14))
        mesh.box(metal(rng, DISPLAY), (x, -0.52, height + 0.008), (0.22, 0.18, 0.016))
    seat, _ = chair(rng)
    mesh.at(seat, rng.uniform(-0.2, 0.2), 0.35, yaw=np.pi + rng.uniform(-0.6, 0.6))
    small_things = Mesh()
    _lay_out(small_things, rng, width, depth)
    mesh.at(small_things, 0, -0.4, height)
    return mesh, (width, depth + 1.0)


def _lay_out(mesh: Mesh, rng: Rng, width: float, depth: float) -> None:
    """Put books, boxes, bottles, laptops and pots on a table top of a size, at z = 0."""
    for _ in range(int(rng.integers(0, 7))):
        x, y = rng.uniform(-0.45, 0.45) * width, rng.uniform(-0.4, 0.4) * depth
        yaw, kind = rng.normal(0, 0.4), rng.integers(5)
        if kind == 0:
            size = rng.uniform((0.12, 0.1, 0.03), (0.4, 0.3, 0.35))
            mesh.box(fabric(rng, OTHER), (x, y, size[2] / 2), tuple(size), yaw)
        elif kind == 1:
            mesh.prism(metal(rng, OTHER), (x, y, 0), rng.uniform(0.03, 0.06), rng.uniform(0.08, 0.3))
        elif kind == 2:
            mesh.box(metal(rng, DISPLAY), (x, y, 0.01), (0.33, 0.23, 0.02), yaw)
            mesh.box(metal(rng, DISPLAY), (x, y, 0.12), (0.012, 0.32, 0.22), yaw + np.pi / 2, tilt=-0.25)
        elif kind == 3:
            for book in range(int(rng.integers(1, 5))):
                mesh.box(fabric(rng, OTHER), (x, y, 0.015 + 0.03 * book), (0.22, 0.3, 0.03), yaw + rng.normal(0, 0.1))
        else:
            mesh.prism(fabric(rng, OTHER), (x, y, 0), 0.06, 0.1, top=1.2)
            mesh.leaves(
                painted(rng, VEGETATION, (0.25, 0.38), 0.7, (0.3, 0.65)),
                rng,
                np.array([x, y, 0.2]),
                np.array([0.12, 0.12, 0.12]),
                60,
            )


def desk_island(rng: Rng) -> Thing:
    """Make two to six desks back to back, often with screens of cloth between them, as in open-plan offices."""
    mesh, screen_cloth = Mesh(), fabric(rng, OTHER)
    pitch, pairs = rng.uniform(1.5, 2.0), int(rng.integers(1, 4))
    has_screens, height = rng.random() < 0.6, rng.uniform(1.05, 1.5)
    for pair in range(pairs):
        x = (pair - (pairs - 1) / 2) * pitch
        for side in (0, 1):
            place, _ = desk(rng)
            mesh.at(place, x, 0.85 if side == 0 else -0.85, yaw=np.pi * side)
            if rng.random() < 0.2:
                someone, _ = person(rng)
                mesh.at(someone, x + 0.5, 1.3 if side == 0 else -1.3, yaw=rng.uniform(-np.pi, np.pi))
    if has_screens:
        mesh.box(screen_cloth, (0, 0, height / 2 + 0.2), (pairs * pitch, 0.04, height - 0.4))
    return mesh, (pairs * pitch, 3.4)


def meeting_table(rng: Rng) -> Thing:
    """Make a long table with chairs on both sides."""
    mesh, wood = Mesh(), wooden(rng, TABLE)
    width, depth, height = rng.uniform(1.6, 3.2), rng.uniform(0.9, 1.3), rng.uniform(0.7, 0.76)
    mesh.box(wood, (0, 0, height - 0.02), (width, depth, 0.04))
    for x in (-1, 1):
        mesh.box(metal(rng, TABLE), (x * width * 0.35, 0, height / 2), (0.08, depth * 0.6, height - 0.04))
    for x in np.arange(-width / 2 + 0.35, width / 2 - 0.2, 0.65):
        for side in (-1, 1):
            if rng.random() < 0.85:
                seat, _ = chair(rng)
                out = side * (depth / 2 + rng.uniform(0.05, 0.3))
                mesh.at(seat, x, out, yaw=(np.pi if side > 0 else 0) + rng.uniform(-0.3, 0.3))
    return mesh, (width + 0.2, depth + 1.3)


def plant(rng: Rng) -> Thing:
    """Make a pot with a bush or a small tree."""
    mesh = Mesh()
    green = painted(rng, VEGETATION, (0.25, 0.38), 0.7, (0.3, 0.65))
    green = Surface(class_id=VEGETATION, color=green.color, reflectivity=float(rng.uniform(0.4, 0.7)))
    radius, pot, tall = rng.uniform(0.12, 0.25), rng.uniform(0.2, 0.45), rng.uniform(0.4, 1.5)
    mesh.prism(fabric(rng, OTHER), (0, 0, 0), radius * 0.8, pot, top=1.25)
    stem = Surface(class_id=VEGETATION, color=(90, 70, 40), reflectivity=0.4)
    mesh.prism(stem, (0, 0, pot), 0.025, tall * 0.6, sides=5)
    spread = np.array([rng.uniform(0.2, 0.45)] * 2 + [tall * 0.5])
    mesh.leaves(green, rng, np.array([0, 0, pot + tall * 0.6]), spread, int(rng.integers(200, 600)))
    return mesh, (float(spread[0]) * 2, float(spread[0]) * 2)


def person(rng: Rng) -> Thing:
    """Make a standing, walking or sitting person of ellipsoids."""
    mesh = Mesh()
    shirt, trousers, skin = (
        fabric(rng, PERSON),
        fabric(rng, PERSON),
        painted(rng, PERSON, (0.04, 0.09), 0.5, (0.4, 0.9)),
    )
    scale = rng.uniform(0.9, 1.08)
    if rng.random() < 0.15:
        seat, _ = chair(rng)
        mesh.at(seat, 0, 0)
        mesh.ellipsoid(shirt, (0, -0.05, 0.78), (0.2, 0.13, 0.33))
        mesh.ellipsoid(skin, (0, 0, 1.24), (0.09, 0.1, 0.13))
        for x in (-0.1, 0.1):
            mesh.box(trousers, (x, 0.2, 0.52), (0.13, 0.45, 0.13))
            mesh.box(trousers, (x, 0.4, 0.24), (0.11, 0.11, 0.48))
            mesh.ellipsoid(shirt, (x * 2.4, 0.1, 0.75), (0.05, 0.22, 0.06))
        return mesh, (0.7, 0.9)
    stride = rng.uniform(0, 0.5)
    for side in (-1, 1):
        lean = side * stride
        # A leg turns about the hip, an arm about the shoulder, against each other.
        leg = (side * 0.09, np.sin(lean) * 0.42 * scale, (0.84 - 0.42 * np.cos(lean)) * scale)
        mesh.ellipsoid(trousers, leg, (0.075, 0.08, 0.45 * scale), yaw=np.pi / 2, tilt=-lean)
        arm = (side * 0.25, -np.sin(lean) * 0.25 * scale, (1.36 - 0.28 * np.cos(lean)) * scale)
        mesh.ellipsoid(shirt, arm, (0.05, 0.05, 0.32 * scale), yaw=np.pi / 2, tilt=lean)
        mesh.box(trousers, (leg[0], 2 * leg[1] + 0.05, 0.04), (0.09, 0.25, 0.08))
    mesh.ellipsoid(shirt, (0, 0, 1.15 * scale), (0.21, 0.13, 0.36 * scale))
    mesh.ellipsoid(skin, (0, 0.01, 1.62 * scale), (0.085, 0.1, 0.13))
    return mesh, (0.6, 0.7)


def floor_lamp(rng: Rng) -> Thing:
    """Make a lamp on a pole."""
    mesh, pole = Mesh(), metal(rng, LIGHT)
    height = rng.uniform(1.3, 1.8)
    mesh.prism(pole, (0, 0, 0), 0.15, 0.03)
    mesh.prism(pole, (0, 0, 0), 0.015, height, sides=6)
    mesh.prism(
        Surface(class_id=LIGHT, color=(255, 244, 214), reflectivity=0.7), (0, 0, height - 0.2), 0.2, 0.3, top=0.6
    )
    return mesh, (0.4, 0.4)


def standing_board(rng: Rng) -> Thing:
    """Make a whiteboard or a poster on feet."""
    mesh, feet = Mesh(), metal(rng, BOARD)
    width, low, high = rng.uniform(0.7, 1.8), rng.uniform(0.6, 0.9), rng.uniform(1.6, 1.95)
    mesh.box(painted(rng, BOARD, (0, 1), 0.2, (0.6, 0.98)), (0, 0, (low + high) / 2), (width, 0.03, high - low))
    for x in (-1, 1):
        mesh.box(feet, (x * width * 0.45, 0, low / 2), (0.04, 0.04, low))
        mesh.box(feet, (x * width * 0.45, 0, 0.03), (0.05, 0.5, 0.05))
    return mesh, (width, 0.5)


def television(rng: Rng) -> Thing:
    """Make a display on a stand."""
    mesh, stand = Mesh(), metal(rng, DISPLAY)
    mesh.at(screen(rng, rng.uniform(0.9, 1.5)), 0, 0, rng.uniform(1.1, 1.4))
    mesh.box(stand, (0, -0.02, 0.6), (0.1, 0.05, 1.2))
    mesh.box(stand, (0, 0, 0.03), (0.7, 0.5, 0.06))
    return mesh, (1.2, 0.5)


def clutter(rng: Rng) -> Thing:
    """Make a bin, a stack of boxes, a bag or a fire extinguisher."""
    mesh, kind = Mesh(), rng.integers(4)
    if kind == 0:
        mesh.prism(fabric(rng, OTHER), (0, 0, 0), rng.uniform(0.12, 0.2), rng.uniform(0.3, 0.7), top=1.15)
        return mesh, (0.4, 0.4)
    if kind == 1:
        z = 0.0
        for _ in range(int(rng.integers(1, 4))):
            size = rng.uniform((0.25, 0.25, 0.2), (0.6, 0.5, 0.45))
            mesh.box(
                painted(rng, OTHER, (0.07, 0.1), 0.5, (0.5, 0.75)),
                (0, 0, z + size[2] / 2),
                tuple(size),
                rng.normal(0, 0.2),
            )
            z += size[2]
        return mesh, (0.7, 0.6)
    if kind == 2:
        mesh.ellipsoid(fabric(rng, OTHER), (0, 0, 0.2), (0.25, 0.15, 0.2))
        return mesh, (0.5, 0.3)
    mesh.prism(painted(rng, OTHER, (0.98, 1.01), 0.9, (0.6, 0.9)), (0, 0, 0.05), 0.08, 0.5)
    mesh.ellipsoid(metal(rng, OTHER), (0, 0, 0.6), (0.06, 0.06, 0.08))
    return mesh, (0.25, 0.25)


def counter(rng: Rng) -> Thing:
    """Make a reception or kitchen counter."""
    mesh = Mesh()
    width, depth, height = rng.uniform(1.5, 3.5), rng.uniform(0.5, 0.8), rng.uniform(0.85, 1.15)
    mesh.box(wooden(rng, OTHER), (0, 0, height / 2), (width, depth, height - 0.04))
    mesh.box(wooden(rng, OTHER), (0, 0, height - 0.02), (width + 0.06, depth + 0.06, 0.04))
    return mesh, (width, depth)


def stairs(rng: Rng) -> Thing:
    """Make a flight of stairs going up towards −y, with a railing."""
    mesh, stone, rail = Mesh(), painted(rng, STAIR, (0, 1), 0.1, (0.4, 0.8)), metal(rng, OTHER)
    width, rise, run, steps = (
        rng.uniform(1.1, 1.8),
        rng.uniform(0.15, 0.18),
        rng.uniform(0.26, 0.32),
        int(rng.integers(8, 15)),
    )
    for step in range(steps):
        y = steps * run / 2 - (step + 0.5) * run
        height = rise * (step + 1)
        mesh.box(stone, (0, y, height - rise / 2 - 0.03), (width, run + 0.03, rise + 0.06))
    length, tall = steps * run, steps * rise
    slope = float(np.arctan2(tall, length))
    for x in (-1, 1):
        mesh.box(rail, (x * width / 2, 0, tall / 2 + 0.95), (np.hypot(length, tall), 0.04, 0.05), np.pi / 2, slope)
        for post in np.linspace(-0.45, 0.45, 6):
            mesh.box(rail, (x * width / 2, post * length, tall * (0.5 - post) + 0.45), (0.03, 0.03, 1.0))
    return mesh, (width + 0.1, steps * run)


STANDING: dict[str, Callable[[Rng], Thing]] = {
    "table": table,
    "chair": chair,
    "sofa": sofa,
    "cabinet": cabinet,
    "shelf": shelf,
    "desk": desk,
    "desk_island": desk_island,
    "meeting_table": meeting_table,
    "plant": plant,
    "person": person,
    "floor_lamp": floor_lamp,
    "standing_board": standing_board,
    "television": television,
    "clutter": clutter,
    "counter": counter,
    "stairs": stairs,
}
