"""Curves over steps as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

COLORS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (23, 190, 207))
WIDTH, HEIGHT, MARGIN = 900, 420, 60


def curves(by_name: Mapping[str, Sequence[float]], points: int = 300) -> np.ndarray:
    """Draw series of one length against their index, from 0 up: (H, W, 3) uint8.

    Of series longer than `points`, the means of as many equal parts are drawn.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    series = {name: _thinned(np.asarray(values, float), points) for name, values in by_name.items() if len(values)}
    steps = max((len(values) for values in by_name.values()), default=1)
    top = max((float(values.max()) for _, values in series.values()), default=1.0) or 1.0
    right, bottom = WIDTH - 20, HEIGHT - 40
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - share * (bottom - 20)
        draw.line((MARGIN, y, right, y), fill=(220, 220, 220))
        draw.text((4, y - 8), f"{share * top:.3g}", fill="black", font=font)
        x = MARGIN + share * (right - MARGIN)
        draw.text((x - 12, bottom + 8), f"{round(share * steps)}", fill="black", font=font)
    for number, (name, (place, values)) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        x = MARGIN + (place + 0.5) / steps * (right - MARGIN)
        y = bottom - values / top * (bottom - 20)
        draw.line(list(zip(x.tolist(), y.tolist())), fill=color, width=2)
        draw.text((WIDTH - 180, 24 + 18 * number), name, fill=color, font=font)
    return np.asarray(picture)


def _thinned(values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the middle index and the mean of each part; parts differ in length by one if need be."""
    parts = min(points, len(values))
    place, mean = (
        np.array([part.mean() for part in np.array_split(each, parts)]) for each in (np.arange(len(values)), values)
    )
    return place, mean
