from __future__ import annotations

import numpy as np

from lidar_semseg_ros.view.curve import COLORS, HEIGHT, WIDTH, curves


def test_a_falling_series_is_drawn_falling() -> None:
    picture = curves({"loss": np.linspace(2, 0, 1000).tolist()})
    assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
    rows, columns = np.nonzero((picture == COLORS[0]).all(axis=2))
    left, right = rows[columns < 200], rows[(columns > 400) & (columns < 600)]
    assert len(left) and len(right) and left.max() < right.min()


def test_a_step_is_drawn_where_its_index_is_also_if_the_parts_are_not_equally_long() -> None:
    picture = curves({"mIoU": [0.0] * 100 + [1.0] * 400})
    _, columns = np.nonzero((picture[100:300] == COLORS[0]).all(axis=2))
    # A fifth of the way; between left and right edge lie 820 pixels.
    assert abs(columns.mean() - (60 + 820 / 5)) < 4


def test_no_series_and_a_single_step_are_pictures_too() -> None:
    assert curves({}).shape == curves({"loss": [0.0]}).shape
