"""Fuzz targets for everything that reads bytes from outside: only a UserError may come of them.

    python test/fuzz/fuzz_readers.py --target cloud -max_total_time=60

looks for inputs with atheris (pip install atheris), guided by the branches they take; further flags, corpus folders and
single inputs to run again are those of libFuzzer. Without a folder, what is found is kept in --corpus, outside of git.
The targets themselves need no atheris, and test/formats/test_fuzz_short.py runs them on random damage.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path.home() / ".cache" / "lidar_semseg_ros" / "fuzz"
STAMP_NS = 1_700_000_000_000_000_000
INSTRUMENTED = ("lidar_semseg_ros", "rosbags", "mcap", "yaml")
"""The packages whose branches guide the search."""
MODULES = (
    *(f"lidar_semseg_ros.formats.{name}" for name in ("pointcloud2", "images", "bags", "loose_scans", "calibration")),
    *("lidar_semseg_ros.network.inputs", "lidar_semseg_ros.network.model_file"),
    *("rosbags.rosbag1", "rosbags.rosbag2", "rosbags.typesys", "mcap.stream_reader", "mcap.reader"),
)
HEADER = SimpleNamespace(stamp=SimpleNamespace(sec=3, nanosec=5), frame_id="camera")
Choice = TypeVar("Choice")


class Decisions:
    """Decisions read off the bytes of an input one after the other; zeros where the bytes are used up.

    As atheris.FuzzedDataProvider, but without atheris, so that an input means the same everywhere.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def some_bytes(self, count: int) -> bytes:
        taken = self._data[self._place : self._place + count]
        self._place += count
        return taken.ljust(count, b"\0")

    def number(self, low: int, high: int) -> int:
        """Choose a whole number from low to high, both included."""
        size = max(1, (high - low).bit_length() + 7 >> 3)
        return low + int.from_bytes(self.some_bytes(size), "little") % (high - low + 1)

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        return choices[self.number(0, len(choices) - 1)]

    def size(self) -> int:
        """Choose a size as headers give them: small, at a limit of its type, or anything."""
        edges = (0, 1, 12, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
        return self.one_of((self.number(0, 40), self.one_of(edges), self.number(0, 2**32 - 1)))

    def rest(self) -> bytes:
        return self._data[self._place :]


def stamp(decide: Decisions) -> SimpleNamespace:
    sec = decide.one_of((1_700_000_000, 0, decide.number(-(2**31), 2**31 - 1)))
    return SimpleNamespace(sec=sec, nanosec=decide.one_of((0, decide.number(0, 2**32 - 1))))


def name_of(decide: Decisions) -> str:
    known = ("intensity", "ring", "t", "time", "timestamp", "time_sec", "time_nsec", "rgb", "class_id", "x", "")
    return decide.one_of((*known, decide.some_bytes(3).decode("latin-1")))


def cloud_message(decide: Decisions) -> Any:
    """Make a cloud that is well-formed, and then change up to three of the things it says."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 8}
    fields, offset = [], 0
    for name in ("x", "y", "z", *(name_of(decide) for _ in range(decide.number(0, 4)))):
        offset += decide.number(0, 5) if decide.number(0, 3) == 0 else 0
        datatype = decide.one_of((7, 8) if name in ("x", "y", "z") else tuple(sizes))
        count = decide.number(0, 3) if decide.number(0, 7) == 7 else 1
        fields.append(SimpleNamespace(name=name, offset=offset, datatype=datatype, count=count))
        offset += count * sizes[datatype]
    height, width, step = decide.number(0, 4), decide.number(0, 12), offset + decide.number(0, 3)
    row_step = width * step + decide.number(0, 3)
    message = SimpleNamespace(
        header=SimpleNamespace(stamp=stamp(decide), frame_id="lidar"),
        height=height,
        width=width,
        fields=fields,
        is_bigendian=bool(decide.number(0, 1)),
        point_step=step,
        row_step=row_step,
        is_dense=True,
    )
    for _ in range(max(0, decide.number(0, 7) - 4)):
        changed = decide.one_of((message, message, *fields))
        sizes_of = ("height", "width", "point_step", "row_step") if changed is message else ("offset", "count")
        setattr(changed, decide.one_of(sizes_of), decide.size())
        if changed is not message and decide.number(0, 1):
            changed.datatype = decide.number(0, 255)
    message.data = decide.some_bytes(height * row_step + decide.one_of((0, 0, 7)))
    return message


def fuzz_cloud(data: bytes) -> None:
    """Take a cloud from the message to every output layout; its rows must come out as they went in."""
    from lidar_semseg_ros.core.sensor import FieldNames
    from lidar_semseg_ros.formats.pointcloud2 import (
        LAYOUTS,
        cloud_content,
        column,
        labelled_cloud,
        packed_cloud,
        read_cloud,
    )
    from lidar_semseg_ros.network.inputs import InputConfig, prepare, to_points

    message = cloud_message(Decisions(data))
    content = cloud_content(message)
    frame = read_cloud(content)
    if len(frame) != message.height * message.width:
        raise AssertionError(f"{message.height} × {message.width} points became {len(frame)}")
    for field in content.fields:
        column(content, field.name)
    box = InputConfig(
        voxel_size_m=0.1, fov_min_m=(-8, -8, -2), fov_max_m=(8, 8, 2), planes=("z",), grids=((32, 32),), neighbours=4
    )
    prepared = prepare(frame, box)
    labels = to_points(np.zeros((len(prepared), 3), np.float32), prepared)
    for layout in LAYOUTS:
        labelled = labelled_cloud(content, frame, labels, np.zeros((256, 3), np.uint8), layout)
        if len(labelled) != len(frame) or labelled.row_step >= 2**32:
            raise AssertionError(f"{len(frame)} points became {len(labelled)} of row_step {labelled.row_step}")
        packed = packed_cloud(content, FieldNames(), layout)
        if len(packed) != len(frame) or packed.labelled.itemsize != labelled.point_step:
            raise AssertionError(f"{len(frame)} points of {labelled.point_step} bytes were described as {packed}")


def fuzz_image(data: bytes) -> None:
    """Read a raw image, a compressed one or a camera info, as the first byte says."""
    from lidar_semseg_ros.formats.images import ENCODINGS, read_camera_info, read_image

    decide = Decisions(data)
    kind = decide.number(0, 2)
    if kind == 0:
        name = decide.one_of(("jpeg", "png", "", "16UC1; compressedDepth png"))
        read_image(SimpleNamespace(header=HEADER, format=name, data=decide.rest()))
        return
    size = {"height": decide.number(0, 9), "width": decide.number(0, 9)}
    if kind == 1:
        encoding = decide.one_of((*ENCODINGS, "32FC1", decide.some_bytes(4).decode("latin-1")))
        image = SimpleNamespace(encoding=encoding, step=size["width"] * 4, is_bigendian=decide.number(0, 1), **size)
        if decide.number(0, 3) == 3:
            setattr(image, decide.one_of(("height", "width", "step")), decide.size())
        image.header, image.data = HEADER, decide.rest()
        pixels = read_image(image).pixels
        if pixels.shape != (image.height, image.width, 3):
            raise AssertionError(f"{image.height} × {image.width} pixels became {pixels.shape}")
        return
    model = decide.one_of(("plumb_bob", "rational_polynomial", "equidistant", "fisheye", "", "wobbly"))
    info = SimpleNamespace(distortion_model=model, binning_x=0, binning_y=0, header=HEADER, **size)
    info.roi = SimpleNamespace(x_offset=decide.number(0, 3) // 3, y_offset=0, height=0, width=0, do_rectify=False)
    rectified = bool(decide.number(0, 1))
    info.k, info.p, info.r = matrix(decide, 3), matrix(decide, 4), np.eye(3).ravel()
    info.d = np.array([double(decide) for _ in range(decide.one_of((0, 4, 5, 8, 12)))])
    uv_px, shown = read_camera_info(info, rectified).project(RAYS)
    if not np.isfinite(uv_px[shown]).all():
        raise AssertionError("a ray that is shown has no pixel")


RAYS = np.random.default_rng(0).uniform(-3, 3, (40, 3))
"""Points all around a camera."""


def matrix(decide: Decisions, columns: int) -> np.ndarray:
    """Make a camera matrix of three rows, flat, and change up to two of its numbers."""
    values = np.zeros((3, columns))
    values[:, :3] = ((500, 0, 320), (0, 510, 240), (0, 0, 1))
    for _ in range(max(0, decide.number(0, 5) - 3)):
        values[decide.number(0, 2), decide.number(0, columns - 1)] = double(decide)
    return values.ravel()


def double(decide: Decisions) -> float:
    """Choose a number as calibrations have them, or any eight bytes."""
    usual = (0.0, 1.0, 0.1, -0.3, 1e-3, float("nan"), float("inf"), 1e300)
    return decide.one_of((*usual, *struct.unpack("<d", decide.some_bytes(8))))


@contextmanager
def as_file(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def fuzz_bag(data: bytes) -> None:
    """Open a recording of the kind its first bytes name, and decode and read every message in it."""
    from lidar_semseg_ros.core.errors import UserError
    from lidar_semseg_ros.formats.bags import (
        CAMERA_INFO,
        COMPRESSED_IMAGE,
        IMAGE,
        POINT_CLOUD,
        open_bag,
        why_no_clouds,
    )
    from lidar_semseg_ros.formats.images import read_camera_info, read_image
    from lidar_semseg_ros.formats.pointcloud2 import read_cloud

    readers: dict[str, Callable[[Any], Any]] = {
        POINT_CLOUD: read_cloud,
        IMAGE: read_image,
        COMPRESSED_IMAGE: read_image,
        CAMERA_INFO: read_camera_info,
    }
    kinds = {b"#ROSBAG": ".bag", b"SQLite": ".db3"}
    suffix = next((kind for magic, kind in kinds.items() if data.startswith(magic)), ".mcap")
    with as_file(data, "fuzzed" + suffix) as path, open_bag(path) as bag:
        why_no_clouds(bag)
        for message in bag.messages():
            read_message = readers.get(message.msgtype, lambda decoded: decoded)
            for read in (message.cdr, lambda m=message, r=read_message: r(m.message())):
                try:
                    read()
                except UserError:
                    continue  # one message that cannot be read must not cost the others


def fuzz_scan(data: bytes) -> None:
    from lidar_semseg_ros.formats.loose_scans import read_scan

    with as_file(data, "fuzzed.pcd") as path:
        read_scan(path, STAMP_NS, "lidar")


def fuzz_calibration(data: bytes) -> None:
    from lidar_semseg_ros.formats.calibration import read_calibration

    with as_file(data, "fuzzed.yaml") as path:
        read_calibration(path)


def fuzz_model(data: bytes) -> None:
    """Read a model file of the kind its first bytes name: the header of a safetensors file begins with its length."""
    from lidar_semseg_ros.network.model_file import read_description, read_safetensors

    is_safetensors = data[8:9] == b"{"
    with as_file(data, "fuzzed.safetensors" if is_safetensors else "fuzzed.onnx") as path:
        if is_safetensors:
            read_safetensors(path)
        else:
            read_description(path)


FUZZED: dict[str, Callable[[bytes], None]] = {
    "cloud": fuzz_cloud,
    "image": fuzz_image,
    "bag": fuzz_bag,
    "scan": fuzz_scan,
    "calibration": fuzz_calibration,
    "model": fuzz_model,
}


def run(target: str, data: bytes) -> None:
    """Read an input as a target does; a UserError is an answer, anything else is a fault."""
    from lidar_semseg_ros.core.errors import UserError

    try:
        FUZZED[target](data)
    except UserError:
        return


# ---- inputs to start from


def cloud_seeds() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {f"cloud_{k}": rng.bytes(400) for k in range(12)} | {"zeros": bytes(40)}


def image_seeds() -> dict[str, bytes]:
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = np.add.outer(np.arange(12), np.arange(16)).astype(np.uint8)
    seeds = {f"raw_{k}": b"\1" + rng.bytes(400) for k in range(6)} | {
        f"info_{k}": b"\2" + rng.bytes(400) for k in range(6)
    }
    for mode, kind in (("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG")):
        file = BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, kind)
        seeds[f"{mode}.{kind}"] = b"\0\0" + file.getvalue()
    file = BytesIO()
    Image.fromarray(pixels.astype(np.uint16)).save(file, "PNG")
    return seeds | {"16 bits.PNG": b"\0\0" + file.getvalue()}


def bag_seeds() -> dict[str, bytes]:
    """Write the same few messages as every kind of recording."""
    from mcap.writer import CompressionType
    from mcap.writer import Writer as McapWriter
    from rosbags.rosbag1 import Writer as Ros1Writer
    from rosbags.rosbag2 import Writer as Ros2Writer
    from rosbags.typesys import Stores, get_typestore

    from lidar_semseg_ros.formats.bags import STRING, open_bag

    ros1, ros2 = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_JAZZY)
    seeds = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_recording(folder / "lz4.mcap")
        with open_bag(folder / "lz4.mcap") as bag:
            messages = list(bag.messages())
        for plain in ("chunked", "unchunked"):
            with (folder / f"{plain}.mcap").open("wb") as file:
                writer = McapWriter(file, compression=CompressionType.NONE, use_chunking=plain == "chunked")
                writer.start("ros2")
                for message in messages:
                    definition = ros2.generate_msgdef(message.msgtype, ros_version=2)[0].encode()
                    schema = writer.register_schema(message.msgtype, "ros2msg", definition)
                    channel = writer.register_channel(message.topic, "cdr", schema)
                    writer.add_message(channel, message.log_time_ns, message.cdr(), message.log_time_ns)
                writer.finish()
        with Ros2Writer(folder / "ros2", version=9) as writer2:
            for message in messages:
                place = writer2.add_connection(message.topic, message.msgtype, typestore=ros2)
                writer2.write(place, message.log_time_ns, message.cdr())
        with Ros1Writer(folder / "ros1.bag") as writer1:
            place1 = writer1.add_connection("/text", STRING, typestore=ros1)
            raw = ros1.serialize_ros1(ros1.types[STRING](data="hello"), STRING)
            writer1.write(place1, STAMP_NS, raw)
        for path in (*folder.glob("*.mcap"), *folder.glob("*.bag"), *folder.glob("ros2/*.db3")):
            seeds[path.name] = path.read_bytes()
    return seeds


def _write_recording(path: Path) -> None:
    from lidar_semseg_ros.core.camera import PinholeCamera
    from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
    from lidar_semseg_ros.formats.bags import BagWriter
    from lidar_semseg_ros.formats.pointcloud2 import cloud_from_frame

    xyz = np.arange(12, dtype=np.float32).reshape(4, 3)
    image = CameraImage(stamp_ns=STAMP_NS, frame_id="camera", pixels=np.zeros((2, 3, 3), np.uint8))
    matrix = np.array([[5.0, 0, 1], [0, 5, 1], [0, 0, 1]])
    camera = PinholeCamera(width=3, height=2, matrix=matrix, distortion=np.zeros(5))
    with BagWriter(path) as writer:
        writer.write_cloud("/points", cloud_from_frame(LidarFrame(stamp_ns=STAMP_NS, frame_id="lidar", xyz=xyz)))
        writer.write_image("/image", image)
        writer.write_image("/image/compressed", image, jpeg=True)
        writer.write_camera_info("/camera_info", camera, STAMP_NS, "camera")
        writer.write_tf_static({("base", "lidar"): np.eye(4)}, STAMP_NS)
        writer.write_json("/text", "{}", STAMP_NS)


def scan_seeds() -> dict[str, bytes]:
    """Write three points in every encoding of PCD."""
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z _ ring\nSIZE 4 4 4 1 2\nTYPE F F F U U\nCOUNT 1 1 1 2 1\n"
        "WIDTH 3\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 3\nDATA {}\n"
    )
    packed = b"".join(b"\x0f" + bytes(range(k, k + 16)) for k in (0, 16, 32))
    return {
        "ascii.pcd": (head.format("ascii") + "1 2 3 0 0 7\n" * 3).encode(),
        "binary.pcd": head.format("binary").encode() + bytes(range(48)),
        "compressed.pcd": head.format("binary_compressed").encode() + struct.pack("<2I", len(packed), 48) + packed,
    }


def calibration_seeds() -> dict[str, bytes]:
    lidars = "lidars:\n  os1:\n    topic: /points\n    stamp: end\n    stamp_offset_s: 0.5\n"
    camera = "cameras:\n  left:\n    topic: /left\n    lidar: os1\n    width: 752\n    height: 480\n"
    focal = (
        "    model: plumb_bob\n    distortion: [-0.28, 0.07, 0, 0]\n    fx: 42\n    fy: 43.1\n    cx: 38\n    cy: 24\n"
    )
    fisheye = "    model: equidistant\n    distortion: [0.1, 0.0, 0, 0]\n    K: [400, 0, 376, 0, 400, 240, 0, 0, 1]\n"
    pose = "    direction: camera_from_lidar\n    translation: [0.1, 0.0, -0.2]\n"
    quaternion = pose + "    quaternion: [0.5, -0.5, 0.5, 0.5]\n    quaternion_order: xyzw\n"
    matrix = "    direction: lidar_from_camera\n    matrix: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]\n"
    brought = "    camera_info_topic: /info\n    transform: tf_static\n"
    texts = {
        "quaternion": lidars + camera + focal + quaternion,
        "matrix": lidars + camera + fisheye + matrix,
        "rpy": lidars + camera + focal + pose + "    rpy: [0.0, 1.5, -1.5]\n",
        "brought": lidars + "cameras:\n  left:\n" + brought,
        "aliases": lidars + camera + focal + pose.replace("[0.1, 0.0, -0.2]", "&t [0, 0, 1]") + "    rpy: *t\n",
    }
    return {f"{name}.yaml": text.encode() for name, text in texts.items()}


def model_seeds() -> dict[str, bytes]:
    """Write a description and a few numbers as both kinds of model file."""
    import onnx
    from safetensors.numpy import save

    description = (
        '{"format": 1, "name": "m", "network": {"inputs": 5, "width": 4, "depth": 1, "outputs": 1}, '
        '"inputs": {"voxel_size_m": 0.1, "fov_min_m": [-8, -8, -2], "fov_max_m": [8, 8, 2], "planes": ["z"], '
        '"grids": [[32, 32]]}, "classes": {"name": "c", "classes": [{"id": 0, "name": "a", "color": [0, 0, 0]}]}, '
        '"provenance": {"source": "random"}}'
    )
    values = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(values["a"], "a")])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"lidar_semseg_ros": description})
    return {
        "m.safetensors": save(values, {"lidar_semseg_ros": description}),
        "m.onnx": model.SerializeToString(),
    }


SEEDS: dict[str, Callable[[], dict[str, bytes]]] = {
    "cloud": cloud_seeds,
    "image": image_seeds,
    "bag": bag_seeds,
    "scan": scan_seeds,
    "calibration": calibration_seeds,
    "model": model_seeds,
}
"""For every target the small valid inputs, by name, from which damaged ones are made."""


def seeds(target: str, folder: Path) -> None:
    """Write the small valid inputs of a target into a corpus folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS[target]().items():
        (folder / f"seed {name}").write_bytes(data)


def main() -> None:
    """Look for inputs that break a target, until libFuzzer's limits are reached or one is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=FUZZED, default="cloud")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where found inputs are kept (%(default)s)")
    arguments, flags = parser.parse_known_args()
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit("fuzzing needs atheris: pip install atheris")
    sys.path.insert(0, str(ROOT))
    logging.disable()
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        for module in MODULES:
            importlib.import_module(module)
    corpus = arguments.corpus / arguments.target
    if all(flag.startswith("-") for flag in flags):
        seeds(arguments.target, corpus)
        flags.append(str(corpus))
    arguments.corpus.mkdir(parents=True, exist_ok=True)
    limits = ["-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={arguments.corpus}/"]
    atheris.Setup([sys.argv[0], *limits, *flags], lambda data: run(arguments.target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
