"""Signs that a sensor is not set up as its model expects, and what to do about them."""

from __future__ import annotations

import numpy as np

from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame, PointLabels
from lidar_semseg_ros.core.sensor import SensorConfig, normalised_intensity
from lidar_semseg_ros.network.inputs import InputConfig

UNIT_FACTOR = 8.0
"""Intensities that differ from the training data by more than this factor are in another unit: 0 … 1, 0 … 255 and
0 … 65535 lie farther apart, two sensors of one unit less."""

MOSTLY = 0.5
"""Where a larger share of the returns lies outside the model's field of view, the sensor is mounted otherwise."""


def doubt(frame: LidarFrame, labels: PointLabels, inputs: InputConfig, sensor: SensorConfig) -> str:
    """Say what about a labelled sweep is suspicious, and which setting mends it; '' if nothing is."""
    returned = frame.has_return()
    if not returned.any():
        return "no point of the cloud is a return: all are NaN or at the origin"
    return _doubtful_intensity(frame, returned, inputs, sensor) or _doubtful_pose(labels, returned, inputs)


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


def _doubtful_pose(labels: PointLabels, returned: np.ndarray, inputs: InputConfig) -> str:
    outside = float((labels.class_id[returned] == UNLABELLED).mean())
    if outside <= MOSTLY:
        return ""
    box = " × ".join(f"{low:g} … {high:g}" for low, high in zip(inputs.fov_min_m, inputs.fov_max_m))
    return (
        f"{outside:.0%} of the points get no label: the model looks at x × y × z of {box} m around a level sensor; "
        f"if it is tilted or hangs upside down, set input.roll and input.pitch (3.14159 for upside down) or "
        f"input.level_frame; else choose a model for such places, or look at min_score and input.range"
    )
