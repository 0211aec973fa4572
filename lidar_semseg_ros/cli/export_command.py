"""lidar-semseg export: a .safetensors model into a self-describing ONNX graph."""

from __future__ import annotations

import argparse
from pathlib import Path

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.checkpoints import export_onnx
from lidar_semseg_ros.network.model_file import read_safetensors
from lidar_semseg_ros.network.segmenter import model_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", help="a .safetensors file, or the name of a shipped model")
    parser.add_argument("-o", "--output", type=Path, help="the .onnx file to write (default: beside the model)")


def run(args: argparse.Namespace) -> None:
    """Write the folded network, for any number of points."""
    from lidar_semseg_ros.network.waffleiron import WaffleIronConfig, from_state_dict

    path = model_path(args.model, package_share() / "models")
    output = args.output or path.with_suffix(".onnx")
    if path.suffix != ".safetensors" or output.suffix != ".onnx":
        raise UserError(f"export goes from .safetensors to .onnx, not from {path.name} to {output.name}")
    state, description = read_safetensors(path)
    export_onnx(from_state_dict(WaffleIronConfig(**description.network), state, str(path)), description, output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
