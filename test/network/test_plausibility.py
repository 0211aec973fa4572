from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame, PointLabels
from lidar_semseg_ros.core.sensor import IntensityConfig, SensorConfig
from lidar_semseg_ros.formats.config_files import class_table
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.plausibility import doubt

UNIT = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-9, -9, -3),
    fov_max_m=(9, 9, 2),
    planes=("z",),
    grids=((9, 9),),
    intensity_mean=0.3,
    intensity_std=0.2,
)
INDOOR = class_table("indoor17")
BYTES = replace(UNIT, intensity_mean=60.0, intensity_std=50.0)


def sweep(intensity: np.ndarray | None) -> tuple[LidarFrame, PointLabels]:
    xyz = np.random.default_rng(0).uniform(-5, 5, (1000, 3)).astype(np.float32)
    labels = PointLabels(
        class_id=np.zeros(1000, np.uint8), probability=np.ones(1000, np.float32), entropy=np.zeros(1000, np.float32)
    )
    return LidarFrame(stamp_ns=0, frame_id="", xyz=xyz, intensity=intensity), labels


def intensities(top: float) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, top, 1000).astype(np.float32)


@pytest.mark.parametrize(("top", "inputs"), [(1, UNIT), (255, BYTES), (100, BYTES), (0.4, UNIT)])
def test_intensities_in_the_unit_of_the_training_data_raise_no_doubt(top: float, inputs: InputConfig) -> None:
    assert doubt(*sweep(intensities(top)), INDOOR, inputs, SensorConfig()) == ""


@pytest.mark.parametrize(("top", "inputs"), [(255, UNIT), (1, BYTES), (65535, BYTES)])
def test_intensities_in_another_unit_are_named_and_the_advised_scale_mends_it(top: float, inputs: InputConfig) -> None:
    frame, labels = sweep(intensities(top))
    said = doubt(frame, labels, INDOOR, inputs, SensorConfig())
    assert "input.intensity.scale" in said
    advised = re.search(r"\(now 1\) to about ([\d.e+-]+),", said)
    scale = float(advised[1])
    assert doubt(frame, labels, INDOOR, inputs, SensorConfig(intensity=IntensityConfig(scale=scale))) == ""
    assert doubt(frame, labels, INDOOR, inputs, SensorConfig(intensity=IntensityConfig(missing="always"))) == ""


def test_a_sensor_without_intensities_raises_no_doubt() -> None:
    assert doubt(*sweep(None), INDOOR, BYTES, SensorConfig()) == ""


def test_a_sensor_that_sees_mostly_what_the_model_does_not_look_at_is_asked_for_its_tilt() -> None:
    frame, labels = sweep(None)
    unseen = replace(labels, class_id=np.where(np.arange(1000) < 700, UNLABELLED, 0).astype(np.uint8))
    said = doubt(frame, unseen, INDOOR, BYTES, SensorConfig())
    assert said.startswith("70% of the points get no label") and "input.roll" in said


def test_points_beyond_the_models_view_are_named_also_where_they_take_the_label_of_the_nearest() -> None:
    frame, labels = sweep(None)
    frame.xyz[:700, 2] += 10
    said = doubt(frame, labels, INDOOR, BYTES, SensorConfig())
    beyond = (np.abs(frame.xyz) > 9).any(axis=1) | (frame.xyz[:, 2] > 2) | (frame.xyz[:, 2] < -3)
    assert said.startswith(f"{beyond.mean():.0%} of the points lie where the model does not look")
    assert doubt(frame, labels, INDOOR, BYTES, SensorConfig(roll=0.1)) == ""
    assert doubt(frame, labels, INDOOR, replace(BYTES, max_label_distance_m=0.5), SensorConfig()) == ""


def test_a_cloud_without_any_return_is_named() -> None:
    frame, labels = sweep(None)
    assert "no point of the cloud is a return" in doubt(
        replace(frame, xyz=np.zeros_like(frame.xyz)), labels, INDOOR, BYTES, SensorConfig()
    )


def room(floor_m: float, ceiling_m: float) -> tuple[LidarFrame, PointLabels]:
    """A sweep of 400 points of floor, 400 of ceiling and 200 of wall around a sensor at the origin."""
    frame, labels = sweep(None)
    class_id = np.repeat([INDOOR.id_of(name) for name in ("floor", "ceiling", "wall")], [400, 400, 200])
    frame.xyz[:800, 2] = np.repeat([floor_m, ceiling_m], 400)
    return frame, replace(labels, class_id=class_id.astype(np.uint8))


def test_a_sensor_that_sees_the_ceiling_much_nearer_than_the_floor_is_asked_whether_it_hangs_upside_down() -> None:
    assert doubt(*room(-0.9, 1.9), INDOOR, BYTES, SensorConfig()) == ""
    assert doubt(*room(-1.5, 1.1), INDOOR, BYTES, SensorConfig()) == ""
    said = doubt(*room(-1.9, 0.9), INDOOR, BYTES, SensorConfig())
    assert "0.9 m above" in said and "1.9 m below" in said and "input.roll to 3.14159" in said


def test_who_told_how_the_sensor_stands_is_not_asked() -> None:
    flipped = room(-1.9, 0.9)
    for told in (SensorConfig(roll=3.14159), SensorConfig(pitch=0.3), SensorConfig(sensor_height=1.9)):
        assert doubt(*flipped, INDOOR, BYTES, told) == ""
    assert doubt(*flipped, INDOOR, BYTES, SensorConfig(), is_levelled=True) == ""
    assert doubt(*flipped, class_table("nuscenes16"), BYTES, SensorConfig()) == ""
