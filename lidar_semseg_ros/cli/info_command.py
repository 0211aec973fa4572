"""lidar-semseg info: what a model file or a recording holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.backends import BACKENDS
from lidar_semseg_ros.network.model_file import read_description
from lidar_semseg_ros.network.segmenter import model_path
from lidar_semseg_ros.view.report import text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("what", help="a model (file or shipped name) or a recording")


def run(args: argparse.Namespace) -> None:
    """Tell a model from a recording by its name."""
    path = Path(args.what).expanduser()
    if path.exists() and path.suffix not in BACKENDS:
        _print_bag(path)
    else:
        _print_model(model_path(args.what, package_share() / "models"))


def _print_model(path: Path) -> None:
    description = read_description(path)
    network, inputs = description.network, description.inputs
    print(f"{description.name} ({path}, {path.stat().st_size / 1e6:.1f} MB)")
    print(
        f"  network   WI-{network['depth']}-{network['width']}, {network['norm']} norm, {network['activation']}, "
        f"{network['head']} head, {network['outputs']} outputs"
    )
    for name, value in inputs.to_mapping().items():
        print(f"  input     {name} = {value}")
    if description.classes:
        names = ", ".join(f"{i} {name}" for i, name in enumerate(description.classes.names))
        print(f"  classes   {description.classes.name}: {names}")
    for name, value in description.provenance.items():
        print(f"  origin    {name}: {value}")


def _print_bag(path: Path) -> None:
    with open_bag(path) as bag:
        rows = [[topic, kind, str(bag.message_count(topic))] for topic, kind in bag.topics.items()]
        print(f"{path}: {(bag.end_ns - bag.start_ns) / 1e9:.1f} s")
    print(text_table(["topic", "type", "messages"], rows))
