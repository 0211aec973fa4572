from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import rigid, rotation_from_rpy
from lidar_semseg_ros.core.options import from_mapping
from lidar_semseg_ros.core.sensor import IntensityConfig, RangeConfig, SensorConfig, normalised

XYZ = np.array([[1, 2, 3], [0, 0, 0], [np.nan, 1, 1], [10, 0, -1]], np.float32)
FRAME = LidarFrame(stamp_ns=7, frame_id="lidar", xyz=XYZ, intensity=np.array([10, 0, 5, 400], np.float32))


def points(xyz: np.ndarray) -> LidarFrame:
    return LidarFrame(stamp_ns=0, frame_id="lidar", xyz=xyz)


def test_with_the_defaults_a_sweep_is_taken_as_it_is() -> None:
    same = normalised(FRAME, SensorConfig(), trained_height_m=1.73)
    assert np.array_equal(same.xyz, XYZ, equal_nan=True) and np.array_equal(same.intensity, FRAME.intensity)


def test_a_sensor_that_hangs_upside_down_is_turned_and_beams_without_return_stay_what_they_are() -> None:
    upright = normalised(FRAME, SensorConfig(roll=np.pi), trained_height_m=0.0)
    assert upright.xyz[[0, 3]] == pytest.approx(np.array([[1, -2, -3], [10, 0, 1]]), abs=1e-5)
    assert (upright.xyz[1] == 0).all() and np.isnan(upright.xyz[2]).any()
    assert upright.has_return().tolist() == FRAME.has_return().tolist()


def test_a_sensor_that_looks_down_sees_the_floor_ahead_below_it() -> None:
    # Pitched by +90°, the sensor's x axis points down: what it sees 2 m ahead lies 2 m below.
    ahead = points(np.array([[2, 0, 0]], np.float32))
    assert normalised(ahead, SensorConfig(pitch=np.pi / 2), 0.0).xyz[0] == pytest.approx([0, 0, -2], abs=1e-6)


def test_points_are_raised_to_the_height_that_the_model_was_trained_at() -> None:
    # On a robot of 0.5 m the floor is at z = -0.5; the model learned it at -1.73.
    floor = points(np.array([[3, 0, -0.5]], np.float32))
    assert normalised(floor, SensorConfig(sensor_height=0.5), 1.73).xyz[0, 2] == pytest.approx(-1.73)
    assert normalised(floor, SensorConfig(sensor_height=0.5), 0.0).xyz[0, 2] == -0.5, "trained at many heights"
    assert normalised(floor, SensorConfig(), 1.73).xyz[0, 2] == -0.5, "height unknown"


def test_a_transform_tells_tilt_and_height_and_where_the_robot_is_does_not_matter() -> None:
    tilted = rotation_from_rpy(0.1, -0.2, 0.0)
    floor = np.array([[3.0, 1.0, -0.5], [4.0, -2.0, -0.5]])
    frame = points((floor @ tilted).astype(np.float32))
    level_from_lidar = rigid(tilted, np.array([100.0, -50.0, 0.5]))
    found = normalised(frame, SensorConfig(roll=3.0), 1.73, level_from_lidar).xyz
    assert found == pytest.approx(np.array([[3.0, 1.0, -1.73], [4.0, -2.0, -1.73]]), abs=1e-5)


def test_points_out_of_range_become_rows_without_return_by_their_distance_from_the_sensor() -> None:
    limits = SensorConfig(range=RangeConfig(min=1.0, max=5.0), sensor_height=3.0)
    assert normalised(FRAME, limits, 1.0).has_return().tolist() == [True, False, False, False]


def test_intensities_are_scaled_and_clipped_or_left_out() -> None:
    scaled = normalised(FRAME, SensorConfig(intensity=IntensityConfig(scale=0.5, clip=100)), 0.0)
    assert scaled.intensity.tolist() == [5, 0, 2.5, 100] and scaled.intensity.dtype == np.float32
    assert normalised(FRAME, SensorConfig(intensity=IntensityConfig(missing="always")), 0.0).intensity is None
    without = replace(FRAME, intensity=None)
    assert normalised(without, SensorConfig(), 0.0).intensity is None
    with pytest.raises(UserError, match=r"input\.fields\.intensity"):
        normalised(without, SensorConfig(intensity=IntensityConfig(missing="error")), 0.0)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"input\.range\.min"):
        from_mapping(SensorConfig, {"range.min": 5.0, "range.max": 2.0})
