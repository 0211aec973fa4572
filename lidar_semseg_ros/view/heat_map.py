"""A table of shares as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lidar_semseg_ros.view.paint import BACKGROUND

CELL_PX = 34
INK, PALE_INK = (18, 20, 24), (225, 225, 225)
RIGHT, WRONG = (70, 200, 110), (255, 105, 70)
"""Colours of a share of 1 on the diagonal and beside it."""
WRITTEN_FROM = 0.005


def heat_map(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Draw shares (R, C) of 0 … 1 as coloured cells with their percentages, (height, width, 3) uint8.

    Equal names of row and column i make the diagonal: the same class, coloured otherwise than what is mistaken.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    widest = max((font.getlength(name) for name in (*rows, *columns)), default=0)
    margin = int(widest) + 16
    cells = np.repeat(np.repeat(_colored(shares, rows, columns), CELL_PX, axis=0), CELL_PX, axis=1)
    picture = np.full((margin + cells.shape[0], margin + cells.shape[1], 3), BACKGROUND, np.uint8)
    picture[margin:, margin:] = cells
    picture = _with_column_names(picture, columns, margin)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for place, name in enumerate(rows):
        draw.text((8, margin + (place + 0.5) * CELL_PX), name, fill=PALE_INK, font=font, anchor="lm")
    for (row, column), share in np.ndenumerate(shares):
        if share >= WRITTEN_FROM:
            middle = (margin + (column + 0.5) * CELL_PX, margin + (row + 0.5) * CELL_PX)
            draw.text(middle, f"{100 * share:.0f}", fill=INK if share > 0.35 else PALE_INK, font=small, anchor="mm")
    return np.asarray(image)


def _colored(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Mix the background with the colour of right or wrong: (R, C, 3) uint8."""
    same = np.array([[row == column for column in columns] for row in rows], bool).reshape(shares.shape)
    full = np.where(same[..., None], np.array(RIGHT), np.array(WRONG))
    weight = np.sqrt(np.clip(shares, 0, 1))[..., None]  # so that small mistakes are seen
    return (weight * full + (1 - weight) * np.array(BACKGROUND)).astype(np.uint8)


def _with_column_names(picture: np.ndarray, columns: Sequence[str], margin: int) -> np.ndarray:
    """Write the names of the columns upwards, by turning the picture a quarter and back."""
    from PIL import Image, ImageDraw, ImageFont

    turned = Image.fromarray(np.ascontiguousarray(np.rot90(picture, -1)))
    draw, font = ImageDraw.Draw(turned), ImageFont.load_default(size=15)
    for place, name in enumerate(columns):
        right = turned.width - margin + 8
        draw.text((right, margin + (place + 0.5) * CELL_PX), name, fill=PALE_INK, font=font, anchor="lm")
    return np.rot90(np.asarray(turned))
