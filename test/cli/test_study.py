"""`lidar-semseg study`: from nothing to a table, and on from where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.cli.study_command import _loop_table
from lidar_semseg_ros.distill.study import Comparison
from lidar_semseg_ros.formats.config_files import package_share, read_yaml, write_yaml

SMALL = [
    "--buildings=2",
    "--unseen=1",
    "--frames=5",
    "--full-steps=2",
    "--seeds=2",
    "--batch=2",
    "--max-points=400",
    "--only=labels",
    "--workers=2",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("study")
    students = read_yaml(package_share() / "config" / "study.yaml")
    students["network"]["width"] = 8
    write_yaml(folder / "students.yaml", students)
    arguments = ["study", "-o", str(folder / "made"), "--config", str(folder / "students.yaml"), *SMALL]
    main(arguments)
    return arguments


def made(study: list[str]) -> Path:
    return Path(study[2])


def times(folder: Path) -> dict[str, int]:
    files = (file for part in ("exact", "taught", "models", "results") for file in (folder / part).iterdir())
    return {file.name: file.stat().st_mtime_ns for file in files if file.suffix != ".yaml"}


def test_a_study_ends_with_a_table_a_picture_and_figures_that_agree_with_its_tests(study: list[str]) -> None:
    folder = made(study)
    found = json.loads((folder / "study.json").read_text())["comparisons"]["labels"]["miou"]
    assert list(found) == ["pseudo-labels, filtered", "pseudo-labels, all that is seen", "exact labels"]
    for seed in (0, 1):
        result = json.loads((folder / "results" / f"full-exact-os1-64-6-{seed}-on-os1-64.json").read_text())
        assert found["exact labels"]["mIoU"][seed] == result["miou"]
        assert 0 < result["against"]["teacher"]["coverage"] < 1
    page = (folder / "study.html").read_text()
    assert "The whole loop" in page and "exact labels" in page
    assert (folder / "labels.png").stat().st_size > 1000


def test_each_training_learned_from_what_its_row_says(study: list[str]) -> None:
    models = made(study) / "models"
    for name, labels, folder in (("taught", "pseudo", "taught"), ("unfiltered", "pseudo", "unfiltered"),
                                 ("exact", "exact", "taught")):  # fmt: skip
        plan = read_yaml(models / f"full-{name}-os1-64-6-0.yaml")
        assert {source["labels"] for source in plan["train"]} == {labels}
        assert [Path(source["path"]).parent.name for source in plan["train"]] == [folder] * 2


def test_another_call_goes_on_with_what_is_missing_only(study: list[str]) -> None:
    folder = made(study)
    before = times(folder)
    missing = folder / "results" / "full-exact-os1-64-6-1-on-os1-64.json"
    missing.unlink()
    main(study)
    after = times(folder)
    assert {name for name in after if after[name] != before[name]} == {missing.name}


def test_the_students_share_is_over_the_classes_that_its_teacher_can_name() -> None:
    class Runs:
        def found(self, name: str, lidar: str) -> list[dict[str, Any]]:
            of_teacher = {"miou_given": 0.8, "coverage": 0.5}
            of_model = {"miou_taught": {"taught": 0.3, "exact": 0.6}[name]}
            return [{"against": {"exact labels": of_model, "teacher": of_teacher}}] * 2

        def miou(self, name: str, lidar: str) -> np.ndarray:
            return np.array([0.2, 0.2])

    rows = {"labels": (("taught", "l"),), "all": (("unfiltered", "l"),), "exact": (("exact", "l"),)}
    table = _loop_table(Comparison(title="", columns=("mIoU",), rows=rows), Runs())
    said = dict(table.rows)
    assert said["student from its labels, all points"].startswith("20.0 ")
    assert said["student's share of the supervised one's, classes that the teacher can name"].startswith("50.0 ")


def test_a_folder_of_another_study_is_refused(study: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*study, "--frames=6"])
    assert "holds a study with other settings" in capsys.readouterr().err


def test_what_fails_is_told_with_the_command_and_its_log(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["study", "-o", str(tmp_path), *study[3:], "--teacher=nowhere/to-be-found"])
    said = capsys.readouterr().err
    assert "'lidar-semseg label' failed" in said and "nowhere/to-be-found" in said and ".log" in said
