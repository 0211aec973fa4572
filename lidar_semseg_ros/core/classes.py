"""Class tables: what the integers in a labelled cloud mean, and how they are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED

UNLABELLED_COLOR = (64, 64, 64)


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
