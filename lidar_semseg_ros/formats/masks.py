"""Masks in image files: one integer per pixel, a class or the number of a segment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lidar_semseg_ros.core.errors import UserError

SUFFIXES = (".png", ".npy")


def mask_files(folder: Path) -> list[Path]:
    """List the masks of a folder by name; UserError if it is none."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder} with masks; give one that holds a .png or .npy for each image")
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask of whole numbers as (height, width) int32; UserError names a file that holds anything else."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.suffix == ".npy":
            mask = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                mask = np.asarray(image)
    except (OSError, ValueError, EOFError, SyntaxError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the mask {path}: {error}") from error
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise UserError(
            f"{path} holds {mask.dtype} of shape {mask.shape}; a mask is one whole number per pixel, (height, width)"
        )
    if mask.size and not (np.iinfo(np.int32).min <= mask.min() and mask.max() <= np.iinfo(np.int32).max):
        raise UserError(f"{path} holds numbers up to {mask.max()}; a mask has at most 31 bits")
    return mask.astype(np.int32)
