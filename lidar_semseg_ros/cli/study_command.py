"""lidar-semseg study: the methods of the papers side by side on simulated buildings, from nothing to a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.settings import add_settings, config_from
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import to_mapping
from lidar_semseg_ros.distill.evaluate import EXACT as JUDGED_EXACTLY
from lidar_semseg_ros.distill.evaluate import TEACHER
from lidar_semseg_ros.distill.study import (
    EXACT,
    FINE,
    TAUGHT,
    UNFILTERED,
    UNSEEN,
    Comparison,
    Finding,
    MiouOf,
    StudyConfig,
    Training,
    comparisons,
    deviation,
    findings,
    trainings,
)
from lidar_semseg_ros.formats.config_files import package_share, read_yaml, write_yaml
from lidar_semseg_ros.view.bars import Bar, bars
from lidar_semseg_ros.view.paint import save_png
from lidar_semseg_ros.view.report import Picture, Table, html_report, text_table

UNGATED = ("--voting-min-confidence", "0", "--voting-min-share", "0", "--voting-min-agreement", "0")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of this program, and the file that is there once it is done."""

    arguments: tuple[str, ...]
    output: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the folder of the study; a second call goes on"
    )
    parser.add_argument(
        "--config", type=Path, help="YAML with classes, network and inputs of the students (default: study.yaml)"
    )
    add_settings(parser, StudyConfig)


def run(args: argparse.Namespace) -> None:
    """Make the drives, label them, train and test everything, and print the tables; what is there is kept."""
    config = config_from(args, StudyConfig)
    wanted = comparisons(config)
    folder: Path = args.output.expanduser().resolve()
    base = read_yaml(args.config or package_share() / "config" / "study.yaml")
    _require_same_study(folder, config, base)
    runs = _Runs(folder, config, base)
    begin = time.monotonic()
    _carry_out(
        runs.drives({lidar for lidars in _needed(wanted).values() for lidar in lidars}), folder, config.workers, "drive"
    )
    chains = runs.trained_and_tested(_needed(wanted))
    _carry_out(chains, folder, config.workers, "training")
    minutes = (time.monotonic() - begin) / 60
    print(
        f"{len(chains)} models and what they begin with, {config.workers} at the same time: {minutes:.0f} minutes now"
    )
    _report(folder, config, wanted, runs)


def _require_same_study(folder: Path, config: StudyConfig, base: dict[str, Any]) -> None:
    """Remember what the folder is a study of; UserError if it is one of something else."""
    of_the_call = ("workers", "only", "seeds")
    settings = {name: value for name, value in to_mapping(config).items() if name not in of_the_call}
    described = json.dumps({"settings": settings, "students": base}, indent=1)
    about = folder / "about.json"
    folder.mkdir(parents=True, exist_ok=True)
    if about.exists() and about.read_text(encoding="utf-8") != described:
        raise UserError(f"{folder} holds a study with other settings ({about}); give another folder")
    about.write_text(described, encoding="utf-8")


def _needed(wanted: dict[str, Comparison]) -> dict[str, list[str]]:
    """Name the trainings of these comparisons, with the lidars that each is tested with."""
    needed: dict[str, list[str]] = {}
    for comparison in wanted.values():
        for name, lidar in (cell for row in comparison.rows.values() for cell in row):
            if lidar not in needed.setdefault(name, []):
                needed[name].append(lidar)
    return needed


