"""The player node: a recording of any kind as live topics and /clock, without a conversion step."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from pathlib import Path

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import POINT_CLOUD, open_bag, why_no_clouds
from lidar_semseg_ros.formats.playback import PlaybackConfig, chosen_topics, parse_remaps, schedule
from lidar_semseg_ros.ros.messages import installed_message, time_message
from lidar_semseg_ros.ros.parameters import declared
from lidar_semseg_ros.ros.process import run_node

CLOCK_PERIOD_S = 0.01
LATCHED = ("/tf_static", "/robot_description", "/map")
"""Topics whose late subscribers expect the last message, also where the recording does not say so."""
LEAST_DEPTH = 10


class PlayerNode(Node):
    """Publishes a bag in its own time, in a thread, and shuts down at its end."""

    def __init__(self) -> None:
        super().__init__("player")
        self._config = declared(self, PlaybackConfig)
        if not self._config.bag:
            raise UserError("nothing to play; set the parameter 'bag' to a recording")
        self._bag = open_bag(Path(self._config.bag).expanduser())
        self._topics = chosen_topics(self._bag, self._config)
        if POINT_CLOUD not in self._topics.values():
            self.get_logger().warning(why_no_clouds(self._bag))
        self._outlets = self._make_outlets()
        self._clock_publisher = self.create_publisher(Clock, "/clock", 1) if self._config.clock else None
        self._stopping = threading.Event()
        self._played = 0
        self._thread = threading.Thread(target=self._play, name="playback", daemon=True)
        self._thread.start()

    def _make_outlets(self) -> dict[str, Publisher]:
        remaps = parse_remaps(self._config.remap)
        publishers = {}
        for topic, kind in self._topics.items():
            message_class = installed_message(kind)
            if message_class is None:
                self.get_logger().warning(f"{topic} is not played: message type {kind} is not installed")
                continue
            latched = topic in LATCHED or topic in self._bag.latched
            durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
            qos = QoSProfile(depth=LEAST_DEPTH, durability=durability)
            publishers[topic] = self.create_publisher(message_class, remaps.get(topic, topic), qos)
        return publishers

    def _play(self) -> None:
        try:
            self._wait_for_subscribers()
            for turn in itertools.count(1):
                self._play_once()
                if not self._config.loop or self._stopping.is_set():
                    break
                self.get_logger().info(f"played the recording {turn} times")
            for publisher in self._outlets.values():
                publisher.wait_for_all_acked(Duration(seconds=5))
            self.get_logger().info(f"played {self._played} messages")
        except UserError as error:
            self.get_logger().error(str(error))
        except Exception:
            if rclpy.ok():  # else the node is being taken down under us
                raise
        finally:
            rclpy.try_shutdown()

    def _wait_for_subscribers(self) -> None:
        clouds = [self._outlets[topic] for topic, kind in self._topics.items() if kind == POINT_CLOUD]
        while clouds and not self._stopping.is_set():
            if max(publisher.get_subscription_count() for publisher in clouds) >= self._config.wait_for_subscribers:
                break
            self._stopping.wait(0.05)

    def _play_once(self) -> None:
        start = time.monotonic()
        now_ns = 0
        for due_s, message in schedule(self._bag, self._topics, self._config.rate):
            publisher = self._outlets.get(message.topic)
            if publisher is None:
                continue
            data = message.cdr()
            while (wait_s := start + due_s - time.monotonic()) > 0 and not self._stopping.is_set():
                self._publish_clock(message.log_time_ns - int(wait_s * 1e9 * self._config.rate))
                self._stopping.wait(min(wait_s, CLOCK_PERIOD_S))
            if self._stopping.is_set():
                return
            now_ns = max(now_ns, message.log_time_ns)
            self._publish_clock(now_ns)
            publisher.publish(data)
            self._played += 1

    def _publish_clock(self, now_ns: int) -> None:
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=time_message(now_ns)))

    def destroy_node(self) -> None:
        """Stop playing, then go."""
        self._stopping.set()
        self._thread.join(2.0)
        super().destroy_node()


def main() -> None:
    """Run the node."""
    sys.exit(run_node(PlayerNode))


if __name__ == "__main__":
    main()
