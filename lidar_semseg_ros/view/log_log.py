"""Series over a quantity as a picture, both axes logarithmic, so that a power of the quantity is a straight line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lidar_semseg_ros.view.curve import COLORS

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

WIDTH, HEIGHT = 720, 400
LEFT, TOP, RIGHT, BOTTOM = 56, 40, 150, 48
"""Room around the axes of a panel, pixels."""
CAPTION_PX = 22
GRID, INK = (225, 225, 225), (30, 30, 30)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Positive series of one length over a positive quantity.

    at: the quantity's values, marked by `ticks`. notes: what is written at the points of the first series.
    """

    title: str
    quantity: str
    at: Sequence[float]
    ticks: Sequence[str]
    by_name: Mapping[str, Sequence[float]]
    notes: Sequence[str] = ()


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Fit the exponent p of values ∝ atᵖ by least squares of the logarithms; NaN for a single value."""
    if len(at) < 2:
        return math.nan
    return float(np.polyfit(np.log(at), np.log(values), 1)[0])


def log_log(panels: Sequence[Panel], caption: Sequence[str]) -> np.ndarray:
    """Draw panels two by two and lines of text below: (H, W, 3) uint8; slopes are said beside the names."""
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(panels) // 2)
    picture = Image.new("RGB", (2 * WIDTH, rows * HEIGHT + CAPTION_PX * (len(caption) + 1)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for number, panel in enumerate(panels):
        _Axes(panel, number % 2 * WIDTH, number // 2 * HEIGHT).draw_on(draw)
    for line, text in enumerate(caption):
        draw.text((LEFT, rows * HEIGHT + CAPTION_PX * line), text, fill=INK, font=font)
    return np.asarray(picture)


class _Axes:
    """A panel at its place on the picture; its values lie between two powers of 2."""

    def __init__(self, panel: Panel, left: int, top: int) -> None:
        self._panel, self._left, self._top = panel, left, top
        values = np.concatenate([np.asarray(series, float) for series in panel.by_name.values()])
        self._low, self._high = math.floor(np.log2(values.min())), math.ceil(np.log2(values.max()) + 0.2)
        first, last = np.log2(min(panel.at)), np.log2(max(panel.at))
        self._first, self._span = first, max(last - first, 1.0)

    def _x_px(self, value: float) -> float:
        inner = WIDTH - LEFT - RIGHT - 40
        return float(self._left + LEFT + 20 + (np.log2(value) - self._first) / self._span * inner)

    def _y_px(self, value: float) -> float:
        share = (np.log2(value) - self._low) / max(self._high - self._low, 1)
        return float(self._top + HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM))

    def draw_on(self, draw: ImageDraw) -> None:
        """Draw grid, series and words."""
        from PIL import ImageFont

        panel, font, large = self._panel, ImageFont.load_default(size=13), ImageFont.load_default(size=16)
        left, right = self._left + LEFT, self._left + WIDTH - RIGHT
        bottom = self._top + HEIGHT - BOTTOM
        draw.text((left, self._top + 10), panel.title, fill=INK, font=large)
        for power in range(self._low, self._high + 1):
            y = self._y_px(2.0**power)
            draw.line((left, y, right, y), fill=GRID)
            draw.text((left - 6, y), str(2**power) if power >= 0 else f"1/{2**-power}", INK, font, anchor="rm")
        for value, tick in zip(panel.at, panel.ticks):
            x = self._x_px(value)
            draw.line((x, self._top + TOP, x, bottom), fill=GRID)
            draw.text((x, bottom + 6), tick, INK, font, anchor="mt")
        draw.text(((left + right) / 2, bottom + 24), panel.quantity, INK, font, anchor="mt")
        for number, (name, series) in enumerate(panel.by_name.items()):
            color = COLORS[number % len(COLORS)]
            places = [(self._x_px(value), self._y_px(y)) for value, y in zip(panel.at, series)]
            draw.line(places, fill=color, width=2)
            for x, y in places:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
            legend = (right + 8, self._top + TOP + 4 + 22 * number)
            draw.text(legend, f"{name}: slope {slope(panel.at, series):.2f}", fill=color, font=font)
            if number == 0:
                for (x, y), note in zip(places, panel.notes):
                    draw.text((x, y - 8), note, fill=color, font=font, anchor="mb")
