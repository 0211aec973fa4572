"""Sweeps that come as loose files: KITTI .bin, nuScenes .pcd.bin and PCL's .pcd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.pointcloud2 import NUMPY_CODES, CloudContent, CloudField, read_cloud

DATATYPES = {code: datatype for datatype, code in NUMPY_CODES.items()}


def read_scan(path: Path, stamp_ns: int, frame_id: str) -> LidarFrame:
    """Read one sweep in the format that the name of its file ends on; the files know neither stamp nor frame.

    Fields are found by their names, as in `read_cloud`, and are None where the file has none. UserError names
    the file and what is wrong with it.
    """
    reader = next((reader for suffix, reader in SCAN_READERS.items() if path.name.lower().endswith(suffix)), None)
    if reader is None:
        raise UserError(f"{path} is no scan; names end on {', '.join(SCAN_READERS)}")
    try:
        points, shape = reader(path.read_bytes())
        return read_cloud(_content(points, shape, stamp_ns, frame_id))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _content(points: np.ndarray, shape: tuple[int, int], stamp_ns: int, frame_id: str) -> CloudContent:
    """Describe a structured array as a cloud; 8-byte integers, which a cloud cannot have, are left out."""
    fields = []
    for name in points.dtype.names or ():
        dtype, offset = points.dtype.fields[name][:2]  # type: ignore[index]
        datatype = DATATYPES.get(dtype.base.str[1:])
        if datatype is not None:
            fields.append(CloudField(name, offset, datatype, int(np.prod(dtype.shape))))
    height, width = shape
    return CloudContent(
        stamp_ns=stamp_ns,
        frame_id=frame_id,
        height=height,
        width=width,
        fields=tuple(fields),
        is_bigendian=False,
        point_step=points.dtype.itemsize,
        row_step=width * points.dtype.itemsize,
        data=points.view(np.uint8),
        is_dense=False,
    )


def _float_rows(names: tuple[str, ...], data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    """Read rows of little-endian float32 without a header."""
    row = np.dtype([(name, "<f4") for name in names])
    if len(data) % row.itemsize:
        raise UserError(f"{len(data)} bytes are no whole number of rows of {len(names)} float32 ({', '.join(names)})")
    points = np.frombuffer(data, row)
    return points, (1, len(points))


def _kitti(data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    return _float_rows(("x", "y", "z", "intensity"), data)


def _nuscenes(data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    return _float_rows(("x", "y", "z", "intensity", "ring"), data)


def _pcd(data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    """Read a PCD file of version 0.7 (pointclouds.org/documentation/tutorials/pcd_file_format.html)."""
    header, body = _pcd_header(data)
    try:
        row = _pcd_row(header)
        height, width = int(header["HEIGHT"][0]), int(header["WIDTH"][0])
        encoding = header["DATA"][0]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"the PCD header is incomplete or faulty: {error!r}") from error
    if height < 0 or width < 0:
        raise UserError(f"the PCD header has HEIGHT {height} and WIDTH {width}; neither can be negative")
    if encoding not in PCD_BODIES:
        raise UserError(f"PCD data '{encoding}' is not known; {', '.join(PCD_BODIES)} are")
    points = PCD_BODIES[encoding](body, row, height * width)
    return points, (height, width)


def _pcd_header(data: bytes) -> tuple[dict[str, list[str]], bytes]:
    """Split a PCD file into its header {word: values} and the bytes behind the line DATA."""
    header: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in header:
        end = data.find(b"\n", position)
        if end < 0:
            raise UserError("there is no line DATA, so it is no PCD file")
        words = data[position:end].decode("ascii", "replace").split()
        position = end + 1
        if words and not words[0].startswith("#"):
            header[words[0]] = words[1:]
    return header, data[position:]


def _pcd_row(header: dict[str, list[str]]) -> np.dtype:
    """Make the type of one point; padding, which PCL names _, gets a name of its own at each place."""
    names = header["FIELDS"]
    counts = [int(count) for count in header.get("COUNT", ["1"] * len(names))]
    letters = {"F": "f", "I": "i", "U": "u"}
    codes = [f"<{letters[letter]}{int(size)}" for letter, size in zip(header["TYPE"], header["SIZE"])]
    if not len(names) == len(counts) == len(codes):
        raise ValueError(f"{len(names)} FIELDS, {len(counts)} COUNT, {len(codes)} TYPE and SIZE")
    columns: list[Any] = []
    for place, (name, code, count) in enumerate(zip(names, codes, counts)):
        unique = name if name != "_" else f"_{place}"
        columns.append((unique, code) if count == 1 else (unique, code, (count,)))
    return np.dtype(columns)


def _pcd_ascii(body: bytes, row: np.dtype, points: int) -> np.ndarray:
    numbers = sum(int(np.prod(row[name].shape)) for name in row.names or ())
    try:
        table = np.array(body.split(), np.float64)
    except ValueError as error:
        raise UserError(f"the PCD table holds something that is no number: {error}") from error
    if table.size != points * numbers:
        raise UserError(f"the PCD table has {table.size} numbers, but {points} points of {numbers} were announced")
    if not table.size:
        return np.empty(0, row)
    columns = [(name, index) for name in row.names or () for index in range(int(np.prod(row[name].shape)))]
    table = table.reshape(points, numbers)
    found = np.zeros(points, row)
    for place, (name, index) in enumerate(columns):
        target = found[name] if row[name].shape == () else found[name][:, index]
        with np.errstate(over="ignore", invalid="ignore"):
            target[...] = table[:, place]
    return found


def _pcd_binary(body: bytes, row: np.dtype, points: int) -> np.ndarray:
    if len(body) < points * row.itemsize:
        raise UserError(f"the PCD data has {len(body)} bytes, but {points} points take {points * row.itemsize}")
    return np.frombuffer(body, row, points)


def _pcd_compressed(body: bytes, row: np.dtype, points: int) -> np.ndarray:
    """Read the fields one after the other, all points of each, from a block of LZF."""
    if len(body) < 8:
        raise UserError(f"the compressed PCD data has {len(body)} bytes and not even its sizes")
    packed_size, size = (int(number) for number in np.frombuffer(body, "<u4", 2))
    if len(body) < 8 + packed_size or size != points * row.itemsize:
        raise UserError(
            f"the compressed PCD data has {len(body) - 8} of {packed_size} bytes, for {size} unpacked ones, "
            f"but {points} points take {points * row.itemsize}"
        )
    columns = lzf_unpacked(body[8 : 8 + packed_size], size)
    found = np.zeros(points, row)
    position = 0
    for name in row.names or ():
        found[name] = np.frombuffer(columns, row[name], points, position)
        position += row[name].itemsize * points
    return found


def lzf_unpacked(packed: bytes, size: int) -> bytes:
    """Unpack LZF, the compression of LibLZF by Marc Lehmann, into `size` bytes; UserError if it is damaged.

    A control byte below 32 is followed by that many bytes and one more as they are. Any other one copies from
    what is already unpacked: its upper 3 bits plus 2 are the length (7: the next byte is added), its lower 5
    bits and the next byte are the distance minus 1.
    """
    unpacked = bytearray()
    position = 0
    try:
        while position < len(packed):
            control = packed[position]
            position += 1
            if control < 32:
                unpacked += packed[position : position + control + 1]
                position += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[position]
                position += 1
            length += 2
            distance = ((control & 31) << 8) + packed[position] + 1
            position += 1
            start = len(unpacked) - distance
            if start < 0:
                raise IndexError
            piece = unpacked[start : start + length]
            # A copy may reach into what it has just written: then the piece repeats.
            unpacked += piece if len(piece) == length else (piece * (length // len(piece) + 1))[:length]
    except IndexError:
        raise UserError(f"the LZF data is damaged at byte {position} of {len(packed)}") from None
    if len(unpacked) != size:
        raise UserError(f"the LZF data unpacks to {len(unpacked)} bytes, but {size} were announced")
    return bytes(unpacked)


PCD_BODIES = {"ascii": _pcd_ascii, "binary": _pcd_binary, "binary_compressed": _pcd_compressed}

SCAN_READERS = {".pcd.bin": _nuscenes, ".bin": _kitti, ".pcd": _pcd}
"""Readers by the end of the file's name; of several that fit, the first."""


def scan_files(path: Path) -> list[Path]:
    """List the scans of a folder by name, or the one file given; UserError if there is none."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if _is_scan(file))
    if not files:
        raise UserError(f"{path} holds no scans; their names end on {', '.join(SCAN_READERS)}")
    return files


def _is_scan(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(tuple(SCAN_READERS))
