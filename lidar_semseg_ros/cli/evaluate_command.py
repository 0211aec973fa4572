"""lidar-semseg evaluate: a model's labels against exact labels and pseudo-labels of recordings and data sets."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.outputs import require_folder
from lidar_semseg_ros.cli.pictures import comparison_picture
from lidar_semseg_ros.cli.settings import add_settings, config_from, flag_of
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.core.options import from_mapping, settings_of
from lidar_semseg_ros.distill.corruptions import SEVERITIES, mean_corruption_error, mean_resilience_rate
from lidar_semseg_ros.distill.data_sets import data_set_at, single_sequences
from lidar_semseg_ros.distill.evaluate import (
    EXACT,
    PSEUDO,
    TEACHER,
    JudgedRecording,
    JudgedSequences,
    JudgedSweep,
    Robustness,
    Score,
    figures,
    robustness,
    scores,
)
from lidar_semseg_ros.distill.plan import DistillConfig
from lidar_semseg_ros.distill.recordings import SourceConfig
from lidar_semseg_ros.distill.sources import open_recording
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.backends import BACKENDS
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.view.heat_map import heat_map
from lidar_semseg_ros.view.report import Picture, Table, html_report, text_table

OF_FOLDERS = ("sequence", "sweeps")
"""Settings of a source that choose from folders of a data set."""
RUNS = 1 + 9 * len(SEVERITIES)
WHO = {
    EXACT: "model, exact labels",
    PSEUDO: "model, pseudo-labels",
    TEACHER: "teacher, exact labels",
}
"""Comparisons in words: who is judged, by which labels."""
SUMMARY = {
    "miou": "mIoU",
    "miou_taught": "mIoU, classes the teacher can name",
    "miou_given": "mIoU, points that got a label",
    "accuracy": "accuracy",
    "accuracy_given": "accuracy, points that got a label",
    "coverage": "coverage",
    "ece": "calibration error",
}
"""Figures of each comparison and what they are called."""


@dataclass(kw_only=True)
class Evaluation:
    """What was counted over all recordings.

    counted: by comparison. taught: ids of the classes that some teacher can name; None if no recording has one.
    strange: classes of the recordings that the model lacks. chosen: sweeps with labels, evenly from all recordings.
    middle: a sweep to draw.
    """

    counted: dict[str, Score] = field(default_factory=dict)
    taught: frozenset[int] | None = None
    strange: frozenset[str] = frozenset()
    chosen: list[tuple[LidarFrame, np.ndarray]] = field(default_factory=list)
    middle: tuple[JudgedSweep, PointLabels] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "bags",
        type=Path,
        nargs="+",
        metavar="[MODEL] BAG",
        help="recordings with exact labels, pseudo-labels or both, as `simulate` and `label` write them, or folders of "
        "SemanticKITTI, nuScenes or Semantic-ITC; before them a model file, if not given by --model",
    )
    for name in OF_FOLDERS:
        text = next(entry.text for entry in settings_of(SourceConfig) if entry.name == name)
        parser.add_argument(flag_of(name), default="", help=f"of folders of a data set: {text}")
    parser.add_argument("--topic", help="the cloud topic (default: the pseudo-labelled clouds, or the only ones)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--report", type=Path, help="write an .html page with tables and pictures, and the figures into .json beside it"
    )
    parser.add_argument(
        "--robustness", action="store_true", help="label sweeps under nine corruptions of three severities, too"
    )
    parser.add_argument("--frames", type=int, default=20, help="sweeps that are corrupted (default: 20)")
    parser.add_argument("--baseline", metavar="MODEL", help="model whose errors under corruption are 100 %% in mCE")
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions (default: 0)")
    add_settings(parser, SegmenterConfig)


def run(args: argparse.Namespace) -> None:
    """Label every sweep, print what is right, and write it down."""
    _check(args)
    named, bags = _model_and_bags(args.bags)
    if named and vars(args)["setting:model"] is not None:
        raise UserError(f"two models are given, {named['model']} and {vars(args)['setting:model']}; give one")
    segmenter = Segmenter(config_from(args, SegmenterConfig, **named), package_share() / "models")
    chosen = {name: getattr(args, name) for name in OF_FOLDERS}
    evaluation = evaluated(segmenter, bags, args.topic, args.frames if args.robustness else 0, chosen)
    if not evaluation.counted:
        raise UserError(f"no cloud of {', '.join(map(str, bags))} has labels; look at the stamps")
    found = {"model": segmenter.description.name, **_figures(evaluation, segmenter.classes)}
    tables = [_summary_table(found), _class_table(found, segmenter.classes)]
    if args.robustness:
        robust = _robustness(segmenter, evaluation, args)
        found["robustness"] = robust
        tables.append(_robustness_table(robust))
    for table in tables:
        print(f"{table.title}\n{text_table(table.header, table.rows)}\n")
    print("\n".join(_sentences(found, evaluation, len(segmenter.classes))))
    _write(args, found, tables, evaluation, segmenter.classes)


def _check(args: argparse.Namespace) -> None:
    if args.frames < 1:
        raise UserError(f"--frames must be at least 1, but it is {args.frames}")
    if args.baseline and not args.robustness:
        raise UserError("--baseline is what mCE is relative to; give --robustness, too, or leave it out")
    if args.report and args.report.suffix != ".html":
        raise UserError(f"--report must end in .html, but it is {args.report}; the figures go into .json beside it")
    for path in (args.json, args.report):
        require_folder(path)


def _model_and_bags(given: Sequence[Path]) -> tuple[dict[str, str], Sequence[Path]]:
    """Take the first for a model if it is one: a model file, or the name of a shipped one."""
    first = given[0]
    is_shipped = any((package_share() / "models" / f"{first}{suffix}").is_file() for suffix in BACKENDS)
    if first.suffix not in BACKENDS and (first.exists() or not is_shipped):
        return {}, given
    if len(given) == 1:
        raise UserError(f"{first} is a model; name a recording to evaluate it on")
    return {"model": str(first)}, given[1:]


@contextmanager
def _opened(
    path: Path, topic: str | None, classes: ClassTable, chosen: Mapping[str, str]
) -> Iterator[JudgedRecording | JudgedSequences]:
    """Open a bag, or what was chosen of a data set."""
    if data_set_at(path) is not None:
        if topic is not None:
            raise UserError(f"--topic chooses among the clouds of a bag, but {path} is of a data set; leave it out")
        sources = single_sequences(from_mapping(SourceConfig, {"path": str(path), "labels": "exact", **chosen}))
        cache = Path(DistillConfig().cache).expanduser() / "recordings"
        yield JudgedSequences([open_recording(source, cache, images=False) for source in sources], classes)
        return
    given = [flag_of(name) for name, value in chosen.items() if value]
    if given:
        raise UserError(f"{given[0]} chooses from folders of a data set, but {path} is none; leave it out")
    with open_bag(path) as bag:
        yield JudgedRecording(bag, topic, classes, str(path))


def evaluated(
    segmenter: Segmenter, bags: Sequence[Path], topic: str | None, choose: int, chosen: Mapping[str, str]
) -> Evaluation:
    """Label and judge every labelled sweep; about `choose` of them, evenly taken, are kept.

    chosen: by OF_FOLDERS, what is taken of folders of a data set.
    """
    evaluation = Evaluation()
    classes = segmenter.classes
    for path in bags:
        with _opened(path, topic, classes, chosen) as recording:
            if recording.taught is not None:
                evaluation.taught = recording.taught | (evaluation.taught or frozenset())
            evaluation.strange |= set(recording.strange)
            # A teacher's recording holds nothing but labelled sweeps; others have to be read to be counted.
            count = recording.sweeps if recording.taught is not None else sum(1 for _ in recording)
            share = min(math.ceil(choose / len(bags)), count)
            wanted = set(np.linspace(0, count - 1, share).round().astype(int).tolist())
            bar = tqdm(recording, total=count, desc=path.name, unit="sweep", disable=None, file=sys.stderr)
            for number, sweep in enumerate(bar):
                labels = segmenter.segment(sweep.frame).labels
                for kind, counted in scores(sweep, labels, len(classes)).items():
                    before = evaluation.counted.get(kind)
                    evaluation.counted[kind] = counted if before is None else before + counted
                if number in wanted:
                    evaluation.chosen.append((sweep.frame, sweep.truth()))
                if evaluation.middle is None or (path == bags[0] and number == count // 2):
                    evaluation.middle = sweep, labels
    return evaluation


def _figures(evaluation: Evaluation, classes: ClassTable) -> dict[str, Any]:
    """Put the figures of each comparison behind those of the model against the best labels there are."""
    found = {
        kind: figures(evaluation.counted[kind], classes, evaluation.taught)
        for kind in WHO
        if kind in evaluation.counted
    }
    main = found[EXACT if EXACT in found else PSEUDO]
    return {**main, "without_class": sorted(evaluation.strange), "against": found}


def _summary_table(found: dict[str, Any]) -> Table:
    kinds = found["against"]
    rows = [
        [text, *(_percent(kinds[kind][name]) for kind in kinds)]
        for name, text in SUMMARY.items()
        if any(kinds[kind][name] is not None for kind in kinds)
    ]
    rows.append(["points", *(f"{kinds[kind]['points']:,}" for kind in kinds)])
    return Table(title="How right the labels are", header=["", *(WHO[kind] for kind in kinds)], rows=rows)


def _class_table(found: dict[str, Any], classes: ClassTable) -> Table:
    """List points and IoU of each class; the points of the teacher's comparison are those of the exact labels."""
    kinds = found["against"]
    header, rows = ["class"], [[name] for name in classes.names]
    for kind in kinds:
        if kind != TEACHER:
            header.append("points" if len(kinds) == 1 else f"points, {kind}")
            for row in rows:
                row.append(f"{kinds[kind]['points_of'].get(row[0], 0):,}")
        header.append("IoU" if len(kinds) == 1 else f"IoU, {kind}")
        for row in rows:
            row.append(_percent(kinds[kind]["iou"].get(row[0])))
    return Table(title="By class", header=header, rows=rows)


