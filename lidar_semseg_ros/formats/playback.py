"""A bag as a timed sequence of messages: what to publish, and when."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.formats.bags import Bag, BagMessage, Span


@dataclass(frozen=True, kw_only=True)
class PlaybackConfig:
    """Settings of the player."""

    bag: str = setting("", "the recording: a ROS 1 .bag, a ROS 2 bag folder, an .mcap or a .db3 file")
    rate: float = setting(1.0, "speed; 2.0 plays twice as fast", minimum=0.001, maximum=1000.0)
    start_s: float = setting(0.0, "where to start, in seconds from the recording's start", minimum=0.0, maximum=1e9)
    end_s: float = setting(
        0.0, "where to end, in seconds from the recording's start; 0 plays to its end", minimum=0.0, maximum=1e9
    )
    paused: bool = setting(False, "start paused, with the first message as the next step")
    loop: bool = setting(False, "start again at the end, with time jumping back")
    topics: str = setting("", "topics to play, comma-separated; empty plays all")
    remap: str = setting("", "other names for topics, as from:=to, comma-separated")
    clock: bool = setting(True, "publish the recording's time on /clock")
    keyboard: bool = setting(False, "obey the keys of the terminal: space pauses, s steps, left and right seek by 5 s")
    wait_for_subscribers: int = setting(
        0, "do not start before a cloud topic has so many subscribers; 0 starts at once", minimum=0, maximum=100
    )


def parse_remaps(text: str) -> dict[str, str]:
    """Read 'from:=to, from:=to' into {from: to}."""
    remaps = {}
    for rule in filter(None, (part.strip() for part in text.split(","))):
        source, separator, target = rule.partition(":=")
        if not separator or not source.startswith("/") or not target.startswith("/"):
            raise UserError(f"'{rule}' is no remap; write /recorded/topic:=/other/topic")
        remaps[source] = target
    return remaps


def chosen_topics(bag: Bag, config: PlaybackConfig) -> dict[str, str]:
    """Pick the topics to play, {topic: type}; UserError names one that the bag does not have."""
    wanted = [name.strip() for name in config.topics.split(",") if name.strip()]
    missing = [name for name in [*wanted, *parse_remaps(config.remap)] if name not in bag.topics]
    if missing:
        raise UserError(f"{config.bag} has no topic {', '.join(missing)}; it has {', '.join(bag.topics)}")
    return {topic: kind for topic, kind in bag.topics.items() if not wanted or topic in wanted}


def played_span(bag: Bag, config: PlaybackConfig) -> tuple[int, int | None]:
    """Give the log times from which on and before which to play, None for all that follows.

    UserError if the recording has none between the start and the end asked for.
    """
    end_s = config.end_s or math.inf
    if config.start_s >= end_s:
        raise UserError(f"start_s is {config.start_s} and end_s {config.end_s}; the start must come before the end")
    if config.start_s * 1e9 > bag.duration_ns:
        raise UserError(f"start_s is {config.start_s}, but {config.bag} ends after {bag.duration_ns / 1e9:.3f} s")
    start_ns = bag.start_ns + round(config.start_s * 1e9)
    return start_ns, bag.start_ns + round(config.end_s * 1e9) if config.end_s else None


def messages_from(
    bag: Bag, topics: Collection[str], latched: Collection[str], start_ns: int, end_ns: int | None
) -> Iterator[BagMessage]:
    """Yield what a subscriber must hear that starts in the middle.

    That is what was logged on latched topics before the start, for it still holds, and all from there to the end.
    """
    before = [topic for topic in topics if topic in latched]
    if before and start_ns > bag.start_ns:
        yield from bag.messages(before, Span(None, start_ns))
    yield from bag.messages(topics, Span(start_ns, end_ns))


class PlaybackClock:
    """The time in the recording while it is played: it runs at a rate, is held, or is set.

    now_s is the time of a steady clock in seconds, an argument everywhere. It is held until it first runs.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._time_ns = 0
        self._since_s: float | None = None

    def time_ns(self, now_s: float) -> int:
        """Tell the time in the recording."""
        if self._since_s is None:
            return self._time_ns
        return self._time_ns + round((now_s - self._since_s) * self._rate * 1e9)

    def wait_s(self, time_ns: int, now_s: float) -> float:
        """Tell how long until a time in the recording comes: not above 0 if it has come.

        While held, it is infinite for what is to come, and the time at which it is held has not come.
        """
        if self._since_s is None:
            return 0.0 if time_ns < self._time_ns else math.inf
        return self._since_s + (time_ns - self._time_ns) / 1e9 / self._rate - now_s

    def set(self, time_ns: int, now_s: float) -> None:
        """Jump to a time, and go on running or being held."""
        self._time_ns = time_ns
        if self._since_s is not None:
            self._since_s = now_s

    def hold(self, now_s: float) -> None:
        """Stand still; nothing happens if it does."""
        self._time_ns, self._since_s = self.time_ns(now_s), None

    def run(self, now_s: float) -> None:
        """Go on from where it stands; nothing happens if it runs."""
        if self._since_s is None:
            self._since_s = now_s
