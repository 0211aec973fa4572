"""One storey of a building, made up anew from every seed: corridor, rooms, halls, and what stands in them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.sim import furniture as fit
from lidar_semseg_ros.sim.shapes import Mesh, Surface

Rng = np.random.Generator

PATH_CLEARANCE_M = 0.6
"""No furniture comes nearer than this to the way of the robot."""
DOOR_WIDTH_M, DOOR_HEIGHT_M = 0.95, 2.08

GLASS = Surface(class_id=UNLABELLED, color=(190, 215, 225), reflectivity=0.3, glass=True)

ROOM_KINDS = {
    "office": (
        "desk",
        "desk",
        "desk",
        "cabinet",
        "shelf",
        "shelf",
        "plant",
        "clutter",
        "chair",
        "person",
        "television",
    ),
    "meeting": ("meeting_table", "standing_board", "television", "plant", "cabinet", "chair", "person", "clutter"),
    "lounge": ("sofa", "sofa", "table", "plant", "floor_lamp", "shelf", "sofa", "television", "person", "counter"),
    "workshop": (
        "table",
        "table",
        "shelf",
        "cabinet",
        "clutter",
        "clutter",
        "chair",
        "person",
        "standing_board",
        "desk",
    ),
    "lobby": (
        "sofa",
        "counter",
        "plant",
        "plant",
        "table",
        "standing_board",
        "stairs",
        "person",
        "person",
        "television",
        "chair",
        "floor_lamp",
        "clutter",
        "cabinet",
        "sofa",
    ),
    "open_office": (
        *(("desk_island",) * 8),
        "cabinet",
        "cabinet",
        "shelf",
        "shelf",
        "standing_board",
        "plant",
        "plant",
        "sofa",
        "meeting_table",
        "clutter",
        "clutter",
        "person",
        "person",
        "chair",
        "television",
    ),
    "corridor": ("cabinet", "plant", "clutter", "chair", "person", "standing_board", "clutter"),
}

LOOSE = ("person", "meeting_table", "desk_island", "table", "chair", "standing_board")
"""Things that mostly stand away from the walls."""

HALLS = ("lobby", "open_office")
"""Kinds of large rooms, with windows all round, columns and often beams."""


@dataclass(frozen=True, kw_only=True)
class Building:
    """Triangles of one storey with exact classes; the map frame has z up and the floor at z = 0.

    triangles: (T, 3, 3) float32, metres. class_id: (T,) uint8, ids of indoor17, UNLABELLED for window glass.
    color: (T, 3) uint8. reflectivity: (T,) float32 in 0..1. glass: (T,) bool.
    waypoints: (W, 2) float32, a way on the floor that a robot of 0.35 m radius can drive, there and back.
    """

    triangles: np.ndarray
    class_id: np.ndarray
    color: np.ndarray
    reflectivity: np.ndarray
    glass: np.ndarray
    waypoints: np.ndarray


@dataclass(frozen=True)
class Space:
    """A room, corridor or hall: the rectangle x0, y0, x1, y1 and the height of its ceiling."""

    kind: str
    x0: float
    y0: float
    x1: float
    y1: float
    height: float


@dataclass(frozen=True)
class Door:
    """The door of a room to the corridor: where its middle is along x."""

    x: float
    is_open: bool


def make_building(rng: Rng) -> Building:
    """Draw a building: a corridor with rooms on both sides, often a lobby at one end, sometimes only a hall."""
    mesh = Mesh()
    style = _Style(rng)
    corridor, spaces, doors = _floor_plan(rng, style)
    way = _way(rng, corridor, spaces, doors)
    _shell(mesh, rng, style, corridor, spaces, doors)
    for space in spaces:
        _furnish(mesh, rng, style, space, way)
    turn = rng.uniform(-np.pi, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    counts = [len(triangles) for triangles in mesh.triangles]
    triangles = np.concatenate(mesh.triangles)
    triangles[..., :2] = triangles[..., :2] @ rotation.T

    def per_triangle(values: list, dtype: type) -> np.ndarray:
        return np.repeat(np.array(values, dtype), counts, axis=0)

    return Building(
        triangles=triangles.astype(np.float32),
        class_id=per_triangle([surface.class_id for surface in mesh.surfaces], np.uint8),
        color=per_triangle([surface.color for surface in mesh.surfaces], np.uint8),
        reflectivity=per_triangle([surface.reflectivity for surface in mesh.surfaces], np.float32),
        glass=per_triangle([surface.glass for surface in mesh.surfaces], bool),
        waypoints=(way @ rotation.T).astype(np.float32),
    )


class _Style:
    """The materials and measures that a building keeps to."""

    def __init__(self, rng: Rng) -> None:
        self.wall = fit.painted(rng, fit.WALL, (0.05, 0.6), 0.12, (0.7, 0.97))
        self.accent = fit.painted(rng, fit.WALL, (0.0, 1.0), 0.4, (0.4, 0.9))
        self.ceiling = fit.painted(rng, fit.CEILING, (0, 1), 0.03, (0.85, 0.98))
        self.floors = [
            fit.painted(rng, fit.FLOOR, hue, saturation, (0.25, 0.75))
            for hue, saturation in (((0.05, 0.1), 0.5), ((0.5, 0.7), 0.15), ((0.0, 1.0), 0.3))
        ]
        self.door = fit.wooden(rng, fit.DOOR)
        self.frame = fit.metal(rng, fit.OTHER)
        self.column = fit.painted(rng, fit.COLUMN, (0, 1), 0.08, (0.5, 0.95))
        self.beam = fit.painted(rng, fit.BEAM, (0, 1), 0.08, (0.5, 0.95))
        self.thickness = float(rng.uniform(0.1, 0.22))
        self.height = float(rng.uniform(2.4, 3.6))
        self.has_beams = rng.random() < 0.45
        self.has_windows = rng.random() < 0.85
        self.has_skirting = rng.random() < 0.5


def _floor_plan(rng: Rng, style: _Style) -> tuple[Space, list[Space], dict[int, Door]]:
    """Lay out the corridor along x, rooms above and below it, and a lobby at its end; doors by index of room."""
    if rng.random() < 0.3:
        half_x, half_y = rng.uniform(5, 13), rng.uniform(4, 9)
        kind = "open_office" if rng.random() < 0.5 else "lobby"
        hall = Space(kind, -half_x, -half_y, half_x, half_y, float(rng.uniform(2.8, 5.5)))
        return hall, [hall], {}
    length, half = rng.uniform(10, 28), rng.uniform(0.85, 1.7)
    corridor = Space("corridor", 0, -half, length, half, style.height - rng.choice([0.0, 0.25]))
    spaces = [corridor]
    doors: dict[int, Door] = {}
    for side in (-1, 1):
        depth, x = rng.uniform(3.2, 7.5), 0.0
        while x < length - 0.1:
            right = x + rng.uniform(3.0, 8.0)
            right = length if right > length - 2.8 else right
            near, far = half + style.thickness, half + style.thickness + depth
            kind = rng.choice(["office", "office", "meeting", "lounge", "workshop"])
            y0, y1 = (near, far) if side > 0 else (-far, -near)
            doors[len(spaces)] = Door(float(rng.uniform(x + 0.9, right - 0.9)), is_open=rng.random() < 0.7)
            spaces.append(Space(str(kind), x, y0, right - style.thickness, y1, style.height))
            x = right
    if rng.random() < 0.5:
        width, half_y = rng.uniform(6, 14), rng.uniform(half + 2, 8)
        height = max(style.height, rng.uniform(2.8, 5.0))
        spaces.append(Space("lobby", length + style.thickness, -half_y, length + width, half_y, float(height)))
    return corridor, spaces, doors


def _way(rng: Rng, corridor: Space, spaces: list[Space], doors: dict[int, Door]) -> np.ndarray:
    """Drive down the corridor, through some doors to the middle of the room and out again; (W, 2)."""
    if not doors:
        x, y = corridor.x1 - 1.5, corridor.y1 - 1.5
        inner = rng.uniform(0.2, 0.8)
        return np.array([[-x, -y], [x, -y * inner], [x, y], [0, y * inner], [-x, y], [-x, -y]])
    middle = rng.uniform(-0.2, 0.2)
    points = [[0.8, middle]]
    for room, door in sorted(doors.items(), key=lambda item: item[1].x):
        if door.is_open and rng.random() < 0.8:
            space, x = spaces[room], door.x
            sign = 1 if space.y0 > 0 else -1
            threshold = sign * (corridor.y1 + 0.7)
            inside = [rng.uniform(0.35, 0.65) * (space.x0 + space.x1), rng.uniform(0.4, 0.6) * (space.y0 + space.y1)]
            inside[0] = np.clip(inside[0], space.x0 + 1.0, space.x1 - 1.0)
            points += [[x, middle], [x, threshold], inside, [x, threshold], [x, middle]]
    points.append([corridor.x1 - 0.8, middle])
    if spaces[-1].kind == "lobby":
        lobby = spaces[-1]
        points += [[lobby.x0 + 1.2, middle], [(lobby.x0 + lobby.x1) / 2, lobby.y0 / 2], [lobby.x1 - 1.5, lobby.y1 / 2]]
    return np.array(points)


def _shell(mesh: Mesh, rng: Rng, style: _Style, corridor: Space, spaces: list[Space], doors: dict[int, Door]) -> None:
    """Build floors, ceilings and the walls between and around the spaces."""
    for space in spaces:
        _floor_and_ceiling(mesh, rng, style, space)
    last = spaces[-1]
    walled = [space for space in spaces if space is not corridor or not doors]
    for index, space in enumerate(spaces):
        if space not in walled:
            continue
        open_side = None
        if index in doors:
            _wall_with_door(mesh, rng, style, space, doors[index])
            open_side = "low" if space.y0 > 0 else "high"
        _outer_walls(
            mesh, rng, style, space, open_side, lobby_gap=corridor if space.kind == "lobby" and doors else None
        )
    if doors:
        x0, half = corridor.x0, corridor.y1
        opening = [(-0.6, 0.6, 0.4, 2.2, "window")] if rng.random() < 0.5 else [(-0.5, 0.5, 0.0, 2.08, "glass door")]
        _wall(mesh, rng, style, (x0, -half), (x0, half), style.height, -1, opening)
        if last.kind != "lobby":
            _wall(
                mesh,
                rng,
                style,
                (corridor.x1, -half),
                (corridor.x1, half),
                style.height,
                1,
                [(-0.48, 0.48, 0, 2.08, "door")],
            )


def _floor_and_ceiling(mesh: Mesh, rng: Rng, style: _Style, space: Space) -> None:
    margin = style.thickness
    width, depth = space.x1 - space.x0 + 2 * margin, space.y1 - space.y0 + 2 * margin
    x, y = (space.x0 + space.x1) / 2, (space.y0 + space.y1) / 2
    floor = style.floors[0 if space.kind in ("corridor", *HALLS) else int(rng.integers(3))]
    mesh.box(floor, (x, y, -0.05), (width, depth, 0.1))
    mesh.box(style.ceiling, (x, y, space.height + 0.05), (width, depth, 0.1))
    _ceiling_things(mesh, rng, style, space)


def _ceiling_things(mesh: Mesh, rng: Rng, style: _Style, space: Space) -> None:
    """Hang lights, beams, ducts and projectors under the ceiling, and stand columns in halls."""
    lamp = Surface(class_id=fit.LIGHT, color=(255, 250, 235), reflectivity=float(rng.uniform(0.5, 0.9)))
    pendant, long = rng.random() < 0.4, rng.random() < 0.5
    step = rng.uniform(1.8, 3.0)
    for x in np.arange(space.x0 + step / 2, space.x1 - 0.4, step):
        for y in np.arange(space.y0 + min(step, space.y1 - space.y0) / 2, space.y1 - 0.3, step):
            if pendant:
                drop = rng.uniform(0.3, 0.7)
                mesh.box(fit.metal(rng, fit.LIGHT), (x, y, space.height - drop / 2), (0.015, 0.015, drop))
                mesh.prism(lamp, (x, y, space.height - drop - 0.15), 0.2, 0.2, top=0.4)
            else:
                mesh.box(lamp, (x, y, space.height - 0.03), (1.2, 0.2, 0.07) if long else (0.6, 0.6, 0.05))
    if style.has_beams or (space.kind in HALLS and rng.random() < 0.5):
        deep = rng.uniform(0.2, 0.45)
        for x in np.arange(space.x0 + rng.uniform(0.8, 2), space.x1 - 0.3, rng.uniform(2.5, 4.5)):
            y, depth = (space.y0 + space.y1) / 2, space.y1 - space.y0
            mesh.box(style.beam, (x, y, space.height - deep / 2), (rng.uniform(0.2, 0.4), depth, deep))
    if rng.random() < 0.3:
        y = rng.uniform(space.y0 + 0.3, space.y1 - 0.3)
        mesh.box(
            fit.metal(rng, fit.OTHER),
            ((space.x0 + space.x1) / 2, y, space.height - 0.3),
            (space.x1 - space.x0, 0.3, 0.2),
        )


def _wall_with_door(mesh: Mesh, rng: Rng, style: _Style, space: Space, door: Door) -> None:
    """Build the wall between a room and the corridor, on the corridor's side of the room."""
    inner = space.y0 if space.y0 > 0 else space.y1
    out = -1 if space.y0 > 0 else 1
    start, end = (space.x0, inner), (space.x1 + style.thickness, inner)
    center = door.x - (start[0] + end[0]) / 2
    kind = "open door" if door.is_open else "door"
    openings = [(center - DOOR_WIDTH_M / 2, center + DOOR_WIDTH_M / 2, 0.0, DOOR_HEIGHT_M, kind)]
    half = (end[0] - start[0]) / 2
    if rng.random() < 0.25 and half - center > 2.2:
        openings.append((center + 0.9, min(center + 2.4, half - 0.4), 0.9, 2.0, "window"))
    _wall(mesh, rng, style, start, end, style.height + 0.1, out, openings)