def _robustness(segmenter: Segmenter, evaluation: Evaluation, args: argparse.Namespace) -> dict[str, Any]:
    """Try the model, and the baseline if there is one, on the chosen sweeps under every corruption."""
    own = _tried(segmenter, evaluation, args.seed)
    mrr, of_each = mean_resilience_rate(own.corrupted, own.clean)
    found: dict[str, Any] = {"sweeps": len(evaluation.chosen), "seed": args.seed, "clean_miou": own.clean}
    found |= {"miou": own.corrupted, "rr": of_each, "mrr": mrr}
    if args.baseline:
        config = config_from(args, SegmenterConfig, model=args.baseline)
        baseline = Segmenter(config, package_share() / "models")
        if baseline.classes.names != segmenter.classes.names:
            raise UserError(
                f"the baseline has the classes of {baseline.classes.name}, the model those of "
                f"{segmenter.classes.name}; mCE compares models of the same classes"
            )
        other = _tried(baseline, evaluation, args.seed)
        mce, errors = mean_corruption_error(own.corrupted, other.corrupted)
        found |= {"baseline": baseline.description.name, "baseline_clean_miou": other.clean}
        found |= {"baseline_miou": other.corrupted, "ce": errors, "mce": mce}
    return found


def _tried(segmenter: Segmenter, evaluation: Evaluation, seed: int) -> Robustness:
    with tqdm(total=RUNS, desc=segmenter.description.name, unit="run", disable=None, file=sys.stderr) as bar:
        return robustness(
            lambda frame: segmenter.segment(frame).labels,
            evaluation.chosen,
            segmenter.classes,
            seed,
            lambda _: bar.update(),
        )


