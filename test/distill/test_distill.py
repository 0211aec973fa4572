"""The training loop of the distillation: batches by their step, objectives, resuming, stopping, several processes."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from taught import RIG, STOREYS, write_config, write_feature_teacher, write_taught
from torch import nn

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage
from lidar_semseg_ros.distill import run_files
from lidar_semseg_ros.distill.batches import Batch
from lidar_semseg_ros.distill.beginning import beginning, initial_network
from lidar_semseg_ros.distill.distillation import ImageTeacher, distill, lesson_of
from lidar_semseg_ros.distill.mixture import mixed
from lidar_semseg_ros.distill.objectives import Lesson, Student, by_view, terms
from lidar_semseg_ros.distill.plan import DistillConfig, ImageTeacherConfig, ObjectiveConfig, Plan, read_plan
from lidar_semseg_ros.distill.processes import SharedBatchNorm, World
from lidar_semseg_ros.distill.recordings import LabelledSweep, Recording, SourceConfig
from lidar_semseg_ros.distill.run_files import RunFiles
from lidar_semseg_ros.distill.samples import Store, TaughtBatches, mixed_sweep, require_what_is_taught
from lidar_semseg_ros.distill.sources import open_recording
from lidar_semseg_ros.distill.validation import Validation
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.images import jpeg_bytes
from lidar_semseg_ros.network.model_file import ModelDescription, write_safetensors
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.network.waffleiron import Plane, WaffleIron

IMAGES = RIG.cameras[0].topic
SMALL = np.zeros((24, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bag") / "a.mcap"
    write_taught(path, sweeps=5, points=500)
    return path


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="teachers need transformers, the extra 'teacher'")
    return write_feature_teacher(tmp_path_factory.mktemp("dinov2"))


class Ready:
    """All that `distill` takes, of a configuration."""

    def __init__(self, folder: Path, bags: list[Path], eyes: Path | None = None, rank: int = 0, **settings: object):
        if eyes is not None:
            settings["images"] = {"model": str(eyes), "px": 56}
        self.plan: Plan = read_plan(write_config(folder / "plan.yaml", bags, folder / "cache", **settings), {})
        self.config: DistillConfig = self.plan.config
        features = self.config.objectives.needs_features
        recordings = [open_recording(source, folder / "cache", images=features) for source in self.plan.splits["train"]]
        self.mixture = mixed(recordings, [1.0] * len(recordings), self.config.share, self.config.seed)
        self.teacher, self.store = None, None
        if features:
            from lidar_semseg_ros.teacher.vision import load_teacher

            self.store = Store(folder / "features")
            self.teacher = ImageTeacher(load_teacher(self.config.images.vision(str(eyes), "cpu"), STOREYS), self.store)
        size = self.teacher.features if self.teacher else 0
        self.begin = beginning(self.plan, size)
        config = self.config
        self.student = Student(self.begin.network, config.objectives, size, config.precision, config.seed)
        self.batches = TaughtBatches(self.mixture, self.begin.inputs, self.config, self.store, rank=rank)
        self.files = RunFiles(folder / "model.safetensors", "settings")

    def distill(
        self,
        world: World | None = None,
        validation: Callable[[WaffleIron], float] | None = None,
        on_best: Callable[[int, WaffleIron, float], None] = lambda steps, network, miou: None,
    ) -> tuple[WaffleIron, list[dict[str, float]]]:
        rows: list[dict[str, float]] = []
        model = distill(
            self.student,
            self.batches,
            self.config,
            world or World(),
            self.teacher,
            self.files,
            lambda step, losses: rows.append(losses),
            validation,
            on_best,
        )
        self.files.finish()
        return model, rows


def test_a_batch_depends_on_its_step_alone(bag: Path, tmp_path: Path) -> None:
    first, second = Ready(tmp_path, [bag]), Ready(tmp_path, [bag])
    second.batches[0], second.batches[5]
    a, b, other = first.batches[3], second.batches[3], first.batches[4]
    assert torch.equal(a.batch.features, b.batch.features) and torch.equal(a.weights, b.weights)
    assert a.names == b.names and not torch.equal(a.batch.features[:50], other.batch.features[:50])


def test_two_processes_share_the_batch_of_one_that_takes_twice_as_many_sweeps(bag: Path, tmp_path: Path) -> None:
    halves = [Ready(tmp_path, [bag], rank=rank, batch=2).batches[1] for rank in (0, 1)]
    whole = Ready(tmp_path, [bag], batch=4).batches[1]
    assert torch.equal(torch.cat([half.batch.features for half in halves]), whole.batch.features)
    assert halves[0].names + halves[1].names == whole.names


def test_labels_and_confidences_follow_their_points_through_shuffling_and_cropping(bag: Path, tmp_path: Path) -> None:
    taught = Ready(tmp_path, [bag]).batches[0]
    # Turning about z and mirroring leave the sign of z; the teacher labels by it.
    above = taught.batch.features[:, 3] > 0
    known = taught.batch.labels != 255
    assert 0.7 < known.float().mean() < 0.9
    assert torch.equal(taught.batch.labels[known].bool(), above[known])
    assert torch.equal(taught.weights > 0, known) and taught.weights[known].min() >= 0.5


def test_points_that_come_from_another_sweep_bring_their_labels(bag: Path, tmp_path: Path) -> None:
    augment = {"mix": 1.0, "drop": 0.5, "jitter_m": 0.001, "intensity_shift": 0.1}
    taught = Ready(tmp_path, [bag], augment=augment).batches[0]
    known = taught.batch.labels != 255
    # A point this near to z = 0 may have been moved through it.
    clear = known & (taught.batch.features[:, 3].abs() > 0.004)
    assert torch.equal(taught.batch.labels[clear].bool(), taught.batch.features[clear, 3] > 0)
    assert torch.equal(taught.weights > 0, known)
    recording = Ready(tmp_path, [bag]).mixture.recordings[0]
    one, other = recording.sweep(0), recording.sweep(1)
    for seed in range(6):
        made = mixed_sweep(one, other, np.random.default_rng(seed))
        origin = [{tuple(xyz): n for n, xyz in enumerate(sweep.frame.xyz.tolist())} for sweep in (one, other)]
        strange = [tuple(xyz) in origin[1] for xyz in made.frame.xyz.tolist()]
        assert 0 < np.mean(strange) < 0.7
        for xyz, confidence, is_strange in zip(made.frame.xyz.tolist(), made.confidence, strange):
            source = other if is_strange else one
            assert confidence == source.confidence[origin[is_strange][tuple(xyz)]]


def test_labels_are_learned_and_the_same_seed_gives_the_same_weights(bag: Path, tmp_path: Path) -> None:
    settings = {"steps": 40, "learning_rate": 5e-3, "warmup": 4}
    model, rows = Ready(tmp_path, [bag], **settings).distill()
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"] and rows[0]["loss"] == rows[0]["pseudo_labels"]
    again, same = Ready(tmp_path, [bag], **settings).distill()
    assert same == rows
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_workers_do_not_change_the_course(bag: Path, tmp_path: Path) -> None:
    _, alone = Ready(tmp_path, [bag], steps=4).distill()
    _, helped = Ready(tmp_path, [bag], steps=4, workers=2).distill()
    assert helped == alone


def test_a_run_that_was_cut_off_goes_on_with_the_same_losses(bag: Path, tmp_path: Path) -> None:
    _, whole = Ready(tmp_path, [bag], checkpoint=3).distill()
    cut = Ready(tmp_path, [bag], checkpoint=3)

    class Cut(Exception):
        pass

    def stop(step: int, losses: dict[str, float]) -> None:
        if step == 4:
            raise Cut

    with pytest.raises(Cut):
        distill(cut.student, cut.batches, cut.config, World(), None, cut.files, stop)
    _, rest = Ready(tmp_path, [bag], checkpoint=3).distill()
    assert rest == whole[3:]
    table = (tmp_path / "model.losses.csv").read_text().splitlines()
    assert [float(line.split(",")[1]) for line in table[1:]] == [row["loss"] for row in whole]


def same_weights(one: WaffleIron, other: WaffleIron) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


class Board:
    """Takes what TensorBoard is shown."""

    def __init__(self) -> None:
        self.shown: dict[str, dict[int, float]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.shown.setdefault(name, {})[step] = value

    def close(self) -> None:
        pass


def test_looking_at_other_recordings_meanwhile_does_not_change_the_course(bag: Path, tmp_path: Path) -> None:
    plain, without = Ready(tmp_path, [bag]).distill()
    ready = Ready(tmp_path, [bag], validate=3)
    judge = Validation([ready.mixture.recordings[0]], ready.begin.inputs, STOREYS, 2, 0)
    board = Board()
    ready.files._board = board
    looked, rows = ready.distill(validation=judge.miou)
    assert same_weights(plain, looked)
    found = [row.pop("validation_miou", None) for row in rows]
    assert rows == without
    # After every third step and the last one.
    assert [miou is not None for miou in found] == [False, False, True, False, False, True, False, True]
    assert found[-1] == judge.miou(looked) and 0 < found[-1] <= 1
    assert board.shown["validation_miou"] == {step: miou for step, miou in enumerate(found) if miou is not None}
    assert board.shown["loss"] == {step: row["loss"] for step, row in enumerate(rows)}
    table = [line.split(",") for line in (tmp_path / "model.losses.csv").read_text().splitlines()]
    assert table[0][-1] == "validation_miou"
    assert [row[-1] for row in table[1:]] == ["" if miou is None else str(miou) for miou in found]


def test_the_best_network_is_told_when_it_is_found_also_by_a_run_that_was_cut_off(bag: Path, tmp_path: Path) -> None:
    settings = {"validate": 2, "checkpoint": 3}
    said = iter([0.5, 0.4, 0.5, 0.6])
    told: list[tuple[int, float]] = []

    def on_best(steps: int, network: WaffleIron, miou: float) -> None:
        told.append((steps, miou))

    whole, rows = Ready(tmp_path, [bag], **settings).distill(validation=lambda _: next(said), on_best=on_best)
    assert told == [(2, 0.5), (8, 0.6)]
    cut, seen = Ready(tmp_path, [bag], **settings), []

    def stop(step: int, losses: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    said, told[:] = iter([0.5, 0.4]), []
    judge = lambda network: seen.append(network) or next(said)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        distill(cut.student, cut.batches, cut.config, World(), None, cut.files, stop, judge, on_best)
    # It goes on after step 3: what was said after steps 2 and 4 is known or said again.
    said = iter([0.4, 0.5, 0.6])
    resumed, rest = Ready(tmp_path, [bag], **settings).distill(validation=judge, on_best=on_best)
    assert rest == rows[3:] and told == [(2, 0.5), (8, 0.6)] and same_weights(resumed, whole)
    assert same_weights(seen[1], seen[2])  # after step 4, before and after the cut


def test_what_is_validated_on_is_a_seeded_choice_judged_row_by_row(bag: Path, tmp_path: Path) -> None:
    ready = Ready(tmp_path, [bag])
    recording, inputs = ready.mixture.recordings[0], ready.begin.inputs
    chosen = [[number for _, number in Validation([recording], inputs, STOREYS, 3, seed).sweeps] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 3
    everything = Validation([recording], inputs, STOREYS, 99, 0)
    assert [number for _, number in everything.sweeps] == [0, 1, 2, 3, 4]
    model, _ = ready.distill()
    network = ready.begin.network.config.to_mapping()
    description = ModelDescription(name="m", network=network, inputs=inputs, classes=STOREYS, provenance={})
    write_safetensors(tmp_path / "m.safetensors", model.state_dict(), description)
    segmenter = Segmenter(SegmenterConfig(model=str(tmp_path / "m.safetensors")), tmp_path)
    truth, said = [], []
    for number in range(5):
        sweep = recording.sweep(number)
        known = sweep.class_id != 255
        truth.append(sweep.class_id[known])
        said.append(segmenter.segment(sweep.frame).labels.class_id[known])
    ious = []
    for label in (0, 1):
        is_true, is_said = np.concatenate(truth) == label, np.concatenate(said) == label
        ious.append((is_true & is_said).sum() / (is_true | is_said).sum())
    # The segmenter computes in another order, so a point or two may lie on the other side.
    assert everything.miou(model) == pytest.approx(np.mean(ious), abs=2e-3)


def test_what_cannot_be_validated_on_is_said(bag: Path, tmp_path: Path) -> None:
    ready = Ready(tmp_path, [bag])
    unlabelled = open_recording(SourceConfig(path=str(bag), labels="none"), tmp_path / "cache", images=False)
    with pytest.raises(UserError, match=r"a\.mcap has no labels to validate with"):
        Validation([unlabelled], ready.begin.inputs, STOREYS, 3, 0)
    with pytest.raises(UserError, match="fill the list 'validation'"):
        Validation([], ready.begin.inputs, STOREYS, 3, 0)
    with pytest.raises(UserError, match="set validate to 0"):
        DistillConfig(validate=5, objectives=ObjectiveConfig(pseudo_labels=0.0, scalr=1.0))

    class Mute:
        name, classes = "mute", STOREYS

        def __len__(self) -> int:
            return 1

        def sweep(self, index: int) -> LabelledSweep:
            sweep = ready.mixture.recordings[0].sweep(index)
            return replace(sweep, class_id=np.full_like(sweep.class_id, 255))

    with pytest.raises(UserError, match="none of the 1 sweeps to validate on has labels"):
        Validation([Mute()], ready.begin.inputs, STOREYS, 3, 0).miou(ready.begin.network)


def test_a_run_that_could_not_write_its_model_has_nothing_to_do_again(bag: Path, tmp_path: Path) -> None:
    first = Ready(tmp_path, [bag], steps=3)
    model = distill(first.student, first.batches, first.config, World(), None, first.files)
    again, rows = Ready(tmp_path, [bag], steps=3).distill()
    assert rows == [] and all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in (model, again))))


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(bag: Path, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "model.safetensors", "these")
    files.write_checkpoint({"steps": 3})
    assert files.read_checkpoint() == {"steps": 3}
    with pytest.raises(UserError, match="other settings or recordings"):
        RunFiles(tmp_path / "model.safetensors", "those").read_checkpoint()
    files.checkpoint.write_bytes(files.checkpoint.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        files.read_checkpoint()


def test_on_a_full_disk_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = RunFiles(tmp_path / "model.safetensors", "")
    files.write_checkpoint({"steps": 3})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_files.os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        files.write_checkpoint({"steps": 6})
    assert "No space left" in caplog.text
    assert files.read_checkpoint() == {"steps": 3} and os.listdir(tmp_path) == ["model.checkpoint"]


SEEING = ImageTeacherConfig(masks="a model")
EVERYTHING = {
    "pseudo_labels": 1.0,
    "scalr": 0.5,
    "seal_superpixels": 0.1,
    "seal_temporal": 0.1,
    "seal_segments": 0.1,
    "xmodel": 0.2,
    "superpixels": "classes",
    "contrast_points": 100,
}


def test_a_loss_that_is_no_number_stops_the_run_and_can_be_computed_again_from_what_is_saved(
    bag: Path, eyes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn", reason="segments need scikit-learn, the extra 'teacher'")
    ready = Ready(tmp_path, [bag], eyes, objectives=EVERYTHING)
    assert ready.student.fusion is not None
    nn.init.constant_(ready.student.fusion.student.bias, float("nan"))
    with pytest.raises(
        UserError, match=r"step 0, for sweeps a\.mcap\[\d\], .*; the batch is saved as .*offending-0\.pt"
    ):
        ready.distill()
    saved = torch.load(tmp_path / "model.offending-0.pt", weights_only=True)
    assert saved["sweeps"] == ready.batches[0].names and saved["step"] == 0
    batch = Batch(**{**saved["batch"], "planes": [Plane(**plane) for plane in saved["batch"]["planes"]]})
    lesson = Lesson(**saved["lesson"])
    again = Ready(tmp_path, [bag], eyes, objectives=EVERYTHING)
    whole = lesson_of(again.batches[0], again.config, again.teacher, torch.device("cpu"))
    healthy = terms(again.student(again.batches[0].batch, whole), whole, again.config.objectives)
    assert torch.stack(list(healthy.values())).isfinite().all()
    again.student.load_state_dict(saved["student"])
    found = terms(again.student(batch, lesson), lesson, again.config.objectives)
    assert found.pop("xmodel").isnan() and all(torch.equal(loss, healthy[name]) for name, loss in found.items())


@pytest.mark.parametrize("is_loss", [True, False])
def test_of_several_processes_those_save_their_batch_that_may_have_made_the_gradient_no_number(
    bag: Path, tmp_path: Path, is_loss: bool
) -> None:
    class OneOfTwo(World):
        def mean(self, values: torch.Tensor) -> torch.Tensor:
            """As if the loss of the other process were no number, too."""
            return values + (float("nan") if is_loss else 0.0)

    ready = Ready(tmp_path, [bag])
    ready.student.network.classif.bias.register_hook(lambda gradient: gradient * float("nan"))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match="is no number any more at step 0"):
            ready.distill(OneOfTwo(rank=1, size=2))
    finally:
        torch.distributed.destroy_process_group()
    # The loss of this process is a number: where the other's is not, that one is to blame.
    assert [path.name for path in tmp_path.glob("*offending*")] == ([] if is_loss else ["model.offending-1.pt"])


def test_a_batch_that_cannot_be_saved_does_not_hide_what_is_wrong(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ready = Ready(tmp_path, [bag])
    nn.init.constant_(ready.student.network.classif.bias, float("nan"))
    monkeypatch.setattr(run_files.os, "fsync", full)
    with pytest.raises(UserError, match=r"no number any more at step 0.*could not be saved .*No space left"):
        ready.distill()


def test_all_objectives_can_be_learned_together_and_leave_no_head_behind(bag: Path, eyes: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="segments need scikit-learn, the extra 'teacher'")
    ready = Ready(tmp_path, [bag], eyes, steps=3, objectives=EVERYTHING)
    model, rows = ready.distill()
    weights = ready.config.objectives.weights()
    for row in rows:
        assert row["loss"] == pytest.approx(sum(weight * row[name] for name, weight in weights.items()), rel=1e-5)
    assert min(rows[0][name] for name in weights) > 0
    assert model.config.outputs == 2 and not [key for key in model.state_dict() if "projection" in key]


def test_every_weight_that_learns_has_a_gradient_with_every_objective_alone(
    bag: Path, eyes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn", reason="segments need scikit-learn, the extra 'teacher'")
    for chosen in ({"scalr": 1.0}, {"seal_superpixels": 1.0}, {"seal_segments": 1.0}, {"seal_temporal": 1.0}, {}):
        labels = {"pseudo_labels": 0.0} if chosen else {"pseudo_labels": 1.0, "xmodel": 1.0}
        ready = Ready(tmp_path, [bag], eyes, objectives={**labels, **chosen, "superpixels": "classes"})
        taught = ready.batches[0]
        lesson = lesson_of(taught, ready.config, ready.teacher, torch.device("cpu"))
        found = terms(ready.student(taught.batch, lesson), lesson, ready.config.objectives)
        torch.stack(list(found.values())).sum().backward()
        # Processes wait for the gradient of every weight.
        assert [name for name, weights in ready.student.named_parameters() if weights.grad is None] == [], chosen


def test_features_at_points_are_those_of_the_pixels_that_show_them(bag: Path, eyes: Path, tmp_path: Path) -> None:
    objectives = {"pseudo_labels": 0.0, "scalr": 1.0}
    ready = Ready(tmp_path, [bag], eyes, objectives=objectives)
    taught = ready.batches[0]
    lesson = lesson_of(taught, ready.config, ready.teacher, torch.device("cpu"))
    assert len(lesson.point) == len(lesson.pixels) > 20 and lesson.pixels.shape[1] == 16
    # Asked again, the stored answer is the same, and no image is unpacked for it.
    stored = ready.batches[0]
    assert all(view.image is None for view in stored.views)
    assert torch.equal(lesson_of(stored, ready.config, ready.teacher, torch.device("cpu")).pixels, lesson.pixels)
    sweep = ready.mixture.recordings[0].sweep(int(taught.names[0][-2]))
    camera_xyz = sweep.frame.xyz @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    view = taught.views[0]
    u = camera_xyz[:, 0] / camera_xyz[:, 2] * 40 + 31.5
    near = np.abs(view.uv_px[:, 0][:, None] - u[None]).min(axis=1)
    assert near.max() < 1e-3


def with_faulty_images(taught: Path, made: Path, *faulty: int) -> Path:
    """Copy a recording; of the images that are given by number, the even ones are cut off, the odd ones too small."""
    numbers = count()
    with open_bag(taught) as bag, BagWriter(made) as copy:
        for recorded in bag.messages():
            number = next(numbers) if recorded.topic == IMAGES else None
            if number in faulty:
                stamp_ns = recorded.log_time_ns
                file = recorded.message().data.tobytes()[:200] if number % 2 == 0 else jpeg_bytes(SMALL)
                copy.write_compressed_image(IMAGES, file, "jpeg", stamp_ns, "camera")
            else:
                latched = recorded.topic in bag.latched
                copy.write(recorded.topic, recorded.msgtype, recorded.log_time_ns, recorded.cdr(), latched)
    return made


@pytest.mark.parametrize("superpixels", ["classes", "slic"])
def test_a_run_goes_on_without_the_images_that_cannot_be_used_and_tells_of_each_once(
    bag: Path, eyes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, superpixels: str
) -> None:
    if superpixels == "slic":
        pytest.importorskip("skimage", reason="superpixels need scikit-image, the extra 'teacher'")
    faulty = with_faulty_images(bag, tmp_path / "faulty.mcap", 1, 2)
    objectives = {"pseudo_labels": 0.0, "scalr": 1.0, "seal_superpixels": 1.0, "superpixels": superpixels}
    said, rows = [], []
    for folder in (tmp_path / "first", tmp_path / "again"):
        folder.mkdir()
        caplog.clear()
        ready = Ready(folder, [faulty], eyes, steps=6, workers=1, objectives=objectives)
        require_what_is_taught(ready.mixture, ready.config)
        rows.append(ready.distill()[1])
        said.append([text for text in caplog.messages if "left out" in text])
    assert rows[0] == rows[1] and len(rows[0]) == 6 and any(row["scalr"] for row in rows[0])
    assert said[0] == said[1] and len(said[0]) == 2
    small, cut_off = sorted(said[0], key=lambda text: "calibrate at" not in text)
    assert small.startswith(f"an image of faulty.mcap, {IMAGES}, is left out: image faulty-") and "32×24" in small
    assert cut_off.startswith(f"an image of faulty.mcap, {IMAGES}, is left out: the compressed image")


def test_a_recording_none_of_whose_images_can_be_used_teaches_no_features(bag: Path, tmp_path: Path) -> None:
    config = DistillConfig(objectives=ObjectiveConfig(pseudo_labels=0.0, scalr=1.0))
    one = with_faulty_images(bag, tmp_path / "one.mcap", 0, 1, 2, 3)
    require_what_is_taught(
        mixed([open_recording(SourceConfig(path=str(one)), tmp_path, images=True)], [1.0], 1, 0), config
    )
    none = with_faulty_images(bag, tmp_path / "none.mcap", 1, 3, 0, 2, 4)
    nothing = open_recording(SourceConfig(path=str(none)), tmp_path, images=True)
    with pytest.raises(
        UserError, match=r"^no image of none\.mcap can be used: the compressed image .*; or leave it out"
    ):
        require_what_is_taught(mixed([nothing], [1.0], 1.0, 0), config)


def test_masks_of_a_model_are_asked_once_and_part_the_points(bag: Path, eyes: Path, tmp_path: Path) -> None:
    class Halves:
        asked = 0

        def segments(self, images: list[CameraImage]) -> list[np.ndarray]:
            self.asked += 1
            ids = np.zeros(images[0].pixels.shape[:2], np.int32)
            ids[:, ids.shape[1] // 2 :] = 1
            return [ids]

    objectives = {"pseudo_labels": 0.0, "seal_superpixels": 1.0}
    ready = Ready(tmp_path, [bag], eyes, objectives=objectives)
    by_masks = replace(ready.config, objectives=replace(ready.config.objectives, superpixels="masks"), images=SEEING)
    masks, model = Store(tmp_path / "masks"), Halves()
    batches = TaughtBatches(ready.mixture, ready.begin.inputs, by_masks, ready.store, masks)
    teacher = ImageTeacher(ready.teacher._teacher, ready.store, model, masks)
    taught = batches[0]
    lessons = [lesson_of(one, by_masks, teacher, torch.device("cpu")) for one in (taught, batches[0])]
    assert model.asked == len({view.key for view in taught.views})
    assert torch.equal(lessons[0].superpixel, lessons[1].superpixel)
    right = np.concatenate([view.uv_px[:, 0] > 31.5 for view in taught.views])
    assert np.array_equal(lessons[0].superpixel.numpy() % 2 == 1, right)
    # The halves of two images are four superpixels.
    assert len(lessons[0].superpixel.unique()) == 2 * len(taught.views)


def test_pre_training_gives_a_network_of_features_that_comes_closer_to_its_teacher(
    bag: Path, eyes: Path, tmp_path: Path
) -> None:
    objectives = {"pseudo_labels": 0.0, "scalr": 1.0}
    model, rows = Ready(tmp_path, [bag], eyes, steps=25, learning_rate=1e-2, objectives=objectives).distill()
    assert model.config.outputs == 16 and rows[-1]["scalr"] < 0.6 * rows[0]["scalr"]


def test_an_objective_that_never_had_anything_to_learn_from_is_told_in_the_end(
    bag: Path, eyes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objectives = {"pseudo_labels": 1.0, "scalr": 1.0}
    # All points are nearer than that.
    ready = Ready(tmp_path, [bag], eyes, steps=2, objectives=objectives, lifting={"min_depth_m": 20.0})
    _, rows = ready.distill()
    assert [row["scalr"] for row in rows] == [0.0, 0.0]
    assert "objectives.scalr was 0 in all 2 steps" in caplog.text and "pseudo_labels" not in caplog.text


@pytest.mark.parametrize("size", [0, 60, 140])
def test_what_a_teacher_said_is_asked_again_where_its_file_is_damaged(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.write("drive/1", np.arange(16.0))
    file = tmp_path / "drive" / "1.npy"
    file.write_bytes(file.read_bytes()[:size])
    with caplog.at_level(logging.WARNING):
        assert store.read("drive/1") is None
    assert "1.npy is damaged" in caplog.text
    store.write("drive/1", np.arange(16.0))
    assert np.array_equal(store.read("drive/1"), np.arange(16.0))


def test_points_are_gathered_by_the_images_that_show_them() -> None:
    point, pixels = np.array([7, 3, 7, 9]), np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    seen, views, shows = by_view(point, pixels, most=10)
    assert seen.tolist() == [3, 7, 9] and shows.tolist() == [[True, True, True], [False, True, False]]
    assert views[0, :, 0].tolist() == [2.0, 1.0, 4.0] and views[1, 1, 0] == 3.0
    seen, views, _ = by_view(point, pixels, most=2)
    assert seen.tolist() == [3, 9] and views[0, :, 0].tolist() == [2.0, 4.0]


def test_probing_trains_the_head_alone_and_a_head_for_other_classes_is_made_anew(bag: Path, tmp_path: Path) -> None:
    before = Ready(tmp_path, [bag]).begin
    network = WaffleIron(before.network.config)
    description = ModelDescription(
        name="start", network=network.config.to_mapping(), inputs=before.inputs, classes=STOREYS, provenance={"a": "b"}
    )
    write_safetensors(tmp_path / "start.safetensors", network.state_dict(), description)
    ready = Ready(tmp_path, [bag], train="head", learning_rate=1e-2)
    plan = Plan(**{**vars(ready.plan), "start": tmp_path / "start.safetensors"})
    kept = beginning(plan, 0)
    assert kept.origin["start a"] == "b" and "head kept" in kept.origin["start"]
    ready.student = Student(kept.network, ready.config.objectives, 0, "float32", 0)
    model, _ = ready.distill()
    for name, weights in network.state_dict().items():
        assert torch.equal(model.state_dict()[name], weights) != name.startswith("classif"), name
    features = Plan(**{**vars(plan), "classes": None})
    anew = beginning(features, 24)
    assert anew.network.config.outputs == 24 and "head made anew" in anew.origin["start"]
    assert torch.equal(anew.network.embed.final.weight, network.embed.final.weight)


@pytest.mark.parametrize(
    ("learned", "why"),
    [
        (ClassTable(name="mine", names=STOREYS.names, colors=((1, 2, 3), (4, 5, 6))), None),
        (ClassTable(name="mine", names=("above", "below"), colors=STOREYS.colors), "its classes are those of storeys"),
        (ClassTable(name="mine", names=("a", "b", "c"), colors=((0, 0, 0),) * 3), "but those of mine are learned"),
        (None, "no labels are learned"),
    ],
)
def test_a_trained_head_goes_on_for_classes_of_the_same_names_and_else_the_reason_is_told(
    bag: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, learned: ClassTable | None, why: str | None
) -> None:
    before = Ready(tmp_path, [bag])
    network = initial_network(before.begin.network.config, seed=7)
    description = ModelDescription(
        name="s", network=network.config.to_mapping(), inputs=before.begin.inputs, classes=STOREYS, provenance={}
    )
    start = tmp_path / "s.safetensors"
    write_safetensors(start, network.state_dict(), description)
    begin = beginning(replace(before.plan, start=start, classes=learned), 2)
    heads = [one.state_dict()["classif.weight"] for one in (network, begin.network)]
    assert (heads[0].shape == heads[1].shape and torch.equal(*heads)) == (why is None)
    if why is None:
        assert not caplog.messages
    else:
        (told,) = caplog.messages
        assert told.startswith(f"the head of {start} is made anew, for ") and why in told


def test_heads_beside_the_network_are_those_of_the_seed_whatever_was_drawn_before(bag: Path, tmp_path: Path) -> None:
    before = Ready(tmp_path, [bag]).begin
    description = ModelDescription(
        name="s", network=before.network.config.to_mapping(), inputs=before.inputs, classes=STOREYS, provenance={}
    )
    write_safetensors(tmp_path / "s.safetensors", before.network.state_dict(), description)
    objectives = {"pseudo_labels": 1.0, "scalr": 1.0, "xmodel": 1.0}
    plan = read_plan(
        write_config(tmp_path / "plan.yaml", [bag], tmp_path, objectives=objectives),
        {},
        start=tmp_path / "s.safetensors",
    )
    made = []
    for drawn in (1, 2):
        begin = beginning(plan, 16)  # draws nothing, for even the head is kept
        torch.rand(drawn)
        made.append(Student(begin.network, plan.config.objectives, 16, "float32", plan.config.seed).state_dict())
    assert [name for name, weights in made[0].items() if not torch.equal(weights, made[1][name])] == []


def test_a_model_that_does_not_fit_the_plan_is_refused(bag: Path, tmp_path: Path) -> None:
    ready = Ready(tmp_path, [bag])
    description = ModelDescription(
        name="s", network=ready.begin.network.config.to_mapping(), inputs=ready.begin.inputs, classes=STOREYS,
        provenance={},
    )  # fmt: skip
    write_safetensors(tmp_path / "s.safetensors", ready.begin.network.state_dict(), description)
    plan = Plan(**{**vars(ready.plan), "start": tmp_path / "s.safetensors", "network": {"width": 32}})
    with pytest.raises(UserError, match="has width 16, but 'network' of the training configuration says 32"):
        beginning(plan, 0)


def test_half_precision_learns_nearly_the_same(bag: Path, tmp_path: Path) -> None:
    _, full = Ready(tmp_path, [bag], steps=4).distill()
    _, half = Ready(tmp_path, [bag], steps=4, precision="bfloat16").distill()
    # bfloat16 has 8 bits of precision: 0.4 % per product.
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in full], rel=0.03)
    assert half != full


def test_what_is_wrong_in_a_worker_process_is_said_as_it_is(bag: Path, tmp_path: Path) -> None:
    ready = Ready(tmp_path, [bag], workers=1)
    nowhere = replace(ready.begin.inputs, fov_min_m=(50, 50, 50), fov_max_m=(60, 60, 60))
    ready.batches = TaughtBatches(ready.mixture, nowhere, ready.config)
    with pytest.raises(UserError, match=r"^100 sweeps in a row had no point inside the inputs' field of view"):
        ready.distill()


def test_a_recording_without_labels_is_not_learned_from(bag: Path, tmp_path: Path) -> None:
    ready = Ready(tmp_path, [bag])
    unlabelled = open_recording(SourceConfig(path=str(bag), labels="none"), tmp_path / "cache", images=False)
    mixture = mixed([ready.mixture.recordings[0], unlabelled], [1.0, 1.0], 1.0, 0)
    with pytest.raises(
        UserError, match=r"a\.mcap has no labels, which objectives\.pseudo_labels learns from; label it"
    ):
        require_what_is_taught(mixture, ready.config)


def test_superpixels_by_classes_are_not_learned_from_a_recording_without_labels(bag: Path, tmp_path: Path) -> None:
    unlabelled = open_recording(SourceConfig(path=str(bag), labels="none"), tmp_path / "cache", images=True)
    objectives = ObjectiveConfig(pseudo_labels=0.0, seal_superpixels=1.0, superpixels="classes")
    with pytest.raises(UserError, match=r"a\.mcap has no labels, which objectives\.superpixels: classes learns from"):
        require_what_is_taught(mixed([unlabelled], [1.0], 1.0, 0), DistillConfig(objectives=objectives))


class Some:
    """The sweeps of a recording, of which some have labels or images; `sweeps` says which."""

    def __init__(self, whole: Recording, sweeps: tuple[int, ...]) -> None:
        self.name, self.key, self.classes, self.origin = whole.name, whole.key, whole.classes, whole.origin
        self.stamps_ns, self.trajectory, self.base_from_lidar = whole.stamps_ns, whole.trajectory, whole.base_from_lidar
        self._whole, self._sweeps = whole, sweeps

    def __len__(self) -> int:
        return len(self._whole)

    def sweep(self, index: int) -> LabelledSweep:
        sweep = self._whole.sweep(index)
        if index in self._sweeps:
            return sweep
        nothing = {"class_id": np.full_like(sweep.class_id, 255), "confidence": np.zeros_like(sweep.confidence)}
        return replace(sweep, **nothing, images=())


def test_a_recording_in_which_no_point_is_labelled_is_not_learned_from(bag: Path, tmp_path: Path) -> None:
    ready = Ready(tmp_path, [bag])
    whole = ready.mixture.recordings[0]
    require_what_is_taught(mixed([Some(whole, (4,))], [1.0], 1.0, 0), ready.config)
    with pytest.raises(
        UserError, match=r"none of the 5 sweeps of a\.mcap has a label at any point.*its teacher accepted"
    ):
        require_what_is_taught(mixed([whole, Some(whole, ())], [1.0, 1.0], 1.0, 0), ready.config)


def test_a_share_of_the_sweeps_without_a_label_is_not_learned_from(bag: Path, tmp_path: Path) -> None:
    ready = Ready(tmp_path, [bag])
    whole, config = ready.mixture.recordings[0], replace(ready.config, share=0.2)
    (taken,) = mixed([whole], [1.0], 0.2, 0).sweeps[0].tolist()
    require_what_is_taught(mixed([Some(whole, (taken,))], [1.0], 0.2, 0), config)
    with pytest.raises(UserError, match=r"none of the 1 sweeps in a share of 0\.2 has a label; raise 'share'"):
        require_what_is_taught(mixed([Some(whole, ((taken + 1) % 5,))], [1.0], 0.2, 0), config)


def test_exact_labels_of_other_times_than_the_clouds_are_not_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = BagWriter.write_class_ids

    def late(bag: BagWriter, topic: str, class_id: np.ndarray, stamp_ns: int, frame_id: str) -> None:
        write(bag, topic, class_id, stamp_ns + 1000, frame_id)

    monkeypatch.setattr(BagWriter, "write_class_ids", late)
    write_taught(tmp_path / "a.mcap", sweeps=2, taught=False)
    exact = open_recording(SourceConfig(path=str(tmp_path / "a.mcap"), labels="exact"), tmp_path, images=False)
    with pytest.raises(UserError, match=r"none of the 2 sweeps of a\.mcap has a label .*have the same stamps"):
        require_what_is_taught(mixed([exact], [1.0], 1.0, 0), DistillConfig())


def test_a_recording_whose_images_are_of_other_times_teaches_no_features(bag: Path, tmp_path: Path) -> None:
    seeing = open_recording(SourceConfig(path=str(bag)), tmp_path, images=True)
    config = DistillConfig(objectives=ObjectiveConfig(pseudo_labels=0.0, scalr=1.0))
    require_what_is_taught(mixed([Some(seeing, (2,))], [1.0], 1.0, 0), config)
    with pytest.raises(UserError, match=r"none of the 5 sweeps of a\.mcap has an image near its time"):
        require_what_is_taught(mixed([Some(seeing, ())], [1.0], 1.0, 0), config)


def test_what_an_objective_needs_and_a_recording_lacks_is_said(tmp_path: Path) -> None:
    write_taught(tmp_path / "a.mcap", sweeps=1)
    ready = Ready(tmp_path, [tmp_path / "a.mcap"], objectives={"pseudo_labels": 1.0, "seal_segments": 1.0})
    with pytest.raises(UserError, match="holds no poses or too few sweeps"):
        require_what_is_taught(ready.mixture, ready.config)


def test_a_batch_norm_over_all_processes_is_the_usual_one_where_there_is_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.randn(8, 4) * 3 + 1
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        found = []
        for norm in (nn.BatchNorm1d(4), SharedBatchNorm(4)):
            given = rows.clone().requires_grad_(True)
            said = norm(given)
            (said**3).sum().backward()
            found.append((said, given.grad, norm.weight.grad, norm.running_mean, norm.running_var))
        for usual, shared in zip(*found):
            assert torch.allclose(usual, shared, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()
