"""The recorder node: topics into an MCAP file, byte for byte as they arrive."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.formats.bags import BagWriter
from lidar_semseg_ros.ros.messages import installed_message
from lidar_semseg_ros.ros.parameters import declared
from lidar_semseg_ros.ros.process import run_node
from lidar_semseg_ros.ros.timers import steady_timer

DISCOVERY_PERIOD_S = 0.2


@dataclass(frozen=True, kw_only=True)
class RecorderConfig:
    """Settings of the recorder."""

    file: str = setting("", "the .mcap file to write; it must not exist yet")
    topics: str = setting("", "topics to record, comma-separated; each is recorded from when it appears")


class RecorderNode(Node):
    """Subscribes to each wanted topic once it is published, with the publisher's type and quality of service."""

    def __init__(self) -> None:
        super().__init__("recorder")
        config = declared(self, RecorderConfig)
        self._wanted = [name.strip() for name in config.topics.split(",") if name.strip()]
        if not config.file or not self._wanted:
            raise UserError("nothing to record; set the parameters 'file' and 'topics'")
        self._writer = BagWriter(Path(config.file).expanduser())
        self._timer = steady_timer(self, DISCOVERY_PERIOD_S, self._discover)

    def _discover(self) -> None:
        for topic in list(self._wanted):
            publishers = self.get_publishers_info_by_topic(topic)
            if publishers:
                self._wanted.remove(topic)
                self._subscribe(topic, publishers[0].topic_type, publishers[0].qos_profile)
        if not self._wanted:
            self._timer.cancel()

    def _subscribe(self, topic: str, kind: str, offered: QoSProfile) -> None:
        message_class = installed_message(kind)
        if message_class is None:
            self.get_logger().warning(f"{topic} is not recorded: message type {kind} is not installed")
            return
        qos = QoSProfile(depth=100, reliability=offered.reliability, durability=offered.durability)
        write = partial(self._write, topic, kind, offered.durability == DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(message_class, topic, write, qos, raw=True)
        self.get_logger().info(f"recording {topic}")

    def _write(self, topic: str, kind: str, latched: bool, data: bytes) -> None:
        self._writer.write(topic, kind, self.get_clock().now().nanoseconds, data, latched)

    def destroy_node(self) -> None:
        """Close the file, then go."""
        if hasattr(self, "_writer"):
            self._writer.close()
        super().destroy_node()


def main() -> None:
    """Run the node."""
    sys.exit(run_node(RecorderNode))


if __name__ == "__main__":
    main()
