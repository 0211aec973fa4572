"""`inspect` on recordings of live teachers, whose topics have namespaces."""

from __future__ import annotations

from pathlib import Path

import pytest
from taught import write_taught

from lidar_semseg_ros.cli.main import main

ENDING = "/teacher/output/pointcloud/pseudo_labels"


def test_a_teacher_in_a_namespace_is_inspected_with_its_classes_and_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_taught(tmp_path / "a.mcap", sweeps=3, namespace="/robot1")
    main(["inspect", str(tmp_path / "a.mcap")])
    said = capsys.readouterr().out
    assert "3 clouds" in said and "taught by tiny 00" in said and "below" in said and "above" in said


def test_of_several_teachers_the_one_that_is_named_is_inspected_and_without_a_name_all_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        write_taught(tmp_path / f"{number}.mcap", sweeps=number, namespace=f"/robot{number}")
    main(["inspect", str(tmp_path), "--topic", f"/robot2{ENDING}"])
    assert "2 clouds" in capsys.readouterr().out
    for named, said in (
        ([], f"2 teachers (/robot1{ENDING}, /robot2{ENDING}); choose one with --topic"),
        (["--topic", "/robot3"], f"no pseudo-labels on /robot3; it has them on /robot1{ENDING}, /robot2{ENDING}"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(tmp_path), *named])
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_recording_without_the_class_map_of_its_teacher_is_refused_with_the_topic_to_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_taught(tmp_path / "plain.mcap", sweeps=1, taught=False)
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "plain.mcap")])
    assert "holds no pseudo-labels" in capsys.readouterr().err
