"""The files that come with the package: where they are, and how YAML is read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lidar_semseg_ros.core.classes import ClassMap, ClassTable
from lidar_semseg_ros.core.errors import UserError

PACKAGE = "lidar_semseg_ros"


def package_share() -> Path:
    """Find the folder that holds config/, launch/ and models/: the source checkout, or share/lidar_semseg_ros.

    It is found from the place of this file alone, so it works after pip and colcon installs and without a
    sourced ROS environment.
    """
    return share_of(Path(__file__).resolve().parents[1])


def share_of(package_folder: Path) -> Path:
    """Find the share folder of a package that lies in `package_folder`, in the folders above it."""
    checkout = package_folder.parent
    if (checkout / "config").is_dir() and (checkout / "package.xml").is_file():
        return checkout
    for prefix in package_folder.parents:
        share = prefix / "share" / PACKAGE
        if share.is_dir():
            return share
    raise UserError(f"no folder share/{PACKAGE} above {package_folder}; install the package with pip or colcon")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML comes without types
    """YAML of which the same key twice is a fault, where the last one would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        # Before the keys of `<<` are added, which may be overridden.
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for key in keys:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is there twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; UserError names the file, and the line of a fault in the YAML."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {error.problem or error.context}; mend the YAML") from error
    except Exception as error:  # PyYAML lets through what goes wrong in values such as 2001-13-45 or !!bool x
        raise UserError(f"{path}: {error}; mend the YAML") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'name: value' lines, but it holds {type(values).__name__}")
    return values


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values, in their order."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")


def config_file(folder: str, name_or_path: str, what: str) -> Path:
    """Find a file of config/`folder`: one that comes with the package by its name, any other by its path."""
    shipped = package_share() / "config" / folder
    for path in (shipped / f"{name_or_path}.yaml", Path(name_or_path).expanduser()):
        if path.is_file():
            return path
    known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
    raise UserError(f"no {what} '{name_or_path}'; give the path of a .yaml file, or one of {known}")


def class_table(name_or_path: str) -> ClassTable:
    """Read a class table: one that comes with the package by its name, any other by the path of its .yaml file."""
    path = config_file("classes", name_or_path, "class table")
    return ClassTable.from_mapping(read_yaml(path), source=str(path))


def class_map(name_or_path: str) -> ClassMap:
    """Read what a teacher's classes mean: a map that comes with the package by its name, any other by its path."""
    path = config_file("teachers", name_or_path, "map of a teacher's classes")
    return ClassMap.from_mapping(read_yaml(path), source=str(path))
