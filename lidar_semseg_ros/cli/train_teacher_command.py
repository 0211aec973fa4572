"""lidar-semseg train-teacher: a small vision teacher trained on images of simulated buildings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.settings import add_settings, config_from
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.distill.train_teacher import (
    HEIGHT,
    WIDTH,
    TeacherTrainConfig,
    initial_teacher,
    save_teacher,
    saved_teacher,
    train_teacher,
)
from lidar_semseg_ros.formats.config_files import class_table
from lidar_semseg_ros.sim.drive import random_images

SAVE_EVERY = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to write the model into")
    parser.add_argument("--classes", default="indoor17", help="class table (default: indoor17)")
    parser.add_argument("--start", type=Path, help="a folder of this command, whose weights are trained on")
    add_settings(parser, TeacherTrainConfig)


def run(args: argparse.Namespace) -> None:
    """Train; the model is written every 100 steps and at the end, in the layout of transformers."""
    config = config_from(args, TeacherTrainConfig)
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"{args.output} is a file; a teacher is written into a folder")
    losses: list[float] = []
    with tqdm(total=config.steps, unit="step", file=sys.stderr, disable=None) as bar:

        def on_step(step: int, loss: float, model: Any) -> None:
            losses.append(loss)
            bar.update()
            if (step + 1) % SAVE_EVERY == 0:
                save_teacher(model, args.output)
                tqdm.write(f"step {step + 1}: mean loss {np.mean(losses[-SAVE_EVERY:]):.3f}", file=sys.stderr)

        classes = class_table(args.classes).names
        model = saved_teacher(args.start, classes) if args.start else initial_teacher(classes, config.seed)
        model = train_teacher(model, lambda rng: random_images(rng, WIDTH, HEIGHT), config, on_step)
    save_teacher(model, args.output)
    print(f"{args.output}: {config.steps} steps of {config.batch} images")
