"""Name, version, dependencies and files of the package, for colcon and pip alike."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

NAME = "lidar_semseg_ros"
HERE = Path(__file__).resolve().parent

NODES = {name: f"{name}_node" for name in ("segmenter", "teacher", "player", "recorder")}
LINUX_X86 = "platform_system == 'Linux' and platform_machine == 'x86_64'"
COMMON_MESSAGES = ("std-msgs", "sensor-msgs", "geometry-msgs", "diagnostic-msgs", "std-srvs", "nav-msgs")


def shared(folder: str) -> list[tuple[str, list[str]]]:
    """List the files below a folder as data_files, each in its place under share/."""
    files = sorted(path for path in (HERE / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    places: dict[str, list[str]] = {}
    for path in files:
        place = path.relative_to(HERE)
        places.setdefault(f"share/{NAME}/{place.parent}", []).append(str(place))
    return list(places.items())


def programs() -> list[tuple[str, list[str]]]:
    """Give what starts the programs from where their installer does not put them: pip in bin/, colcon in lib/."""
    if "editable_wheel" in sys.argv:
        return []
    if "bdist_wheel" in sys.argv:
        return [(f"lib/{NAME}", [f"resource/lib/{node}" for node in NODES])]
    # colcon looks first, with no command, which files there are.
    return [("bin", ["resource/bin/lidar-semseg"])]


setup(
    name=NAME,
    version="0.1.0",
    description="Live semantic segmentation of lidar point clouds, taught by vision foundation models",
    author="lidar_semseg_ros contributors",
    maintainer="lidar_semseg_ros maintainers",
    maintainer_email="maintainers@lidar-semseg-ros.example",
    license="Apache-2.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    python_requires=">=3.10",
    zip_safe=True,
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *shared("launch"),
        *shared("config"),
        *shared("models"),
        *programs(),
    ],
    install_requires=[
        "setuptools",
        "llvmlite",
        "mcap>=1.6",
        "numba",
        "numpy",
        "pillow",
        "pyyaml",
        # mcap.writer.flush() came with 1.6; rosbags.convert.converter is not yet a public interface.
        "rosbags>=0.11.9,<0.12",
        "scipy",
        "tqdm",
    ],
    extras_require={
        # Real ROS 2 Jazzy as wheels; leave it out where a ROS 2 installation is sourced.
        "ros": [
            f"ros-jazzy-rclpy[fastrtps]==7.1.6; {LINUX_X86}",
            *(f"ros-{name}==5.3.6; {LINUX_X86}" for name in COMMON_MESSAGES),
            f"ros-rosgraph-msgs==2.0.3; {LINUX_X86}",
        ],
        "torch": ["safetensors", "torch"],
        "onnx": ["onnx", "onnxruntime"],
        "export": ["onnx", "onnxscript", "safetensors", "torch"],
        "sim": ["embreex"],
        "teacher": ["safetensors", "scikit-image", "scikit-learn", "torch", "transformers>=5"],
        "ray": ["ray"],
        # Triton is not in constraints.txt: a CUDA build of torch wants its own; beside the CPU's any runs the tests.
        "test": [
            "hypothesis",
            "mcap-ros2-support",
            "mypy",
            "opencv-python-headless",
            "pytest>=8.3,<9",
            "pytest-xdist>=3.8,<4",
            "ruff",
            f"triton; {LINUX_X86}",
        ],
    },
    entry_points={
        "console_scripts": [
            f"lidar-semseg = {NAME}.cli.main:main",
            *(f"{node} = {NAME}.ros.{module}:main" for node, module in NODES.items()),
        ],
    },
)