class _Runs:
    """Every command of a study, and where its results lie."""

    def __init__(self, folder: Path, config: StudyConfig, base: dict[str, Any]) -> None:
        self._folder, self._config, self._base = folder, config, base
        self._trainings = trainings(config)

    def drives(self, lidars: Iterable[str]) -> list[list[Command]]:
        """Give the commands that make the drives of each building, and let the teacher label them."""
        config, found = self._config, []
        for lidar in lidars:
            for number in range(config.buildings):
                drive = self._drive(lidar, number)
                labels = [self._labelled(drive, TAUGHT)]
                if lidar == FINE:
                    labels.append(self._labelled(drive, UNFILTERED))
                found.append([self._simulated(drive, lidar, number), *labels])
            for number in range(UNSEEN, UNSEEN + config.unseen):
                drive = self._drive(lidar, number)
                found.append([self._simulated(drive, lidar, number), self._labelled(drive, TAUGHT)])
        return found

    def _drive(self, lidar: str, number: int, labels: str = EXACT) -> Path:
        return self._folder / labels / f"{lidar.lower()}-{number}.mcap"

    def _simulated(self, drive: Path, lidar: str, number: int) -> Command:
        config = self._config
        settings = {"lidar": lidar, "cameras": 2, "frames": config.frames, "speed-mps": config.speed_mps}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        arguments = ("simulate", "-o", str(drive), *flags, f"--seed={config.building_seed + number}")
        return Command(arguments=arguments, output=drive)

    def _labelled(self, drive: Path, labels: str) -> Command:
        output = self._folder / labels / drive.name
        flags = ["--vision-model", self._config.teacher, "--class-map", "", "--images"]
        ungated = UNGATED if labels == UNFILTERED else ()
        return Command(arguments=("label", str(drive), "-o", str(output), *flags, *ungated), output=output)

    def trained_and_tested(self, needed: Mapping[str, Sequence[str]]) -> list[list[Command]]:
        """Give the commands of these trainings and their tests; those that begin with one model are one chain."""
        chains: dict[tuple[str, int], list[Command]] = {}
        for seed in range(self._config.seeds):
            for name, lidars in needed.items():
                training = self._trainings[name]
                chain = chains.setdefault((training.start or name, seed), [])
                if training.start is not None and not chain:
                    chain.append(self._trained(self._trainings[training.start], seed))
                chain.append(self._trained(training, seed))
                chain += [self._tested(name, seed, lidar) for lidar in lidars]
        return list(chains.values())

    def _trained(self, training: Training, seed: int) -> Command:
        model = self._model(training.name, seed)
        plan = model.with_suffix(".yaml")
        plan.parent.mkdir(exist_ok=True)
        write_yaml(plan, self._plan(training, seed))
        return Command(arguments=("distill", str(plan), "-o", str(model)), output=model)

    def _plan(self, training: Training, seed: int) -> dict[str, Any]:
        # Exact labels stand beside the teacher's in its recordings, so that all learn from the same sweeps.
        folder, labels = (TAUGHT, "exact") if training.labels == EXACT else (training.labels, "pseudo")
        drives = [self._drive(lidar, n, folder) for lidar in training.lidars for n in range(self._config.buildings)]
        settings = {
            "batch": self._config.batch,
            "max_points": self._config.max_points,
            "ema": 0.98,  # the default looks back further than these trainings are long
            "workers": 0,
            "seed": seed,
            "cache": str(self._folder / "cache"),
            **training.settings,
        }
        plan = {**self._base, "train": [{"path": str(drive), "labels": labels} for drive in drives]}
        plan["network"] = {**self._base["network"], "depth": training.depth}
        if training.start is not None:
            plan["start"] = str(self._model(training.start, seed))
        return {**plan, "settings": settings}

    def _model(self, name: str, seed: int) -> Path:
        return self._folder / "models" / f"{name}-{seed}.safetensors"

    def _result(self, name: str, seed: int, lidar: str) -> Path:
        return self._folder / "results" / f"{name}-{seed}-on-{lidar.lower()}.json"

    def _tested(self, name: str, seed: int, lidar: str) -> Command:
        drives = [str(self._drive(lidar, UNSEEN + number, TAUGHT)) for number in range(self._config.unseen)]
        result = self._result(name, seed, lidar)
        arguments = ("evaluate", str(self._model(name, seed)), *drives, "--threads", "1", "--json", str(result))
        return Command(arguments=arguments, output=result)

    def found(self, name: str, lidar: str) -> list[dict[str, Any]]:
        """Read what the tests of a training say, by seed."""
        results = [self._result(name, seed, lidar) for seed in range(self._config.seeds)]
        return [json.loads(result.read_text(encoding="utf-8")) for result in results]

    def miou(self, name: str, lidar: str) -> np.ndarray:
        """Give the mIoU against exact labels, (seeds,)."""
        return np.array([found["miou"] for found in self.found(name, lidar)])


