"""Signs that a sensor is not set up as its model expects, and what to do about them."""

from __future__ import annotations

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame, PointLabels
from lidar_semseg_ros.core.sensor import SensorConfig, normalised_intensity
from lidar_semseg_ros.network.inputs import InputConfig

UNIT_FACTOR = 8.0
"""Intensities that differ from the training data by more than this factor are in another unit: 0 … 1, 0 … 255 and
0 … 65535 lie farther apart, two sensors of one unit less."""

MOSTLY = 0.5
"""Where a larger share of the returns lies outside the model's field of view, the sensor is mounted otherwise."""

HIGH_M, SEEN = 0.5, 0.003
"""A lidar on a robot is hardly so much nearer to the ceiling than to the floor, where it sees such shares of both."""


def doubt(
    frame: LidarFrame,
    labels: PointLabels,
    classes: ClassTable,
    inputs: InputConfig,
    sensor: SensorConfig,
    is_levelled: bool = False,
) -> str:
    """Say what about a labelled sweep is suspicious, and which setting mends it; '' if nothing is.

    is_levelled: a transform told how the sensor stands.
    """
    returned = frame.has_return()
    if not returned.any():
        return "no point of the cloud is a return: all are NaN or at the origin"
    is_told = bool(is_levelled or sensor.roll or sensor.pitch or sensor.sensor_height)
    return (
        _doubtful_intensity(frame, returned, inputs, sensor)
        or _doubtful_pose(frame, labels, returned, inputs, is_told)
        or ("" if is_told else _doubtful_side(frame, labels, returned, classes))
    )


def _doubtful_intensity(frame: LidarFrame, returned: np.ndarray, inputs: InputConfig, sensor: SensorConfig) -> str:
    intensity = normalised_intensity(frame.intensity, sensor.intensity)
    if intensity is None or "intensity" not in inputs.features:
        return ""
    bright = float(np.nanpercentile(intensity[returned], 95))
    expected = inputs.intensity_mean + 2 * inputs.intensity_std
    if 0 < bright < np.inf and not expected / UNIT_FACTOR <= bright <= expected * UNIT_FACTOR:
        return (
            f"intensities reach {bright:.3g}, but the model learned from ones up to about {expected:.3g}: they are in "
            f"another unit; set input.intensity.scale (now {sensor.intensity.scale:g}) to about "
            f"{sensor.intensity.scale * expected / bright:.2g}, or input.intensity.missing to always to do without them"
        )
    return ""


def _doubtful_pose(
    frame: LidarFrame, labels: PointLabels, returned: np.ndarray, inputs: InputConfig, is_told: bool
) -> str:
    unlabelled = float((labels.class_id[returned] == UNLABELLED).mean())
    if unlabelled > MOSTLY:
        seen = f"{unlabelled:.0%} of the points get no label"
    # Where a transform or a setting turns the sweep, what the sensor measured does not tell where the points lie.
    elif (
        inputs.max_label_distance_m == np.inf and not is_told and (beyond := _beyond(frame, returned, inputs)) > MOSTLY
    ):
        seen = f"{beyond:.0%} of the points lie where the model does not look and take the label of the nearest seen"
    else:
        return ""
    box = " × ".join(f"{low:g} … {high:g}" for low, high in zip(inputs.fov_min_m, inputs.fov_max_m))
    return (
        f"{seen}: the model looks at x × y × z of {box} m around a level sensor; if it is tilted or hangs upside down, "
        "set input.roll and input.pitch (3.14159 for upside down) or input.level_frame; else choose a model for such "
        "places, or look at min_score and input.range"
    )


def _beyond(frame: LidarFrame, returned: np.ndarray, inputs: InputConfig) -> float:
    """Give the share of the returns outside the box that enters the network."""
    xyz = frame.xyz[returned]
    return 1 - float(((xyz >= inputs.fov_min_m) & (xyz <= inputs.fov_max_m)).all(axis=1).mean())


def _doubtful_side(frame: LidarFrame, labels: PointLabels, returned: np.ndarray, classes: ClassTable) -> str:
    """Doubt that up is up where the ceiling is much nearer than the floor."""
    if not {"floor", "ceiling"} <= set(classes.names):
        return ""
    floor, ceiling = (returned & (labels.class_id == classes.id_of(name)) for name in ("floor", "ceiling"))
    if min(floor.sum(), ceiling.sum()) < SEEN * returned.sum():
        return ""
    below_m, above_m = -float(np.median(frame.xyz[floor, 2])), float(np.median(frame.xyz[ceiling, 2]))
    if below_m < above_m + HIGH_M:
        return ""
    return (
        f"the ceiling is {above_m:.1f} m above the sensor, but the floor {below_m:.1f} m below, as for a sensor that "
        "hangs upside down: if it does, set input.roll to 3.14159 or input.level_frame; if it is mounted that high, "
        "say so by input.sensor_height"
    )
