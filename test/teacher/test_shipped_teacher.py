"""What the shipped vision teacher promises in models/README.md."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

pytest.importorskip("transformers", reason="teachers need transformers, the extra 'teacher'")
pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")

from lidar_semseg_ros.core.frame import CameraImage
from lidar_semseg_ros.core.metrics import confusion_matrix, iou_per_class, mean_iou
from lidar_semseg_ros.formats.config_files import class_table, package_share
from lidar_semseg_ros.sim.drive import random_images
from lidar_semseg_ros.teacher.vision import Teacher, VisionConfig, load_teacher

CLASSES = class_table("indoor17")
UNSEEN = 31_337


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    model = str(package_share() / "models" / "teacher-small")
    return load_teacher(VisionConfig(model=model, device="cpu"), CLASSES)


def test_in_unseen_simulated_buildings_it_sees_as_well_as_its_card_says(teacher: Teacher) -> None:
    confusion = np.zeros((17, 18), np.int64)
    for number, (pixels, classes) in enumerate(islice(random_images(np.random.default_rng(UNSEEN), 640, 480), 32)):
        (scores,) = teacher.label([CameraImage(stamp_ns=number, frame_id="", pixels=pixels)])
        confusion += confusion_matrix(classes.ravel(), scores.at_full_size().ravel(), 17)
    iou = iou_per_class(confusion)
    # The card's 49 %, which another machine's arithmetic may miss by little.
    assert mean_iou(confusion) > 0.47
    assert np.trace(confusion[:, :17]) / confusion.sum() > 0.85
    assert min(iou[CLASSES.id_of(name)] for name in ("wall", "floor", "ceiling")) > 0.8


def test_it_names_every_class_and_gives_features_for_distillation(teacher: Teacher) -> None:
    assert teacher.never_labelled == ()
    image = CameraImage(stamp_ns=0, frame_id="", pixels=np.zeros((480, 640, 3), np.uint8))
    assert teacher.features([image])[0].values.shape == (60, 80, 128)
