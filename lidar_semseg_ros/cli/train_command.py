"""lidar-semseg train: a network from simulated buildings, with the simulator's exact labels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.settings import add_settings, config_from, flag_of, given_settings
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.distill.train import TrainConfig, initial_network, train
from lidar_semseg_ros.formats.config_files import class_table, read_yaml
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.model_file import ModelDescription, read_safetensors, write_safetensors
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig, from_state_dict
from lidar_semseg_ros.sim.drive import random_views

SAVE_EVERY = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", type=Path, help="YAML with classes, network and inputs (config/train_*.yaml)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--start", type=Path, help="a .safetensors model whose weights are trained on; random otherwise"
    )
    add_settings(parser, TrainConfig)


def run(args: argparse.Namespace) -> None:
    """Train; the averaged weights are written every 250 steps and at the end."""
    config = config_from(args, TrainConfig)
    if args.output.suffix != ".safetensors":
        raise UserError(f"the output must end in .safetensors, but it is {args.output}")
    plan = read_yaml(args.config)
    classes = class_table(plan["classes"])
    inputs = InputConfig.from_mapping(plan["inputs"], str(args.config))
    network = WaffleIronConfig(inputs=len(inputs.features), outputs=len(classes), **plan["network"])

    model = initial_network(network, config.seed)
    origin: dict[str, str] = {}
    if args.start:
        weights, start = read_safetensors(args.start)
        if start.classes != classes or start.inputs != inputs:
            raise UserError(f"{args.start} has other classes or inputs than {args.config}; start from one of its own")
        model = from_state_dict(network, weights, str(args.start))
        before = f", after {start.provenance['start']}" if "start" in start.provenance else ""
        origin = {"start": f"{start.provenance['command']} (its {start.provenance['steps']} steps){before}"}

    started = f" --start {args.start}" if args.start else ""
    chosen = "".join(f" {flag_of(name)} {value}" for name, value in given_settings(args).items())
    command = f"lidar-semseg train {args.config} -o {args.output}{started}{chosen}"

    def save(model: WaffleIron, steps: int) -> None:
        provenance: dict[str, Any] = {
            "data": "simulated buildings with exact labels (lidar_semseg_ros.sim.drive.random_views)",
            "command": command,
            **origin,
            "steps": str(steps),
            "licence": "Apache-2.0",
        }
        description = ModelDescription(
            name=args.output.stem, network=network.to_mapping(), inputs=inputs, classes=classes, provenance=provenance
        )
        write_safetensors(args.output, model.state_dict(), description)

    losses: list[float] = []
    with tqdm(total=config.steps, unit="step", file=sys.stderr, disable=None) as bar:

        def on_step(step: int, loss: float, finished: Callable[[], WaffleIron]) -> None:
            losses.append(loss)
            bar.update()
            if (step + 1) % SAVE_EVERY == 0:
                save(finished(), step + 1)
                tqdm.write(f"step {step + 1}: mean loss {np.mean(losses[-SAVE_EVERY:]):.3f}", file=sys.stderr)

        save(train(model, inputs, random_views, config, on_step), config.steps)
    print(f"{args.output}: {config.steps} steps of {config.batch} sweeps")
