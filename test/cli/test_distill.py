"""`distill` as users start it: alone, killed and started again, on several processes; and what becomes of its model."""

from __future__ import annotations

import csv
import errno
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from midway import kill_midway

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
from safetensors import SafetensorError
from taught import STOREYS, two_storeys, write_config, write_feature_teacher, write_taught

from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.distill import run_files
from lidar_semseg_ros.distill.distillation import _Run
from lidar_semseg_ros.distill.plan import read_plan
from lidar_semseg_ros.distill.schedule import warmup_cosine
from lidar_semseg_ros.distill.validation import Validation
from lidar_semseg_ros.network.model_file import read_description, read_safetensors
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.view.curve import HEIGHT

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
COMMAND = ["-m", "lidar_semseg_ros.cli.main", "distill"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bag") / "a.mcap"
    write_taught(path, sweeps=5, points=500)
    return path


@pytest.fixture
def config(bag: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "plan.yaml", [bag], tmp_path / "cache")


def losses(model: Path) -> list[float]:
    with model.with_suffix(".losses.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def validated(model: Path) -> dict[int, float]:
    with model.with_suffix(".losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): float(row["validation_miou"]) for row in rows if row["validation_miou"]}


def test_a_model_says_where_it_comes_from_and_labels_clouds(
    bag: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "student.safetensors"
    main(["distill", str(config), "-o", str(model), "--steps", "30", "--learning-rate", "0.005", "--share", "0.6"])
    assert "30 steps of 2 sweeps out of 3" in capsys.readouterr().out
    description = read_description(model)
    assert description.classes == STOREYS and description.provenance["seed"] == "0"
    assert "a.mcap (3 of 5 sweeps, weight 1; labels pseudo, teacher model tiny" in description.provenance["data"]
    assert "--share 0.6" in description.provenance["command"] and description.provenance["objectives"].endswith(" 1")
    assert (tmp_path / "student.losses.png").read_bytes().startswith(b"\x89PNG") and len(losses(model)) == 30
    assert not list(tmp_path.glob("*.checkpoint")) and not list(tmp_path.glob("*.part"))

    frame, truth = two_storeys(np.random.default_rng(9), 500)
    said = Segmenter(SegmenterConfig(model=str(model)), tmp_path).segment(frame).labels.class_id
    assert (said == truth).mean() > 0.9


def test_a_run_that_was_killed_goes_on_to_the_same_losses(config: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    settings = ["--steps", "40", "--checkpoint", "4"]
    command = [sys.executable, *COMMAND, str(config), "-o", str(killed), *settings]
    kill_midway(command, killed.with_suffix(".checkpoint").exists, ONE_THREAD)
    assert killed.with_suffix(".checkpoint").exists() and not killed.exists()
    done = len(losses(killed)) if killed.with_suffix(".losses.csv").exists() else 0
    assert done < 40
    subprocess.run(command, cwd=ROOT, env=ONE_THREAD, check=True, capture_output=True)
    main(["distill", str(config), "-o", str(whole), *settings])
    assert losses(killed) == losses(whole) and len(losses(whole)) == 40
    first, second = read_safetensors(whole)[0], read_safetensors(killed)[0]
    assert all(bool((first[key] == second[key]).all()) for key in first)


def test_the_best_model_on_recordings_that_are_kept_apart_is_kept_too(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_taught(tmp_path / "apart.mcap", sweeps=4, points=400, seed=9)
    plan = write_config(tmp_path / "plan.yaml", [bag], tmp_path / "cache", validate=10, validation_sweeps=2)
    written = yaml.safe_load(plan.read_text()) | {"validation": [str(tmp_path / "apart.mcap")]}
    plan.write_text(yaml.safe_dump(written))
    model, best = tmp_path / "s.safetensors", tmp_path / "s.best.safetensors"
    main(["distill", str(plan), "-o", str(model), "--steps", "30", "--learning-rate", "0.005"])
    assert "best on 2 sweeps of 'validation'" in capsys.readouterr().out
    seen = validated(model)
    assert list(seen) == [9, 19, 29] and seen[29] > 0.6
    first = next(step for step in seen if seen[step] == max(seen.values()))
    provenance = read_description(best).provenance
    assert provenance["steps"] == str(first + 1) and provenance["validation"].startswith(
        f"mIoU {seen[first]:.4f} on apart"
    )
    same = all(bool((a == b).all()) for a, b in zip(*(read_safetensors(one)[0].values() for one in (model, best))))
    assert same == (first == 29)
    png = (tmp_path / "s.losses.png").read_bytes()
    # Two curves one above the other; the height of a PNG is in its first chunk.
    assert int.from_bytes(png[20:24], "big") == 2 * HEIGHT


def test_a_loss_that_becomes_no_number_leaves_the_checkpoint_before_and_the_batch(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "s.safetensors"
    runaway = ["--steps", "50", "--learning-rate", "1e20", "--clip", "1e30", "--checkpoint", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["distill", str(config), "-o", str(model), *runaway])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "is no number any more at step" in error and "a.mcap[" in error
    step = int(error.partition("at step ")[2].partition(",")[0])
    saved = torch.load(tmp_path / "s.offending-0.pt", weights_only=True)
    assert saved["step"] == step > 0 and bool(saved["batch"]["features"].isfinite().all())
    assert ", ".join(saved["sweeps"]) in error
    state = torch.load(tmp_path / "s.checkpoint", weights_only=True)
    assert state["steps"] == step and bool(state["losses"].isfinite().all())
    assert len(losses(model)) == step and not model.exists()


def test_a_full_disk_costs_the_steps_since_the_last_checkpoint_and_no_more(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, full = tmp_path / "whole.safetensors", tmp_path / "full.safetensors"
    settings = ["--steps", "8", "--checkpoint", "2"]
    main(["distill", str(config), "-o", str(whole), *settings])
    flush, room = os.fsync, iter([True, True, True, True])  # two checkpoints, each with its table of losses

    def fill(file: int) -> None:
        if not next(room, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    def no_room(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as disk:
        disk.setattr(run_files.os, "fsync", fill)
        disk.setattr(safetensors.torch, "save_file", no_room)
        with pytest.raises(SystemExit), caplog.at_level(logging.WARNING):
            main(["distill", str(config), "-o", str(full), *settings])
    assert "full.checkpoint was not renewed ([Errno 28] No space left on device); the one before stays" in caplog.text
    assert torch.load(tmp_path / "full.checkpoint", weights_only=True)["steps"] == 4
    assert losses(full) == losses(whole)[:4] and not full.exists() and not list(tmp_path.glob("*.part"))
    main(["distill", str(config), "-o", str(full), *settings])
    assert losses(full) == losses(whole)
    first, second = read_safetensors(whole)[0], read_safetensors(full)[0]
    assert all(bool((first[key] == second[key]).all()) for key in first)


def test_a_model_for_which_there_is_no_room_is_written_by_the_same_command_again(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "s.safetensors"

    def no_room(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as disk:
        disk.setattr(safetensors.torch, "save_file", no_room)
        with pytest.raises(SystemExit):
            main(["distill", str(config), "-o", str(model), "--steps", "3"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot write" in error and "No space left" in error and "goes on from its checkpoint" in error
    assert torch.load(tmp_path / "s.checkpoint", weights_only=True)["steps"] == 3
    with monkeypatch.context() as idle:
        idle.setattr(_Run, "step", lambda *_: pytest.fail("a step was done again"))
        main(["distill", str(config), "-o", str(model), "--steps", "3"])
    assert model.exists() and len(losses(model)) == 3 and not (tmp_path / "s.checkpoint").exists()


def test_a_best_model_for_which_there_is_no_room_is_written_by_the_same_command_again(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_taught(tmp_path / "apart.mcap", sweeps=2, points=300, seed=9)
    plan = write_config(tmp_path / "plan.yaml", [bag], tmp_path / "cache", validate=3, checkpoint=2)
    written = yaml.safe_load(plan.read_text()) | {"validation": [str(tmp_path / "apart.mcap")]}
    plan.write_text(yaml.safe_dump(written))
    whole, full = tmp_path / "whole.safetensors", tmp_path / "full.safetensors"
    # No later network is better, so it is the first one that has to be written.
    monkeypatch.setattr(Validation, "miou", lambda *_: 0.5)
    main(["distill", str(plan), "-o", str(whole), "--steps", "6"])
    capsys.readouterr()

    def no_room(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as disk:
        disk.setattr(safetensors.torch, "save_file", no_room)
        with pytest.raises(SystemExit) as ended:
            main(["distill", str(plan), "-o", str(full), "--steps", "6"])
    said = capsys.readouterr()
    error = said.err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "full.best" in error and "goes on from its checkpoint" in error
    assert "best on" not in said.out
    assert torch.load(tmp_path / "full.checkpoint", weights_only=True)["steps"] == 2 and not full.exists()
    assert not list(tmp_path.glob("full.best*"))
    main(["distill", str(plan), "-o", str(full), "--steps", "6"])
    assert losses(full) == losses(whole) and validated(full) == validated(whole) == {2: 0.5, 5: 0.5}
    for one, other in ((whole, full), (tmp_path / "whole.best.safetensors", tmp_path / "full.best.safetensors")):
        (first, about), (second, again) = read_safetensors(one), read_safetensors(other)
        assert all(bool((first[key] == second[key]).all()) for key in first)
        assert about.provenance.get("steps") == again.provenance.get("steps")
    assert read_description(tmp_path / "full.best.safetensors").provenance["steps"] == "3"


def test_two_processes_learn_as_one_with_twice_the_batch(config: Path, tmp_path: Path) -> None:
    write_taught(tmp_path / "apart.mcap", sweeps=2, points=300, seed=9)
    config.write_text(
        yaml.safe_dump(yaml.safe_load(config.read_text()) | {"validation": [str(tmp_path / "apart.mcap")]})
    )
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    steps = ["--steps", "6", "--validate", "3"]
    shared = [*torchrun, *COMMAND, str(config), "-o", str(two), *steps, "--batch", "2"]
    subprocess.run(shared, cwd=ROOT, env=ONE_THREAD, check=True, capture_output=True)
    main(["distill", str(config), "-o", str(one), *steps, "--batch", "4"])
    # The mean of the losses of two halves is not the loss of their points together: Lovász is no sum over points, and
    # the halves have different numbers of labels. The batch norms and the sweeps are the same.
    assert losses(two) == pytest.approx(losses(one), rel=0.02)
    # One of the processes looks at the other recording, while the other waits.
    assert list(validated(two)) == list(validated(one)) == [2, 5]
    assert two.with_suffix(".best.safetensors").exists()


def test_features_are_learned_first_and_labels_from_there(bag: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="teachers need transformers, the extra 'teacher'")
    eyes = write_feature_teacher(tmp_path / "eyes")
    objectives = {"pseudo_labels": 0.0, "scalr": 1.0, "seal_superpixels": 0.1, "superpixels": "slic"}
    cache = tmp_path / "cache"
    first = write_config(
        tmp_path / "first.yaml", [bag], cache, objectives=objectives, images={"model": str(eyes), "px": 56}
    )
    main(["distill", str(first), "-o", str(tmp_path / "pre.safetensors"), "--steps", "3"])
    pre = read_description(tmp_path / "pre.safetensors")
    assert pre.classes is None and pre.network["outputs"] == 16
    assert str(eyes) in pre.provenance["image teacher"] and "sha256" in pre.provenance["image teacher"]
    second = write_config(tmp_path / "second.yaml", [bag], cache, train="head")
    start = ["--start", str(tmp_path / "pre.safetensors"), "--steps", "3"]
    main(["distill", str(second), "-o", str(tmp_path / "probe.safetensors"), *start])
    probe = read_description(tmp_path / "probe.safetensors")
    assert probe.classes == STOREYS and "head made anew" in probe.provenance["start"]
    before, after = (
        read_safetensors(tmp_path / "pre.safetensors")[0],
        read_safetensors(tmp_path / "probe.safetensors")[0],
    )
    assert all(bool((before[key] == after[key]).all()) for key in before if not key.startswith("classif"))


def test_what_is_wrong_is_said_in_a_line(
    bag: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ClassTable(name="rooms", names=("kitchen", "bath"), colors=((0, 0, 0), (1, 1, 1)))
    write_taught(tmp_path / "rooms.mcap", sweeps=1, table=other)
    write_taught(tmp_path / "unlabelled.mcap", sweeps=1, taught=False)
    write_taught(tmp_path / "uncalibrated.mcap", sweeps=1, camera=False)
    kitti = tmp_path / "00"
    (kitti / "velodyne").mkdir(parents=True)
    np.zeros((4, 4), np.float32).tofile(kitti / "velodyne" / "000000.bin")
    features = ["--objectives-pseudo-labels", "0", "--objectives-scalr", "1"]
    apart = tmp_path / "apart.yaml"
    apart.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"validation": [str(bag)]}))
    shutil.copy(bag, tmp_path / "a_eomt.mcap")
    twice = tmp_path / "twice.yaml"
    twice.write_text(
        yaml.safe_dump(yaml.safe_load(config.read_text()) | {"validation": [str(tmp_path / "a_eomt.mcap")]})
    )
    (tmp_path / "there.safetensors").touch()
    broken = tmp_path / "broken.yaml"
    broken.write_text("clases: indoor17\n")
    output = ["-o", str(tmp_path / "a.safetensors")]
    for arguments, said in (
        ([str(config), *output, "--data", str(tmp_path / "rooms.mcap")], "rooms.mcap is labelled with the classes of"),
        ([str(config), "-o", str(tmp_path / "there.safetensors")], "exists already"),
        ([str(config), "-o", str(tmp_path / "a.onnx")], "must end in .safetensors"),
        ([str(broken), *output], "unknown entry 'clases'"),
        ([str(config), *output, "--share", "0"], "'share' must lie above 0"),
        ([str(config), *output, "--objectives-pseudo-labels", "0"], "all objectives have weight 0"),
        ([str(config), *output, "--data", str(tmp_path / "gone.mcap")], "there is no recording"),
        ([str(config), *output, "--data", str(tmp_path / "unlabelled.mcap")], "make them with `lidar-semseg label`"),
        ([str(config), *output, "--data", str(tmp_path / "uncalibrated.mcap"), *features], "give a calibration file"),
        (
            [str(config), *output, "--data", str(kitti)],
            "has no labels/*.label; a training configuration says 'labels: none'",
        ),
        ([str(config), *output, "--validate", "5"], "fill the list 'validation'"),
        ([str(apart), *output], "sequence 'a' is in 'train' and in 'validation'"),
        (
            [str(twice), *output, "--validate", "5"],
            "a.mcap, which is learned from, and a_eomt.mcap, which is kept apart",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["distill", *arguments])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 2 and said in error, error
    # What is refused leaves nothing behind.
    assert not list(tmp_path.glob("a.*")) and not list(tmp_path.glob("cache/**/*.part"))


@pytest.mark.parametrize("name", ["distill", "pretrain_scalr", "pretrain_seal", "pretrain_xmodel"])
def test_a_shipped_configuration_is_read_and_asks_for_recordings(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["distill", str(ROOT / "config" / f"{name}.yaml"), "-o", str(tmp_path / "a.safetensors")])
    assert "nothing to train on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["probe", "few_shot"])
def test_a_shipped_configuration_of_a_later_training_asks_for_a_model_and_recordings(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", str(ROOT / "config" / f"{name}.yaml"), "-o", str(tmp_path / "a.safetensors")]
    for begin, said in (([], "begin with a model (--start)"), (["--start", "pre.safetensors"], "nothing to train on")):
        with pytest.raises(SystemExit):
            main([*command, *begin])
        assert said in capsys.readouterr().err


def test_what_is_pre_trained_fits_the_shipped_configuration_that_it_is_the_start_of() -> None:
    of_labels = read_plan(ROOT / "config" / "distill.yaml", {})
    for name in ("pretrain_scalr", "pretrain_seal", "pretrain_xmodel"):
        plan = read_plan(ROOT / "config" / f"{name}.yaml", {})
        assert (plan.network, plan.inputs) == (of_labels.network, of_labels.inputs)


def test_the_optimiser_of_the_scalr_configuration_is_that_of_the_paper() -> None:
    config = read_plan(ROOT / "config" / "pretrain_scalr.yaml", {}).config
    rates = [config.learning_rate * warmup_cosine(s, config.warmup, config.steps) for s in (3499, config.steps)]
    assert rates == pytest.approx([2e-3, 1e-5])
    assert (config.weight_decay, config.batch, config.lifting.min_depth_m) == (0.03, 8, 0.2)
    assert config.steps == pytest.approx(25 * 28130 / 8, rel=1e-3)
