"""A subscription to sensor data that meets every publisher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from lidar_semseg_ros.ros.timers import steady_timer

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


class NewestSubscription:
    """Subscribes with depth 1, reliably until a best-effort publisher turns up.

    Best effort silently loses large clouds, so it is the second choice. The policy `best available` would not do: it is
    decided once, when the subscription is made, and where no publisher is there yet it means reliable for good.
    """

    def __init__(self, node: Node, kind: Any, topic: str, callback: Callable[[Any], None]) -> None:
        self._node, self._kind, self._topic, self._callback = node, kind, topic, callback
        self._subscription = self._subscribe(ReliabilityPolicy.RELIABLE)
        # A subscription must not be destroyed inside its own event: a timer does it afterwards.
        self._again = steady_timer(node, 0.0, self._subscribe_again)
        self._again.cancel()

    def _subscribe(self, reliability: ReliabilityPolicy) -> Subscription:
        events = None
        if reliability is ReliabilityPolicy.RELIABLE:
            events = SubscriptionEventCallbacks(incompatible_qos=lambda _: self._again.reset())
        qos = QoSProfile(depth=1, reliability=reliability)
        return self._node.create_subscription(self._kind, self._topic, self._callback, qos, event_callbacks=events)

    def _subscribe_again(self) -> None:
        self._again.cancel()
        self._node.destroy_subscription(self._subscription)
        self._subscription = self._subscribe(ReliabilityPolicy.BEST_EFFORT)
        name = self._subscription.topic_name
        self._node.get_logger().info(f"a publisher of {name} is best effort, so the subscription is best effort now")
