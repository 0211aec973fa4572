"""Evaluation on small recordings whose figures are worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from taught import RIG, STOREYS, write_taught

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame, PointLabels
from lidar_semseg_ros.distill.evaluate import (
    EXACT,
    PSEUDO,
    TEACHER,
    JudgedRecording,
    JudgedSequences,
    JudgedSweep,
    figures,
    robustness,
    scores,
)
from lidar_semseg_ros.distill.recordings import LabelledSweep
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.dataset import (
    CLASS_MAP_TOPIC,
    LABEL_TOPIC,
    LIDAR_TOPIC,
    PSEUDO_LABEL_TOPIC,
    TEACHER_CLASS_MAP_TOPIC,
    TEACHER_SETTINGS_TOPIC,
    settings_text,
)
from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame, pseudo_labelled_cloud


def table(*names: str) -> ClassTable:
    return ClassTable(name="-".join(names), names=names, colors=((1, 2, 3),) * len(names))


MODEL = table("wall", "floor", "door", "person")
XYZ = np.float32([[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0], [5, 0, 0]])
FRAME = LidarFrame(stamp_ns=7, frame_id="lidar", xyz=XYZ, intensity=np.zeros(5, np.float32))


def recording(
    path: Path,
    *,
    exact: Sequence[int] | None = None,
    exact_classes: ClassTable | None = None,
    pseudo: Sequence[int] | None = None,
    taught: ClassTable = MODEL,
    never: Sequence[str] = (),
) -> Path:
    """One sweep; pseudo-labels are sure to 0.75."""
    with BagWriter(path) as writer:
        if exact_classes is not None:
            writer.write_json(CLASS_MAP_TOPIC, json.dumps(exact_classes.to_mapping()), 7)
        if exact is not None:
            writer.write_class_ids(LABEL_TOPIC, np.uint8([exact]), 7, "lidar")
        content = cloud_from_frame(FRAME)
        if pseudo is None:
            writer.write_cloud(LIDAR_TOPIC, content)
        else:
            class_id = np.uint8(pseudo)
            probability = np.where(class_id == UNLABELLED, 0, 0.75).astype(np.float32)
            writer.write_json(TEACHER_CLASS_MAP_TOPIC, json.dumps(taught.to_mapping()), 7)
            text = settings_text({}, {}, never, cloud_topic=LIDAR_TOPIC, rig=RIG)
            writer.write_json(TEACHER_SETTINGS_TOPIC, text, 7)
            views = (class_id != UNLABELLED).astype(np.uint8)
            writer.write_cloud(PSEUDO_LABEL_TOPIC, pseudo_labelled_cloud(content, class_id, probability, views))
    return path


def judged(path: Path, classes: ClassTable = MODEL) -> tuple[JudgedRecording, list[JudgedSweep]]:
    with open_bag(path) as bag:
        found = JudgedRecording(bag, None, classes, str(path))
        return found, list(found)


def answer(class_id: Sequence[int], probability: float = 0.5) -> PointLabels:
    rows = len(class_id)
    return PointLabels(
        class_id=np.uint8(class_id),
        probability=np.full(rows, probability, np.float32),
        entropy=np.zeros(rows, np.float32),
    )


def test_model_and_teacher_are_judged_side_by_side(tmp_path: Path) -> None:
    path = recording(
        tmp_path / "a.mcap", exact=[0, 0, 1, 3, 255], pseudo=[0, 1, 1, 255, 2], never=["person"], exact_classes=MODEL
    )
    found, (sweep,) = judged(path)
    assert found.taught == {0, 1, 2} and found.strange == () and found.sweeps == 1
    counted = scores(sweep, answer([0, 0, 1, 1, 2]), len(MODEL))
    exact, pseudo, teacher = (figures(counted[kind], MODEL, found.taught) for kind in (EXACT, PSEUDO, TEACHER))
    # The model: wall 2/2, floor 1/2 as the person is called floor, person 0; without that point floor is 1/1.
    assert exact["iou"] == {"wall": 1.0, "floor": 0.5, "person": 0.0}
    assert exact["miou"] == pytest.approx(0.5) and exact["miou_taught"] == 1.0
    assert exact["accuracy"] == 3 / 4 and exact["coverage"] == 1.0 and exact["points"] == 4
    assert exact["absent"] == ["door"] and exact["untaught"] == ["person"]
    assert exact["ece"] == pytest.approx(abs(3 / 4 - 0.5))
    # Against the teacher: wall 1/2, floor 1/2, door 1/1 of the four points that it labels.
    assert pseudo["iou"] == {"wall": 0.5, "floor": 0.5, "door": 1.0} and pseudo["accuracy"] == 3 / 4
    # The teacher: wall 1/2, floor 1/2, person 0; it labels three of the four points, two of them right.
    assert teacher["iou"] == {"wall": 0.5, "floor": 0.5, "person": 0.0}
    assert teacher["coverage"] == 3 / 4 and teacher["accuracy"] == 2 / 4
    assert teacher["accuracy_given"] == pytest.approx(2 / 3) and teacher["miou_given"] == 0.5
    assert teacher["ece"] == pytest.approx(abs(2 / 3 - 0.75))


def test_pseudo_labels_alone_are_enough(tmp_path: Path) -> None:
    _, (sweep,) = judged(recording(tmp_path / "a.mcap", pseudo=[0, 1, 1, 255, 2]))
    counted = scores(sweep, answer([0, 1, 1, 3, 2]), len(MODEL))
    assert list(counted) == [PSEUDO] and figures(counted[PSEUDO], MODEL, None)["miou"] == 1.0
    assert sweep.exact is None and sweep.truth().tolist() == [0, 1, 1, 255, 2]


def test_a_teacher_in_a_namespace_is_judged_like_any_other(tmp_path: Path) -> None:
    written = write_taught(tmp_path / "a.mcap", sweeps=2, namespace="/robot1")
    found, sweeps = judged(tmp_path / "a.mcap", STOREYS)
    assert found.topic == "/robot1/teacher/output/pointcloud/pseudo_labels" and found.sweeps == 2
    assert np.array_equal(sweeps[1].pseudo, written[1][1]) and found.taught == {0, 1}


def test_classes_are_matched_by_name_and_those_the_model_lacks_do_not_count(tmp_path: Path) -> None:
    path = recording(
        tmp_path / "a.mcap",
        exact=[0, 1, 2, 255, 1],
        exact_classes=table("floor", "window", "wall"),
        pseudo=[0, 0, 1, 255, 2],
        taught=table("door", "person", "lamp"),
        never=["person"],
    )
    found, (sweep,) = judged(path)
    assert sweep.exact.tolist() == [1, 255, 0, 255, 255] and sweep.pseudo.tolist() == [2, 2, 3, 255, 255]
    assert found.strange == ("lamp", "window") and found.taught == {2}


def test_exact_labels_without_a_class_map_are_those_of_the_model(tmp_path: Path) -> None:
    found, (sweep,) = judged(recording(tmp_path / "a.mcap", exact=[0, 1, 2, 3, 255]))
    assert sweep.exact.tolist() == [0, 1, 2, 3, 255] and found.taught is None and found.topic == LIDAR_TOPIC


def test_recordings_that_cannot_be_judged_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no exact labels"):
        judged(recording(tmp_path / "a.mcap"))
    other = recording(tmp_path / "b.mcap", exact=[0] * 5, exact_classes=table("road", "sky"))
    with pytest.raises(UserError, match="no name in common"):
        judged(other)
    short = recording(tmp_path / "c.mcap", exact=[0] * 4, pseudo=[0] * 5)
    with pytest.raises(UserError, match="5 points, but 4 labels"):
        judged(short)


def test_scores_add_up_over_sweeps(tmp_path: Path) -> None:
    _, (sweep,) = judged(recording(tmp_path / "a.mcap", exact=[0, 0, 1, 3, 255]))
    one, two = (scores(sweep, answer(ids), 4)[EXACT] for ids in ([0, 0, 1, 1, 2], [0, 1, 1, 3, 2]))
    assert np.array_equal((one + two).confusion, one.confusion + two.confusion)
    assert figures(one + two, MODEL, None)["accuracy"] == 6 / 8


def test_figures_of_nothing_are_none_and_fit_into_json(tmp_path: Path) -> None:
    _, (sweep,) = judged(recording(tmp_path / "a.mcap", exact=[255] * 5))
    said = figures(scores(sweep, answer([0] * 5), 4)[EXACT], MODEL, {0})
    assert said["miou"] is said["accuracy"] is said["ece"] is said["miou_taught"] is None and said["points"] == 0
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def ring_of_points(points: int = 400) -> tuple[LidarFrame, np.ndarray]:
    """A circle of points; a point is a person where its intensity is above 40, of up to 100, else wall."""
    azimuth = np.linspace(-np.pi, np.pi, points, endpoint=False)
    xyz = np.stack([3 * np.cos(azimuth), 3 * np.sin(azimuth), np.sin(40 * azimuth)], axis=1).astype(np.float32)
    intensity = np.random.default_rng(0).permutation(np.linspace(0, 100, points)).astype(np.float32)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=xyz, intensity=intensity), np.where(intensity > 40, 3, 0).astype(
        np.uint8
    )


def by_intensity(frame: LidarFrame) -> PointLabels:
    return answer(np.where(frame.intensity > 40, 3, 0))


def test_a_model_of_intensity_suffers_from_a_shift_of_it_only() -> None:
    sweeps, runs = [ring_of_points(), ring_of_points(300)], []
    found = robustness(by_intensity, sweeps, MODEL, 0, runs.append)
    assert found.clean == 1.0 and len(runs) == 28 and runs[0] == "clean"
    assert len(found.corrupted) == 9 and all(len(each) == 3 for each in found.corrupted.values())
    for name, miou in found.corrupted.items():
        if name not in ("intensity_shift", "crosstalk"):
            assert miou == [1.0, 1.0, 1.0], name
    # At half the intensity persons are seen above 80 only: 20 of 60 hundredths, and 40 of 80 are rightly wall.
    half, quarter, nothing = found.corrupted["intensity_shift"]
    assert half == pytest.approx((20 / 60 + 40 / 80) / 2, abs=0.01)
    # At a quarter, and with none, all is wall: 0 and 40 of 100.
    assert quarter == nothing == pytest.approx((0 + 40 / 100) / 2, abs=0.01)
    # What crosstalk makes has no label, so it cannot be wrong.
    assert found.corrupted["crosstalk"] == [1.0, 1.0, 1.0]


def test_the_same_seed_tries_the_same_and_another_does_not() -> None:
    def nearest_is_wall(frame: LidarFrame) -> PointLabels:
        return answer(np.where(np.nan_to_num(frame.xyz[:, 0]) > 0.01, 3, 0))

    sweeps = [ring_of_points()]
    once, again, other = (robustness(nearest_is_wall, sweeps, MODEL, seed).corrupted for seed in (1, 1, 2))
    assert once == again != other


class Annotated:
    """Sequences of a data set: one with labels, then one sweep without."""

    name = "annotated"

    def __init__(self, classes: ClassTable | None) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return 2

    def sweep(self, index: int) -> LabelledSweep:
        class_id = np.uint8([[0, 1, 1, 2, 255], [255] * 5][index])
        return LabelledSweep(frame=FRAME, class_id=class_id, confidence=np.ones(5, np.float32))


def test_sequences_of_data_sets_are_judged_by_the_names_of_their_classes() -> None:
    found = JudgedSequences([Annotated(table("door", "tree", "wall"))] * 2, MODEL)
    assert found.sweeps == 4 and found.strange == ("tree",) and found.taught is None
    sweeps = list(found)
    # Sweeps without a label are left out, as are the points of the tree.
    assert [sweep.exact.tolist() for sweep in sweeps] == [[2, 255, 255, 0, 255]] * 2
    with pytest.raises(UserError, match="annotated has no labels to compare with"):
        JudgedSequences([Annotated(None)], MODEL)
    with pytest.raises(UserError, match="no name in common"):
        JudgedSequences([Annotated(table("tree", "car"))], MODEL)
