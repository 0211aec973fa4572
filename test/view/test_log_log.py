from __future__ import annotations

import math

import numpy as np
import pytest

from lidar_semseg_ros.view.curve import COLORS
from lidar_semseg_ros.view.log_log import CAPTION_PX, HEIGHT, WIDTH, Panel, log_log, slope


def test_the_slope_of_a_power_is_its_exponent() -> None:
    at = [1.0, 3.0, 10.0, 40.0]
    assert slope(at, [5 * x**1.5 for x in at]) == pytest.approx(1.5)
    assert math.isnan(slope([2.0], [7.0]))


def test_a_power_is_drawn_as_a_straight_line() -> None:
    at = [1.0, 4.0, 16.0, 64.0, 256.0]
    panel = Panel(title="t", quantity="q", at=at, ticks=["x"] * 5, by_name={"a": [math.sqrt(x) for x in at]})
    picture = log_log([panel], ["one", "two"])
    assert picture.shape == (HEIGHT + 3 * CAPTION_PX, 2 * WIDTH, 3) and picture.dtype == np.uint8
    rows, columns = np.nonzero((picture == COLORS[0]).all(axis=2))
    on_axes = columns < WIDTH - 150  # the legend is beside them
    middle = {x: rows[on_axes & (columns == x)].mean() for x in np.unique(columns[on_axes])}
    x, y = np.array(list(middle)), np.array(list(middle.values()))
    straight = np.polyval(np.polyfit(x, y, 1), x)
    assert np.abs(y - straight).max() < 3 and y[0] > y[-1] + 50


def test_panels_lie_two_by_two_and_notes_are_written() -> None:
    bare = Panel(title="t", quantity="q", at=[1.0, 2.0], ticks=["1", "2"], by_name={"a": [1.0, 2.0]})
    noted = Panel(title="t", quantity="q", at=[1.0, 2.0], ticks=["1", "2"], by_name={"a": [1.0, 2.0]}, notes=["7", "8"])
    assert log_log([bare] * 3, []).shape == (2 * HEIGHT + CAPTION_PX, 2 * WIDTH, 3)
    assert not np.array_equal(log_log([bare], []), log_log([noted], []))
