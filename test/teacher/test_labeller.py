from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lidar_semseg_ros.core.camera import PinholeCamera
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage
from lidar_semseg_ros.teacher.labeller import TakenImage, teacher_identity
from lidar_semseg_ros.teacher.scores import certain_scores


def test_an_image_of_another_size_than_its_camera_is_refused() -> None:
    camera = PinholeCamera(width=20, height=10, matrix=np.diag([10.0, 10.0, 1.0]), distortion=np.zeros(5))
    image = CameraImage(stamp_ns=0, frame_id="", pixels=np.zeros((20, 10, 3), np.uint8))
    with pytest.raises(UserError, match="10×20 pixels, but its calibration is for 20×10"):
        TakenImage(time_ns=0, image=image, camera=camera, camera_from_lidar=np.eye(4))


def test_a_model_is_told_from_another_by_the_hash_of_its_weights(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="teachers need transformers, the extra 'teacher'")
    for name, weights in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({}))
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    a, b, c = (teacher_identity(name, tmp_path) for name in "abc")
    assert a["model"] == "a" and a["sha256"] == c["sha256"] != b["sha256"]
    # `printf one | sha256sum`
    assert a["sha256"] == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def test_classes_at_full_size_repeat_those_of_the_cells() -> None:
    coarse = certain_scores(np.uint8([[1, 2], [3, 4]]), image_size=(4, 6))
    assert coarse.at_full_size().tolist() == [[1, 1, 2, 2]] * 3 + [[3, 3, 4, 4]] * 3
    # The middle one of three pixels has its centre where two cells meet; such a centre lies in the latter.
    assert certain_scores(np.uint8([[1, 2]]), image_size=(3, 1)).at_full_size().tolist() == [[1, 2, 2]]
