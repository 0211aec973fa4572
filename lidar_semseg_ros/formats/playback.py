"""A bag as a timed sequence of messages: what to publish, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.formats.bags import Bag, BagMessage


@dataclass(frozen=True, kw_only=True)
class PlaybackConfig:
    """Settings of the player."""

    bag: str = setting("", "the recording: a ROS 1 .bag, a ROS 2 bag folder, an .mcap or a .db3 file")
    rate: float = setting(1.0, "speed; 2.0 plays twice as fast", minimum=0.001, maximum=1000.0)
    loop: bool = setting(False, "start again at the end, with time jumping back")
    topics: str = setting("", "topics to play, comma-separated; empty plays all")
    remap: str = setting("", "other names for topics, as from:=to, comma-separated")
    clock: bool = setting(True, "publish the recording's time on /clock")
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


def schedule(bag: Bag, topics: Mapping[str, str], rate: float) -> Iterator[tuple[float, BagMessage]]:
    """Yield the chosen messages in order, each with the seconds after the start at which it is due."""
    first_ns: int | None = None
    for message in bag.messages(list(topics)):
        first_ns = message.log_time_ns if first_ns is None else first_ns
        yield (message.log_time_ns - first_ns) / 1e9 / rate, message
