"""A recording as the MCAP project's own readers see it, which share no code with ours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml


def decoded_by_others(path: Path) -> dict[str, list[Any]]:
    """Decode every message of a complete recording by the definitions inside it; by topic, in the order of log times.

    Fails where summary, statistics, indexes or checksums do not hold, or where rosbag2 would not know the encodings.
    """
    ros2 = pytest.importorskip("mcap_ros2.decoder", reason="the reader of others is missing: mcap-ros2-support")
    from mcap.reader import make_reader

    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[ros2.DecoderFactory()])
        assert reader.get_header().profile == "ros2"
        summary = reader.get_summary()
        _check_encodings(summary)
        found: dict[str, list[Any]] = {}
        times_ns, counts = [], Counter[int]()
        for _, channel, message, content in reader.iter_decoded_messages(log_time_order=True):
            found.setdefault(channel.topic, []).append(content)
            times_ns.append(message.log_time)
            counts[channel.id] += 1
        assert [(record.name, dict(record.metadata)) for record in reader.iter_metadata()] == [
            ("rosbag2", {"serialized_metadata": ""})
        ]
    assert times_ns == sorted(times_ns)
    _check_statistics(summary, times_ns, counts)
    assert sum(_unindexed(path).values()) == len(times_ns)
    return found


def _check_encodings(summary: Any) -> None:
    for channel in summary.channels.values():
        schema = summary.schemas[channel.schema_id]
        assert channel.message_encoding == "cdr" and schema.encoding == "ros2msg"
        package, middle, name = schema.name.split("/")
        assert package and middle == "msg" and name and schema.data
        for profile in yaml.safe_load(channel.metadata.get("offered_qos_profiles", "[]")):
            # What Humble and Jazzy read both.
            numbers = [profile[key] for key in ("history", "depth", "reliability", "durability", "liveliness")]
            assert numbers == [1, 100, 1, 1, 1] and profile["avoid_ros_namespace_conventions"] is False
            for key in ("deadline", "lifespan", "liveliness_lease_duration"):
                assert profile[key]["sec"] * 10**9 + profile[key]["nsec"] == 2**63 - 1


def _check_statistics(summary: Any, times_ns: list[int], counts: Counter[int]) -> None:
    statistics = summary.statistics
    assert (statistics.message_start_time, statistics.message_end_time) == (times_ns[0], times_ns[-1])
    assert statistics.message_count == len(times_ns) and dict(statistics.channel_message_counts) == dict(counts)
    assert statistics.chunk_count == len(summary.chunk_indexes) > 0
    assert all(index.message_index_offsets and index.message_index_length for index in summary.chunk_indexes)


def _unindexed(path: Path) -> Counter[str]:
    """Count the messages by topic as a reader finds them that goes from the start and asks no index."""
    from mcap.reader import NonSeekingReader

    counts = Counter[str]()
    with path.open("rb") as file:
        for _, channel, _ in NonSeekingReader(file, validate_crcs=True).iter_messages(log_time_order=False):
            counts[channel.topic] += 1
    return counts


def found_by_others_until_the_damage(path: Path) -> list[tuple[str, int]]:
    """Give topic and log time of what the MCAP project's reader finds in a file that was cut off anywhere."""
    from mcap.exceptions import McapError
    from mcap.stream_reader import StreamReader

    found, topics = [], {}
    with path.open("rb") as file:
        try:
            for record in StreamReader(file, validate_crcs=True).records:
                if type(record).__name__ == "Channel":
                    topics[record.id] = record.topic
                elif type(record).__name__ == "Message":
                    found.append((topics[record.channel_id], record.log_time))
        except McapError:
            pass
    return found