def _robustness_table(robust: dict[str, Any]) -> Table:
    has_baseline = "mce" in robust
    header = [
        "corruption",
        *(f"mIoU at {severity}" for severity in SEVERITIES),
        "RR",
        *(["CE"] if has_baseline else []),
    ]
    rows = [["clean", _percent(robust["clean_miou"]), *[""] * (len(header) - 2)]]
    for name, miou in robust["miou"].items():
        error = [f"{robust['ce'][name]:.1f}"] if has_baseline else []
        rows.append([name, *(_percent(value) for value in miou), f"{robust['rr'][name]:.1f}", *error])
    rows.append(["mean", "", "", "", f"{robust['mrr']:.1f}", *([f"{robust['mce']:.1f}"] if has_baseline else [])])
    return Table(title=f"Robustness ({robust['sweeps']} sweeps, seed {robust['seed']})", header=header, rows=rows)


def _sentences(found: dict[str, Any], evaluation: Evaluation, classes: int) -> list[str]:
    """Say in words what the means are over, and what is left out."""
    present = classes - len(found["absent"])
    said = [
        f"mIoU {_percent(found['miou'])} over {present} of {classes} classes (those in the recordings), "
        f"accuracy {_percent(found['accuracy'])}, {found['points']:,} points"
    ]
    if found["absent"]:
        said.append(f"not in the recordings: {', '.join(found['absent'])}")
    if found["untaught"]:
        said.append(f"the teacher cannot name: {', '.join(found['untaught'])}")
    if evaluation.strange:
        said.append(f"the model has no {', '.join(found['without_class'])}; their points do not count")
    if "robustness" in found:
        robust = found["robustness"]
        relative = (
            f"mCE {robust['mce']:.1f} relative to {robust['baseline']}"
            if "mce" in robust
            else "no mCE without --baseline"
        )
        said.append(f"mRR {robust['mrr']:.1f}, {relative}")
    return said


