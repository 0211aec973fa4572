"""Config dataclasses as command-line flags."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any, TypeVar

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import from_mapping, settings_of

C = TypeVar("C")


def add_settings(parser: argparse.ArgumentParser, config_class: type, leave_out: Collection[str] = ()) -> None:
    """Add one flag per setting: `output.layout` becomes --output-layout; booleans take true or false."""
    for entry in settings_of(config_class):
        if entry.name in leave_out:
            continue
        default = str(entry.default).lower() if entry.kind is bool else entry.default
        parser.add_argument(
            flag_of(entry.name),
            dest="setting:" + entry.name,
            type=_boolean if entry.kind is bool else entry.kind,
            metavar=entry.kind.__name__.upper(),
            help=f"{entry.text} (default: {default!s})".replace("%", "%%"),
        )


def flag_of(name: str) -> str:
    """Give the flag of a setting."""
    return "--" + name.replace(".", "-").replace("_", "-")


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the settings the user gave, by dotted name."""
    given = {key.partition(":")[2]: value for key, value in vars(args).items() if key.startswith("setting:")}
    return {name: value for name, value in given.items() if value is not None}


def config_from(args: argparse.Namespace, config_class: type[C], **more: Any) -> C:
    """Build the config of the flags the user gave and what the command adds."""
    return from_mapping(config_class, given_settings(args) | more)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UserError(f"expected true or false, but got '{text}'")
    return text.lower() == "true"
