"""lidar-semseg distill: a network from recordings that a teacher has labelled."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.settings import add_settings, flag_of, given_settings
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import to_mapping
from lidar_semseg_ros.distill.mixture import Mixture, mixed, require_classes, require_separate_splits
from lidar_semseg_ros.distill.plan import DistillConfig, Plan, read_plan
from lidar_semseg_ros.distill.recordings import Recording, SourceConfig
from lidar_semseg_ros.distill.sources import open_recording
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.model_file import ModelDescription, write_safetensors
from lidar_semseg_ros.view.curve import curves
from lidar_semseg_ros.view.paint import save_png

if TYPE_CHECKING:
    from lidar_semseg_ros.distill.beginning import Beginning
    from lidar_semseg_ros.distill.distillation import ImageTeacher
    from lidar_semseg_ros.distill.processes import World
    from lidar_semseg_ros.distill.samples import Store
    from lidar_semseg_ros.distill.validation import Validation
    from lidar_semseg_ros.network.waffleiron import WaffleIron
    from lidar_semseg_ros.teacher.vision import Teacher

OF_THE_MACHINE = ("cache", "checkpoint", "workers", "batch")
"""Settings that a run may change when it goes on; of the batch, only its size over all processes counts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", type=Path, help="YAML with classes, network, inputs, train and settings")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--data", nargs="+", default=[], metavar="BAG", help="learn from these instead of 'train'")
    parser.add_argument("--start", type=Path, help="a .safetensors model to begin with; its head may be another")
    add_settings(parser, DistillConfig)


def run(args: argparse.Namespace) -> None:
    """Distill; a run that was killed goes on from its checkpoint, with the same losses as if it had not been."""
    from lidar_semseg_ros.distill.processes import joined_world

    if args.output.suffix != ".safetensors":
        raise UserError(f"the output must end in .safetensors, but it is {args.output}")
    if args.output.exists():
        raise UserError(f"{args.output} exists already; give another name or remove it")
    if not args.output.absolute().parent.is_dir():
        raise UserError(f"there is no folder {args.output.parent} to write {args.output.name} to; make it first")
    plan = read_plan(args.config, given_settings(args), data=args.data, start=args.start)
    require_separate_splits(plan.splits)
    chosen = "".join(f" {flag_of(name)} {value}" for name, value in given_settings(args).items())
    begun = f" --start {args.start}" if args.start else ""
    data = f" --data {' '.join(args.data)}" if args.data else ""
    with joined_world() as world:
        _run(plan, args.output, world, f"lidar-semseg distill {args.config} -o {args.output}{data}{begun}{chosen}")


def _run(plan: Plan, output: Path, world: World, command: str) -> None:
    from lidar_semseg_ros.distill.beginning import beginning
    from lidar_semseg_ros.distill.distillation import distill
    from lidar_semseg_ros.distill.objectives import Student
    from lidar_semseg_ros.distill.run_files import RunFiles
    from lidar_semseg_ros.distill.samples import TaughtBatches, require_what_is_taught

    config = plan.config
    recordings = _recordings(plan, "train", world)
    kept_apart = _recordings(plan, "validation", world) if config.validate else []
    if plan.classes is not None:
        require_classes([*recordings, *kept_apart], plan.classes)
    sources = plan.splits["train"]
    mixture = mixed(recordings, [source.weight for source in sources], config.share, config.seed)
    require_what_is_taught(mixture, config)
    stores, teacher, identity = _image_teacher(plan, world)
    begin = beginning(plan, teacher.features if teacher else 0)
    student = Student(begin.network, config.objectives, teacher.features if teacher else 0, config.precision)
    batches = TaughtBatches(mixture, begin.inputs, config, **stores, rank=world.rank)
    validation = _validation(plan, kept_apart, begin)
    files = RunFiles(output, _settings(plan, begin, [*recordings, *kept_apart], world, identity))
    provenance = _provenance(plan, mixture, sources, begin, identity) | {"command": command}

    def write(path: Path, network: WaffleIron, more: dict[str, str]) -> None:
        shape, name = network.config.to_mapping(), path.name.removesuffix(".safetensors")
        _write_model(
            path,
            network,
            ModelDescription(
                name=name, network=shape, inputs=begin.inputs, classes=plan.classes, provenance=provenance | more
            ),
        )

    def on_best(steps: int, network: WaffleIron, miou: float) -> None:
        said = f"mIoU {miou:.4f} on {', '.join(recording.name for recording in kept_apart)}"
        write(output.with_suffix(".best.safetensors"), network, {"steps": str(steps), "validation": said})

    with tqdm(total=config.steps, unit="step", file=sys.stderr, disable=True if world.rank else None) as bar:

        def on_step(step: int, losses: dict[str, float]) -> None:
            bar.update(step + 1 - bar.n)
            bar.set_postfix(loss=f"{losses['loss']:.3f}", refresh=False)

        judge = validation.miou if validation else None
        model = distill(student, batches, config, world, teacher, files, on_step, judge, on_best)
    if world.rank == 0:
        write(output, model, {})
        files.finish()
        _draw(files.losses, output.with_suffix(".losses.png"))
        print(f"{output}: {config.steps} steps of {config.batch * world.size} sweeps out of {len(mixture)}")
        print(f"losses: {files.losses}, {output.with_suffix('.losses.png')}")
        if validation:
            print(f"best on {len(validation.sweeps)} sweeps of 'validation': {output.with_suffix('.best.safetensors')}")
    world.wait()


