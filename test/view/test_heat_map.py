"""A heat map by its pixels."""

from __future__ import annotations

import numpy as np

from lidar_semseg_ros.view.heat_map import CELL_PX, RIGHT, WRONG, heat_map
from lidar_semseg_ros.view.paint import BACKGROUND


def test_cells_are_colored_by_share_right_on_the_diagonal_and_wrong_beside_it() -> None:
    shares = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    picture = heat_map(shares, ["a", "b"], ["a", "b", "none"])
    margin = picture.shape[0] - 2 * CELL_PX
    assert picture.shape == (margin + 2 * CELL_PX, margin + 3 * CELL_PX, 3) and picture.dtype == np.uint8

    def corner(row: int, column: int) -> tuple[int, ...]:
        return tuple(int(channel) for channel in picture[margin + row * CELL_PX + 2, margin + column * CELL_PX + 2])

    assert corner(0, 0) == RIGHT and corner(1, 2) == WRONG
    assert corner(0, 1) == corner(1, 1) == BACKGROUND


def test_names_and_numbers_stand_where_they_belong() -> None:
    picture = heat_map(np.array([[0.0, 1.0], [0.0, 0.0]]), ["m", ""], ["", "m"])
    margin = picture.shape[0] - 2 * CELL_PX
    inked = (picture != np.array(BACKGROUND)).any(axis=2)
    assert inked[margin : margin + CELL_PX, :margin].any() and not inked[margin + CELL_PX :, :margin].any()
    assert inked[:margin, margin + CELL_PX :].any() and not inked[:margin, margin : margin + CELL_PX].any()
    assert not inked[margin:, margin : margin + CELL_PX].any()  # nothing is written for nothing


def test_an_empty_table_is_a_picture_too() -> None:
    assert heat_map(np.zeros((0, 1)), [], ["none"]).ndim == 3
