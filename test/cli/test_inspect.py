"""`inspect` on recordings of live teachers, whose topics have namespaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from taught import write_taught

from lidar_semseg_ros.cli.inspect_command import inspection
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.dataset import PSEUDO_LABEL_TOPIC
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame, pseudo_labelled_cloud

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


def test_an_empty_cloud_that_has_no_exact_labels_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_taught(tmp_path / "a.mcap", sweeps=2)
    with open_bag(tmp_path / "a.mcap") as bag, BagWriter(tmp_path / "b.mcap") as writer:
        for one in bag.messages():
            writer.write(one.topic, one.msgtype, one.log_time_ns, one.cdr(), one.topic in bag.latched)
        empty = cloud_from_frame(LidarFrame(stamp_ns=10**9, frame_id="lidar", xyz=np.empty((0, 3), np.float32)))
        none = np.empty(0, np.uint8)
        writer.write_cloud(PSEUDO_LABEL_TOPIC, pseudo_labelled_cloud(empty, none, none.astype(np.float32), none))
    found, without = inspection(tmp_path / "b.mcap"), inspection(tmp_path / "a.mcap")
    assert (found.clouds, found.coverage) == (3, without.coverage)
    main(["inspect", str(tmp_path / "b.mcap")])
    assert "3 clouds" in capsys.readouterr().out


def test_a_picture_for_a_folder_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(tmp_path / "a.mcap"), "--picture", str(tmp_path / "none" / "a.png")])
    assert ended.value.code == 2 and "to write a.png to; make it first" in capsys.readouterr().err
