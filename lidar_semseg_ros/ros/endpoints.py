"""Publishers and subscriptions that take QoS overrides, and that say whom they cannot reach and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from lidar_semseg_ros.ros.timers import steady_timer

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

DISCOVERY_S = 0.5
"""The event comes before the graph knows the name of the peer that caused it."""


def outlet(node: Node, kind: Any, topic: str, qos: QoSProfile | int) -> Publisher:
    """Make a publisher whose QoS users may override, and which names the subscribers it cannot serve."""

    def complain() -> None:
        later.cancel()
        for peer in node.get_subscriptions_info_by_topic(publisher.topic_name):
            if mismatch := _mismatch(offered=publisher.qos_profile, wanted=peer.qos_profile):
                node.get_logger().warning(
                    f"{_name_of(peer)} gets nothing of {publisher.topic_name}: {mismatch}. Change its QoS or "
                    f"qos_overrides.{publisher.topic_name}.publisher.* of this node"
                )

    publisher: Publisher = node.create_publisher(
        kind,
        topic,
        qos,
        event_callbacks=PublisherEventCallbacks(incompatible_qos=lambda _: later.reset()),
        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
    )
    later = steady_timer(node, DISCOVERY_S, complain)
    later.cancel()
    return publisher


def _mismatch(offered: QoSProfile, wanted: QoSProfile) -> str:
    """Say why two ends cannot meet; rclpy's own check takes the graph's `infinite` for a deadline that nobody asked."""
    if wanted.reliability == ReliabilityPolicy.RELIABLE and offered.reliability == ReliabilityPolicy.BEST_EFFORT:
        return "reliable is wanted, best effort is offered"
    if wanted.durability == DurabilityPolicy.TRANSIENT_LOCAL and offered.durability == DurabilityPolicy.VOLATILE:
        return "transient local is wanted, volatile is offered"
    return ""


def _name_of(peer: Any) -> str:
    return f"{peer.node_namespace.rstrip('/')}/{peer.node_name}"


class NewestSubscription:
    """Subscribes with depth 1, reliably until a best-effort publisher turns up.

    Best effort silently loses large clouds, so it is the second choice. The policy `best available` would not do: it is
    decided once, when the subscription is made, and where no publisher is there yet it means reliable for good. Where
    the user overrides the reliability, that holds.
    """

    def __init__(self, node: Node, kind: Any, topic: str, callback: Callable[[Any], None]) -> None:
        self._node, self._kind, self._topic, self._callback = node, kind, topic, callback
        self._subscription = self._subscribe(ReliabilityPolicy.RELIABLE)
        # A subscription must not be destroyed inside its own event: a timer does it afterwards.
        self._again = steady_timer(node, 0.0, self._subscribe_again)
        self._again.cancel()
        self._complaint = steady_timer(node, DISCOVERY_S, self._complain)
        self._complaint.cancel()

    @property
    def topic(self) -> str:
        """The topic after all remapping."""
        return str(self._subscription.topic_name)

    def destroy(self) -> None:
        """Stop hearing the topic."""
        self._node.destroy_timer(self._again)
        self._node.destroy_timer(self._complaint)
        self._node.destroy_subscription(self._subscription)

    def _subscribe(self, reliability: ReliabilityPolicy) -> Subscription:
        policies = [QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH]
        if reliability == ReliabilityPolicy.RELIABLE:
            policies.append(QoSPolicyKind.RELIABILITY)
        return self._node.create_subscription(
            self._kind,
            self._topic,
            self._callback,
            QoSProfile(depth=1, reliability=reliability),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._mismatched),
            qos_overriding_options=QoSOverridingOptions(policy_kinds=policies),
        )

    def _mismatched(self, _: Any) -> None:
        is_ours = self._override not in self._node._parameter_overrides
        wanted = self._subscription.qos_profile
        (self._again if is_ours and wanted.reliability == ReliabilityPolicy.RELIABLE else self._complaint).reset()

    @property
    def _override(self) -> str:
        return f"qos_overrides.{self.topic}.subscription.reliability"

    def _complain(self) -> None:
        self._complaint.cancel()
        for peer in self._node.get_publishers_info_by_topic(self.topic):
            if mismatch := _mismatch(offered=peer.qos_profile, wanted=self._subscription.qos_profile):
                self._node.get_logger().warning(
                    f"nothing of {self.topic} comes from {_name_of(peer)}: {mismatch}. Change {self._override}"
                )

    def _subscribe_again(self) -> None:
        self._again.cancel()
        names = [_name_of(peer) for peer in self._node.get_publishers_info_by_topic(self.topic)]
        self._node.destroy_subscription(self._subscription)
        self._subscription = self._subscribe(ReliabilityPolicy.BEST_EFFORT)
        self._node.get_logger().info(
            f"a publisher of {self.topic} ({', '.join(names)}) is best effort, so the subscription is best effort now"
        )