def _outer_walls(
    mesh: Mesh, rng: Rng, style: _Style, space: Space, open_side: str | None, lobby_gap: Space | None
) -> None:
    """Build the walls of a space but the one towards the corridor."""
    height = space.height + 0.1
    sides = {
        "low": ((space.x0, space.y0), (space.x1, space.y0), -1),
        "high": ((space.x0, space.y1), (space.x1, space.y1), 1),
        "left": ((space.x0, space.y0), (space.x0, space.y1), -1),
        "right": ((space.x1, space.y0), (space.x1, space.y1), 1),
    }
    for side, (start, end, out) in sides.items():
        if side == open_side:
            continue
        half = (end[0] - start[0] + end[1] - start[1]) / 2
        openings: list[tuple[float, float, float, float, str]] = []
        outside = side in ("low", "high") or space.kind in HALLS
        if side == "left" and lobby_gap is not None:
            middle = -(start[1] + end[1]) / 2
            openings = [(middle + lobby_gap.y0, middle + lobby_gap.y1, 0.0, min(style.height, 2.6), "gap")]
        elif outside and style.has_windows and rng.random() < 0.8:
            openings = _windows(rng, half)
        elif outside and rng.random() < 0.2:
            openings = [(-0.48, 0.48, 0.0, DOOR_HEIGHT_M, "door")]
        _wall(mesh, rng, style, start, end, height, out, openings)


