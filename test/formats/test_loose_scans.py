from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.loose_scans import SCAN_READERS, lzf_unpacked, read_scan, scan_files

ROWS = [(1.0, 2.0, 3.0, 0.5), (-1.0, -2.0, -3.0, 0.25), (float("nan"), 0.0, 0.0, 0.0)]


def pcd(body: bytes, data: str, **changes: str) -> bytes:
    lines = {
        "VERSION": "0.7",
        "FIELDS": "x y z intensity",
        "SIZE": "4 4 4 4",
        "TYPE": "F F F F",
        "COUNT": "1 1 1 1",
        "WIDTH": "3",
        "HEIGHT": "1",
        "VIEWPOINT": "0 0 0 1 0 0 0",
        "POINTS": "3",
    } | changes
    text = "".join(f"{word} {value}\n" for word, value in lines.items() if value)
    return b"# .PCD v0.7\n" + text.encode() + f"DATA {data}\n".encode() + body


def literal_lzf(data: bytes) -> bytes:
    """Pack without compressing: pieces of up to 32 bytes, each behind its length less one."""
    pieces = [data[start : start + 32] for start in range(0, len(data), 32)]
    packed = b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)
    return struct.pack("<II", len(packed), len(data)) + packed


def write(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def by_rows() -> bytes:
    return b"".join(struct.pack("<4f", *row) for row in ROWS)


def by_columns() -> bytes:
    return b"".join(struct.pack("<3f", *values) for values in zip(*ROWS))


def test_kitti_scan_is_four_floats_per_point(tmp_path: Path) -> None:
    frame = read_scan(write(tmp_path, "000000.bin", by_rows()), 42, "velodyne")
    np.testing.assert_array_equal(frame.xyz, np.array(ROWS, np.float32)[:, :3])
    assert frame.intensity is not None and frame.intensity.tolist() == [0.5, 0.25, 0.0]
    assert (frame.ring, frame.time_s, frame.stamp_ns, frame.frame_id) == (None, None, 42, "velodyne")


def test_nuscenes_scan_is_five_floats_per_point(tmp_path: Path) -> None:
    data = struct.pack("<10f", 1, 2, 3, 200, 31, 4, 5, 6, 7, 0)
    frame = read_scan(write(tmp_path, "a__LIDAR_TOP__1.pcd.bin", data), 0, "lidar")
    assert frame.xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert frame.intensity is not None and frame.intensity.tolist() == [200, 7]
    assert frame.ring is not None and frame.ring.tolist() == [31, 0]


ENCODINGS = {
    "ascii": b"1 2 3 0.5\n-1 -2 -3 0.25\nnan 0 0 0\n",
    "binary": by_rows(),
    "binary_compressed": literal_lzf(by_columns()),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pcd_is_read_in_each_of_its_encodings(tmp_path: Path, encoding: str) -> None:
    frame = read_scan(write(tmp_path, "a.pcd", pcd(ENCODINGS[encoding], encoding)), 7, "lidar")
    np.testing.assert_array_equal(frame.xyz, np.array(ROWS, np.float32)[:, :3])
    assert frame.intensity is not None and frame.intensity.tolist() == [0.5, 0.25, 0.0]
    assert frame.shape == (1, 3)


def test_organised_pcd_keeps_its_shape(tmp_path: Path) -> None:
    frame = read_scan(write(tmp_path, "a.PCD", pcd(by_rows(), "binary", WIDTH="1", HEIGHT="3")), 0, "")
    assert frame.shape == (3, 1)


def test_padding_arrays_and_long_integers_in_a_pcd_are_skipped(tmp_path: Path) -> None:
    data = pcd(
        struct.pack("<3x f 2x 5f Q f B", 1.0, *range(5), 2**60, 2.0, 7) + struct.pack("<f", 3.0),
        "binary",
        FIELDS="_ x _ hist id y ring z",
        SIZE="1 4 1 4 8 4 1 4",
        TYPE="U F U F U F U F",
        COUNT="3 1 2 5 1 1 1 1",
        WIDTH="1",
        POINTS="1",
    )
    frame = read_scan(write(tmp_path, "a.pcd", data), 0, "")
    assert frame.xyz.tolist() == [[1, 2, 3]]
    assert frame.ring is not None and frame.ring.tolist() == [7]
    assert frame.intensity is None


def test_ascii_table_with_arrays_is_read_column_by_column(tmp_path: Path) -> None:
    changes = {"FIELDS": "x pair y z", "COUNT": "1 2 1 1", "WIDTH": "2", "POINTS": "2"}
    data = pcd(b"1 8 9 2 3\n4 8 9 5 6\n", "ascii", **changes)
    assert read_scan(write(tmp_path, "a.pcd", data), 0, "").xyz.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("packed", "unpacked"),
    [
        (b"", b""),
        (b"\x02abc", b"abc"),
        (b"\x02abc\x20\x02", b"abcabc"),  # 3 bytes from 3 back
        (b"\x00a\xe0\x05\x00", b"a" * 15),  # 14 bytes from 1 back: the copy repeats itself
        (b"\x01ab\x60\x01\x00c", b"abababac"),  # 5 bytes from 2 back, then a literal
        (b"\x1f" + bytes(range(32)) + b"\x20\x1f", bytes(range(32)) + b"\x00\x01\x02"),
    ],
)
def test_lzf_unpacks_literals_and_copies(packed: bytes, unpacked: bytes) -> None:
    assert lzf_unpacked(packed, len(unpacked)) == unpacked


def test_lzf_copies_from_more_than_255_bytes_back() -> None:
    far = bytes(index % 251 for index in range(1000))
    packed = literal_lzf(far)[8:] + bytes([(4 - 2) << 5 | (1000 - 1) >> 8, (1000 - 1) & 255])
    assert lzf_unpacked(packed, 1004) == far + far[:4]


@pytest.mark.parametrize("packed", [b"\x20\x05", b"\x02ab", b"\x00a\xe0", b"\x00a\x20"])
def test_damaged_lzf_is_refused(packed: bytes) -> None:
    with pytest.raises(UserError, match="LZF"):
        lzf_unpacked(packed, 4)


FAULTS = {
    "a.bin": (b"\0" * 18, "18 bytes are no whole number of rows of 4 float32"),
    "a.pcd.bin": (b"\0" * 16, "rows of 5 float32"),
    "a.txt": (b"", r"names end on \.pcd\.bin, \.bin, \.pcd"),
    "empty.pcd": (b"", "no line DATA"),
    "binary.pcd": (b"\xff\x00" * 40, "no line DATA"),
    "short.pcd": (pcd(by_rows()[:-1], "binary"), "47 bytes, but 3 points take 48"),
    "table.pcd": (pcd(b"1 2 3", "ascii"), "3 numbers, but 3 points of 4"),
    "words.pcd": (pcd(b"1 2 three", "ascii"), "no number"),
    "encoding.pcd": (pcd(b"", "zip"), "'zip' is not known; ascii, binary, binary_compressed"),
    "nowidth.pcd": (pcd(by_rows(), "binary", WIDTH=""), "WIDTH"),
    "type.pcd": (pcd(by_rows(), "binary", TYPE="F F F Q"), "header is incomplete or faulty"),
    "size.pcd": (pcd(by_rows(), "binary", SIZE="4 4 4"), "4 FIELDS, 4 COUNT, 3 TYPE and SIZE"),
    "noz.pcd": (pcd(by_rows(), "binary", FIELDS="x y w intensity"), "no field 'z'"),
    "nosize.pcd": (pcd(b"1234", "binary_compressed"), "not even its sizes"),
    "cut.pcd": (pcd(literal_lzf(by_columns())[:-3], "binary_compressed"), "47 of 50 bytes"),
    "other.pcd": (pcd(literal_lzf(by_columns()[:-4]), "binary_compressed"), "44 unpacked ones, but 3 points take 48"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_scan_is_refused_with_its_file_and_fault(tmp_path: Path, name: str) -> None:
    data, words = FAULTS[name]
    with pytest.raises(UserError, match=words) as caught:
        read_scan(write(tmp_path, name, data), 0, "")
    assert str(tmp_path / name) in str(caught.value)


def test_missing_scan_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"000001\.bin"):
        read_scan(tmp_path / "000001.bin", 0, "")


def test_scans_of_a_folder_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b.bin", "a.PCD", "c.pcd.bin", "times.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.bin").mkdir()
    assert [path.name for path in scan_files(tmp_path)] == ["a.PCD", "b.bin", "c.pcd.bin"]
    assert scan_files(tmp_path / "b.bin") == [tmp_path / "b.bin"]


def test_folder_without_scans_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no scans"):
        scan_files(tmp_path)


def test_longer_endings_come_before_the_shorter_ones_they_end_on() -> None:
    endings = list(SCAN_READERS)
    assert not any(late.endswith(early) for at, early in enumerate(endings) for late in endings[at + 1 :])


@pytest.mark.parametrize(
    ("pattern", "points", "has_intensity", "has_ring"),
    [
        ("01_*/velodyne/000005.bin", 123924, True, False),
        ("03_*/*.pcd.bin", 34688, True, True),
        ("05_*/000104.bin", 131072, True, False),
        ("05_*/vel000104.bin", 37334, True, False),
        ("06_*/pointcloud/3.pcd", 26364, False, False),
        ("07_*/reference_decoded_*.pcd", 14831, True, True),
        ("08_*/reference_decoded_*.pcd", 34158, False, False),
        ("15_*/room_scan1.pcd", 112586, False, False),
    ],
)
def test_recorded_scans_have_the_points_their_sources_state(
    shared_data: Path, pattern: str, points: int, has_intensity: bool, has_ring: bool
) -> None:
    (path,) = shared_data.glob(pattern)
    frame = read_scan(path, 0, "lidar")
    assert (len(frame), frame.intensity is not None, frame.ring is not None) == (points, has_intensity, has_ring)


def test_recorded_no_returns_keep_their_rows(shared_data: Path) -> None:
    (path,) = shared_data.glob("05_*/000104.bin")
    assert (~read_scan(path, 0, "lidar").has_return()).sum() == 53364


def test_recorded_room_has_the_size_its_source_states(shared_data: Path) -> None:
    (path,) = shared_data.glob("15_*/room_scan1.pcd")
    xyz = read_scan(path, 0, "lidar").xyz
    np.testing.assert_allclose(xyz.min(axis=0), (-13.8, -6.5, -1.4), atol=0.05)
    np.testing.assert_allclose(xyz.max(axis=0), (15.4, 8.0, 1.7), atol=0.05)
