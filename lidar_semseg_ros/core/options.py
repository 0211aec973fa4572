"""Settings described once: a frozen dataclass per component, read by ROS parameters, command lines and YAML alike.

A component's dataclass declares each field with `setting(default, "what it does", minimum=…, choices=…)`; a field
whose type is itself such a dataclass is a group, and its settings are named `group.field`.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lidar_semseg_ros.core.errors import UserError

C = TypeVar("C")


def setting(
    default: Any,
    text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] | None = None,
    live: bool = False,
) -> Any:
    """Declare a dataclass field that users may set: default, one sentence of help, and what is valid.

    live: it may be changed while the component runs.
    """
    metadata = {"text": text, "minimum": minimum, "maximum": maximum, "choices": choices, "live": live}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting as parameter servers and command lines see it; kind is bool, int, float or str."""

    name: str
    kind: type
    default: Any
    text: str
    minimum: float | None
    maximum: float | None
    choices: Sequence[str] | None
    live: bool

    def checked(self, value: Any) -> Any:
        """Return the value in this setting's type; UserError says what is valid."""
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            raise UserError(f"setting '{self.name}' takes {self.kind.__name__}, but got {value!r}")
        if self.choices is not None and value not in self.choices:
            raise UserError(f"setting '{self.name}' takes one of {', '.join(self.choices)}, but got {value!r}")
        self._check_range(value)
        return value

    def _check_range(self, value: Any) -> None:
        low, high = self.minimum, self.maximum
        # Written so that NaN fails too.
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            span = f"{'-∞' if low is None else low} … {'∞' if high is None else high}"
            raise UserError(f"setting '{self.name}' must lie in {span}, but got {value!r}")


def settings_of(config_class: type, prefix: str = "") -> list[Setting]:
    """List every setting of a config dataclass, groups flattened to dotted names, in order of declaration."""
    found: list[Setting] = []
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        name, kind = prefix + field.name, kinds[field.name]
        if dataclasses.is_dataclass(kind):
            found += settings_of(typing.cast(type, kind), name + ".")
        elif "text" in field.metadata:
            found.append(Setting(name=name, kind=kind, default=field.default, **field.metadata))
    return found


def from_mapping(config_class: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from {name: value}, names dotted or nested; what is not named keeps its default.

    UserError for an unknown name (with the nearest known one) and for a value of the wrong type or range.
    """
    known = {setting.name: setting for setting in settings_of(config_class)}
    flat: dict[str, Any] = {}
    for name, value in flattened(values):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise UserError(f"no setting '{name}'; {hint}")
        flat[name] = known[name].checked(value)
    return _built(config_class, flat, "")


def to_mapping(config: Any) -> dict[str, Any]:
    """Give {dotted name: value} of every setting of a config; `from_mapping` reads it back."""
    mapping: dict[str, Any] = {}
    for entry in settings_of(type(config)):
        value = config
        for part in entry.name.split("."):
            value = getattr(value, part)
        mapping[entry.name] = value
    return mapping


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """List (dotted name, value) of values that may be nested, in their order."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return pairs


def _built(config_class: type[C], flat: Mapping[str, Any], prefix: str) -> C:
    arguments: dict[str, Any] = {}
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        name, kind = prefix + field.name, kinds[field.name]
        if dataclasses.is_dataclass(kind):
            arguments[field.name] = _built(typing.cast(type, kind), flat, name + ".")
        elif name in flat:
            arguments[field.name] = flat[name]
    return config_class(**arguments)
