"""Augmentations: a label stays with its point, and what is said to stay stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.distill.augment import (
    Labelled,
    boxes_swapped,
    intensity_changed,
    intensity_shifted,
    points_dropped,
    points_jittered,
    rings_thinned,
    sectors_swapped,
    turned_flipped_scaled,
)

OF_ONE = (
    turned_flipped_scaled,
    rings_thinned,
    intensity_changed,
    intensity_shifted,
    points_jittered,
    points_dropped,
)
OF_TWO = (sectors_swapped, boxes_swapped)
Exchange = Callable[[Labelled, Labelled, np.random.Generator], tuple[Labelled, Labelled]]


def sweep(seed: int, points: int = 2000, height_m: float = 0.0) -> LidarFrame:
    """Points of which every tenth has no return; the intensity of a point is its row."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-8, -8, height_m - 1), (8, 8, height_m + 1), (points, 3)).astype(np.float32)
    xyz[::10] = np.nan
    xyz[5::20] = 0
    ring = (np.arange(points) % 16).astype(np.uint16)
    intensity = np.arange(points, dtype=np.float32)
    return LidarFrame(stamp_ns=seed, frame_id="lidar", xyz=xyz, ring=ring, intensity=intensity)


def same(one: LidarFrame, other: LidarFrame) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else np.all(a == b)
        for a, b in ((getattr(one, field.name), getattr(other, field.name)) for field in fields(LidarFrame))
    )


@pytest.mark.parametrize("augmentation", OF_ONE)
def test_rows_stay_in_place_and_the_same_seed_gives_the_same_bytes(augmentation: Callable[..., LidarFrame]) -> None:
    frame = sweep(0)
    before = sweep(0)
    once, again = (augmentation(frame, np.random.default_rng(4)) for _ in range(2))
    assert same(once, again) and same(frame, before)
    assert len(once) == len(frame) and once.xyz.dtype == np.float32
    assert not (once.has_return() & ~frame.has_return()).any()
    others = [augmentation(frame, np.random.default_rng(seed)) for seed in range(5, 15)]
    assert not all(same(once, other) for other in others)


def test_jitter_moves_by_the_stated_spread_and_no_further_than_three_of_it() -> None:
    frame = sweep(0, 40_000)
    step_m = points_jittered(frame, np.random.default_rng(0), sigma_m=0.02).xyz - frame.xyz
    step_m = step_m[frame.has_return()]
    # The cut at 3 σ takes 0.2 % of the spread; 100,000 numbers tell it to 0.3 %. Coordinates have rounding of 5e-7.
    assert step_m.std() == pytest.approx(0.02, rel=0.01)
    assert abs(step_m.mean()) < 2e-4 and np.abs(step_m).max() < 0.06 + 1e-6


def test_the_dropped_share_is_any_up_to_the_most() -> None:
    frame = sweep(0, 4000)
    shares = [
        1 - points_dropped(frame, np.random.default_rng(seed)).has_return().sum() / frame.has_return().sum()
        for seed in range(60)
    ]
    assert 0 <= min(shares) < 0.05 and 0.25 < max(shares) < 0.33
    assert np.mean(shares) == pytest.approx(0.15, abs=0.04)  # of 60 shares, 3.5 standard errors


def test_a_shift_is_one_number_for_all_intensities_and_leaves_none_below_zero() -> None:
    frame = sweep(0)
    for seed in range(6):
        change = intensity_shifted(frame, np.random.default_rng(seed)).intensity - frame.intensity
        assert np.ptp(change[500:]) < 1e-3 and abs(change[-1]) <= 0.1 * frame.intensity.max()
        assert (change + frame.intensity >= 0).all()
    bare = LidarFrame(stamp_ns=0, frame_id="", xyz=frame.xyz)
    assert intensity_shifted(bare, np.random.default_rng(0)) is bare


@pytest.mark.parametrize("change", [partial(intensity_changed, missing=0.0), intensity_shifted])
def test_intensities_that_are_no_numbers_stay_so_and_change_no_others(change: Callable[..., LidarFrame]) -> None:
    frame = sweep(0)
    odd = np.isin(np.arange(len(frame)), [3, 4, 7])
    spoilt = frame.intensity.copy()
    spoilt[odd] = np.nan, np.inf, -np.inf
    found = change(replace(frame, intensity=spoilt), np.random.default_rng(1)).intensity
    assert np.array_equal(found[odd], spoilt[odd], equal_nan=True)
    assert np.array_equal(found[~odd], change(frame, np.random.default_rng(1)).intensity[~odd])


