"""Clouds with the images that belong to them, as they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.core.pairing import NearestPairing, Paired, PairingConfig
from lidar_semseg_ros.ros.endpoints import NewestSubscription

Pair = Paired[PointCloud2, Any]
QUEUE = 10


@dataclass(frozen=True, kw_only=True)
class SyncConfig(PairingConfig):
    """Which images go with a cloud, and who decides it."""

    policy: str = setting(
        "nearest",
        "nearest: for each cloud the image of each camera nearest in time, cameras may be missing; approximate and "
        "exact: as message_filters has them, where every camera must have an image",
        choices=("nearest", "approximate", "exact"),
    )

    def without_a_camera(self, cameras: int) -> str:
        """Tell in words what becomes of the clouds while one of so many cameras is silent."""
        if self.policy != "nearest":
            return f"no cloud is labelled, for sync.policy is {self.policy}"
        return "clouds go without it" if cameras > 1 else "every cloud is dropped as no_image"


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """When a cloud (its middle) and a camera's image were taken, in nanoseconds of one clock."""

    of_cloud: Callable[[PointCloud2], int]
    of_image: Callable[[str, Any], int]


class Arrivals(Protocol):
    """Is told of every cloud and every image as it comes, also of those that find no partner."""

    def cloud(self) -> None:
        """Note that a cloud came."""
        ...

    def image(self, camera: str) -> None:
        """Note that an image came."""
        ...


class Synchronizer(Protocol):
    """Delivers pairs until it is destroyed."""

    def destroy(self) -> None:
        """Stop hearing clouds and images."""
        ...


class Nearest:
    """Pairs by `core.pairing`."""

    def __init__(
        self,
        node: Node,
        cameras: tuple[str, ...],
        kind: type,
        config: SyncConfig,
        clocks: Clocks,
        arrivals: Arrivals,
        deliver: Callable[[Pair], None],
    ) -> None:
        self._node, self._clocks, self._arrivals, self._deliver = node, clocks, arrivals, deliver
        self._pairing: NearestPairing[PointCloud2, Any] = NearestPairing(cameras, config)
        self._clouds = NewestSubscription(node, PointCloud2, "~/input/pointcloud", self._cloud)
        self._images = [
            node.create_subscription(
                kind,
                f"~/input/{name}/image",
                lambda image, name=name: self._image(name, image),
                qos_profile_sensor_data,
            )
            for name in cameras
        ]

    def _cloud(self, message: PointCloud2) -> None:
        self._arrivals.cloud()
        for pair in self._pairing.add_cloud(self._clocks.of_cloud(message), message):
            self._deliver(pair)

    def _image(self, name: str, message: Any) -> None:
        self._arrivals.image(name)
        for pair in self._pairing.add_image(name, self._clocks.of_image(name, message), message):
            self._deliver(pair)

    def destroy(self) -> None:
        """Stop hearing clouds and images."""
        self._clouds.destroy()
        for subscription in self._images:
            self._node.destroy_subscription(subscription)


class MessageFilters:
    """Pairs by the stamps of the headers, as message_filters does."""

    def __init__(
        self,
        node: Node,
        cameras: tuple[str, ...],
        kind: type,
        config: SyncConfig,
        clocks: Clocks,
        arrivals: Arrivals,
        deliver: Callable[[Pair], None],
    ) -> None:
        """UserError where message_filters is not installed."""
        try:
            import message_filters
        except ImportError:
            raise UserError(
                f"sync.policy is {config.policy}, which needs message_filters of a ROS 2 installation "
                "(ros-<distro>-message-filters); source one, or set sync.policy to nearest"
            ) from None
        self._node, self._cameras, self._clocks, self._deliver = node, cameras, clocks, deliver
        self._arrivals, self._heard = arrivals, message_filters.SimpleFilter()
        self._clouds = NewestSubscription(node, PointCloud2, "~/input/pointcloud", self._cloud)
        self._images = [
            message_filters.Subscriber(node, kind, f"~/input/{name}/image", qos_profile=qos_profile_sensor_data)
            for name in cameras
        ]
        # The synchronizer itself is silent as soon as one camera is.
        for name, images in zip(cameras, self._images):
            images.registerCallback(lambda _, name=name: arrivals.image(name))
        filters = [self._heard, *self._images]
        if config.policy == "exact":
            self._synchronizer = message_filters.TimeSynchronizer(filters, QUEUE)
        else:
            self._synchronizer = message_filters.ApproximateTimeSynchronizer(filters, QUEUE, config.max_dt_s)
        self._synchronizer.registerCallback(self._matched)

    def _cloud(self, message: PointCloud2) -> None:
        self._arrivals.cloud()
        self._heard.signalMessage(message)

    def _matched(self, cloud: PointCloud2, *images: Any) -> None:
        taken = {name: (self._clocks.of_image(name, image), image) for name, image in zip(self._cameras, images)}
        self._deliver(Paired(time_ns=self._clocks.of_cloud(cloud), cloud=cloud, images=taken))

    def destroy(self) -> None:
        """Stop hearing clouds and images."""
        self._clouds.destroy()
        for images in self._images:
            self._node.destroy_subscription(images.sub)


def synchronizer(
    node: Node,
    cameras: tuple[str, ...],
    compressed: bool,
    config: SyncConfig,
    clocks: Clocks,
    arrivals: Arrivals,
    deliver: Callable[[Pair], None],
) -> Synchronizer:
    """Hear clouds and images, raw or compressed, tell of their arrival, and deliver what belongs together."""
    chosen = Nearest if config.policy == "nearest" else MessageFilters
    return chosen(node, cameras, CompressedImage if compressed else Image, config, clocks, arrivals, deliver)
