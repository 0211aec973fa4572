"""Whether a model may round on this machine: where it is faster, and where the labels stay the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.network.inputs import InputConfig

if TYPE_CHECKING:
    from lidar_semseg_ros.network.waffleiron import WaffleIronConfig

LEAST_AGREEMENT = 0.99
"""Share of the trial sweep's labels that rounding must not change."""
LEAST_WIDTH = 64
"""Of narrower networks it is not known that they gain."""
LEAST_WIDTH_IN_BYTES = 256
"""Where there is bfloat16, too: of width 256 int8 takes a sixth to a fifth less time, of width 64 a sixth more."""

TRIAL_RINGS, TRIAL_COLUMNS = 32, 900
TRIAL_BOXES = 8


def faster_precisions(device: str, config: WaffleIronConfig) -> tuple[str, ...]:
    """List the precisions in which a device computes a network faster than in float32, the fastest first.

    From what the device can do, and not from a clock, so that the answer is the same every time. On a GPU bfloat16 goes
    before float16, which is as fast and rounds less, but can overflow. In narrow networks rounding to bytes costs more
    than they bring over bfloat16.
    """
    import torch

    from lidar_semseg_ros.network.tile_instructions import processor_features
    from lidar_semseg_ros.network.tiled_network import fit

    if device.startswith("cuda"):
        return ("bfloat16", "float16") if torch.cuda.is_bf16_supported(including_emulation=False) else ()
    if config.width < LEAST_WIDTH:
        return ()
    has_bfloat16 = bool({"+avx512bf16", "+amx-bf16"} & processor_features())
    has_bytes = fit(config, torch.int8) and (config.width >= LEAST_WIDTH_IN_BYTES or not has_bfloat16)
    return (*(("int8",) if has_bytes else ()), *(("bfloat16",) if has_bfloat16 else ()))


def trial_sweep(config: InputConfig) -> LidarFrame:
    """Make a sweep of a closed room with boxes in it, as large as the model's field of view allows; always the same.

    Every beam ends on the nearest box it enters or on the wall it leaves through (slab method).
    """
    rng = np.random.default_rng(0)
    low, high = 0.6 * np.array(config.fov_min_m), 0.6 * np.array(config.fov_max_m)
    azimuth, elevation = np.meshgrid(
        np.linspace(-np.pi, np.pi, TRIAL_COLUMNS, endpoint=False), np.radians(np.linspace(-25, 25, TRIAL_RINGS))
    )
    flat = np.cos(elevation)
    beam = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=-1).reshape(-1, 3)
    beam[beam == 0] = 1e-9
    range_m, surface = np.maximum(low / beam, high / beam).min(axis=1), np.zeros(len(beam))
    for box in range(TRIAL_BOXES):
        centre, half = rng.uniform(0.2, 0.9, 3) * rng.choice((low, high)), rng.uniform(0.03, 0.12, 3) * (high - low)
        sides = np.stack([(centre - half) / beam, (centre + half) / beam])
        entry, leave = sides.min(axis=0).max(axis=1), sides.max(axis=0).min(axis=1)
        hit = (entry > 0) & (entry < leave) & (entry < range_m)
        range_m[hit], surface[hit] = entry[hit], box + 1
    intensity = config.intensity_mean + config.intensity_std * (surface / TRIAL_BOXES - 0.5)
    xyz = beam * (range_m + rng.normal(0, 0.01, len(beam)))[:, None]
    return LidarFrame(
        stamp_ns=0, frame_id="", xyz=xyz.astype(np.float32), intensity=intensity.clip(0).astype(np.float32)
    )
