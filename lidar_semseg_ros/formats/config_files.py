"""The files that come with the package: where they are, and how YAML is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lidar_semseg_ros.core.classes import ClassTable
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


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; UserError names the file, and the line of a syntax fault."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {error.problem or error.context}; mend the YAML") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {error}; mend the YAML") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'name: value' lines, but it holds {type(values).__name__}")
    return values


def class_table(name_or_path: str) -> ClassTable:
    """Read a class table: one that comes with the package by its name, any other by the path of its .yaml file."""
    folder = package_share() / "config" / "classes"
    shipped = folder / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() else Path(name_or_path).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"no class table '{name_or_path}'; give the path of a .yaml file, or one of {known}")
    return ClassTable.from_mapping(read_yaml(path), source=str(path))
