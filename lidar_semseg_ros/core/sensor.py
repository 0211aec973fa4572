"""What a user says of a lidar, and its sweeps brought to what a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.geometry import rigid, rotation_from_rpy, transform_points
from lidar_semseg_ros.core.options import setting


@dataclass(frozen=True, kw_only=True)
class FieldNames:
    """Which fields of a cloud hold what; empty means the first of the usual names that the cloud has."""

    intensity: str = setting("", "field of the intensity; empty: intensity, reflectivity or i", live=True)
    ring: str = setting("", "field of the ring; empty: ring, channel, line or laser_id", live=True)
    time: str = setting(
        "", "field of the time per point; empty: t, time, timestamp, time_stamp or offset_time", live=True
    )


@dataclass(frozen=True, kw_only=True)
class IntensityConfig:
    """How the sensor's intensities become those the model was trained on."""

    scale: float = setting(1.0, "factor from the sensor's unit to the model's", minimum=0.0, live=True)
    clip: float = setting(
        float("inf"),
        "largest intensity after scaling; larger ones, as of reflectors, become it",
        minimum=0.0,
        live=True,
    )
    missing: str = setting(
        "mean",
        "a cloud without intensities: mean (feeds the mean of the training data) or error (drops the cloud); "
        "always feeds the mean even where there are intensities, for sensors that mean something else by them",
        choices=("mean", "error", "always"),
        live=True,
    )


@dataclass(frozen=True, kw_only=True)
class RangeConfig:
    """Points nearer or farther are left unlabelled, such as those of the robot's own body."""

    min: float = setting(0.0, "least distance from the sensor in metres", minimum=0.0, live=True)
    max: float = setting(float("inf"), "largest distance from the sensor in metres", minimum=0.0, live=True)


@dataclass(frozen=True, kw_only=True)
class SensorConfig:
    """What a user says of the lidar and of how it is mounted; with the defaults a sweep is taken as it is."""

    fields: FieldNames = FieldNames()
    intensity: IntensityConfig = IntensityConfig()
    range: RangeConfig = RangeConfig()
    sensor_height: float = setting(
        0.0,
        "metres above the floor, for models trained at one height; 0: unknown",
        minimum=0.0,
        maximum=100.0,
        live=True,
    )
    roll: float = setting(
        0.0,
        "of the sensor against the level, in radians (REP 103); 3.14159 hangs upside down",
        minimum=-7.0,
        maximum=7.0,
        live=True,
    )
    pitch: float = setting(
        0.0,
        "of the sensor against the level, in radians (REP 103); positive looks down",
        minimum=-7.0,
        maximum=7.0,
        live=True,
    )
    max_points: int = setting(
        0,
        "points fed to the network at most, evenly thinned out; 0: all. The others take the label of the nearest",
        minimum=0,
        live=True,
    )

    def __post_init__(self) -> None:
        if not self.range.min < self.range.max:
            raise UserError(f"setting 'input.range.min' ({self.range.min}) must be less than 'max' ({self.range.max})")


def normalised(
    frame: LidarFrame, sensor: SensorConfig, trained_height_m: float, level_from_lidar: np.ndarray | None = None
) -> LidarFrame:
    """Bring a sweep to what a model was trained on: the same rows in the same order, other values.

    Tilt and height are undone by level_from_lidar (4, 4), whose z axis points up and whose origin lies on the floor,
    or, where that is None, by the sensor's settings. trained_height_m: of the lidar above the floor in the training
    data, 0 if it varied: then the height stays as it is. Rows out of range become rows without a return. UserError
    if intensities are demanded and missing.
    """
    levelled = _levelled(frame.xyz, levelling(sensor, trained_height_m, level_from_lidar))
    return replace(
        frame,
        xyz=_in_range(levelled, frame.xyz, sensor.range),
        intensity=normalised_intensity(frame.intensity, sensor.intensity),
    )


def levelling(sensor: SensorConfig, trained_height_m: float, level_from_lidar: np.ndarray | None = None) -> np.ndarray:
    """Give model_from_lidar (4, 4), by which `normalised` undoes tilt and height; the arguments are as there."""
    if level_from_lidar is None:
        level_from_lidar = rigid(rotation_from_rpy(sensor.roll, sensor.pitch, 0.0), np.zeros(3))
        height_m = sensor.sensor_height
    else:
        height_m = float(level_from_lidar[2, 3])
    raised_m = height_m - trained_height_m if trained_height_m > 0 and height_m > 0 else 0.0
    return rigid(level_from_lidar[:3, :3], np.array([0.0, 0.0, raised_m]))


def _levelled(xyz: np.ndarray, model_from_lidar: np.ndarray) -> np.ndarray:
    if np.array_equal(model_from_lidar, np.eye(4)):
        return xyz
    measured = np.any(xyz != 0, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(measured[:, None], transform_points(model_from_lidar, xyz), xyz).astype(np.float32)


def _in_range(xyz: np.ndarray, measured_xyz: np.ndarray, limits: RangeConfig) -> np.ndarray:
    if limits.min <= 0 and limits.max == float("inf"):
        return xyz
    with np.errstate(invalid="ignore", over="ignore"):
        range_m = np.sqrt(np.einsum("ij,ij->i", measured_xyz, measured_xyz))
    inside = (range_m >= limits.min) & (range_m <= limits.max)
    return np.where(inside[:, None], xyz, np.float32(np.nan))


def normalised_intensity(intensity: np.ndarray | None, config: IntensityConfig) -> np.ndarray | None:
    """Give intensities (N,) in the unit of the training data, None to feed their mean; UserError as in `normalised`."""
    is_fed = feeds_intensity(intensity is not None, config)
    if intensity is None or not is_fed:
        return None
    if config.scale == 1.0 and config.clip == float("inf"):
        return intensity
    return np.minimum(intensity * np.float32(config.scale), np.float32(config.clip))


def feeds_intensity(is_there: bool, config: IntensityConfig) -> bool:
    """Tell whether the intensities of a sweep are fed rather than their mean; UserError as in `normalised`."""
    if config.missing == "error" and not is_there:
        raise UserError(
            "the cloud has no intensities, and input.intensity.missing is error; "
            "name their field in input.fields.intensity or set it to mean"
        )
    return is_there and config.missing != "always"
