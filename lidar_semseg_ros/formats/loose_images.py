"""Images that come as loose files beside the scans of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.loose_scans import SCAN_READERS

IMAGE_KINDS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}
"""By the end of the file's name, the `format` of a CompressedImage."""


def image_files(path: Path) -> list[Path]:
    """List the images of a folder by name, or the one file given; UserError if there is none."""
    files = [path] if path.is_file() else sorted(path.glob("*"))
    images = [file for file in files if file.suffix.lower() in IMAGE_KINDS and file.is_file()]
    if not images:
        raise UserError(f"{path} holds no images; their names end on {', '.join(IMAGE_KINDS)}")
    return images


def images_of_scans(scans: Sequence[Path], images: Sequence[Path]) -> list[Path | None]:
    """Give each scan its image: that of the same name or, where no name is the same, as many images in their order.

    None for a scan that has none. UserError if there are neither the same names nor as many.
    """
    by_name = {image.stem: image for image in images}
    same: list[Path | None] = [by_name.get(_stem(scan)) for scan in scans]
    if any(same):
        return same
    if len(images) != len(scans):
        raise UserError(
            f"the {len(images)} images {images[0]}, … belong to none of the {len(scans)} scans: neither are names the "
            "same nor are there as many; name each image as its scan"
        )
    return list(images)


def _stem(scan: Path) -> str:
    """Take the ending of a scan off its name, in which a time stamp may have dots of its own."""
    ending = next((ending for ending in SCAN_READERS if scan.name.lower().endswith(ending)), scan.suffix)
    return scan.name[: len(scan.name) - len(ending)]
