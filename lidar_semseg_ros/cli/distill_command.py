"""lidar-semseg distill: a network from recordings that a teacher has labelled."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from lidar_semseg_ros.cli.settings import given_settings
from lidar_semseg_ros.cli.training import (
    add_training,
    command_line,
    course_of,
    learn,
    provenance_of,
    require_new_model,
    write_model,
)
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.distill.mixture import Mixture, mixed, require_classes, require_separate_splits
from lidar_semseg_ros.distill.plan import Plan, read_plan
from lidar_semseg_ros.distill.recordings import Recording, SourceConfig, require_other_sweeps
from lidar_semseg_ros.distill.sources import open_recording
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.model_file import ModelDescription

if TYPE_CHECKING:
    from lidar_semseg_ros.distill.beginning import Beginning
    from lidar_semseg_ros.distill.distillation import ImageTeacher
    from lidar_semseg_ros.distill.processes import World
    from lidar_semseg_ros.distill.samples import Store
    from lidar_semseg_ros.distill.validation import Validation
    from lidar_semseg_ros.network.waffleiron import WaffleIron
    from lidar_semseg_ros.teacher.vision import Teacher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", type=Path, help="YAML with classes, network, inputs, train and settings")
    parser.add_argument("--data", nargs="+", default=[], metavar="BAG", help="learn from these instead of 'train'")
    add_training(parser)


def run(args: argparse.Namespace) -> None:
    """Distill; a run that was killed goes on from its checkpoint, with the same losses as if it had not been."""
    from lidar_semseg_ros.distill.processes import joined_world

    require_new_model(args.output)
    plan = read_plan(args.config, given_settings(args), data=args.data, start=args.start)
    require_separate_splits(plan.splits)
    with joined_world() as world:
        _run(plan, args.output, world, command_line("distill", args, args.data))


def _run(plan: Plan, output: Path, world: World, command: str) -> None:
    from lidar_semseg_ros.distill.beginning import beginning
    from lidar_semseg_ros.distill.objectives import Student
    from lidar_semseg_ros.distill.samples import TaughtBatches, require_what_is_taught

    config = plan.config
    recordings = _recordings(plan, "train", world)
    kept_apart = _recordings(plan, "validation", world) if config.validate else []
    require_other_sweeps(recordings, kept_apart)
    # Superpixels may be classes where the student learns none.
    classes = plan.classes or next((recording.classes for recording in recordings if recording.classes), None)
    if classes is not None and (plan.classes or config.objectives.needs_labels):
        require_classes([*recordings, *kept_apart], classes)
    sources = plan.splits["train"]
    mixture = mixed(recordings, [source.weight for source in sources], config.share, config.seed)
    require_what_is_taught(mixture, config)
    stores, teacher, identity = _image_teacher(plan, world)
    begin = beginning(plan, teacher.features if teacher else 0)
    about = ModelDescription(
        name=output.stem,
        network=begin.network.config.to_mapping(),
        inputs=begin.inputs,
        classes=plan.classes,
        provenance=_provenance(plan, mixture, sources, begin, identity) | {"command": command},
    )
    validation, best = _validation(plan, kept_apart, begin), output.with_suffix(".best.safetensors")

    def on_best(steps: int, network: WaffleIron, miou: float) -> None:
        said = f"mIoU {miou:.4f} on {', '.join(recording.name for recording in kept_apart)}"
        write_model(best, network, about, steps=str(steps), validation=said)

    learn(
        Student(begin.network, config.objectives, teacher.features if teacher else 0, config.precision, config.seed),
        TaughtBatches(mixture, begin.inputs, config, **stores, rank=world.rank),
        config,
        world,
        output,
        about,
        course=course_of(plan, begin, world, _learned(plan, [*recordings, *kept_apart], identity)),
        sweeps=f"sweeps out of {len(mixture)}",
        teacher=teacher,
        validation=validation.miou if validation else None,
        on_best=on_best,
    )
    if validation and world.rank == 0:
        print(f"best on {len(validation.sweeps)} sweeps of 'validation': {best}")
    world.wait()


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


def _learned(plan: Plan, recordings: Sequence[Recording], identity: dict[str, str]) -> dict[str, object]:
    """List what is learned from; recordings: learned from, then looked at meanwhile."""
    listed = [*plan.splits["train"], *plan.splits["validation"]]
    sources = [(source.weight, source.labels, source.intensity_scale) for source in listed]
    of_recordings = [[recording.key, *source] for recording, source in zip(recordings, sources)]
    return {"recordings": of_recordings, "teachers": identity}


def _provenance(
    plan: Plan, mixture: Mixture, sources: Sequence[SourceConfig], begin: Beginning, identity: dict[str, str]
) -> dict[str, str]:
    config = plan.config
    data = []
    for recording, sweeps, source in zip(mixture.recordings, mixture.sweeps, sources):
        by = ", ".join(f"{key} {value}" for key, value in recording.origin.items())
        data.append(f"{recording.name} ({len(sweeps)} of {len(recording)} sweeps, weight {source.weight:g}; {by})")
    objectives = ", ".join(f"{name} {weight:g}" for name, weight in config.objectives.weights().items() if weight)
    return {"data": "; ".join(data), "objectives": objectives, **provenance_of(config, begin), **identity}
