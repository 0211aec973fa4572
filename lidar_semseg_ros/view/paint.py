"""Labelled points as pictures: from above, from behind, and over a camera image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable

BACKGROUND = (18, 20, 24)
NEAREST_M = 0.5
RANGE_COLORS_M = (1.0, 40.0)
RAINBOW = ((255, 40, 40), (255, 220, 0), (40, 220, 60), (0, 210, 230), (50, 80, 255))
IMAGE_DIMMED_TO, OVERLAY_OPACITY = 0.55, 0.65


def birds_eye(
    xyz: np.ndarray, color: np.ndarray, *, half_extent_m: float, size_px: int = 720, below_m: float = np.inf
) -> np.ndarray:
    """Draw (N, 3) points of colour (N, 3) uint8 from above: x upwards, y to the left, (size, size, 3) uint8.

    The square reaches half_extent_m from the sensor to each side. Points higher than below_m are left out, so that one
    looks into rooms and not onto ceilings; of points in one pixel the highest is seen.
    """
    shown = np.flatnonzero(np.isfinite(xyz).all(axis=1) & (xyz[:, 2] < below_m) & (xyz != 0).any(axis=1))
    scale = size_px / (2 * half_extent_m)
    row = np.floor((half_extent_m - xyz[shown, 0]) * scale).astype(np.int64)
    column = np.floor((half_extent_m - xyz[shown, 1]) * scale).astype(np.int64)
    seen = _topmost(row, column, xyz[shown, 2], (size_px, size_px), radius_px=1)
    return _painted(np.full((size_px, size_px, 3), BACKGROUND, np.uint8), seen, color[shown])


def perspective(
    xyz: np.ndarray,
    color: np.ndarray,
    *,
    back_m: float,
    up_m: float,
    width_px: int = 960,
    height_px: int = 600,
    below_m: float = np.inf,
) -> np.ndarray:
    """Draw points as seen from back_m behind and up_m above the sensor, looking at it: (height, width, 3) uint8."""
    shown = np.isfinite(xyz).all(axis=1) & (xyz[:, 2] < below_m) & (xyz != 0).any(axis=1)
    eye = np.array([-back_m, 0.0, up_m])
    forward = -eye / np.linalg.norm(eye)
    right = np.array([0.0, -1.0, 0.0])
    down = np.cross(forward, right)
    right_down_forward = (xyz[shown] - eye) @ np.stack([right, down, forward], axis=1)
    front = right_down_forward[:, 2] > NEAREST_M
    (x, y, depth_m), color = right_down_forward[front].T, color[shown][front]
    focal_px = 0.9 * width_px
    column = np.floor(width_px / 2 + focal_px * x / depth_m).astype(np.int64)
    row = np.floor(height_px / 2 + focal_px * y / depth_m).astype(np.int64)
    dusk = np.clip(1.25 - depth_m / (3.0 * np.hypot(back_m, up_m)), 0.35, 1.0)
    seen = _topmost(row, column, -depth_m, (height_px, width_px), radius_px=1)
    empty = np.full((height_px, width_px, 3), BACKGROUND, np.uint8)
    return _painted(empty, seen, (color * dusk[:, None]).astype(np.uint8))


def overlay(
    pixels: np.ndarray, uv_px: np.ndarray, depth_m: np.ndarray, color: np.ndarray, radius_px: int = 2
) -> np.ndarray:
    """Draw (M,) projected points over a dimmed image that shines through, the nearest on top.

    Points outside the image are cut off.
    """
    column, row = np.rint(uv_px).astype(np.int64).T
    seen = _topmost(row, column, -depth_m, pixels.shape[:2], radius_px)
    dimmed = pixels * IMAGE_DIMMED_TO
    mixed = OVERLAY_OPACITY * _painted(dimmed, seen, color) + (1 - OVERLAY_OPACITY) * pixels
    return np.where((seen >= 0)[..., None], mixed, dimmed).astype(np.uint8)


def range_colors(range_m: np.ndarray) -> np.ndarray:
    """Colour (M,) distances from near to far, red over yellow, green and cyan to blue: (M, 3) uint8.

    Equal steps are equal factors, as things near the sensor matter most.
    """
    low, high = RANGE_COLORS_M
    share = np.clip(np.log(np.maximum(range_m, low) / low) / np.log(high / low), 0, 1)
    stops = np.linspace(0, 1, len(RAINBOW))
    return np.stack([np.interp(share, stops, channel) for channel in np.transpose(RAINBOW)], axis=1).astype(np.uint8)


def _topmost(
    row: np.ndarray, column: np.ndarray, priority: np.ndarray, size: tuple[int, int], radius_px: int
) -> np.ndarray:
    """Find which point each pixel of (height, width) shows, -1 for none: of those near it, that of highest priority.

    A point covers a square of 2·radius_px + 1 pixels.
    """
    height, width = size
    order = np.argsort(priority, kind="stable")
    row, column = row[order], column[order]
    on_top = np.full(height * width, -1, np.int64)
    for down in range(-radius_px, radius_px + 1):
        for across in range(-radius_px, radius_px + 1):
            r, c = row + down, column + across
            inside = np.flatnonzero((r >= 0) & (r < height) & (c >= 0) & (c < width))
            np.maximum.at(on_top, r[inside] * width + c[inside], inside)
    return np.append(order, -1)[on_top].reshape(size)


def _painted(picture: np.ndarray, seen: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Colour those pixels of a picture that show a point."""
    painted = picture.copy()
    painted[seen >= 0] = color[seen[seen >= 0]]
    return painted


def side_by_side(pictures: Sequence[np.ndarray], gap_px: int = 8) -> np.ndarray:
    """Put pictures of equal height next to each other."""
    gap = np.full((pictures[0].shape[0], gap_px, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(row, axis=1)


def legend(classes: ClassTable, class_ids: Sequence[int], width_px: int) -> np.ndarray:
    """Draw the names of classes beside their colours, (H, width, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=15)
    column_px, line_px = 150, 26
    columns = max(1, width_px // column_px)
    height = line_px * -(-len(class_ids) // columns) + 8
    image = Image.new("RGB", (width_px, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for place, class_id in enumerate(class_ids):
        x, y = 10 + column_px * (place % columns), 6 + line_px * (place // columns)
        draw.rectangle((x, y + 3, x + 14, y + 17), fill=classes.colors[class_id])
        draw.text((x + 22, y), classes.names[class_id], fill=(235, 235, 235), font=font)
    return np.asarray(image)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """Write a title into the upper left corner."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=18)
    draw.rectangle((0, 0, 16 + draw.textlength(title, font=font), 30), fill=(0, 0, 0))
    draw.text((8, 4), title, fill=(255, 255, 255), font=font)
    return np.asarray(image)


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8."""
    from PIL import Image

    Image.fromarray(picture).save(path, optimize=True)