def _windows(rng: Rng, half: float) -> list[tuple[float, float, float, float, str]]:
    width, gap = rng.uniform(0.8, 2.2), rng.uniform(0.3, 1.2)
    sill, head = rng.choice([0.05, rng.uniform(0.7, 1.1)]), rng.uniform(1.9, 2.3)
    left = np.arange(-half + 0.3, half - width - 0.3, width + gap)
    return [(float(x), float(x + width), float(sill), float(head), "window") for x in left]


def _wall(
    mesh: Mesh,
    rng: Rng,
    style: _Style,
    start: tuple[float, float],
    end: tuple[float, float],
    height: float,
    out: int,
    openings: list[tuple[float, float, float, float, str]],
) -> None:
    """Build a wall from start to end whose inner face lies on that line and whose body lies on the side `out`.

    An opening is (from, to, bottom, top, kind), measured along the wall from its middle.
    """
    along_x = abs(end[0] - start[0]) > abs(end[1] - start[1])
    middle = np.array([(start[0] + end[0]) / 2, (start[1] + end[1]) / 2])
    half = (end[0] - start[0] if along_x else end[1] - start[1]) / 2
    thickness = style.thickness
    surface = style.wall if rng.random() < 0.85 else style.accent

    def put(
        made_of: Surface, t0: float, t1: float, z0: float, z1: float, thick: float = thickness, off: float = 0.5
    ) -> None:
        if t1 - t0 < 1e-3 or z1 - z0 < 1e-3:
            return
        t, normal = (t0 + t1) / 2, out * thickness * off
        center = (middle[0] + t, middle[1] + normal) if along_x else (middle[0] + normal, middle[1] + t)
        size = (t1 - t0, thick) if along_x else (thick, t1 - t0)
        mesh.box(made_of, (*center, (z0 + z1) / 2), (*size, z1 - z0))

    at = -half
    for t0, t1, z0, z1, kind in sorted(openings):
        put(surface, at, t0, 0, height)
        put(surface, t0, t1, 0, z0)
        put(surface, t0, t1, z1, height)
        at = t1
        if kind == "gap":
            continue
        frame = (
            style.frame
            if kind in ("window", "glass door")
            else Surface(class_id=fit.DOOR, color=style.frame.color, reflectivity=style.frame.reflectivity)
        )
        for edge in (t0, t1):
            put(frame, edge - 0.03, edge + 0.03, z0, z1 + 0.03, thickness + 0.04)
        put(frame, t0, t1, z1 - 0.03, z1 + 0.03, thickness + 0.04)
        if kind in ("window", "glass door"):
            put(frame, t0, t1, z0, z0 + 0.05, thickness + 0.04)
            put(GLASS, t0, t1, z0 + 0.05, z1 - 0.03, 0.012)
        elif kind == "door":
            put(style.door, t0 + 0.03, t1 - 0.03, 0.01, z1 - 0.03, 0.045)
            put(fit.metal(rng, fit.DOOR), t0 + 0.1, t0 + 0.22, 1.02, 1.05, thickness)
        else:
            _open_leaf(mesh, rng, style, middle, along_x, out, t0, z1)
    put(surface, at, half, 0, height)
    if style.has_skirting and not openings:
        put(fit.painted(rng, fit.WALL, (0, 1), 0.1, (0.2, 0.9)), -half, half, 0, 0.08, 0.02, -0.05)
    if not openings:
        _wall_things(mesh, rng, middle, along_x, out, half)


