"""lidar-semseg train: a network from simulated buildings, with the simulator's exact labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from lidar_semseg_ros.cli.settings import given_settings
from lidar_semseg_ros.cli.training import add_training, command_line, course_of, learn, provenance_of, require_new_model
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import settings_of, to_mapping
from lidar_semseg_ros.distill.plan import DistillConfig, Plan, read_plan
from lidar_semseg_ros.formats.config_files import class_table
from lidar_semseg_ros.network.model_file import ModelDescription

OF_RECORDINGS = ("share", "validate", "validation_sweeps", "cache", "objectives", "images", "lifting")
"""Settings and groups of them that sweeps of a simulator have no use for."""
SIMULATOR = "lidar_semseg_ros.sim.drive.BuildingViews"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", type=Path, help="YAML with classes, network and inputs (config/train_*.yaml)")
    add_training(parser, leave_out=_of_recordings())


def run(args: argparse.Namespace) -> None:
    """Train; a run that was killed goes on from its checkpoint, with the same losses as if it had not been."""
    from lidar_semseg_ros.distill.beginning import beginning
    from lidar_semseg_ros.distill.objectives import Student
    from lidar_semseg_ros.distill.processes import joined_world
    from lidar_semseg_ros.distill.samples import TaughtBatches
    from lidar_semseg_ros.distill.simulated import SimulatedSweeps
    from lidar_semseg_ros.sim.drive import BuildingViews

    require_new_model(args.output)
    plan = read_plan(args.config, given_settings(args), start=args.start)
    config, classes = plan.config, _simulated_classes(args.config, plan)
    begin = beginning(plan, 0)
    about = ModelDescription(
        name=args.output.stem,
        network=begin.network.config.to_mapping(),
        inputs=begin.inputs,
        classes=classes,
        provenance={
            "data": f"simulated buildings with exact labels ({SIMULATOR})",
            "command": command_line("train", args),
            **provenance_of(config, begin),
            "licence": "Apache-2.0",
        },
    )
    with joined_world() as world:
        learn(
            Student(begin.network, config.objectives, 0, config.precision, config.seed),
            TaughtBatches(SimulatedSweeps(BuildingViews, classes, config.seed), begin.inputs, config, rank=world.rank),
            config,
            world,
            args.output,
            about,
            course=course_of(plan, begin, world, {"simulator": SIMULATOR}),
            sweeps="simulated sweeps",
        )
        world.wait()


def _simulated_classes(path: Path, plan: Plan) -> ClassTable:
    """Give the classes of a training configuration; UserError if it asks for what the simulator does not have."""
    named = [split for split, sources in plan.splits.items() if sources]
    usual = to_mapping(DistillConfig())
    named += [name for name in _of_recordings() if to_mapping(plan.config)[name] != usual[name]]
    if named:
        raise UserError(
            f"{path} has '{named[0]}', which is for recordings; leave it out, or use `lidar-semseg distill`"
        )
    classes = class_table("indoor17")
    if plan.classes is None or plan.classes.names != classes.names:
        raise UserError(f"the simulator labels by the classes of indoor17; write 'classes: indoor17' in {path}")
    return plan.classes


def _of_recordings() -> list[str]:
    return [entry.name for entry in settings_of(DistillConfig) if entry.name.partition(".")[0] in OF_RECORDINGS]
