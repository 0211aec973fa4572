"""lidar-semseg import: a published checkpoint into a self-describing model."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.config_files import class_table, package_share, read_yaml
from lidar_semseg_ros.network.checkpoints import LAYOUTS, read_checkpoint
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.model_file import ModelDescription, write_safetensors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, help="ckpt_last.pth or model.pth of WaffleIron or ScaLR")
    parser.add_argument("--layout", required=True, choices=LAYOUTS, help="the project that wrote it")
    parser.add_argument("--classes", help="class table, by name or file; without it the model predicts features")
    parser.add_argument(
        "--config", required=True, help="input settings, which a checkpoint does not hold: a file or a name of inputs/"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .safetensors file to write")


def run(args: argparse.Namespace) -> None:
    """Read the checkpoint without running code in it, check every key, and write the model."""
    from lidar_semseg_ros.network.waffleiron import config_of, from_state_dict

    if args.output.suffix != ".safetensors":
        raise UserError(f"the output must end in .safetensors, but it is {args.output}")
    layout = LAYOUTS[args.layout]
    state = read_checkpoint(args.checkpoint, layout)
    network = config_of(state, layout.activation)
    model = from_state_dict(network, state, str(args.checkpoint))
    inputs_path = input_settings_file(args.config)
    inputs = InputConfig.from_mapping(read_yaml(inputs_path), str(inputs_path))
    if len(inputs.features) != network.inputs:
        raise UserError(f"{inputs_path} gives {len(inputs.features)} channels, but the network takes {network.inputs}")
    digest = hashlib.sha256(args.checkpoint.read_bytes()).hexdigest()
    description = ModelDescription(
        name=args.output.stem,
        network=network.to_mapping(),
        inputs=inputs,
        classes=class_table(args.classes) if args.classes else None,
        provenance={"source": args.checkpoint.name, "sha256": digest, "layout": args.layout},
    )
    write_safetensors(args.output, model.state_dict(), description)
    kind = f"{len(description.classes)} classes" if description.classes else f"{network.outputs} features"
    print(f"{args.output}: WI-{network.depth}-{network.width}, {network.norm} norm, {network.activation}, {kind}")


def input_settings_file(name_or_path: str) -> Path:
    """Find input settings by path, or by name among those of config/inputs/."""
    shipped = package_share() / "config" / "inputs" / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in shipped.parent.glob("*.yaml")))
        raise UserError(f"there are no input settings '{name_or_path}'; give a file or one of {names}")
    return path
