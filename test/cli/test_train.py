"""`train` as users start it: from the simulator alone, killed and started again, begun with another model."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from midway import kill_midway

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.formats.config_files import class_table, package_share
from lidar_semseg_ros.network.model_file import read_description, read_safetensors
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.sim.drive import random_views

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PLAN = {
    "classes": "indoor17",
    "network": {"width": 16, "depth": 2},
    "inputs": {
        "voxel_size_m": 0.2,
        "fov_min_m": [-8, -8, -3],
        "fov_max_m": [8, 8, 4],
        "planes": ["z", "y", "x"],
        "grids": [[32, 32], [32, 14], [32, 14]],
        "intensity_mean": 60,
        "intensity_std": 50,
    },
}
pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ["--batch", "1", "--max-points", "300", "--workers", "0", "--warmup", "1"]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return written(tmp_path / "plan.yaml")


def written(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(PLAN | changes))
    return path


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def losses(model: Path) -> list[float]:
    with model.with_suffix(".losses.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_model_says_that_it_comes_from_the_simulator_and_labels_clouds(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.safetensors"
    main(["train", str(plan), "-o", str(model), "--steps", "3", *SHORT])
    assert "m.safetensors: 3 steps of 1 simulated sweeps" in capsys.readouterr().out
    description = read_description(model)
    assert description.name == "m" and description.classes == class_table("indoor17")
    told = description.provenance
    assert told["data"].startswith("simulated buildings with exact labels") and told["licence"] == "Apache-2.0"
    assert (
        told["command"].startswith(f"lidar-semseg train {plan} -o {model} --steps 3 --batch 1") and told["steps"] == "3"
    )
    assert len(losses(model)) == 3 and (tmp_path / "m.losses.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.checkpoint")) and not list(tmp_path.glob("*.part"))
    frame, _ = next(random_views(np.random.default_rng(5)))
    said = Segmenter(SegmenterConfig(model=str(model)), tmp_path).segment(frame).labels.class_id
    assert len(said) == len(frame) and (said[frame.has_return()] < 17).any()


def test_a_training_that_was_killed_goes_on_to_the_same_losses_and_weights(plan: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    settings = [*SHORT, "--steps", "12", "--checkpoint", "2"]
    command = [sys.executable, "-m", "lidar_semseg_ros.cli.main", "train", str(plan), "-o", str(killed), *settings]
    kill_midway(command, killed.with_suffix(".checkpoint").exists, ONE_THREAD)
    assert torch.load(killed.with_suffix(".checkpoint"), weights_only=True)["steps"] < 12 and not killed.exists()
    main(["train", str(plan), "-o", str(killed), *settings, "--workers", "1"])
    main(["train", str(plan), "-o", str(whole), *settings])
    assert losses(killed) == losses(whole) and len(losses(whole)) == 12
    first, second = read_safetensors(whole)[0], read_safetensors(killed)[0]
    assert all(bool((first[key] == second[key]).all()) for key in first)


def test_training_goes_on_from_a_model_and_its_header_tells_the_whole_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = package_share() / "config" / "train_indoor_small.yaml"
    main(["train", str(plan), "-o", "first.safetensors", "--steps", "1", *SHORT])
    start = ["--start", "first.safetensors"]
    main(["train", str(plan), "-o", "second.safetensors", *start, "--steps", "2", *SHORT, "--learning-rate", "0.0"])
    main(["train", str(plan), "-o", "third.safetensors", "--start", "second.safetensors", "--steps", "1", *SHORT])
    first, origin = read_safetensors(Path("first.safetensors"))
    second, description = read_safetensors(Path("second.safetensors"))
    weights = [key for key in first if "running" not in key and "num_batches" not in key]
    assert all((first[key] == second[key]).all() for key in weights), "a learning rate of 0 keeps the weights"
    told = description.provenance
    assert told["start"].startswith("first, sha256 ") and told["start"].endswith("its head kept")
    assert told["start command"] == origin.provenance["command"] and told["start steps"] == "1" and told["steps"] == "2"
    assert "--start first.safetensors" in told["command"] and "--learning-rate 0.0" in told["command"]
    third = read_description(Path("third.safetensors")).provenance
    assert third["start start command"] == origin.provenance["command"] and third["start command"] == told["command"]

    other = tmp_path / "other.yaml"
    other.write_text(plan.read_text().replace("voxel_size_m: 0.1", "voxel_size_m: 0.2"))
    said = failing(["train", str(other), "-o", "fourth.safetensors", *start], capsys)
    assert "first.safetensors takes other inputs" in said


def test_what_the_simulator_does_not_have_is_said(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.safetensors").touch()
    output = ["-o", str(tmp_path / "a.safetensors")]
    recordings = written(tmp_path / "recordings.yaml", train=["a.mcap"])
    features = written(tmp_path / "features.yaml", settings={"objectives": {"scalr": 1.0}})
    classes = written(tmp_path / "classes.yaml", classes="nuscenes16")
    for arguments, said in (
        ([str(recordings), *output], "'train', which is for recordings; leave it out, or use `lidar-semseg distill`"),
        ([str(features), *output], "has 'objectives.scalr', which is for recordings"),
        ([str(classes), *output], "write 'classes: indoor17'"),
        ([str(plan), "-o", str(tmp_path / "there.safetensors")], "exists already"),
        ([str(plan), "-o", str(tmp_path / "a.onnx")], "must end in .safetensors"),
    ):
        error = failing(["train", *arguments], capsys)
        assert said in error, error
    with pytest.raises(SystemExit):
        main(["train", str(plan), *output, "--share", "0.5"])
    assert "unrecognized arguments: --share" in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))
