from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from rosbags.typesys import Stores, get_typestore

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import STRING, Bag, BagWriter, Span, open_bag
from lidar_semseg_ros.formats.playback import (
    PlaybackClock,
    PlaybackConfig,
    chosen_topics,
    messages_from,
    parse_remaps,
    played_span,
)

ROS2 = get_typestore(Stores.ROS2_JAZZY)
START_NS = 1_700_000_000 * 10**9


def bag_of_seconds(path: Path) -> Path:
    """Ten seconds: a message a second on /a, latched ones at 0 and 3, something on /b at 2.5."""
    times: list[tuple[float, str]] = [(second, "/a") for second in range(11)]
    times += [(0, "/latched"), (3, "/latched"), (2.5, "/b")]
    with BagWriter(path) as writer:
        for second, topic in sorted(times):
            message: Any = ROS2.types[STRING](data=f"{topic} {second:g}")
            writer.write(topic, STRING, START_NS + round(second * 1e9), message, latched=topic == "/latched")
    return path


@pytest.fixture
def bag(tmp_path: Path) -> Bag:
    return open_bag(bag_of_seconds(tmp_path / "a.mcap"))


def said(bag: Bag, *arguments: Any) -> list[str]:
    return [message.message().data for message in messages_from(bag, *arguments)]


# ---- what is played


def test_remaps_are_pairs_of_absolute_names() -> None:
    assert parse_remaps(" /a:=/b, /c/d:=/e,") == {"/a": "/b", "/c/d": "/e"}
    for wrong in ("/a=/b", "a:=/b", "/a:=b", ":="):
        with pytest.raises(UserError, match="is no remap"):
            parse_remaps(wrong)


def test_topics_are_all_or_those_asked_for(bag: Bag) -> None:
    assert list(chosen_topics(bag, PlaybackConfig())) == ["/a", "/latched", "/b"]
    assert chosen_topics(bag, PlaybackConfig(topics="/b, /a")) == {"/a": STRING, "/b": STRING}
    for wrong in (PlaybackConfig(topics="/none"), PlaybackConfig(remap="/none:=/a")):
        with pytest.raises(UserError, match="has no topic /none"):
            chosen_topics(bag, wrong)


def test_span_counts_from_the_start_of_the_recording(bag: Bag) -> None:
    assert played_span(bag, PlaybackConfig()) == (START_NS, None)
    config = PlaybackConfig(start_s=2.5, end_s=4.0)
    assert played_span(bag, config) == (START_NS + 2_500_000_000, START_NS + 4_000_000_000)


@pytest.mark.parametrize(
    ("start_s", "end_s", "words"), [(3.0, 2.0, "before the end"), (3.0, 3.0, "before the end"), (11.0, 0.0, "10.000 s")]
)
def test_span_without_messages_is_refused(bag: Bag, start_s: float, end_s: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        played_span(bag, PlaybackConfig(start_s=start_s, end_s=end_s))


def test_start_in_the_middle_brings_what_was_latched_before(bag: Bag) -> None:
    topics, latched = list(bag.topics), bag.latched
    second = 10**9
    assert said(bag, topics, latched, START_NS + 5 * second, START_NS + 7 * second) == [
        "/latched 0",
        "/latched 3",
        "/a 5",
        "/a 6",
    ]
    assert said(bag, topics, latched, START_NS + 2 * second, START_NS + 4 * second) == [
        "/latched 0",
        "/a 2",
        "/b 2.5",
        "/a 3",
        "/latched 3",
    ]
    assert said(bag, ["/a"], latched, START_NS + 9 * second, None) == ["/a 9", "/a 10"]
    assert said(bag, topics, latched, START_NS, START_NS + 1) == ["/a 0", "/latched 0"]


def test_messages_of_a_span_are_those_logged_in_it(bag: Bag) -> None:
    def times(span: Span) -> list[float]:
        return [(message.log_time_ns - START_NS) / 1e9 for message in bag.messages(["/a", "/b"], span)]

    assert times(Span(START_NS + 2 * 10**9, START_NS + 3 * 10**9)) == [2, 2.5]
    assert times(Span(None, START_NS + 1)) == [0]
    assert times(Span(START_NS + 10**10, None)) == [10]
    assert len(times(Span())) == 12


# ---- the clock


def test_clock_runs_at_its_rate() -> None:
    clock = PlaybackClock(rate=2.0)
    clock.set(1000, 50.0)
    clock.run(50.0)
    assert clock.time_ns(50.5) == 1000 + 10**9
    assert clock.wait_s(1000 + 3 * 10**9, 50.5) == pytest.approx(1.0)
    assert clock.wait_s(1000, 50.5) == pytest.approx(-0.5)


def test_held_clock_waits_forever_for_what_is_to_come_and_not_for_what_has() -> None:
    clock = PlaybackClock(rate=1.0)
    clock.set(1000, 0.0)
    assert clock.time_ns(99.0) == 1000
    assert clock.wait_s(1000, 99.0) == math.inf
    assert clock.wait_s(999, 99.0) == 0


def test_clock_that_was_held_goes_on_where_it_stood() -> None:
    clock = PlaybackClock(rate=1.0)
    clock.run(0.0)
    clock.hold(2.0)
    clock.hold(3.0)
    assert clock.time_ns(7.0) == 2 * 10**9
    clock.run(10.0)
    clock.run(11.0)
    assert clock.time_ns(11.0) == 3 * 10**9


@pytest.mark.parametrize("is_running", [True, False])
def test_clock_jumps_and_goes_on_as_before(is_running: bool) -> None:
    clock = PlaybackClock(rate=1.0)
    if is_running:
        clock.run(0.0)
    clock.set(5 * 10**9, 1.0)
    assert clock.time_ns(1.0) == 5 * 10**9
    assert clock.time_ns(2.0) == (6 if is_running else 5) * 10**9


def test_clock_keeps_nanoseconds_at_the_times_of_today() -> None:
    clock = PlaybackClock(rate=1.0)
    clock.set(START_NS + 123_456_789, 1e6)
    clock.run(1e6)
    assert clock.time_ns(1e6) == START_NS + 123_456_789
    assert abs(clock.time_ns(1e6 + 3600) - START_NS - 123_456_789 - 3600 * 10**9) < 1000
    assert clock.wait_s(START_NS + 123_456_789 + 10**7, 1e6) == pytest.approx(0.01, abs=1e-6)