def _carry_out(chains: Sequence[Sequence[Command]], folder: Path, workers: int, unit: str) -> None:
    """Carry out the commands of each chain in order, chains beside each other; those that are done are left out."""
    chains = [chain for chain in chains if not all(command.output.exists() for command in chain)]
    logs = folder / "logs"
    # Fresh processes: torch's threads do not survive a fork.
    with _one_core_each(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_carried_out, chain, logs) for chain in chains]
        try:
            bar = tqdm(as_completed(running), total=len(running), unit=unit, disable=None, file=sys.stderr)
            for one in bar:
                one.result()
        except UserError as error:
            tqdm.write(f"{error}; what else runs is finished, then the study ends", file=sys.stderr)
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_core_each() -> Iterator[None]:
    """Have the processes that are started meanwhile compute with one thread; libraries read that as they load."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _carried_out(chain: Sequence[Command], logs: Path) -> None:
    """Carry out what is not done yet, in this process, whose words go into a file for each command."""
    from lidar_semseg_ros.cli.main import main

    logs.mkdir(exist_ok=True)
    for command in chain:
        if command.output.exists():
            continue
        command.output.parent.mkdir(exist_ok=True)
        log = logs / f"{command.output.parent.name}-{command.output.stem}.log"
        with log.open("w", encoding="utf-8") as said:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(said.fileno(), stream.fileno())
            print("lidar-semseg", *command.arguments, flush=True)
            try:
                main(list(command.arguments))
            except SystemExit as error:
                raise UserError(_failure(command, log)) from error
            finally:
                sys.stdout.flush()
                sys.stderr.flush()


def _failure(command: Command, log: Path) -> str:
    sys.stderr.flush()
    reason = log.read_text(encoding="utf-8").strip().splitlines()[-1].removeprefix("error: ")
    return f"'lidar-semseg {command.arguments[0]}' failed: {reason} ({log})"


def _report(folder: Path, config: StudyConfig, wanted: dict[str, Comparison], runs: _Runs) -> None:
    sections: list[Table | Picture] = []
    found: dict[str, Any] = {"settings": to_mapping(config), "comparisons": {}}
    for name, comparison in wanted.items():
        said = findings(comparison, runs.miou)
        tables = [_table(comparison, runs.miou), *([_findings_table(said)] if said else [])]
        if name == "labels":
            tables.insert(1, _loop_table(comparison, runs))
        picture = _picture(comparison, runs.miou)
        sections += [*tables, picture]
        save_png(folder / f"{name}.png", picture.pixels)
        found["comparisons"][name] = _figures(comparison, runs.miou, said)
        for table in tables:
            print(f"\n{table.title}\n{text_table(table.header, table.rows)}")
    (folder / "study.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    html_report(folder / "study.html", "What pre-training and labels are worth", sections)
    print(f"\n{folder / 'study.html'}, {folder / 'study.json'}")


def _table(comparison: Comparison, miou_of: MiouOf) -> Table:
    rows = [[row, *(_mean(miou_of(*cell)) for cell in cells)] for row, cells in comparison.rows.items()]
    return Table(title=f"{comparison.title}: mIoU in unseen buildings", header=["", *comparison.columns], rows=rows)


def _loop_table(comparison: Comparison, runs: _Runs) -> Table:
    """Set the student beside its teacher, at the points that the teacher labels, and beside the supervised one."""
    (taught,), *_, (exact,) = comparison.rows.values()
    against = [found["against"][TEACHER] for found in runs.found(*taught)]
    # A class that the teacher never names is no fault of its student.
    student, supervised = (
        np.array([found["against"][JUDGED_EXACTLY]["miou_taught"] for found in runs.found(*cell)], float)
        for cell in (taught, exact)
    )
    rows = [
        ["teacher, points that it labels", _mean(np.array([one["miou_given"] for one in against]))],
        ["its coverage", _mean(np.array([one["coverage"] for one in against]))],
        ["student from its labels, all points", _mean(runs.miou(*taught))],
        ["student's share of the supervised one's, classes that the teacher can name", _mean(student / supervised)],
    ]
    return Table(title="The whole loop", header=["", "mIoU"], rows=rows)


def _findings_table(said: Sequence[Finding]) -> Table:
    rows = [
        [
            one.claim,
            f"{100 * one.mean:+.1f} ± {100 * one.deviation:.1f}",
            f"{one.agree} of {one.seeds}",
            "holds" if one.holds else "not shown",
        ]
        for one in said
    ]
    return Table(
        title="Claims: points of mIoU, pairs of the same seed", header=["", "better by", "seeds", ""], rows=rows
    )


def _picture(comparison: Comparison, miou_of: MiouOf) -> Picture:
    drawn = [
        Bar(row=row, column=column, mean=100 * float(values.mean()), deviation=100 * deviation(values))
        for row, cells in comparison.rows.items()
        for column, cell in zip(comparison.columns, cells)
        for values in (miou_of(*cell),)
    ]
    caption = "mIoU in unseen buildings, percent; mean and standard deviation over seeds"
    return Picture(title=comparison.title, caption=caption, pixels=bars(comparison.title, caption, drawn))


def _figures(comparison: Comparison, miou_of: MiouOf, said: Sequence[Finding]) -> dict[str, Any]:
    rows = {
        row: {column: miou_of(*cell).tolist() for column, cell in zip(comparison.columns, cells)}
        for row, cells in comparison.rows.items()
    }
    return {"miou": rows, "claims": [{**vars(one), "holds": one.holds} for one in said]}


def _mean(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f} ± {100 * deviation(values):.1f} %"
