"""Real ROS 2 on this machine only, in a domain of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lidar_semseg_ros.cli.live import NodeProcess, live_environment, running
from lidar_semseg_ros.formats.config_files import class_table
from lidar_semseg_ros.network.inputs import InputConfig

os.environ.update(live_environment())

INPUTS = InputConfig(
    voxel_size_m=0.2,
    fov_min_m=(-50, -50, -5),
    fov_max_m=(50, 50, 5),
    planes=("z", "y", "x"),
    grids=((100, 100), (100, 10), (100, 10)),
)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick network with random weights: what it says does not matter here, that it says the same does."""
    import torch

    from lidar_semseg_ros.network.model_file import ModelDescription, write_safetensors
    from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig

    network = WaffleIronConfig(inputs=5, width=16, depth=3, outputs=17)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "quick.safetensors"
    description = ModelDescription(
        name="quick",
        network=network.to_mapping(),
        inputs=INPUTS,
        classes=class_table("indoor17"),
        provenance={"source": "random weights"},
    )
    write_safetensors(path, WaffleIron(network).state_dict(), description)
    return path


@pytest.fixture
def segmenter(small_model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NodeProcess]:
    """The segmenter in a process of its own; parametrize it indirectly for other parameters."""
    from robot import CLOUDS

    settings = {"model": str(small_model), "device": "cpu", **getattr(request, "param", {})}
    with running("segmenter", settings, {"~/input/pointcloud": CLOUDS}, tmp_path / "segmenter.log") as process:
        process.wait_for("ready for clouds")
        yield process


@pytest.fixture(scope="module")
def context() -> Iterator[None]:
    """An initialised rclpy in the test's own process."""
    import rclpy

    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def node(context: None) -> Iterator[object]:
    """A node that plays the rest of the robot."""
    import rclpy

    robot = rclpy.create_node("robot")
    yield robot
    robot.destroy_node()
