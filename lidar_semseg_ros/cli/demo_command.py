"""lidar-semseg demo: a recording, live through the segmenter over ROS 2, with a table and pictures at the end."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.cli.live import LATENCY_TOPIC, STAGE_TOPIC, STAGES, run_live
from lidar_semseg_ros.cli.segment_command import CLASS_MAP_TOPIC, SEGMENTATION_TOPIC
from lidar_semseg_ros.cli.settings import add_settings, given_settings
from lidar_semseg_ros.cli.simulate_command import simulate
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.metrics import confusion_matrix, iou_per_class, mean_iou, overall_accuracy
from lidar_semseg_ros.core.options import from_mapping
from lidar_semseg_ros.formats.bags import Bag, open_bag, why_no_clouds
from lidar_semseg_ros.formats.dataset import chosen_cloud_topic, cloud_topics, exact_labels
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, column
from lidar_semseg_ros.network.segmenter import SegmenterConfig
from lidar_semseg_ros.sim.drive import SimConfig
from lidar_semseg_ros.view.report import html_report, text_table

DEMO_DRIVE = {"lidar": "OS1-64", "cameras": 1, "frames": 200, "seed": 2024}
CAUSES = ("busy", "invalid", "failed")


@dataclass
class Arrival:
    """What the third process saw of one live run.

    sent_ns and labelled_ns: arrival time by stamp. counts: the segmenter's last word on /diagnostics.
    """

    sent_ns: dict[int, int] = field(default_factory=dict)
    labelled_ns: dict[int, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    durations_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    classes: ClassTable | None = None

    def latencies_ms(self) -> np.ndarray:
        """Time between the arrival of a cloud and that of its labels, in the recorder's process."""
        both = [stamp for stamp in self.labelled_ns if stamp in self.sent_ns]
        return np.array([(self.labelled_ns[stamp] - self.sent_ns[stamp]) / 1e6 for stamp in both])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--bag", type=Path, help="a recording to use instead of a simulated drive")
    parser.add_argument("--topic", help="its cloud topic (default: the only one)")
    parser.add_argument("--rate", type=float, default=1.0, help="speed of playback (default: 1)")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder for results (default: demo)")
    add_settings(parser, SegmenterConfig)


def run(args: argparse.Namespace) -> None:
    """Play, segment and check in three processes; exit status 1 if a cloud was lost on the way."""
    settings = given_settings(args)
    from_mapping(SegmenterConfig, settings)  # faults are told before anything starts
    args.output.mkdir(parents=True, exist_ok=True)
    source = args.bag or _demo_recording(args.output)
    with open_bag(source) as bag:
        if not cloud_topics(bag):
            raise UserError(why_no_clouds(bag))
        topic = chosen_cloud_topic(bag, args.topic, str(source))
        duration_s = (bag.end_ns - bag.start_ns) / 1e9
        arrived = run_live(source, topic, duration_s, settings, args.output, args.rate)
        arrival = read_arrival(arrived, topic)
        if not arrival.labelled_ns:
            raise UserError(f"no labelled cloud arrived; see the logs in {args.output}")
        figures = summary(bag, topic, arrived, arrival)
        _print_tables(figures, arrival)
        _write_report(args.output, source, bag, topic, arrived, arrival, figures)
    if figures["lost"]:
        print(f"error: {figures['lost']} clouds were lost on the way", file=sys.stderr)
        sys.exit(1)


def _demo_recording(folder: Path) -> Path:
    """Simulate the drive of the demo, once."""
    path = folder / "drive.mcap"
    if not path.is_file():
        unfinished = path.with_name("unfinished.mcap")
        unfinished.unlink(missing_ok=True)
        print("simulating a drive through a building …", file=sys.stderr)
        simulate(from_mapping(SimConfig, DEMO_DRIVE), unfinished)
        unfinished.rename(path)
    return path


def read_arrival(path: Path, topic: str) -> Arrival:
    """Read back what the recorder wrote."""
    arrival = Arrival()
    stages = {STAGE_TOPIC.format(stage): stage for stage in STAGES} | {LATENCY_TOPIC: "pipeline latency"}
    with open_bag(path) as bag:
        for recorded in bag.messages():
            message = recorded.message()
            if recorded.topic in (topic, SEGMENTATION_TOPIC):
                arrivals = arrival.sent_ns if recorded.topic == topic else arrival.labelled_ns
                arrivals[_stamp_ns(message)] = recorded.log_time_ns
            elif recorded.topic in stages:
                arrival.durations_ms[stages[recorded.topic]].append(message.data)
            elif recorded.topic == CLASS_MAP_TOPIC:
                arrival.classes = ClassTable.from_mapping(json.loads(message.data))
            elif recorded.topic == "/diagnostics":
                values = {entry.key: entry.value for status in message.status for entry in status.values}
                if "received" in values:
                    arrival.counts = {key: int(value) for key, value in values.items() if value.isdigit()}
    return arrival


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


