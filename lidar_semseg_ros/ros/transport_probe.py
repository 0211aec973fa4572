"""A small test of the transport: do large best-effort clouds arrive from another process? Prints JSON."""

from __future__ import annotations

import array
import json
import subprocess
import sys
import time

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import PointCloud2

CLOUD_BYTES = 2_000_000
"""What a lidar of 128 rings sends with 16 bytes per point."""
CLOUDS = 15
PERIOD_S = 0.1
DISCOVERY_S = 5.0
LAST_S = 1.0
TOPIC = "lidar_semseg_doctor/clouds"
QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def send(node: Node) -> None:
    """Publish the clouds once somebody listens."""
    publisher = node.create_publisher(PointCloud2, TOPIC, QOS)
    deadline = time.monotonic() + DISCOVERY_S
    while not publisher.get_subscription_count() and time.monotonic() < deadline:
        time.sleep(0.02)
    message = PointCloud2(height=1, width=CLOUD_BYTES, point_step=1, row_step=CLOUD_BYTES)
    message.data = array.array("B", bytes(CLOUD_BYTES))
    for number in range(CLOUDS):
        message.header.stamp.sec = number
        publisher.publish(message)
        time.sleep(PERIOD_S)


def receive(node: Node) -> dict[str, object]:
    """Start the sender in a process of its own, count what arrives, and list the clouds that are there anyway."""
    arrived: set[int] = set()
    node.create_subscription(PointCloud2, TOPIC, lambda message: arrived.add(message.header.stamp.sec), QOS)
    sender = subprocess.Popen([sys.executable, "-m", "lidar_semseg_ros.ros.transport_probe", "send"])
    ended = None
    deadline = time.monotonic() + 2 * DISCOVERY_S + CLOUDS * PERIOD_S
    while len(arrived) < CLOUDS and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.05)
        if sender.poll() is not None:
            ended = ended or time.monotonic()
            if time.monotonic() > ended + LAST_S:
                break
    sender.kill()
    sender.wait()
    clouds = []
    for name, kinds in node.get_topic_names_and_types():
        if "sensor_msgs/msg/PointCloud2" in kinds and not name.endswith(TOPIC):
            for peer in node.get_publishers_info_by_topic(name):
                clouds.append([name, peer.node_name, peer.qos_profile.reliability.name.lower().replace("_", " ")])
    return {
        "rmw": get_rmw_implementation_identifier(),
        "sent": CLOUDS,
        "arrived": len(arrived),
        "bytes": CLOUD_BYTES,
        "clouds": clouds,
    }


def main() -> None:
    """Send, or send and receive."""
    rclpy.init()
    role = "sender" if sys.argv[1:] == ["send"] else "receiver"
    node = rclpy.create_node(f"lidar_semseg_doctor_{role}")
    if role == "sender":
        send(node)
    else:
        print(json.dumps(receive(node)))
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
