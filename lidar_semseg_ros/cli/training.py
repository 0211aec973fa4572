"""What the commands that train share: arguments, the way back after a kill, and the files that a run leaves."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.outputs import require_folder
from lidar_semseg_ros.cli.settings import add_settings, flag_of, given_settings
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.memory import keep_freed_memory
from lidar_semseg_ros.core.options import to_mapping
from lidar_semseg_ros.distill.plan import DistillConfig, Plan
from lidar_semseg_ros.network.model_file import ModelDescription, write_safetensors
from lidar_semseg_ros.view.curve import curves
from lidar_semseg_ros.view.paint import save_png

if TYPE_CHECKING:
    from lidar_semseg_ros.distill.beginning import Beginning
    from lidar_semseg_ros.distill.distillation import ImageTeacher
    from lidar_semseg_ros.distill.objectives import Student
    from lidar_semseg_ros.distill.processes import World
    from lidar_semseg_ros.distill.samples import TaughtBatches
    from lidar_semseg_ros.network.waffleiron import WaffleIron

OF_THE_MACHINE = ("cache", "checkpoint", "workers", "batch")
"""Settings that a run may change when it goes on; of the batch, only its size over all processes counts."""


def add_training(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """Declare the arguments of every command that trains; leave_out: settings it has no use for."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--start", type=Path, help="a .safetensors model to begin with; its head may be another")
    add_settings(parser, DistillConfig, leave_out)


def require_new_model(path: Path) -> None:
    """Raise UserError if a model cannot be written there, or if there is one."""
    if path.suffix != ".safetensors":
        raise UserError(f"the output must end in .safetensors, but it is {path}")
    if path.exists():
        raise UserError(f"{path} exists already; give another name or remove it")
    require_folder(path)


def command_line(command: str, args: argparse.Namespace, data: Collection[str] = ()) -> str:
    """Write the command with what the user gave, as the model tells it; data: of --data."""
    begun = f" --start {args.start}" if args.start else ""
    of_data = f" --data {' '.join(data)}" if data else ""
    chosen = "".join(f" {flag_of(name)} {value}" for name, value in given_settings(args).items())
    return f"lidar-semseg {command} {args.config} -o {args.output}{of_data}{begun}{chosen}"


def provenance_of(config: DistillConfig, begin: Beginning) -> dict[str, str]:
    """Tell what every training does of itself: its settings, and what its weights were before."""
    settings = json.dumps(to_mapping(config))
    return {"steps": str(config.steps), "seed": str(config.seed), "settings": settings, **begin.origin}


def course_of(plan: Plan, begin: Beginning, world: World, learned: Mapping[str, Any]) -> str:
    """Write all that the course of a run depends on; learned: what it learns from."""
    settings = {name: value for name, value in to_mapping(plan.config).items() if name not in OF_THE_MACHINE}
    return json.dumps(
        {
            "settings": settings,
            "sweeps per step": plan.config.batch * world.size,
            **learned,
            "network": begin.network.config.to_mapping(),
            "inputs": begin.inputs.to_mapping(),
            "classes": plan.classes.to_mapping() if plan.classes else None,
            "start": begin.origin.get("start"),
        }
    )


def learn(
    student: Student,
    batches: TaughtBatches,
    config: DistillConfig,
    world: World,
    output: Path,
    about: ModelDescription,
    *,
    course: str,
    sweeps: str,
    teacher: ImageTeacher | None = None,
    validation: Callable[[WaffleIron], float] | None = None,
    on_best: Callable[[int, WaffleIron, float], None] = lambda steps, network, miou: None,
) -> None:
    """Run the training loop with a progress bar; write the model, and its losses as a table and a picture.

    course: see `course_of`. sweeps: what is said to have been learned from in each step.
    """
    from lidar_semseg_ros.distill.distillation import distill
    from lidar_semseg_ros.distill.run_files import RunFiles

    keep_freed_memory()
    files = RunFiles(output, course)
    with tqdm(total=config.steps, unit="step", file=sys.stderr, disable=True if world.rank else None) as bar:

        def on_step(step: int, losses: dict[str, float]) -> None:
            bar.update(step + 1 - bar.n)
            bar.set_postfix(loss=f"{losses['loss']:.3f}", refresh=False)

        model = distill(student, batches, config, world, teacher, files, on_step, validation, on_best)
    if world.rank == 0:
        write_model(output, model, about)
        files.finish()
        picture = output.with_suffix(".losses.png")
        _draw(files.losses, picture)
        print(f"{output}: {config.steps} steps of {config.batch * world.size} {sweeps}")
        print(f"losses: {files.losses}, {picture}")


def write_model(path: Path, network: WaffleIron, about: ModelDescription, **more: str) -> None:
    """Write a model as a whole or not at all; more: of where it comes from."""
    part = path.with_suffix(".part")
    named = replace(about, name=path.name.removesuffix(".safetensors"), provenance={**about.provenance, **more})
    try:
        write_safetensors(part, network.state_dict(), named)
        part.replace(path)
    except UserError as error:
        raise UserError(
            f"{error}; the same command then goes on from its checkpoint, if it has left one, and writes this again"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _draw(losses: Path, picture: Path) -> None:
    """Draw the losses, and below them what validation said, with lines between its steps."""
    from lidar_semseg_ros.distill.distillation import VALIDATION_COLUMN

    with losses.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("step", "learning_rate", "gradient", VALIDATION_COLUMN)]
    drawn = [curves({name: [float(row[name]) for row in rows] for name in names})]
    found = [(int(row["step"]), float(row[VALIDATION_COLUMN])) for row in rows if row.get(VALIDATION_COLUMN)]
    if found:
        steps, miou = zip(*found)
        drawn.append(curves({"validation mIoU": np.interp(np.arange(len(rows)), steps, miou).tolist()}))
    save_png(picture, np.concatenate(drawn))