def summary(bag: Bag, topic: str, arrived: Path, arrival: Arrival) -> dict[str, Any]:
    """Account for every cloud, compare each labelled one with its input, and with the exact labels if there are."""
    truth = exact_labels(bag)
    labelled = labelled_clouds(arrived)
    classes = len(arrival.classes)
    confusion = np.zeros((classes, classes + 1), np.int64)
    changed = 0
    for recorded in bag.messages([topic]):
        content = cloud_content(recorded.message())
        if content.stamp_ns not in labelled:
            continue
        answer = labelled[content.stamp_ns]
        changed += not same_points(content, answer)
        if content.stamp_ns in truth:
            confusion += confusion_matrix(truth[content.stamp_ns], column(answer, "class_id"), classes)
    played, counts = bag.message_count(topic), arrival.counts
    dropped = {cause: counts.get(cause, 0) for cause in CAUSES}
    span_s = (max(arrival.labelled_ns.values()) - min(arrival.labelled_ns.values())) / 1e9
    figures = {
        "played": played,
        "labelled": len(arrival.labelled_ns),
        **dropped,
        "lost": played - len(arrival.labelled_ns) - sum(dropped.values()),
        "changed": changed,
        "hz": (len(arrival.labelled_ns) - 1) / span_s if span_s else float("nan"),
        "latency_ms": percentiles(arrival.latencies_ms()),
        "stages_ms": {stage: percentiles(np.array(found)) for stage, found in arrival.durations_ms.items()},
    }
    if confusion.sum():
        present = confusion.sum(axis=1) > 0
        figures |= {
            "miou": mean_iou(confusion),
            "accuracy": overall_accuracy(confusion),
            "iou": {arrival.classes.names[i]: float(iou_per_class(confusion)[i]) for i in np.flatnonzero(present)},
        }
    return figures


def labelled_clouds(arrived: Path) -> dict[int, CloudContent]:
    """Read the labelled clouds by stamp."""
    with open_bag(arrived) as bag:
        contents = (cloud_content(recorded.message()) for recorded in bag.messages([SEGMENTATION_TOPIC]))
        return {content.stamp_ns: content for content in contents}


def same_points(sent: CloudContent, labelled: CloudContent) -> bool:
    """Tell whether the answer has the same header, shape and coordinates, row by row."""
    return (
        (sent.stamp_ns, sent.frame_id, sent.height, sent.width)
        == (labelled.stamp_ns, labelled.frame_id, labelled.height, labelled.width)
    ) and all(
        np.array_equal(column(sent, axis).astype(np.float32), column(labelled, axis).astype(np.float32), equal_nan=True)
        for axis in "xyz"
    )


def percentiles(values: np.ndarray) -> list[float]:
    """Give the median, the 95th percentile and the maximum, without invalid values."""
    valid = values[np.isfinite(values)]
    return [float(np.median(valid)), float(np.percentile(valid, 95)), float(valid.max())] if len(valid) else []


def tables(figures: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Give the result as (title, header, rows)."""
    dropped = ", ".join(f"{figures[cause]} {cause}" for cause in CAUSES)
    frames = [
        ["clouds played", str(figures["played"])],
        ["labelled clouds received", f"{figures['labelled']} ({figures['labelled'] / figures['played']:.1%})"],
        ["dropped by the segmenter", dropped],
        ["lost on the way", str(figures["lost"])],
        ["answers with another header or point", str(figures["changed"])],
        ["rate of labelled clouds", f"{figures['hz']:.2f} Hz"],
    ]
    rows = [("cloud seen → labels seen", figures["latency_ms"]), *figures["stages_ms"].items()]
    times = [[name, *(f"{value:.1f}" for value in found)] for name, found in rows if found]
    result = [("Clouds", ["", ""], frames), ("Milliseconds", ["stage", "p50", "p95", "max"], times)]
    if "iou" in figures:
        iou = [[name, f"{value:.1%}"] for name, value in figures["iou"].items()]
        iou.append(["mean (mIoU)", f"{figures['miou']:.1%}"])
        iou.append(["accuracy", f"{figures['accuracy']:.1%}"])
        result.append(("Labels against the exact ones", ["class", "IoU"], iou))
    return result


def _print_tables(figures: dict[str, Any], arrival: Arrival) -> None:
    for title, header, rows in tables(figures):
        print(f"\n{title}\n{text_table(header, rows)}")


def _write_report(
    folder: Path, source: Path, bag: Bag, topic: str, arrived: Path, arrival: Arrival, figures: dict[str, Any]
) -> None:
    (folder / "figures.json").write_text(json.dumps(figures, indent=1))
    sections: list[Any] = []
    html_report(folder / "report.html", f"Live segmentation of {source.name}", sections)