def _open_leaf(
    mesh: Mesh, rng: Rng, style: _Style, middle: np.ndarray, along_x: bool, out: int, hinge: float, top: float
) -> None:
    """Hang an opened door leaf into the room, at about a right angle so that the way stays free."""
    width = DOOR_WIDTH_M - 0.06
    angle = rng.uniform(np.pi / 2, np.pi * 0.95) * -out
    inward = -out * 0.03
    corner = middle + ((hinge, inward) if along_x else (inward, hinge))
    direction = np.array([np.cos(angle), np.sin(angle)])
    center = corner + direction * width / 2
    mesh.box(style.door, (*center, top / 2), (width, 0.045, top - 0.04), yaw=angle)
    handle = corner + direction * (width - 0.08)
    mesh.box(fit.metal(rng, fit.DOOR), (*handle, 1.03), (0.12, 0.14, 0.02), yaw=angle)


def _wall_things(mesh: Mesh, rng: Rng, middle: np.ndarray, along_x: bool, out: int, half: float) -> None:
    """Hang boards, displays, lamps and radiators on the inner face of a wall without openings."""
    t = -half + 0.6
    yaw = (0.0 if out < 0 else np.pi) if along_x else (-np.pi / 2 if out < 0 else np.pi / 2)
    while t < half - 0.6:
        width = float(rng.uniform(0.5, 2.2))
        thing = Mesh()
        kind = rng.choice(["nothing", "board", "display", "lamp", "radiator"], p=[0.4, 0.3, 0.1, 0.08, 0.12])
        if kind == "board":
            tall = rng.uniform(0.5, 1.2)
            thing.box(fit.painted(rng, fit.BOARD, (0, 1), 0.3, (0.3, 0.98)), (0, 0.02, 1.5), (width, 0.04, tall))
        elif kind == "display":
            thing.at(fit.screen(rng, min(width, 1.5)), 0, 0, 1.5)
        elif kind == "lamp":
            thing.ellipsoid(
                Surface(class_id=fit.LIGHT, color=(255, 244, 220), reflectivity=0.7), (0, 0.08, 1.9), (0.12, 0.08, 0.15)
            )
        elif kind == "radiator":
            thing.box(fit.painted(rng, fit.OTHER, (0, 1), 0.05, (0.8, 0.95)), (0, 0.07, 0.4), (width, 0.1, 0.55))
        if t + width < half - 0.2:
            place = middle + ((t + width / 2, 0) if along_x else (0, t + width / 2))
            mesh.at(thing, place[0], place[1], 0.0, yaw)
        t += width + rng.uniform(0.2, 1.0)


