"""Figures with their deviations as horizontal bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lidar_semseg_ros.view.curve import COLORS

WIDTH, LINE, NAMES, RIGHT = 900, 22, 320, 130
TOP, BOTTOM, GAP = 76, 16, 10
"""Room above and below the bars and between rows, pixels."""
GRID, INK = (225, 225, 225), (30, 30, 30)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A figure from 0 up, with its deviation; bars of one row lie beneath each other, bars of one column look alike."""

    row: str
    column: str
    mean: float
    deviation: float


def ticks(longest: float) -> list[float]:
    """Give round numbers from 0 up to `longest`, which is positive: four to ten of them, 1, 2 or 5 · 10ⁿ apart."""
    power = 10.0 ** np.floor(np.log10(longest))
    step = next(part * power for part in (1.0, 0.5, 0.2) if longest >= 3 * part * power)
    return [round(float(value), 12) for value in np.arange(0, longest * (1 + 1e-9), step)]


def bars(title: str, caption: str, figures: Sequence[Bar]) -> np.ndarray:
    """Draw bars in their order from 0 up, a row's name beside its first: (H, W, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    columns = list(dict.fromkeys(bar.column for bar in figures))
    rows = len({bar.row for bar in figures})
    height = TOP + rows * GAP + len(figures) * LINE + BOTTOM
    picture = Image.new("RGB", (WIDTH, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    draw.text((12, 8), title, fill=INK, font=ImageFont.load_default(size=17))
    draw.text((12, 32), caption, fill=INK, font=font)
    ends = [bar.mean + bar.deviation for bar in figures if np.isfinite(bar.mean + bar.deviation)]
    longest = max(ends, default=0.0) or 1.0
    scale = (WIDTH - NAMES - RIGHT) / longest
    for value in ticks(longest):
        x = NAMES + value * scale
        draw.line((x, TOP - 6, x, height - BOTTOM), fill=GRID)
        draw.text((x, TOP - 22), f"{value:g}", fill=INK, font=font, anchor="mt")
    y, row = float(TOP - GAP), None
    for bar in figures:
        if bar.row != row:
            row, y = bar.row, y + GAP
            draw.text((12, y + 2), bar.row, fill=INK, font=font)
        known = np.isfinite(bar.mean + bar.deviation)
        end, spread = (NAMES + bar.mean * scale, bar.deviation * scale) if known else (NAMES, 0.0)
        draw.rectangle((NAMES, y + 3, end, y + LINE - 4), fill=COLORS[columns.index(bar.column) % len(COLORS)])
        middle = y + LINE / 2
        draw.line((end - spread, middle, end + spread, middle), fill=INK, width=2)
        for at in (end - spread, end + spread):
            draw.line((at, middle - 4, at, middle + 4), fill=INK, width=2)
        figure = f"{bar.mean:.1f}" if known else "n/a"
        label = f"{figure} {bar.column}" if len(columns) > 1 else figure
        draw.text((end + spread + 8, y + 2), label, fill=INK, font=font)
        y += LINE
    return np.asarray(picture)