def _write(
    args: argparse.Namespace,
    found: dict[str, Any],
    tables: Sequence[Table],
    evaluation: Evaluation,
    classes: ClassTable,
) -> None:
    text = json.dumps(_finite(found), indent=1)
    if args.json:
        args.json.write_text(text)
    if args.report:
        sections: list[Table | Picture] = [*tables, *_pictures(evaluation, classes)]
        html_report(args.report, f"{found['model']} on {', '.join(path.name for path in args.bags)}", sections)
        args.report.with_suffix(".json").write_text(text)
        print(f"report: {args.report}")


def _pictures(evaluation: Evaluation, classes: ClassTable) -> list[Picture]:
    found: list[Picture] = []
    if evaluation.middle is not None:
        sweep, labels = evaluation.middle
        views = {EXACT: sweep.exact, PSEUDO: sweep.pseudo, "model": labels.class_id}
        known = {title: class_id for title, class_id in views.items() if class_id is not None}
        found.append(comparison_picture(sweep.frame, known, sweep.truth(), classes))
    for kind, counted in evaluation.counted.items():
        confusion = counted.confusion
        true = np.flatnonzero(confusion.sum(axis=1))
        said = np.flatnonzero(confusion.sum(axis=1) + confusion[:, : len(classes)].sum(axis=0))
        shares = confusion[true] / confusion[true].sum(axis=1, keepdims=True)
        rows, columns = ([classes.names[number] for number in numbers] for numbers in (true, said))
        found.append(
            Picture(
                title=f"Confusion: {WHO[kind]}",
                caption="each row is a true class; its points, in percent, by what they were called",
                pixels=heat_map(shares[:, [*said, len(classes)]], rows, [*columns, "no label"]),
            )
        )
    return found


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{share:.1%}"


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None, as JSON has neither."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
