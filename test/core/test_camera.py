"""Projection with every camera model: against OpenCV, by hand, and by brute force where rays fold back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lidar_semseg_ros.core.camera import Camera, FisheyeCamera, PinholeCamera, camera_of_model
from lidar_semseg_ros.core.errors import UserError

MATRIX = np.array([[100.0, 0, 50], [0, 120, 40], [0, 0, 1]])
WIDE = np.array([[400.0, 0, 5e5], [0, 410, 5e5], [0, 0, 1]])
"""With an image of a million pixels squared, only the field of view decides what is shown."""


def pinhole(**more: Any) -> PinholeCamera:
    return PinholeCamera(**{"width": 100, "height": 80, "matrix": MATRIX, "distortion": np.zeros(5), **more})


def fisheye(*coefficients: float, **more: Any) -> FisheyeCamera:
    distortion = np.array(coefficients or (0.0, 0, 0, 0))
    return FisheyeCamera(**{"width": 800, "height": 800, "matrix": MATRIX, "distortion": distortion, **more})


def endless(distortion: np.ndarray) -> Camera:
    camera_class = FisheyeCamera if len(distortion) == 4 else PinholeCamera
    return camera_class(width=10**6, height=10**6, matrix=WIDE, distortion=distortion)


def direction(angle: float | np.ndarray, around: float = 0.0) -> np.ndarray:
    """Unit rays (N, 3) at an angle off the optical axis."""
    angle = np.atleast_1d(angle)
    return np.stack([np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle)], axis=1)


def plumb_bob(rng: np.random.Generator) -> np.ndarray:
    k1, k2, k3 = rng.normal(0, (0.3, 0.1, 0.03))
    return np.array([k1, k2, *rng.normal(0, 1e-3, 2), k3])


def rational(rng: np.random.Generator) -> np.ndarray:
    # Numerator and denominator nearly cancel, as in calibrations of wide lenses, where k1, k2 and k5 exceed 1.
    numerator = rng.normal(0, (0.8, 1.0, 0.3))
    denominator = numerator + rng.normal(0, (0.2, 0.05, 0.02))
    return np.array([*numerator[:2], *rng.normal(0, 1e-3, 2), numerator[2], *denominator])


def kannala_brandt(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, (0.05, 0.02, 0.01, 0.003))


RANDOM_LENSES = [plumb_bob, rational, kannala_brandt]
Lens = Callable[[np.random.Generator], np.ndarray]


def test_pinhole_projection_by_hand() -> None:
    uv_px, shown = pinhole().project(np.array([[0.5, -0.25, 2.0], [0, 0, -1], [9, 0, 1], [0, 0, 0.1]]))
    assert uv_px[0].tolist() == [75.0, 25.0]
    assert shown.tolist() == [True, False, False, False]
    assert np.isnan(uv_px[[1, 3]]).all()


def test_fisheye_projection_by_hand() -> None:
    # Without coefficients the radius is θ: 45° → 100 · π/4 to the right, 120 · π/4 down.
    uv_px, shown = fisheye().project(np.array([[1.0, 0, 1], [0, 2, 2], [0, 0, 3]]))
    assert np.allclose(uv_px, [[50 + 25 * np.pi, 40], [50, 40 + 30 * np.pi], [50, 40]])
    assert shown.all()


def test_fisheye_sees_sideways_and_behind_itself() -> None:
    camera = fisheye(width=800, height=800, matrix=np.array([[100.0, 0, 400], [0, 100, 400], [0, 0, 1]]))
    uv_px, shown = camera.project(np.array([[1.0, 0, 0], [-1, 0, -1], [0, 0, -1], [0.1, 0, -0.1]]))
    assert np.allclose(uv_px[:2], [[400 + 50 * np.pi, 400], [400 - 75 * np.pi, 400]])
    # Straight behind is everywhere on a circle, and the last point is nearer than 0.2 m.
    assert shown.tolist() == [True, True, False, False]


@pytest.mark.parametrize("lens", RANDOM_LENSES)
def test_projection_is_that_of_opencv(lens: Lens) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is only installed for tests")
    rng = np.random.default_rng(2)
    compared = 0
    for _ in range(50):
        camera = endless(lens(rng))
        points = rng.uniform((-4, -4, 0.3), (4, 4, 6), (200, 3))
        uv_px, shown = camera.project(points)
        if isinstance(camera, FisheyeCamera):
            inputs = points[:, None], np.zeros(3), np.zeros(3), camera.matrix, camera.distortion
            expected = cv2.fisheye.projectPoints(*inputs)[0][:, 0]
        else:
            expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.matrix, camera.distortion)[0][:, 0]
        np.testing.assert_allclose(uv_px[shown], expected[shown], rtol=1e-12, atol=1e-6)
        compared += shown.sum()
    assert compared > 3000


@pytest.mark.parametrize("lens", RANDOM_LENSES)
def test_rays_move_outward_and_the_field_of_view_ends_where_they_stop(lens: Lens) -> None:
    """The brute-force twin: walk outward along rays in small steps and look where the pixel turns back."""
    rng = np.random.default_rng(3)
    folds = 0
    for _ in range(100):
        distortion = lens(rng)
        camera = endless(distortion)
        limit = np.pi if isinstance(camera, FisheyeCamera) else np.arctan(8.0)
        angles = np.linspace(0, limit, 4000)[1:-1]
        for around in rng.uniform(0, 2 * np.pi, 3):
            rays = direction(angles, around)
            uv_px, _ = camera.project(rays, min_depth_m=0.0)
            in_field = np.isfinite(uv_px).all(axis=1)
            count = int(in_field.sum())
            assert in_field[:count].all(), "the field of view has a hole"
            outward = (uv_px[:count] - 5e5) / (400, 410) @ (np.cos(around), np.sin(around))
            assert (np.diff(outward) > 0).all()
            if count < len(angles):
                folds += 1
                radius = true_radius(distortion, angles)
                slope = np.diff(radius) / np.diff(np.tan(angles) if len(distortion) > 4 else angles)
                assert (slope[: count - 1] > 0).all()
                # 0 without the tangential part, which lets the field end a little earlier; far below 0 at a pole.
                assert slope[count - 1 : count + 1].min() < 0.05
    assert folds > 20


def true_radius(distortion: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """The radial part alone, as the documentation of OpenCV writes it."""
    if len(distortion) == 4:
        k1, k2, k3, k4 = distortion
        return angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8)
    k1, k2, _, _, k3, k4, k5, k6 = np.pad(distortion, (0, 8 - len(distortion)))
    r = np.tan(angle)
    return r * (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)


@pytest.mark.parametrize("lens", [plumb_bob, rational])
def test_no_two_shown_rays_meet_in_a_pixel_even_with_strong_tangential_distortion(lens: Lens) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        distortion = lens(rng)
        distortion[2:4] = rng.normal(0, 0.02, 2)
        x, y = np.meshgrid(np.linspace(-2, 2, 81), np.linspace(-2, 2, 81))
        uv_px, shown = endless(distortion).project(np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3))
        u, v = ((uv_px - 5e5) / (400, 410)).T.reshape(2, 81, 81)
        # A fold turns small squares of the grid over: their signed area changes sign.
        right_u, right_v = (np.diff(w, axis=1)[:-1] for w in (u, v))
        down_u, down_v = (np.diff(w, axis=0)[:, :-1] for w in (u, v))
        area = right_u * down_v - right_v * down_u
        assert shown.sum() > 100 and (area[np.isfinite(area)] > 0).all()


def test_points_beyond_the_fold_of_a_barrel_distortion_are_not_shown() -> None:
    # r (1 − 0.3 r²) turns back at r = sqrt(1 / 0.9) = 1.054: r = 1.7 would land at 50 + 100 · 0.226, in the image.
    camera = pinhole(distortion=np.array([-0.3, 0, 0, 0, 0]), width=200, height=200)
    assert 0 < 50 + 100 * 1.7 * (1 - 0.3 * 1.7**2) < 200
    uv_px, shown = camera.project(np.array([[1.7, 0, 1], [1.06, 0, 1], [1.05, 0, 1], [0.4, 0, 1]]))
    assert shown.tolist() == [False, False, True, True]
    assert np.isnan(uv_px[:2]).all()


def test_points_beyond_the_pole_of_a_rational_distortion_are_not_shown() -> None:
    # r / (1 − r²) grows to infinity at r = 1 and comes back from the other side: r = 3 would land at 50 − 37.5.
    camera = pinhole(distortion=np.array([0.0, 0, 0, 0, 0, -1, 0, 0]), width=400)
    assert camera.project(np.array([[3.0, 0, 1], [0.5, 0, 1]]))[1].tolist() == [False, True]


def test_points_beyond_the_fold_of_a_fisheye_are_not_shown() -> None:
    # θ (1 − 0.1 θ²) turns back at θ = sqrt(1 / 0.3) = 104.6°; at 150° the radius would be 0.824, that of 51°.
    camera = fisheye(-0.1, 0, 0, 0, matrix=np.array([[100.0, 0, 400], [0, 100, 400], [0, 0, 1]]))
    rays = direction(np.radians([150.0, 105, 104, 90, 51]))
    assert camera.project(rays)[1].tolist() == [False, False, True, True, True]


def test_a_wide_calibration_keeps_the_corners_of_its_image() -> None:
    # A depth camera's colour lens: its rational polynomial has coefficients above 2, but no fold in the image.
    distortion = np.array([0.52, -2.63, 6e-4, -3e-4, 1.53, 0.4, -2.45, 1.46])
    camera = PinholeCamera(
        width=1280, height=720, matrix=np.array([[610.0, 0, 640], [0, 610, 366], [0, 0, 1]]), distortion=distortion
    )
    # Nine tenths of the way to the corners, at |x / z| = 640 / 610 and |y / z| = 360 / 610.
    assert camera.project(np.array([[x, y, 1.0] for x in (-0.95, 0.95) for y in (-0.52, 0.52)]))[1].all()


@pytest.mark.parametrize("camera", [pinhole(), fisheye(), pinhole(distortion=np.zeros(8))])
@pytest.mark.filterwarnings("error")
def test_points_that_are_no_measurement_are_not_shown(camera: Camera) -> None:
    points = np.array([[np.nan, 0, 1], [0, 0, np.inf], [np.inf, np.inf, np.inf], [0, 0, 0], [0, 0, -0.0]], np.float32)
    for min_depth_m in (0.2, 0.0):
        uv_px, shown = camera.project(points, min_depth_m)
        assert not shown.any() and np.isnan(uv_px).all()
    assert camera.project(np.zeros((0, 3)))[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("model", "given", "kept"),
    [
        ("plumb_bob", [], [0, 0, 0, 0, 0]),
        ("plumb_bob", [1, 2, 3, 4], [1, 2, 3, 4, 0]),
        ("plumb_bob", [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ("rational_polynomial", [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]),
        ("equidistant", [1, 2, 3, 4], [1, 2, 3, 4]),
    ],
)
def test_a_camera_is_built_by_the_name_of_its_model_and_knows_it(model: str, given: list, kept: list) -> None:
    camera = camera_of_model(model, width=1, height=1, matrix=MATRIX, distortion=np.array(given, float))
    assert (camera.model, camera.distortion.tolist()) == (model, kept)


def test_fisheye_is_another_name_of_equidistant() -> None:
    camera = camera_of_model("fisheye", width=1, height=1, matrix=MATRIX, distortion=np.zeros(4))
    assert camera.model == "equidistant"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "omni"}, "'omni' is not known; there are plumb_bob, rational_polynomial, equidistant"),
        ({"distortion": np.zeros(3)}, "plumb_bob takes 0 or 4 or 5 coefficients, but got 3"),
        ({"model": "equidistant", "distortion": np.zeros(5)}, "equidistant takes 4 coefficients, but got 5"),
        ({"distortion": np.array([0, np.nan, 0, 0])}, "must be finite"),
        ({"matrix": np.zeros((3, 3))}, "positive focal lengths.*not calibrated"),
        ({"matrix": np.diag([np.nan, 1, 1])}, "finite"),
        ({"matrix": MATRIX.T}, r"last row .* row by row"),
        ({"width": 0}, "0×1 pixels"),
    ],
)
def test_a_camera_that_cannot_be_is_refused_with_the_reason(changes: dict, said: str) -> None:
    values = {"model": "plumb_bob", "width": 1, "height": 1, "matrix": MATRIX, "distortion": np.zeros(5), **changes}
    with pytest.raises(UserError, match=said):
        camera_of_model(**values)


def test_a_pinhole_with_the_coefficients_of_a_fisheye_is_refused() -> None:
    with pytest.raises(UserError, match="PinholeCamera takes 5 or 8 coefficients"):
        pinhole(distortion=np.zeros(4))


@pytest.mark.parametrize("kind", [(PinholeCamera, 5), (PinholeCamera, 8), (FisheyeCamera, 4)])
@pytest.mark.parametrize("tiny", [1e-310, -1e-200, 1e-13])
def test_a_vanishing_coefficient_bends_nothing_and_an_absurd_one_is_refused(
    kind: tuple[type[Camera], int], tiny: float
) -> None:
    camera, count = kind
    size = {"width": 640, "height": 480, "matrix": np.array([[400.0, 0, 320], [0, 400, 240], [0, 0, 1]])}
    straight, bent = (camera(**size, distortion=np.full(count, value)) for value in (0.0, tiny))
    ahead = np.random.default_rng(0).uniform((-1, -1, 1), (1, 1, 5), (50, 3))
    assert np.allclose(straight.project(ahead)[0], bent.project(ahead)[0], atol=1e-6)
    with pytest.raises(UserError, match="finite and small"):
        camera(**size, distortion=np.full(count, 1e300))
