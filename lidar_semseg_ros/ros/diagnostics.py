"""What a node says of itself on /diagnostics, once a second."""

from __future__ import annotations

import threading
from collections import Counter, deque

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from lidar_semseg_ros.ros.timers import steady_timer

WINDOW = 100
"""Messages over which percentiles are taken."""


class Tally:
    """Counts events and keeps the last durations by stage; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._durations_ms: dict[str, deque[float]] = {}

    def count(self, event: str) -> None:
        """Add one to an event."""
        with self._lock:
            self._counts[event] += 1

    def time(self, stage: str, duration_ms: float) -> None:
        """Note how long a stage took."""
        with self._lock:
            self._durations_ms.setdefault(stage, deque(maxlen=WINDOW)).append(duration_ms)

    def counts(self) -> Counter[str]:
        """Give a copy of all counts."""
        with self._lock:
            return Counter(self._counts)

    def percentiles_ms(self) -> dict[str, tuple[float, float]]:
        """Give the median and the 95th percentile of each stage."""
        with self._lock:
            recent = {stage: np.array(durations) for stage, durations in self._durations_ms.items()}
        return {stage: (float(np.median(d)), float(np.percentile(d, 95))) for stage, d in recent.items()}


class DiagnosticsPublisher:
    """Publishes one status a second, with every count and percentile of a tally."""

    def __init__(self, node: Node, tally: Tally, events: tuple[str, ...], facts: dict[str, str]) -> None:
        """`events` are shown even while they are 0; `facts` do not change."""
        self._node, self._tally, self._events, self._facts = node, tally, events, facts
        self._last: Counter[str] = Counter()
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = steady_timer(node, 1.0, self.publish)

    def publish(self) -> None:
        """Publish the status now."""
        counts = self._tally.counts()
        values = dict(self._facts)
        values |= {event: str(counts[event]) for event in dict.fromkeys((*self._events, *counts))}
        for stage, (median_ms, p95_ms) in self._tally.percentiles_ms().items():
            values[f"{stage}_ms"] = f"{median_ms:.2f} (p95 {p95_ms:.2f})"
        level, text = self._judge(counts)
        status = DiagnosticStatus(level=level, name=self._node.get_fully_qualified_name(), message=text)
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def _judge(self, counts: Counter[str]) -> tuple[bytes, str]:
        new, busy = (counts[event] - self._last[event] for event in ("received", "busy"))
        self._last = counts
        if counts["failed"]:
            return DiagnosticStatus.ERROR, f"{counts['failed']} messages failed; see the log"
        if new == 0:
            return DiagnosticStatus.WARN, "no clouds in the last second"
        if counts["invalid"]:
            return DiagnosticStatus.WARN, f"{counts['invalid']} invalid clouds so far; see the log"
        if busy > new / 2:
            return DiagnosticStatus.WARN, f"too slow: {busy} of {new} clouds dropped in the last second"
        return DiagnosticStatus.OK, f"{new} clouds in the last second"
