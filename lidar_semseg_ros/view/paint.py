"""Labelled points as pictures: from above, from behind, and over a camera image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.classes import ClassTable

BACKGROUND = (18, 20, 24)


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
    return _splat(row, column, xyz[shown, 2], color[shown], size_px, size_px, radius=1)


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
    seen = (xyz[shown] - eye) @ np.stack([right, down, forward], axis=1)
    front = seen[:, 2] > 0.5
    seen, color = seen[front], color[shown][front]
    focal_px = 0.9 * width_px
    column = np.floor(width_px / 2 + focal_px * seen[:, 0] / seen[:, 2]).astype(np.int64)
    row = np.floor(height_px / 2 + focal_px * seen[:, 1] / seen[:, 2]).astype(np.int64)
    shade = np.clip(1.25 - seen[:, 2:3] / (3.0 * np.hypot(back_m, up_m)), 0.35, 1.0)
    return _splat(row, column, -seen[:, 2], (color * shade).astype(np.uint8), height_px, width_px, radius=1)


def overlay(
    pixels: np.ndarray, uv_px: np.ndarray, depth_m: np.ndarray, color: np.ndarray, radius_px: int = 2
) -> np.ndarray:
    """Draw (M,) projected points over a dimmed image, the nearest on top; points outside the image are cut off."""
    height, width = pixels.shape[:2]
    column, row = np.rint(uv_px).astype(np.int64).T
    dimmed = (pixels * 0.55).astype(np.uint8)
    return _splat(row, column, -depth_m, color, height, width, radius_px, background=dimmed)


def _splat(
    row: np.ndarray,
    column: np.ndarray,
    priority: np.ndarray,
    color: np.ndarray,
    height: int,
    width: int,
    radius: int,
    background: np.ndarray | None = None,
) -> np.ndarray:
    """Draw squares of 2·radius + 1 pixels; where they meet, the higher priority is seen."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = BACKGROUND if background is None else background
    order = np.argsort(priority, kind="stable")
    row, column, color = row[order], column[order], color[order]
    on_top = np.full(height * width, -1, np.int64)
    for down in range(-radius, radius + 1):
        for across in range(-radius, radius + 1):
            r, c = row + down, column + across
            inside = np.flatnonzero((r >= 0) & (r < height) & (c >= 0) & (c < width))
            np.maximum.at(on_top, r[inside] * width + c[inside], inside)
    drawn = on_top >= 0
    picture.reshape(-1, 3)[drawn] = color[on_top[drawn]]
    return picture


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