def labelled(seed: int, height_m: float) -> Labelled:
    """A sweep at a height, and for each point (which sweep, which row)."""
    frame = sweep(seed, height_m=height_m)
    return frame, np.stack([np.full(len(frame), seed), np.arange(len(frame))], axis=1)


@pytest.mark.parametrize("exchange", OF_TWO)
def test_every_point_is_in_one_of_the_two_with_its_label_and_all_its_columns(exchange: Exchange) -> None:
    sweeps = [labelled(0, 0.0), labelled(1, 10.0)]
    mixed = exchange(*sweeps, np.random.default_rng(3))
    rows = np.concatenate([labels for _, labels in mixed])
    assert sorted(map(tuple, rows.tolist())) == [(which, row) for which in (0, 1) for row in range(2000)]
    for frame, labels in mixed:
        assert len(frame) == len(labels)
        for which, (original, _) in enumerate(sweeps):
            of_it = labels[:, 0] == which
            row = labels[of_it, 1]
            assert 0 < of_it.sum() < 2000
            assert np.array_equal(frame.xyz[of_it], original.xyz[row], equal_nan=True)
            assert np.array_equal(frame.intensity[of_it], original.intensity[row])
            assert np.array_equal(frame.ring[of_it], original.ring[row])


def test_a_swapped_sector_has_nothing_left_of_its_first_sweep() -> None:
    widths = []
    for seed in range(40):
        mixed, _ = sectors_swapped(labelled(0, 0.0), labelled(1, 10.0), np.random.default_rng(seed))
        frame, labels = mixed
        measured = frame.has_return()
        azimuth = np.rad2deg(np.arctan2(frame.xyz[measured, 1], frame.xyz[measured, 0])) % 360
        guest = labels[measured, 0] == 1
        # Turned so that the circle starts at the first of the guest's points after the widest gap between them.
        own = np.sort(azimuth[guest])
        gap = np.diff(own, append=own[0] + 360)
        start = own[(gap.argmax() + 1) % len(own)]
        width = ((own - start) % 360).max()
        assert not (((azimuth[~guest] - start) % 360) < width).any()
        widths.append(width)
    # Edges are known to the spacing of 1,700 points on the circle.
    assert 58 < min(widths) < 75 and 165 < max(widths) < 181


def test_a_swapped_box_is_a_square_of_two_to_six_metres() -> None:
    for seed in range(20):
        (frame, labels), _ = boxes_swapped(labelled(0, 0.0), labelled(1, 10.0), np.random.default_rng(seed))
        guest = labels[:, 0] == 1
        low, high = frame.xyz[guest, :2].min(axis=0), frame.xyz[guest, :2].max(axis=0)
        assert (high - low < 6).all() and (high - low).max() > 1
        own = frame.xyz[~guest & frame.has_return(), :2]
        assert not ((own > low) & (own < high)).all(axis=1).any()


def test_a_column_that_one_of_two_lacks_falls_away() -> None:
    one, (other, labels) = labelled(0, 0.0), labelled(1, 0.0)
    bare = LidarFrame(stamp_ns=1, frame_id="", xyz=other.xyz, ring=other.ring)
    for frame, _ in sectors_swapped(one, (bare, labels), np.random.default_rng(0)):
        assert frame.intensity is None and frame.ring is not None


@pytest.mark.parametrize("exchange", OF_TWO)
def test_empty_sweeps_can_be_exchanged(exchange: Exchange) -> None:
    nothing = LidarFrame(stamp_ns=0, frame_id="", xyz=np.zeros((0, 3), np.float32)), np.zeros(0, np.uint8)
    for pair in ((nothing, nothing), (nothing, (sweep(0), np.zeros(2000, np.uint8)))):
        mixed = exchange(*pair, np.random.default_rng(0))
        assert sum(len(labels) for _, labels in mixed) == sum(len(labels) for _, labels in pair)