def _furnish(mesh: Mesh, rng: Rng, style: _Style, space: Space, way: np.ndarray) -> None:
    """Put furniture along the walls and in groups, off the way and off each other."""
    steps = [np.linspace(a, b, max(2, int(np.linalg.norm(b - a) / 0.2))) for a, b in itertools.pairwise(way)]
    lane = np.concatenate(steps)
    taken: list[tuple[float, float, float, float]] = []
    area = (space.x1 - space.x0) * (space.y1 - space.y0)
    if space.kind in HALLS or (space.kind != "corridor" and rng.random() < 0.15):
        _columns(mesh, rng, style, space, lane, taken)
    things = list(ROOM_KINDS[space.kind])
    rng.shuffle(things)
    for name in (things * 3)[: max(2, int(area / rng.uniform(2.0, 5.0)))]:
        thing, (width, depth) = fit.STANDING[name](rng)
        for _ in range(12):
            x, y, yaw = _place(rng, space, name, depth)
            across = abs(np.sin(yaw)) > 0.7
            half_x, half_y = (depth, width) if across else (width, depth)
            if name in ("person", "chair", "plant", "clutter"):
                half_x = half_y = max(width, depth)
            box = (x - half_x / 2, y - half_y / 2, x + half_x / 2, y + half_y / 2)
            if _free(box, space, lane, taken):
                taken.append(box)
                mesh.at(thing, x, y, 0.0, yaw)
                break


