"""Class tables: what the integers in a labelled cloud mean, and how they are drawn."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED

UNLABELLED_COLOR = (64, 64, 64)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """The classes of a model or data set; a class's id is its position.

    names: unique class names.
    colors: one (red, green, blue) of 0..255 per class.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= UNLABELLED:
            raise UserError(f"class table {self.name} has {len(self.names)} classes; 1 to {UNLABELLED} are possible")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise UserError(f"class table {self.name} names {', '.join(twice)} twice; names must be unique")
        if len(self.colors) != len(self.names):
            raise UserError(f"class table {self.name} has {len(self.names)} names but {len(self.colors)} colours")
        for name, color in zip(self.names, self.colors):
            if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
                raise UserError(f"class {name} of {self.name} has colour {color}; write three numbers of 0 to 255")

    def __len__(self) -> int:
        return len(self.names)

    def id_of(self, name: str) -> int:
        """Return the id of a class by its name; UserError if the table has no such class."""
        try:
            return self.names.index(name)
        except ValueError:
            raise UserError(f"class table {self.name} has no class '{name}'; it has {', '.join(self.names)}") from None

    def palette(self) -> np.ndarray:
        """Colours by class id: (256, 3) uint8; ids without a class get the colour of UNLABELLED."""
        palette = np.full((256, 3), UNLABELLED_COLOR, np.uint8)
        palette[: len(self)] = self.colors
        return palette

    def to_mapping(self) -> dict[str, Any]:
        """Give the form that files and model headers hold; `from_mapping` reads it back."""
        classes = [{"id": i, "name": n, "color": list(c)} for i, (n, c) in enumerate(zip(self.names, self.colors))]
        return {"name": self.name, "classes": classes}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], source: str = "class table") -> ClassTable:
        """Read {name, classes: [{id, name, color}, …]}; UserError names `source` and the faulty entry."""
        try:
            entries = list(mapping["classes"])
            ids = [int(entry["id"]) for entry in entries]
            if ids != list(range(len(ids))):
                raise UserError(f"{source}: class ids must count 0, 1, 2, … in order, but they are {ids}")
            return cls(
                name=str(mapping["name"]),
                names=tuple(str(entry["name"]) for entry in entries),
                colors=tuple(tuple(int(channel) for channel in entry["color"]) for entry in entries),  # type: ignore[misc]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source}: expected 'name' and 'classes' with 'id', 'name' and 'color' each ({error!r})"
            ) from None


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """What the classes of a teacher mean in a class table, by the teacher's ids, with their names to check them.

    size: number of the teacher's classes.
    names: teacher id → its names in use; what a model calls the class must begin with one of them.
    targets: teacher id → name of the target class, or None for a class that is ignored.
    unmapped: target of the ids that `targets` leaves out, or None to ignore them.
    may_lack: target classes that a table may be without; what maps to them is ignored there.
    """

    name: str
    size: int
    names: Mapping[int, tuple[str, ...]]
    targets: Mapping[int, str | None]
    unmapped: str | None
    may_lack: frozenset[str]

    def __post_init__(self) -> None:
        if not all(0 <= number < self.size for number in self.targets):
            raise UserError(
                f"{self.name} maps ids {sorted(self.targets)}; with size {self.size} they end at {self.size - 1}"
            )

    def remap(self, table: ClassTable, teacher_names: Sequence[str]) -> np.ndarray:
        """Give (size,) uint8: the class of `table` for each class of the teacher, UNLABELLED for an ignored one.

        teacher_names: by id, as the model has them. UserError if their number or a name does not fit.
        """
        if len(teacher_names) != self.size:
            raise UserError(
                f"the teacher has {len(teacher_names)} classes, but {self.name} maps {self.size}; "
                "choose the map of the data set that the teacher was trained on, or none (an empty class_map) if its "
                "classes are called as in the class table"
            )
        self._check_names(teacher_names)
        return self.remap_by_id(table)

    def remap_by_id(self, table: ClassTable) -> np.ndarray:
        """Give what `remap` gives, for a teacher that does not say how it calls its classes."""
        return np.array([self._target(table, number) for number in range(self.size)], np.uint8)

    def _target(self, table: ClassTable, number: int) -> int:
        target = self.targets.get(number, self.unmapped)
        if target is None or (target in self.may_lack and target not in table.names):
            return UNLABELLED
        return table.id_of(target)

    def _check_names(self, teacher_names: Sequence[str]) -> None:
        if all(re.fullmatch(r"LABEL_\d+", name) for name in teacher_names):
            logger.warning("the teacher does not name its classes; they are taken by their ids in %s", self.name)
            return
        for number, expected in self.names.items():
            said = _words(teacher_names[number])
            if not any(said[: len(_words(name))] == _words(name) for name in expected):
                raise UserError(
                    f"the teacher calls its class {number} '{teacher_names[number]}', but in {self.name} it is "
                    f"'{expected[0]}'; choose the map of the data set that the teacher was trained on"
                )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], source: str = "class map") -> ClassMap:
        """Read {name, size, map: {target: {id: name or [names]}}, ignore: {id: …}, unmapped, may_lack}.

        UserError names `source` and what is faulty, such as an id that is mapped twice.
        """
        names: dict[int, tuple[str, ...]] = {}
        targets: dict[int, str | None] = {}
        try:
            for target, classes in [*mapping["map"].items(), (None, mapping.get("ignore", {}))]:
                for written, called in classes.items():
                    number = int(written)
                    if number in targets:
                        raise UserError(f"{source} maps id {number} twice; leave one of them out")
                    names[number] = (called,) if isinstance(called, str) else tuple(called)
                    targets[number] = target
            return cls(
                name=str(mapping["name"]),
                size=int(mapping["size"]),
                names=names,
                targets=targets,
                unmapped=mapping.get("unmapped"),
                may_lack=frozenset(mapping.get("may_lack", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{source}: expected 'name', 'size' and 'map' with {{id: name}} for each target class ({error!r})"
            ) from None

    @classmethod
    def of_same_names(cls, table: ClassTable, teacher_names: Sequence[str]) -> ClassMap:
        """Map a teacher whose classes are called as in `table`; UserError if a name is not in the table."""
        unknown = [name for name in teacher_names if name not in table.names]
        if unknown:
            raise UserError(
                f"class table {table.name} has no {', '.join(unknown[:5])}, as the teacher calls its classes; "
                "give a map from the teacher's classes to the table"
            )
        return cls(
            name=table.name,
            size=len(teacher_names),
            names={number: (name,) for number, name in enumerate(teacher_names)},
            targets=dict(enumerate(teacher_names)),
            unmapped=None,
            may_lack=frozenset(),
        )


def packed_colors(palette: np.ndarray) -> np.ndarray:
    """Pack colours (256, 3) uint8 as PCL does: (256,) float32 of the bits 0x00RRGGBB."""
    red, green, blue = palette.astype(np.uint32).T
    return (red << 16 | green << 8 | blue).view(np.float32)


def classes_never_given(table: ClassTable, remap: np.ndarray) -> tuple[str, ...]:
    """Name the classes of a table that nothing maps to; a mean over classes leaves them out and says so."""
    return tuple(name for number, name in enumerate(table.names) if number not in remap)


def _words(name: str) -> list[str]:
    # ADE20K writes 'door;double;door', 'stairs, steps' and 'chest of drawers' in its various lists.
    return re.split(r"[;,_\s]+", name.strip().lower())
