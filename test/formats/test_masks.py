from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.masks import mask_files, read_mask

IDS = np.array([[0, 1, 255], [3, 200, 7]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_in_png_of_every_depth_keep_their_numbers(dtype: type, tmp_path: Path) -> None:
    ids = IDS if dtype == np.uint8 else IDS * 200
    Image.fromarray(ids.astype(dtype)).save(tmp_path / "1.png")
    mask = read_mask(tmp_path / "1.png")
    assert mask.dtype == np.int32 and (mask == ids).all()


def test_a_palette_colours_a_mask_but_its_numbers_count(tmp_path: Path) -> None:
    image = Image.fromarray(IDS.astype(np.uint8), mode=None).convert("P")
    image.putpalette([255, 0, 0] * 256)
    image.putdata(IDS.ravel().tolist())
    image.save(tmp_path / "1.png")
    assert (read_mask(tmp_path / "1.png") == IDS).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.int8])
def test_masks_in_npy_may_be_negative_and_large(dtype: type, tmp_path: Path) -> None:
    ids = np.array([[0, 5], [100, np.iinfo(dtype).min if dtype == np.int8 else 2**31 - 1]], dtype)
    np.save(tmp_path / "1.npy", ids)
    mask = read_mask(tmp_path / "1.npy")
    assert mask.dtype == np.int32 and (mask == ids).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2)),
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((2, 2), bool),
        np.int64([[2**31]]),
        np.int64([[-(2**40)]]),
    ],
    ids=["float", "colour", "bool", "too large", "too small"],
)
def test_arrays_that_are_no_masks_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", array)
    with pytest.raises(UserError, match=r"1\.npy"):
        read_mask(tmp_path / "1.npy")


def test_a_colour_picture_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match="one whole number per pixel"):
        read_mask(tmp_path / "1.png")


@pytest.mark.parametrize("name", ["1.png", "1.npy"])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY\x01\x00", b"text"])
def test_damaged_files_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot read the mask"):
        read_mask(tmp_path / name)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read the mask"):
        read_mask(tmp_path / "1.npy")


def test_only_masks_of_a_folder_are_listed_in_order_of_name(tmp_path: Path) -> None:
    for name in ("2.png", "10.npy", "1.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in mask_files(tmp_path)] == ["1.png", "10.npy", "2.png"]
    with pytest.raises(UserError, match="no folder"):
        mask_files(tmp_path / "nowhere")
