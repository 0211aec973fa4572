"""Real labelled scans through every command: learned from, exported, judged on held-out ones, labelled as a bag."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="the export needs onnxscript")

from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.cli.segment_command import SEGMENTATION_TOPIC
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, column
from lidar_semseg_ros.network.model_file import read_description

HELD_OUT = "11:12"


pytestmark = pytest.mark.usefixtures("one_thread")


def write_plan(path: Path, kitti: Path) -> Path:
    scans = {"path": str(kitti), "labels": "exact"}
    plan = {
        "classes": "semantickitti19",
        "network": {"width": 24, "depth": 2},
        "inputs": {
            "voxel_size_m": 0.4,
            "fov_min_m": [-30, -30, -3],
            "fov_max_m": [30, 30, 2],
            "planes": ["z", "y", "x"],
            "grids": [[60, 60], [60, 6], [60, 6]],
            "intensity_mean": 0.3,
            "intensity_std": 0.2,
        },
        "train": [scans | {"sweeps": "0:6"}],
        "validation": [scans | {"sweeps": HELD_OUT}],
        "settings": {
            "steps": 24,
            "batch": 1,
            "max_points": 3000,
            "warmup": 3,
            "learning_rate": 1e-2,
            "ema": 0.8,
            "workers": 0,
            "validate": 24,
            "validation_sweeps": 1,
            "cache": str(path.parent / "cache"),
        },
    }
    path.write_text(yaml.safe_dump(plan))
    return path


def judged(model: Path, kitti: Path, sweeps: str) -> dict[str, object]:
    written = model.with_name("figures.json")
    main(["evaluate", str(model), str(kitti), "--sweeps", sweeps, "--json", str(written)])
    found: dict[str, object] = json.loads(written.read_text())
    return found


def test_real_scans_are_learned_judged_exported_and_labelled(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is said of how good so small a network is on other drives: all scans are of one second."""
    kitti = shared_data / "01_kitti00_semantic_sequence"
    plan, student, untrained = (tmp_path / name for name in ("plan.yaml", "s.safetensors", "untrained.safetensors"))
    write_plan(plan, kitti)
    main(["distill", str(plan), "-o", str(student)])
    with (tmp_path / "s.losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert len(losses) == 24 and np.mean(losses[-6:]) < 0.8 * losses[0]
    assert "(6 of 6 sweeps, weight 1; labels exact)" in read_description(student).provenance["data"]
    nothing = ["--steps", "1", "--learning-rate", "0", "--validate", "0"]
    main(["distill", str(plan), "-o", str(untrained), *nothing])
    before, after = (judged(model, kitti, "0:1")["miou"] for model in (untrained, student))
    assert isinstance(before, float) and isinstance(after, float) and after > 1.5 * before

    main(["export", str(student)])
    of_torch, of_onnx = (judged(model, kitti, HELD_OUT) for model in (student, student.with_suffix(".onnx")))
    said = np.load(kitti / "labels" / "000011.npy")
    labelled = int(((said >= 1) & (said <= 19)).sum())
    confusion = {name: np.array(found["confusion"]) for name, found in (("torch", of_torch), ("onnx", of_onnx))}
    assert confusion["torch"].sum() == confusion["onnx"].sum() == of_torch["points"] == labelled > 40_000
    # Two arithmetics may part at a few points whose two best classes are as good as equal.
    assert np.abs(confusion["torch"] - confusion["onnx"]).sum() / 2 < 1e-3 * labelled
    # What was seen while training is what is found afterwards.
    assert float(rows[-1]["validation_miou"]) == pytest.approx(of_torch["miou"], abs=1e-3)

    bag, labels = tmp_path / "held_out.mcap", tmp_path / "labelled.mcap"
    main(["convert", str(kitti / "velodyne" / "000011.bin"), "-o", str(bag)])
    main(["segment", str(bag), "-o", str(labels), "--model", str(student.with_suffix(".onnx"))])
    assert "1 clouds labelled by s.onnx" in capsys.readouterr().out
    with open_bag(labels) as recorded:
        (cloud,) = (message.message() for message in recorded.messages([SEGMENTATION_TOPIC]))
    class_id = column(cloud_content(cloud), "class_id")
    assert len(class_id) == len(said)
    known = (said >= 1) & (said <= 19)
    right = int((class_id[known] == said[known] - 1).sum())
    assert right == np.trace(confusion["onnx"])


def test_what_evaluate_cannot_take_of_a_folder_is_told(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitti = shared_data / "01_kitti00_semantic_sequence"
    (tmp_path / "bag.mcap").touch()
    for arguments, said in (
        (["indoor-small", str(kitti), "--sweeps", "12:"], "has 12 sweeps"),
        (
            ["indoor-small", str(tmp_path / "bag.mcap"), "--sweeps", "0:1"],
            "--sweeps chooses from folders of a data set",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *arguments])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 2 and said in error, error
