"""What a node says of itself on /diagnostics, once a second."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from lidar_semseg_ros.ros.timers import steady_timer

WINDOW = 100
"""Messages over which percentiles are taken."""

LONGEST_GAP_S = 5.0
"""A longer gap between stamps is a pause of the sensor, not a loss."""


class Tally:
    """Counts events and keeps the last durations by stage; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._new: Counter[str] = Counter()
        self._durations_ms: dict[str, deque[float]] = {}

    def count(self, event: str, times: int = 1) -> None:
        """Add to an event."""
        with self._lock:
            self._counts[event] += times
            self._new[event] += times

    def time(self, stage: str, duration_ms: float) -> None:
        """Note how long a stage took."""
        with self._lock:
            self._durations_ms.setdefault(stage, deque(maxlen=WINDOW)).append(duration_ms)

    def clear(self) -> None:
        """Start anew."""
        with self._lock:
            self._counts.clear()
            self._durations_ms.clear()

    def counts(self) -> Counter[str]:
        """Give a copy of all counts."""
        with self._lock:
            return Counter(self._counts)

    def take_new(self) -> Counter[str]:
        """Give what was counted since the last call, also where the counts were cleared meanwhile."""
        with self._lock:
            new, self._new = self._new, Counter()
        return new

    def percentiles_ms(self) -> dict[str, tuple[float, float]]:
        """Give the median and the 95th percentile of each stage."""
        with self._lock:
            recent = {stage: np.array(durations) for stage, durations in self._durations_ms.items()}
        return {stage: (float(np.median(d)), float(np.percentile(d, 95))) for stage, d in recent.items()}


class GapMeter:
    """Estimates from stamps how many clouds of a steady sensor never arrived."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._steps_ns: deque[int] = deque(maxlen=50)

    def missing_before(self, stamp_ns: int) -> int:
        """Note a stamp; how many are missing between it and the one before, 0 until the sensor's period is known."""
        last_ns, self._last_ns = self._last_ns, stamp_ns
        if last_ns is None:
            return 0
        if stamp_ns < last_ns:
            self._steps_ns.clear()
            return 0
        step_ns = stamp_ns - last_ns
        usual_ns = float(np.median(self._steps_ns)) if len(self._steps_ns) >= 10 else 0.0
        self._steps_ns.append(step_ns)
        return round(step_ns / usual_ns) - 1 if 1.5 * usual_ns < step_ns < LONGEST_GAP_S * 1e9 and usual_ns else 0


class DiagnosticsPublisher:
    """Publishes one status a second, with every count and percentile of a tally."""

    def __init__(
        self,
        node: Node,
        tally: Tally,
        events: tuple[str, ...],
        facts: Callable[[], Mapping[str, str]],
        idle: Callable[[], str],
        trouble: Callable[[], str] = lambda: "",
    ) -> None:
        """Start publishing.

        events: shown even while they are 0. facts: what else there is to say. idle: gives why nothing is done just
        now, or ''. trouble: gives what else a user should look after, or ''.
        """
        self._node, self._tally, self._events, self._facts = node, tally, events, facts
        self._idle, self._trouble = idle, trouble
        self._failing = False
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = steady_timer(node, 1.0, self.publish)

    def publish(self) -> None:
        """Publish the status now."""
        counts = self._tally.counts()
        values = dict(self._facts())
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
        """Judge the last second; a failure stays an error until a cloud is labelled again."""
        new = self._tally.take_new()
        self._failing = new["failed"] > 0 or (self._failing and not new["labelled"])
        received = new["received"]
        if self._failing:
            return DiagnosticStatus.ERROR, f"labelling fails ({counts['failed']} clouds so far); see the log"
        if idle := self._idle():
            return DiagnosticStatus.OK, idle
        trouble = self._trouble()
        if received == 0:
            return DiagnosticStatus.WARN, "; ".join(filter(None, ["no clouds in the last second", trouble]))
        for cause in ("invalid", "no_transform", "stale"):
            if new[cause]:
                return DiagnosticStatus.WARN, f"{new[cause]} of {received} clouds dropped: {cause}; see the log"
        if trouble:
            return DiagnosticStatus.WARN, trouble
        if new["missing"]:
            return DiagnosticStatus.WARN, (
                f"about {new['missing']} clouds did not arrive in the last second; run `lidar-semseg doctor`"
            )
        if new["busy"] > received / 2:
            return DiagnosticStatus.WARN, f"too slow: {new['busy']} of {received} clouds dropped in the last second"
        return DiagnosticStatus.OK, f"{received} clouds in the last second"
