from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.view.paint import BACKGROUND, birds_eye, legend, overlay, perspective, save_png, side_by_side
from lidar_semseg_ros.view.report import Picture, Table, html_report, text_table

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_from_above_x_points_up_and_y_to_the_left() -> None:
    # 10 pixels per metre: x = 2 m is 20 rows above the middle, y = 1 m 10 columns to its left.
    picture = birds_eye(np.float32([[2, 1, 0]]), np.uint8([RED]), half_extent_m=5, size_px=100)
    drawn = np.argwhere((picture == RED).all(axis=2))
    assert drawn.mean(axis=0).tolist() == [30, 40]
    assert (picture[0, 0] == BACKGROUND).all()


def test_the_higher_point_is_seen_unless_it_is_cut_off() -> None:
    xyz, color = np.float32([[0, 1, 2.0], [0, 1, 0.0], [0, 1, 3.0]]), np.uint8([RED, BLUE, BLUE])
    assert (birds_eye(xyz, color, half_extent_m=5, size_px=100, below_m=2.5)[50, 40] == RED).all()
    assert (birds_eye(xyz, color, half_extent_m=5, size_px=100, below_m=1.0)[50, 40] == BLUE).all()


def test_rows_without_a_return_and_points_outside_are_not_drawn() -> None:
    xyz = np.float32([[np.nan, 0, 0], [0, 0, 0], [99, 0, 0]])
    assert (birds_eye(xyz, np.uint8([RED] * 3), half_extent_m=5) == BACKGROUND).all()
    assert (perspective(xyz[:2], np.uint8([RED] * 2), back_m=5, up_m=5) == BACKGROUND).all()


def test_from_behind_what_is_left_stays_left_and_what_is_high_is_up() -> None:
    xyz = np.float32([[0, 2, 0], [0, -2, 0], [0.01, 0, 2]])
    picture = perspective(xyz, np.uint8([RED, BLUE, (0, 255, 0)]), back_m=6, up_m=3)
    red, blue, green = (np.argwhere(picture[..., channel] > 60).mean(axis=0) for channel in (0, 2, 1))
    assert red[1] < green[1] < blue[1] and green[0] < red[0]


def test_over_an_image_the_nearest_point_is_on_top_and_lets_the_image_shine_through() -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    uv_px, depth_m = np.array([[10.0, 5.0], [10.0, 5.0], [-50.0, 5.0]]), np.array([4.0, 2.0, 1.0])
    picture = overlay(image, uv_px, depth_m, np.uint8([RED, BLUE, RED]), radius_px=1)
    # 65 % of blue and 35 % of the image; off by up to one from cutting to integers.
    assert np.abs(picture[[5, 4], [10, 9]] - np.array([70.0, 70.0, 235.75])).max() <= 1
    assert (picture[15, 25] == 110).all()


def test_drawing_no_points_leaves_the_background() -> None:
    none, colorless = np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)
    assert (birds_eye(none, colorless, half_extent_m=5, size_px=10) == BACKGROUND).all()
    assert (perspective(none, colorless, back_m=5, up_m=5) == BACKGROUND).all()
    image = np.full((4, 6, 3), 200, np.uint8)
    assert (overlay(image, np.empty((0, 2)), np.empty(0), colorless) == 110).all()


def test_pictures_side_by_side_legend_and_file(tmp_path: Path) -> None:
    left, right = np.zeros((4, 6, 3), np.uint8), np.ones((4, 5, 3), np.uint8)
    row = side_by_side([left, right], gap_px=2)
    assert row.shape == (4, 13, 3)
    table = ClassTable(name="two", names=("floor", "wall"), colors=(RED, BLUE))
    assert (legend(table, [1], 200) == BLUE).all(axis=2).any()
    assert not (legend(table, [1], 200) == RED).all(axis=2).any()
    save_png(tmp_path / "row.png", row)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "row.png")), row)


def test_a_text_table_aligns_its_columns() -> None:
    assert text_table(["class", "IoU"], [["wall", "91.2%"], ["cabinet", "7%"]]).splitlines() == [
        "class      IoU",
        "───────  ─────",
        "wall     91.2%",
        "cabinet     7%",
    ]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.open.append("")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_report_is_one_file_with_its_pictures_and_escaped_text(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    table = Table(title="Clouds", header=["what", "count"], rows=[["<b>& more</b>", "3"]])
    html_report(tmp_path / "r.html", "A <report>", [Picture(title="P", caption="it's", pixels=pixels), table])
    page = (tmp_path / "r.html").read_text()
    parsed = Tags()
    parsed.feed(page)
    assert parsed.cells == ["what", "count", "<b>& more</b>", "3"]
    assert "<b>& more" not in page and "A &lt;report&gt;" in page
    embedded = re.findall(r"data:image/png;base64,([^']+)'", page)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(embedded[0])))), pixels)
    assert "http" not in page
