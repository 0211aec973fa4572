"""`evaluate` with the shipped model on a small recording whose labels are made of the model's own answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
from taught import RIG

from lidar_semseg_ros.cli.evaluate_command import evaluated
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.formats.bags import BagWriter
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.formats.dataset import (
    LABEL_TOPIC,
    PSEUDO_LABEL_TOPIC,
    TEACHER_CLASS_MAP_TOPIC,
    TEACHER_SETTINGS_TOPIC,
    settings_text,
)
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame, pseudo_labelled_cloud
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig

MODEL = "indoor-small"
MODELS = package_share() / "models"
POINTS, SWEEPS = 1600, 3


def room(seed: int) -> LidarFrame:
    """Points on floor and walls of a room around the sensor, in 16 rings."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-5, -3, -1), (5, 3, 1.5), (POINTS, 3))
    xyz[: POINTS // 3, 2] = -1
    xyz[POINTS // 3 : POINTS // 2, 1] = 3
    return LidarFrame(
        stamp_ns=seed + 1,
        frame_id="lidar",
        xyz=xyz.astype(np.float32),
        intensity=rng.uniform(0, 60, POINTS).astype(np.float32),
        ring=(np.arange(POINTS) % 16).astype(np.uint16),
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exact labels for half of the points, all as the model says; pseudo-labels for a quarter, half of them other."""
    segmenter = Segmenter(SegmenterConfig(model=MODEL), MODELS)
    path = tmp_path_factory.mktemp("evaluate") / "both.mcap"
    with BagWriter(path) as writer:
        writer.write_json(TEACHER_CLASS_MAP_TOPIC, json.dumps(segmenter.classes.to_mapping()), 1)
        text = settings_text({}, {}, ["sofa"], cloud_topic="/lidar/points", rig=RIG)
        writer.write_json(TEACHER_SETTINGS_TOPIC, text, 1)
        for seed in range(SWEEPS):
            frame = room(seed)
            answer = segmenter.segment(frame).labels.class_id
            exact, pseudo = answer.copy(), answer.copy()
            exact[POINTS // 2 :] = pseudo[POINTS // 4 :] = UNLABELLED
            pseudo[: POINTS // 8] = (pseudo[: POINTS // 8] + 1) % len(segmenter.classes)
            writer.write_class_ids(LABEL_TOPIC, exact[None], frame.stamp_ns, "lidar")
            sure = np.where(pseudo == UNLABELLED, 0, 0.5).astype(np.float32)
            views = (sure > 0).astype(np.uint8)
            cloud = pseudo_labelled_cloud(cloud_from_frame(frame), pseudo, sure, views)
            writer.write_cloud(PSEUDO_LABEL_TOPIC, cloud)
    return path


def test_exact_and_pseudo_labels_stand_side_by_side_in_table_page_and_file(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.html"
    main(["evaluate", MODEL, str(recording), "--report", str(report), "--json", str(tmp_path / "again.json")])
    said, page = capsys.readouterr().out, report.read_text()
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == json.loads((tmp_path / "again.json").read_text())
    exact, pseudo, teacher = (found["against"][kind] for kind in ("exact labels", "pseudo-labels", "teacher"))
    assert exact["miou"] == exact["accuracy"] == found["miou"] == 1.0 and exact["points"] == SWEEPS * POINTS // 2
    assert pseudo["accuracy"] == 0.5 and pseudo["points"] == SWEEPS * POINTS // 4
    assert teacher["coverage"] == 0.5 and teacher["accuracy"] == 0.25 and teacher["accuracy_given"] == 0.5
    assert teacher["ece"] == 0.0  # sure to a half, and right in a half
    assert found["untaught"] == ["sofa"] and "the teacher cannot name: sofa" in said
    for text in ("mIoU 100.0%", "model, exact labels", "model, pseudo-labels", "teacher, exact labels", "IoU, teacher"):
        assert text in said
    assert page.count("<img") == 4 and page.count("Confusion: ") == 3 and "One sweep from above" in page
    assert "http" not in page  # nothing is loaded from elsewhere


def test_a_model_is_no_better_or_worse_than_itself_under_corruption(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = ["--json", str(tmp_path / "f.json"), "--report", str(tmp_path / "r.html")]
    robust = ["--robustness", "--frames", "1", "--baseline", MODEL]
    main(["evaluate", str(recording), "--model", MODEL, *robust, *written])
    found = json.loads((tmp_path / "f.json").read_text())["robustness"]
    assert found["sweeps"] == 1 and found["clean_miou"] == 1.0
    assert found["mce"] == pytest.approx(100) and len(found["miou"]) == 9
    means = [100 * np.mean(each) for each in found["miou"].values()]
    assert found["mrr"] == pytest.approx(np.mean(means)) and 5 < found["mrr"] < 100
    assert "mCE 100.0 relative to " in capsys.readouterr().out
    assert "<td>beam_missing</td>" in (tmp_path / "r.html").read_text()


def test_of_a_recording_with_few_labelled_sweeps_as_many_as_asked_are_corrupted_and_the_middle_one_is_drawn(
    tmp_path: Path,
) -> None:
    segmenter = Segmenter(SegmenterConfig(model=MODEL), MODELS)
    with BagWriter(tmp_path / "few.mcap") as writer:
        for seed in range(10):
            frame = room(seed)
            if seed in (0, 1, 4, 6, 8):
                labels = np.zeros((1, POINTS), np.uint8)
                writer.write_class_ids(LABEL_TOPIC, labels, frame.stamp_ns, "lidar")
            writer.write_cloud("/lidar/points", cloud_from_frame(frame))
    found = evaluated(segmenter, [tmp_path / "few.mcap"], None, 3, {})
    assert [frame.stamp_ns for frame, _ in found.chosen] == [1, 5, 9]
    assert found.middle is not None and found.middle[0].frame.stamp_ns == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([MODEL], "name a recording"),
        ([MODEL, "BAG", "--model", MODEL], "two models"),
        (["BAG", "--baseline", MODEL], "give --robustness"),
        (["BAG", "--frames", "0"], "--frames must be at least 1"),
        (["BAG", "--report", "out.pdf"], "must end in .html"),
        (["BAG", "--topic", "/nowhere"], "no cloud topic /nowhere"),
        (["nowhere.onnx", "BAG"], "no model file"),
        (["nowhere", "BAG"], "no recording nowhere"),
    ],
)
def test_wrong_arguments_are_told(
    arguments: list[str], said: str, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *(str(recording) if argument == "BAG" else argument for argument in arguments)])
    assert ended.value.code == 2 and said in capsys.readouterr().err
