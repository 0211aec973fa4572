"""The nine corruptions at their three severities, and mCE and mRR by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.distill.corruptions import (
    SEVERITIES,
    beam_missing,
    corruptions,
    cross_sensor,
    crosstalk,
    dropout,
    fov_crop,
    incomplete_echo,
    intensity_shift,
    mean_corruption_error,
    mean_resilience_rate,
    motion_blur,
    range_noise,
)

NAMES = ("wall", "display", "light", "chair", "cabinet_shelf")
CLASSES = ClassTable(name="few", names=NAMES, colors=((0, 0, 0),) * 5)
CORRUPTIONS = corruptions(CLASSES)
RINGS, COLUMNS = 16, 600
OF_SEVERITY = dict(zip(SEVERITIES, (0.25, 0.5, 0.75)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sweep() -> tuple[LidarFrame, np.ndarray]:
    """A lidar of 16 rings of 600 columns in a round room of 4 m; every twelfth column has no return."""
    column, ring = np.divmod(np.arange(RINGS * COLUMNS), RINGS)
    azimuth, elevation = 2 * np.pi * (column + 0.5) / COLUMNS, np.deg2rad(2 * ring - 15)
    flat = np.cos(elevation)
    xyz = 4 * np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)
    xyz[column % 12 == 0] = np.nan
    xyz[column % 24 == 0] = 0
    frame = LidarFrame(
        stamp_ns=5,
        frame_id="lidar",
        xyz=xyz.astype(np.float32),
        ring=ring.astype(np.uint16),
        intensity=(rng().permutation(len(xyz)) % 100).astype(np.float32),
        time_s=np.linspace(0, 0.1, len(xyz), dtype=np.float32),
    )
    labels = rng(1).integers(0, len(NAMES), len(xyz)).astype(np.uint8)
    return frame, np.where(frame.has_return(), labels, np.uint8(UNLABELLED))


def lost(severity: int, corruption, seed: int = 0, **more) -> np.ndarray:
    """Which of the points that were measured are lost; the others must be as they were."""
    frame, labels = sweep()
    corrupted, left = corruption(frame, labels, severity, rng(seed), **more)
    gone = frame.has_return() & ~corrupted.has_return()
    stayed = corrupted.has_return()
    assert np.array_equal(corrupted.xyz[stayed], frame.xyz[stayed])
    assert np.array_equal(left, np.where(gone, UNLABELLED, labels))
    return gone[frame.has_return()]


def measured(name: str) -> np.ndarray:
    frame, _ = sweep()
    return getattr(frame, name)[frame.has_return()]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_same_seed_same_bytes_and_rows_stay_in_place(name: str, severity: int) -> None:
    frame, labels = sweep()
    (once, left), (again, left_again) = (CORRUPTIONS[name](*sweep(), severity, rng(3)) for _ in range(2))
    original, original_labels = sweep()
    assert np.array_equal(left, left_again) and left.dtype == np.uint8
    for field in fields(LidarFrame):
        a, b = getattr(once, field.name), getattr(again, field.name)
        assert a.tobytes() == b.tobytes() if isinstance(a, np.ndarray) else a == b
    corrupted, _ = CORRUPTIONS[name](frame, labels, severity, rng(3))
    assert np.array_equal(frame.xyz, original.xyz, equal_nan=True) and np.array_equal(labels, original_labels)
    assert len(corrupted) == len(frame) and not (corrupted.has_return() & ~frame.has_return()).any()
    # No point has another label than before, and none without a return has one.
    assert np.isin(left, [UNLABELLED]).sum() >= np.isin(labels, [UNLABELLED]).sum()
    assert ((left == labels) | (left == UNLABELLED)).all() and (left[~corrupted.has_return()] == UNLABELLED).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_sweeps_without_points_or_columns_can_be_corrupted(name: str) -> None:
    for points in (0, 1, 7):
        frame = LidarFrame(stamp_ns=0, frame_id="", xyz=np.full((points, 3), np.nan, np.float32))
        for some in (frame, replace(frame, xyz=np.ones((points, 3), np.float32))):
            for severity in SEVERITIES:
                corrupted, labels = CORRUPTIONS[name](some, np.zeros(points, np.uint8), severity, rng())
                assert len(corrupted) == len(labels) == points


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", [0, 4])
def test_there_are_three_severities(name: str, severity: int) -> None:
    with pytest.raises(UserError, match="1, 2 or 3"):
        CORRUPTIONS[name](*sweep(), severity, rng())


def test_the_nine_are_those_of_the_benchmark() -> None:
    first = ["beam_missing", "cross_sensor", "crosstalk", "motion_blur", "incomplete_echo"]
    assert list(CORRUPTIONS) == [*first, "range_noise", "intensity_shift", "fov_crop", "dropout"]


@pytest.mark.parametrize(("severity", "rings"), [(1, 4), (2, 8), (3, 12)])
def test_whole_rings_are_missing(severity: int, rings: int) -> None:
    gone, ring = lost(severity, beam_missing), measured("ring")
    assert len(set(ring[gone])) == rings and not set(ring[gone]) & set(ring[~gone])
    assert (lost(severity, beam_missing, seed=1) != gone).any()


@pytest.mark.parametrize(("severity", "rings"), [(1, 12), (2, 8), (3, 4)])
def test_a_coarser_sensor_has_evenly_fewer_rings_and_every_second_point_of_them(severity: int, rings: int) -> None:
    gone, ring = lost(severity, cross_sensor), measured("ring")
    left = sorted(set(ring[~gone]))
    assert len(left) == rings and left[0] == 0 and left[-1] == RINGS - 1
    assert np.diff(left).max() - np.diff(left).min() <= 1
    for number in left:
        assert (~gone[ring == number]).tolist() == [place % 2 == 0 for place in range((ring == number).sum())]


@pytest.mark.parametrize("corruption", [beam_missing, cross_sensor])
def test_a_sensor_that_does_not_tell_its_rings_has_them_by_elevation(corruption) -> None:
    frame, labels = sweep()
    bare = replace(frame, ring=None)
    # 16 elevations fall into 16 of the 32 bands, so the answer is the same.
    found, _ = corruption(bare, labels, 2, rng())
    expected, _ = corruption(frame, labels, 2, rng())
    assert np.array_equal(found.has_return(), expected.has_return())


@pytest.mark.parametrize(("severity", "share"), [(1, 0.006), (2, 0.008), (3, 0.01)])
def test_crosstalk_moves_few_points_far_and_takes_their_labels(severity: int, share: float) -> None:
    frame, labels = sweep()
    corrupted, left = crosstalk(frame, labels, severity, rng())
    moved = (corrupted.xyz != frame.xyz).any(axis=1) & frame.has_return()
    assert moved.sum() == round(share * frame.has_return().sum())
    assert (left[moved] == UNLABELLED).all() and np.array_equal(left[~moved], labels[~moved])
    assert np.array_equal(corrupted.intensity[~moved], frame.intensity[~moved])
    assert (corrupted.intensity[moved] != frame.intensity[moved]).mean() > 0.9
    assert corrupted.intensity.min() >= 0 and corrupted.intensity.max() <= 99


def spoilt_sweep() -> tuple[LidarFrame, np.ndarray, np.ndarray]:
    """A sweep, its labels, and which intensities are no numbers."""
    frame, labels = sweep()
    odd = np.arange(len(frame)) % 7 == 0
    intensity = np.where(odd, np.resize(np.float32([np.nan, np.inf, -np.inf]), len(frame)), frame.intensity)
    return replace(frame, intensity=intensity), labels, odd


def test_crosstalk_is_as_bright_as_the_brightest_number_and_leaves_what_is_none() -> None:
    frame, labels, odd = spoilt_sweep()
    corrupted, _ = crosstalk(frame, labels, 3, rng())
    assert np.array_equal(corrupted.intensity[odd], frame.intensity[odd], equal_nan=True)
    assert (corrupted.intensity[~odd] != frame.intensity[~odd]).any()
    assert corrupted.intensity[~odd].min() >= 0 and corrupted.intensity[~odd].max() <= 99
    blind = replace(frame, intensity=np.full(len(frame), np.nan, np.float32))
    assert np.isnan(crosstalk(blind, labels, 3, rng())[0].intensity).all()


def test_furniture_is_dark_among_what_has_an_intensity_and_all_of_it_where_nothing_has_one() -> None:
    frame, labels, odd = spoilt_sweep()
    furniture, shining = np.isin(labels, [3, 4]), np.isin(labels, [1, 2])
    known = furniture & ~odd
    dark = known & (frame.intensity <= np.sort(frame.intensity[known])[known.sum() // 2])
    gone = frame.has_return() & ~incomplete_echo(frame, labels, 2, rng(), classes=CLASSES)[0].has_return()
    # The median of an even count lies between its two middle ones.
    assert gone[dark].mean() == pytest.approx(0.85, abs=0.03) and not gone[~(dark | shining)].any()
    blind = replace(frame, intensity=np.full(len(frame), np.nan, np.float32))
    gone = frame.has_return() & ~incomplete_echo(blind, labels, 2, rng(), classes=CLASSES)[0].has_return()
    assert gone.sum() == round(0.85 * (furniture | shining).sum())


def test_crosstalk_has_a_spread_of_three_metres_along_each_axis() -> None:
    frame, labels = sweep()
    steps = []
    for seed in range(30):
        corrupted, _ = crosstalk(frame, labels, 3, rng(seed))
        moved = (corrupted.xyz != frame.xyz).any(axis=1) & frame.has_return()
        steps.append((corrupted.xyz - frame.xyz)[moved])
    # 2,600 numbers per axis tell a standard deviation to 1.4 %; 5 % are 3.5 of these.
    assert np.concatenate(steps).std(axis=0) == pytest.approx([3, 3, 3], rel=0.05)


@pytest.mark.parametrize(("severity", "sigma_m"), [(1, 0.02), (2, 0.05), (3, 0.10)])
def test_motion_blur_is_one_shift_and_a_tenth_of_it_as_jitter(severity: int, sigma_m: float) -> None:
    frame, labels = sweep()
    measured, shifts = frame.has_return(), []
    for seed in range(100):
        corrupted, left = motion_blur(frame, labels, severity, rng(seed))
        step_m = corrupted.xyz[measured] - frame.xyz[measured]
        shifts.append(step_m.mean(axis=0))
        assert np.allclose(step_m.std(axis=0), 0.1 * sigma_m, rtol=0.05)
        assert left is labels
    assert np.std(shifts) == pytest.approx(sigma_m, rel=0.15)  # of 300 numbers, 3.7 standard errors


@pytest.mark.parametrize(("severity", "share"), [(1, 0.75), (2, 0.85), (3, 0.95)])
def test_echoes_are_lost_on_what_shines_and_on_dark_furniture(severity: int, share: float) -> None:
    gone = lost(severity, incomplete_echo, classes=CLASSES)
    frame, labels = sweep()
    labels, intensity = labels[frame.has_return()], measured("intensity")
    furniture = np.isin(labels, [3, 4])
    dark = furniture & (intensity <= np.median(intensity[furniture]))
    weak = dark | np.isin(labels, [1, 2])
    assert gone[weak].sum() == round(share * weak.sum()) and not gone[~weak].any()
    bare = replace(frame, intensity=None)
    corrupted, _ = incomplete_echo(bare, sweep()[1], severity, rng(), classes=CLASSES)
    weak = furniture | np.isin(labels, [1, 2])
    assert (~corrupted.has_return()[frame.has_return()]).sum() == round(share * weak.sum())


@pytest.mark.parametrize(("severity", "sigma_m"), [(1, 0.02), (2, 0.05), (3, 0.10)])
def test_range_noise_keeps_directions(severity: int, sigma_m: float) -> None:
    frame, labels = sweep()
    corrupted, left = range_noise(frame, labels, severity, rng())
    before, after = (some.xyz[frame.has_return()].astype(np.float64) for some in (frame, corrupted))
    change_m = np.linalg.norm(after, axis=1) - np.linalg.norm(before, axis=1)
    # 8,800 ranges tell a standard deviation to 0.75 %.
    assert change_m.std() == pytest.approx(sigma_m, rel=0.03) and abs(change_m.mean()) < sigma_m / 20
    directions = [xyz / np.linalg.norm(xyz, axis=1)[:, None] for xyz in (before, after)]
    assert np.allclose(*directions, atol=1e-6) and left is labels


def test_noise_does_not_throw_a_near_point_behind_the_sensor() -> None:
    near = LidarFrame(stamp_ns=0, frame_id="", xyz=np.full((500, 3), [0.03, 0, 0], np.float32))
    noisy, _ = range_noise(near, np.zeros(500, np.uint8), 3, rng())
    assert (noisy.xyz[:, 0] > 0).all()


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.5), (2, 0.25), (3, 0.0)])
def test_intensities_are_scaled_down_to_nothing(severity: int, factor: float) -> None:
    frame, labels = sweep()
    corrupted, left = intensity_shift(frame, labels, severity, rng())
    assert np.array_equal(corrupted.intensity, frame.intensity * factor) and corrupted.xyz is frame.xyz
    assert left is labels


@pytest.mark.parametrize(("severity", "degrees"), [(1, 270), (2, 180), (3, 90)])
def test_one_sector_stays_in_view_whose_middle_is_a_random_point(severity: int, degrees: int) -> None:
    xyz, middles = measured("xyz"), []
    for seed in range(20):
        gone = lost(severity, fov_crop, seed=seed)
        assert (~gone).mean() == pytest.approx(degrees / 360, abs=0.01)
        # All that is seen lies within the sector around its mean direction, and nothing that is lost does.
        x, y = xyz[~gone, :2].mean(axis=0)
        aside = np.rad2deg(np.arctan2(x * xyz[:, 1] - y * xyz[:, 0], x * xyz[:, 0] + y * xyz[:, 1]))
        # Columns are 0.6° apart, and those without a return draw the mean aside.
        assert (np.abs(aside[~gone]) < degrees / 2 + 1.5).all() and (np.abs(aside[gone]) > degrees / 2 - 1.5).all()
        middles.append(np.arctan2(y, x))
    assert np.ptp(middles) > 4


def test_a_lidar_that_looks_along_another_axis_still_sees_something() -> None:
    frame, labels = sweep()
    backwards = replace(frame, xyz=np.where(frame.xyz[:, :1] < -3.5, frame.xyz, np.float32(np.nan)))
    for seed in range(10):
        assert fov_crop(backwards, labels, 3, rng(seed))[0].has_return().any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_dropout_loses_exactly_its_share_of_the_points(severity: int) -> None:
    gone = lost(severity, dropout)
    assert gone.sum() == round(OF_SEVERITY[severity] * len(gone))


def test_mean_corruption_error_by_hand() -> None:
    # Errors of the model: 0.4 + 0.5 + 0.6 = 1.5 and 0.3 + 0.3 + 0.3 = 0.9; of the baseline: 2.0 and 0.6.
    model = {"fog": [0.6, 0.5, 0.4], "rain": [0.7, 0.7, 0.7]}
    baseline = {"rain": [0.9, 0.8, 0.7], "fog": [0.5, 0.3, 0.2]}
    mean, each = mean_corruption_error(model, baseline)
    assert each == pytest.approx({"fog": 75, "rain": 150}) and mean == pytest.approx(112.5)
    assert mean_corruption_error(model, model)[0] == pytest.approx(100)


def test_mean_resilience_rate_by_hand() -> None:
    # Of a clean 0.8: (0.8 + 0.4 + 0) / 2.4 = 1/2 and (0.6 + 0.6 + 0.6) / 2.4 = 3/4.
    mean, each = mean_resilience_rate({"fog": [0.8, 0.4, 0.0], "rain": [0.6, 0.6, 0.6]}, 0.8)
    assert each == pytest.approx({"fog": 50, "rain": 75}) and mean == pytest.approx(62.5)


def test_a_baseline_tried_otherwise_or_without_errors_is_told() -> None:
    with pytest.raises(UserError, match="same corruptions"):
        mean_corruption_error({"fog": [0.5] * 3}, {"rain": [0.5] * 3})
    assert mean_corruption_error({"fog": [0.5] * 3}, {"fog": [1.0] * 3})[0] == np.inf
    assert np.isnan(mean_resilience_rate({"fog": [0.0] * 3}, 0.0)[0])