def _place(rng: Rng, space: Space, name: str, depth: float) -> tuple[float, float, float]:
    x, y = rng.uniform(space.x0, space.x1), rng.uniform(space.y0, space.y1)
    loose = name in LOOSE and rng.random() < 0.75
    if loose:
        yaw = rng.uniform(-np.pi, np.pi) if name in ("person", "chair") else rng.choice([0, np.pi / 2])
        return x, y, float(yaw)
    gap = depth / 2 + rng.uniform(0.02, 0.08)
    side = rng.integers(4) if space.kind != "corridor" else rng.integers(2)
    if side == 0:
        return x, space.y0 + gap, 0.0
    if side == 1:
        return x, space.y1 - gap, np.pi
    if side == 2:
        return space.x0 + gap, y, -np.pi / 2
    return space.x1 - gap, y, np.pi / 2


def _free(
    box: tuple[float, float, float, float],
    space: Space,
    lane: np.ndarray,
    taken: list[tuple[float, float, float, float]],
) -> bool:
    x0, y0, x1, y1 = box
    if x0 < space.x0 or y0 < space.y0 or x1 > space.x1 or y1 > space.y1:
        return False
    if any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken):
        return False
    margin = PATH_CLEARANCE_M
    near = (
        (lane[:, 0] > x0 - margin)
        & (lane[:, 0] < x1 + margin)
        & (lane[:, 1] > y0 - margin)
        & (lane[:, 1] < y1 + margin)
    )
    return not near.any()


def _columns(
    mesh: Mesh, rng: Rng, style: _Style, space: Space, lane: np.ndarray, taken: list[tuple[float, float, float, float]]
) -> None:
    size, is_round = rng.uniform(0.25, 0.6), rng.random() < 0.5
    step = rng.uniform(3.0, 6.0)
    for x in np.arange(space.x0 + step / 2, space.x1 - 0.5, step):
        for y in np.arange(space.y0 + min(step, space.y1 - space.y0) / 2, space.y1 - 0.5, step):
            box = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
            if not _free(box, space, lane, taken):
                continue
            taken.append(box)
            if is_round:
                mesh.prism(style.column, (x, y, 0), size / 2, space.height, sides=14)
            else:
                mesh.box(style.column, (x, y, space.height / 2), (size, size, space.height))
