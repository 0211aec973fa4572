"""Frames, class tables, geometry, pairing and metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lidar_semseg_ros.core.classes import UNLABELLED_COLOR, ClassTable
from lidar_semseg_ros.core.errors import UserError, missing_package
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage, LidarFrame, PointLabels
from lidar_semseg_ros.core.geometry import (
    invert_rigid,
    quaternion_from_rotation,
    rigid,
    rotation_from_quaternion,
    rotation_from_rpy,
    transform_points,
)
from lidar_semseg_ros.core.metrics import confusion_matrix, iou_per_class, mean_iou, overall_accuracy
from lidar_semseg_ros.core.pairing import nearest_stamp

XYZ = np.float32([[1, 2, 3], [np.nan, 0, 0], [0, 0, 0], [0, 0, 1e-3], [np.inf, 1, 1], [0, -np.inf, np.inf]])


def test_rows_that_are_not_finite_or_at_the_origin_have_no_return() -> None:
    frame = LidarFrame(stamp_ns=0, frame_id="lidar", xyz=XYZ)
    assert frame.has_return().tolist() == [True, False, False, True, False, False]
    assert frame.shape == (1, 6)
    assert frame.has_return(within_m=3.5).tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("garbage_s", [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e5, 2.01])
def test_a_sweep_lasts_as_long_as_its_measurements_whatever_time_a_row_claims(garbage_s: float) -> None:
    time_s = np.float32([0.01, 0.3, garbage_s, 0.09, 0.4, 0.05])
    frame = LidarFrame(stamp_ns=0, frame_id="lidar", xyz=XYZ, time_s=time_s)
    assert frame.duration_s() == np.float32(0.09)
    assert frame.has_time().tolist() == [True, False, False, True, False, False]
    measured = replace(frame, xyz=np.ones_like(XYZ))
    assert measured.duration_s() == np.float32(0.4) and measured.has_time().sum() == 5
    assert replace(frame, time_s=np.full(6, garbage_s, np.float32)).duration_s() == 0
    untimed = replace(frame, time_s=None)
    assert untimed.duration_s() == 0 and np.array_equal(untimed.has_time(), frame.has_return())


@pytest.mark.parametrize(
    "columns",
    [
        {"xyz": XYZ.astype(np.float64)},
        {"xyz": XYZ[:, :2]},
        {"xyz": XYZ, "intensity": np.zeros(5, np.float32)},
        {"xyz": XYZ, "ring": np.zeros(6, np.uint8)},
        {"xyz": XYZ, "shape": (2, 4)},
    ],
)
def test_a_frame_of_unequal_columns_cannot_be_made(columns: dict) -> None:
    with pytest.raises(UserError):
        LidarFrame(stamp_ns=0, frame_id="", **columns)


def test_labels_and_images_are_checked_at_birth() -> None:
    with pytest.raises(UserError, match="probability"):
        PointLabels(class_id=np.zeros(3, np.uint8), probability=np.zeros(3), entropy=np.zeros(3, np.float32))
    with pytest.raises(UserError, match="pixels"):
        CameraImage(stamp_ns=0, frame_id="", pixels=np.zeros((4, 5), np.uint8))


TABLE = ClassTable(name="two", names=("floor", "wall"), colors=((1, 2, 3), (4, 5, 6)))


def test_class_table_knows_ids_and_colours() -> None:
    assert TABLE.id_of("wall") == 1
    assert TABLE.palette()[[0, 1, 2, UNLABELLED]].tolist() == [
        [1, 2, 3],
        [4, 5, 6],
        [*UNLABELLED_COLOR],
        [*UNLABELLED_COLOR],
    ]
    assert ClassTable.from_mapping(TABLE.to_mapping()) == TABLE
    with pytest.raises(UserError, match="no class 'roof'; it has floor, wall"):
        TABLE.id_of("roof")


@pytest.mark.parametrize(
    "entries",
    [
        [{"id": 1, "name": "a", "color": [0, 0, 0]}],
        [{"id": 0, "name": "a", "color": [0, 0, 300]}],
        [{"id": 0, "name": "a"}],
        [{"id": i, "name": "a", "color": [0, 0, 0]} for i in range(2)],
        [],
        "floor",
    ],
)
def test_a_faulty_class_table_is_refused(entries: object) -> None:
    with pytest.raises(UserError):
        ClassTable.from_mapping({"name": "bad", "classes": entries})


def test_yaw_turns_x_to_y_and_rotations_survive_quaternions() -> None:
    assert np.allclose(rotation_from_rpy(0, 0, np.pi / 2) @ [1, 0, 0], [0, 1, 0])
    rng = np.random.default_rng(0)
    for angles in [*rng.uniform(-np.pi, np.pi, (50, 3)), (np.pi, 0, 0), (0, np.pi, 0), (0, 0, np.pi)]:
        rotation = rotation_from_rpy(*angles)
        assert np.allclose(rotation_from_quaternion(quaternion_from_rotation(rotation)), rotation)
    assert np.allclose(quaternion_from_rotation(rotation_from_rpy(0, 0, np.pi / 2)), [0, 0, 0.5**0.5, 0.5**0.5])


def test_a_transform_and_its_inverse_cancel() -> None:
    b_from_a = rigid(rotation_from_rpy(0.1, -0.4, 2.0), np.array([1.0, -2.0, 0.5]))
    points = np.random.default_rng(1).normal(size=(20, 3))
    assert np.allclose(transform_points(invert_rigid(b_from_a) @ b_from_a, points), points)
    assert np.allclose(transform_points(b_from_a, np.zeros((1, 3))), [[1, -2, 0.5]])


def test_the_nearest_stamp_wins_if_it_is_near_enough() -> None:
    stamps = np.array([10, 20, 31]) * 10**9
    assert nearest_stamp(stamps, 24 * 10**9, 5.0) == 1
    assert nearest_stamp(stamps, 40 * 10**9, 5.0) is None
    assert nearest_stamp(np.array([], np.int64), 0, 5.0) is None


def test_metrics_by_hand() -> None:
    truth = np.uint8([0, 0, 0, 1, 1, 255, 2])
    predicted = np.uint8([0, 0, 1, 1, 255, 0, 0])
    confusion = confusion_matrix(truth, predicted, 4)
    assert confusion.tolist() == [[2, 1, 0, 0, 0], [0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    iou = iou_per_class(confusion)
    assert iou[:3].tolist() == [2 / 4, 1 / 3, 0.0] and np.isnan(iou[3])
    assert mean_iou(confusion) == pytest.approx((2 / 4 + 1 / 3 + 0) / 3)
    assert overall_accuracy(confusion) == pytest.approx(3 / 6)


def test_metrics_of_nothing_are_not_a_number() -> None:
    empty = confusion_matrix(np.uint8([255, 255]), np.uint8([0, 1]), 2)
    assert np.isnan(mean_iou(empty)) and np.isnan(overall_accuracy(empty))


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    said = str(missing_package(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")))
    assert "torch" in said and "lidar_semseg_ros[torch]" in said
    assert "install other" in str(missing_package(ModuleNotFoundError(name="other.part")))
