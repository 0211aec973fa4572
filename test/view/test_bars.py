"""Bars."""

from __future__ import annotations

import numpy as np
import pytest

from lidar_semseg_ros.view.bars import LINE, NAMES, TOP, Bar, bars, ticks
from lidar_semseg_ros.view.curve import COLORS


def lengths(picture: np.ndarray, color: tuple[int, int, int]) -> list[int]:
    """How far the pixels of a colour reach, by the lines that hold any."""
    there = (picture == color).all(-1)
    return [int(np.flatnonzero(line).max()) - NAMES for line in there if line.any()]


def test_lengths_are_in_proportion_and_columns_have_their_colours() -> None:
    figures = [
        Bar(row=row, column=column, mean=mean, deviation=0.0)
        for row, column, mean in (("a", "probe", 40.0), ("a", "few", 10.0), ("b", "probe", 20.0))
    ]
    picture = bars("title", "caption", figures)
    first = lengths(picture, COLORS[0])
    assert max(first) == pytest.approx(2 * min(first), abs=2) and min(first) > 100
    assert max(first) == pytest.approx(4 * max(lengths(picture, COLORS[1])), abs=4)
    assert picture.shape[0] > TOP + 3 * LINE and picture.dtype == np.uint8


def test_a_deviation_is_drawn_around_the_end() -> None:
    plain = bars(
        "", "", [Bar(row="a", column="", mean=1.0, deviation=0.0), Bar(row="b", column="", mean=4.0, deviation=0.0)]
    )
    spread = bars(
        "", "", [Bar(row="a", column="", mean=1.0, deviation=1.0), Bar(row="b", column="", mean=4.0, deviation=0.0)]
    )
    changed = (plain != spread).any(-1)[TOP : TOP + LINE].any(0)
    end = NAMES + round((900 - NAMES - 130) / 4)
    # As far on the one side as on the other: from 0 to 2 units.
    assert changed[NAMES + 2 : end - 2].any() and changed[end + 2 : 2 * (end - NAMES) + NAMES].any()


@pytest.mark.parametrize(
    ("longest", "expected"),
    [
        (19.7, [0, 5, 10, 15]),
        (9.9, list(range(10))),
        (100.0, [0, 20, 40, 60, 80, 100]),
        (0.31, [0, 0.1, 0.2, 0.3]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.001, [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]),
    ],
)
def test_the_scale_has_round_numbers(longest: float, expected: list[float]) -> None:
    assert ticks(longest) == pytest.approx(expected)


def test_a_figure_that_is_no_number_has_no_bar_and_leaves_the_others_as_they_are() -> None:
    known = Bar(row="a", column="", mean=4.0, deviation=1.0)
    alone = bars("", "", [known])
    both = bars("", "", [known, Bar(row="b", column="", mean=float("nan"), deviation=0.0)])
    assert (both[: TOP + LINE] == alone[: TOP + LINE]).all()


def test_nothing_to_draw_is_a_picture_without_bars() -> None:
    assert bars("none", "", []).shape[2] == 3