def _write_model(path: Path, network: WaffleIron, description: ModelDescription) -> None:
    """Write a model as a whole or not at all."""
    part = path.with_suffix(".part")
    try:
        write_safetensors(part, network.state_dict(), description)
        part.replace(path)
    except UserError as error:
        raise UserError(
            f"{error}; the same command then goes on from its checkpoint, if it has left one, and writes this again"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _validation(plan: Plan, recordings: Sequence[Recording], begin: Beginning) -> Validation | None:
    """Choose the sweeps that are looked at meanwhile, if the settings say so."""
    if not plan.config.validate or plan.classes is None:
        return None
    from lidar_semseg_ros.distill.validation import Validation

    config = plan.config
    return Validation(recordings, begin.inputs, plan.classes, config.validation_sweeps, config.seed)


def _recordings(plan: Plan, split: str, world: World) -> list[Recording]:
    """Open the recordings of a list; the first process lays them out in the cache while the others wait."""
    if world.rank:
        world.wait()
    cache = Path(plan.config.cache).expanduser() / "recordings"
    recordings = []
    for source in plan.splits[split]:
        with tqdm(desc=source.drive, unit="sweep", file=sys.stderr, leave=False, disable=None) as bar:

            def on_sweep(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            images = split == "train" and plan.config.objectives.needs_features
            recordings.append(open_recording(source, cache, images=images, on_sweep=on_sweep))
    if not world.rank:
        world.wait()
    return recordings


def _image_teacher(plan: Plan, world: World) -> tuple[dict[str, Store], ImageTeacher | None, dict[str, str]]:
    """Load the models of images that the objectives ask for, with the places where their answers are stored."""
    config = plan.config
    if not config.objectives.needs_features:
        return {}, None, {}
    from lidar_semseg_ros.distill.distillation import ImageTeacher

    images = config.images
    teacher, store, identity = _asked(plan, images.model, "features", world)
    if not config.objectives.uses_masks:
        return {"features": store}, ImageTeacher(teacher, store), {"image teacher": identity}
    masks, mask_store, mask_identity = _asked(plan, images.masks, "segments", world)
    told = {"image teacher": identity, "mask teacher": mask_identity}
    return {"features": store, "masks": mask_store}, ImageTeacher(teacher, store, masks, mask_store), told


def _asked(plan: Plan, model: str, gives: str, world: World) -> tuple[Teacher, Store, str]:
    from lidar_semseg_ros.distill.samples import Store
    from lidar_semseg_ros.teacher.labeller import teacher_identity, teacher_place
    from lidar_semseg_ros.teacher.vision import load_teacher

    images, models = plan.config.images, package_share() / "models"
    teacher = load_teacher(images.vision(teacher_place(model, models), world.device), None)
    if gives not in teacher.gives:
        raise UserError(
            f"{model} gives {' and '.join(teacher.gives)}, not {gives}; choose a model such as DINOv2 or SAM 2"
        )
    digest = teacher_identity(model, models)["sha256"]
    store = Store(Path(plan.config.cache).expanduser() / f"{gives}-{digest[:16]}-{images.px}-{images.precision}")
    return teacher, store, f"{model}, sha256 {digest}"


def _settings(
    plan: Plan, begin: Beginning, recordings: Sequence[Recording], world: World, identity: dict[str, str]
) -> str:
    """Write all that the course of a run depends on; recordings: learned from, then looked at meanwhile."""
    settings = {name: value for name, value in to_mapping(plan.config).items() if name not in OF_THE_MACHINE}
    listed = [*plan.splits["train"], *plan.splits["validation"]]
    sources = [(source.weight, source.labels, source.intensity_scale) for source in listed]
    return json.dumps(
        {
            "settings": settings,
            "sweeps per step": plan.config.batch * world.size,
            "recordings": [[recording.key, *source] for recording, source in zip(recordings, sources)],
            "teachers": identity,
            "network": begin.network.config.to_mapping(),
            "inputs": begin.inputs.to_mapping(),
            "classes": plan.classes.to_mapping() if plan.classes else None,
            "start": begin.origin.get("start"),
        }
    )


def _provenance(
    plan: Plan, mixture: Mixture, sources: Sequence[SourceConfig], begin: Beginning, identity: dict[str, str]
) -> dict[str, str]:
    config = plan.config
    data = []
    for recording, sweeps, source in zip(mixture.recordings, mixture.sweeps, sources):
        by = ", ".join(f"{key} {value}" for key, value in recording.origin.items())
        data.append(f"{recording.name} ({len(sweeps)} of {len(recording)} sweeps, weight {source.weight:g}; {by})")
    objectives = ", ".join(f"{name} {weight:g}" for name, weight in config.objectives.weights().items() if weight)
    provenance = {"data": "; ".join(data), "objectives": objectives, "steps": str(config.steps)}
    provenance |= {"seed": str(config.seed), "settings": json.dumps(to_mapping(config)), **begin.origin}
    return provenance | identity


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
