"""What arrived of a live run: every cloud accounted for, every answer compared with its question."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lidar_semseg_ros.cli.live import LATENCY_TOPIC, STAGE_TOPIC
from lidar_semseg_ros.cli.segment_command import CLASS_MAP_TOPIC, SEGMENTATION_TOPIC
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.metrics import confusion_matrix, iou_per_class, mean_iou, overall_accuracy
from lidar_semseg_ros.formats.bags import Bag, header_stamp_ns, open_bag
from lidar_semseg_ros.formats.dataset import exact_labels
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, column
from lidar_semseg_ros.network.segmenter import DROP_CAUSES, STAGES
from lidar_semseg_ros.view.report import Table

MEMORY_WARM_UP_S = 10


@dataclass
class Arrival:
    """What the recorder's process saw.

    path: its recording. sent_ns: when each input cloud came, by stamp. labelled_ns: the same of its labels. counts: the
    segmenter's last word on /diagnostics. durations_ms: by stage, as the segmenter published them.
    """

    path: Path
    classes: ClassTable
    sent_ns: dict[int, int] = field(default_factory=dict)
    labelled_ns: dict[int, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    durations_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def answers(self) -> Iterator[CloudContent]:
        """Read the labelled clouds one by one, in the order in which they came."""
        with open_bag(self.path) as bag:
            for recorded in bag.messages([SEGMENTATION_TOPIC]):
                yield cloud_content(recorded.message())

    def middle(self) -> CloudContent:
        """Read the labelled cloud in the middle of all stamps."""
        stamps = sorted(self.labelled_ns)
        return next(answer for answer in self.answers() if answer.stamp_ns == stamps[len(stamps) // 2])

    def latencies_ms(self) -> np.ndarray:
        """Time from a cloud's arrival to that of its labels, both seen in one process."""
        both = [stamp for stamp in self.labelled_ns if stamp in self.sent_ns]
        return np.array([(self.labelled_ns[stamp] - self.sent_ns[stamp]) / 1e6 for stamp in both])


def read_arrival(path: Path, topic: str) -> Arrival:
    """Read back what the recorder wrote; UserError if the segmenter never said a word."""
    stages = {STAGE_TOPIC.format(stage): stage for stage in STAGES} | {LATENCY_TOPIC: "stamp → published"}
    with open_bag(path) as bag:
        class_maps = list(bag.messages([CLASS_MAP_TOPIC]))
        if not class_maps:
            raise UserError(f"{path} holds no class map: the segmenter was never heard")
        arrival = Arrival(path=path, classes=ClassTable.from_mapping(json.loads(class_maps[-1].message().data)))
        for recorded in bag.messages([topic, SEGMENTATION_TOPIC, "/diagnostics", *stages]):
            message = recorded.message()
            if recorded.topic == topic:
                # The header is read, not the layout: what the segmenter calls invalid was sent all the same.
                arrival.sent_ns[header_stamp_ns(message)] = recorded.log_time_ns
            elif recorded.topic == SEGMENTATION_TOPIC:
                arrival.labelled_ns[header_stamp_ns(message)] = recorded.log_time_ns
            elif recorded.topic in stages:
                arrival.durations_ms[stages[recorded.topic]].append(message.data)
            else:
                values = {entry.key: entry.value for status in message.status for entry in status.values}
                if "received" in values:
                    arrival.counts = {key: int(value) for key, value in values.items() if value.isdigit()}
    return arrival


def account(bag: Bag, topic: str, arrival: Arrival) -> dict[str, Any]:
    """Follow every cloud of the recording to its end, and compare labels with the exact ones where there are."""
    truth = exact_labels(bag)
    classes = len(arrival.classes)
    confusion = np.zeros((classes, classes + 1), np.int64)
    changed = 0
    questions = (recorded.message() for recorded in bag.messages([topic]))
    for answer in arrival.answers():
        # Answers come in the order of the questions; from one whose stamp was changed on, none finds its question.
        question = next((one for one in questions if header_stamp_ns(one) == answer.stamp_ns), None)
        changed += question is None or not same_points(cloud_content(question), answer)
        if answer.stamp_ns in truth:
            confusion += confusion_matrix(truth[answer.stamp_ns], column(answer, "class_id"), classes)
    played, labelled = bag.message_count(topic), len(arrival.labelled_ns)
    dropped = {cause: arrival.counts.get(cause, 0) for cause in DROP_CAUSES}
    span_s = (max(arrival.labelled_ns.values(), default=0) - min(arrival.labelled_ns.values(), default=0)) / 1e9
    figures: dict[str, Any] = {
        "played": played,
        "labelled": labelled,
        **dropped,
        "lost": played - labelled - sum(dropped.values()),
        "changed": changed,
        "hz": (labelled - 1) / span_s if span_s else 0.0,
        "latency_ms": _percentiles(arrival.latencies_ms()),
        "stages_ms": {stage: _percentiles(np.array(found)) for stage, found in arrival.durations_ms.items()},
    }
    if confusion.sum():
        iou = iou_per_class(confusion)
        present = np.flatnonzero(confusion.sum(axis=1))
        figures["iou"] = {arrival.classes.names[i]: float(iou[i]) for i in present}
        figures |= {"miou": mean_iou(confusion), "accuracy": overall_accuracy(confusion)}
    return figures


def same_points(sent: CloudContent, labelled: CloudContent) -> bool:
    """Tell whether an answer has the header, shape and coordinates of the question, row by row."""
    headers = [(c.stamp_ns, c.frame_id, c.height, c.width) for c in (sent, labelled)]
    return headers[0] == headers[1] and all(
        np.array_equal(column(sent, axis).astype(np.float32), column(labelled, axis).astype(np.float32), equal_nan=True)
        for axis in "xyz"
    )


def _percentiles(values: np.ndarray) -> list[float]:
    valid = values[np.isfinite(values)]
    return [float(np.median(valid)), float(np.percentile(valid, 95)), float(valid.max())] if len(valid) else []


def tables(figures: dict[str, Any]) -> list[Table]:
    """Lay the figures out for people."""
    clouds = [
        ["played", str(figures["played"])],
        ["labelled and received", f"{figures['labelled']} ({figures['labelled'] / max(figures['played'], 1):.1%})"],
        *([f"dropped: {cause}", str(figures[cause])] for cause in DROP_CAUSES),
        ["lost on the way", str(figures["lost"])],
        ["with a changed header or point", str(figures["changed"])],
        ["labelled per second", f"{figures['hz']:.2f}"],
    ]
    memory_mb = figures["memory_mb"]
    if len(memory_mb) > MEMORY_WARM_UP_S:
        settled, last, top = memory_mb[MEMORY_WARM_UP_S], memory_mb[-1], max(memory_mb)
        said = f"{settled:.0f} → {last:.0f} (most {top:.0f})"
        clouds.append([f"segmenter's memory, MB: after {MEMORY_WARM_UP_S} s → at the end", said])
    times = [("cloud seen → labels seen", figures["latency_ms"]), *figures["stages_ms"].items()]
    rows = [[name, *(f"{value:.1f}" for value in found)] for name, found in times if found]
    result = [
        Table(title="Clouds", header=["", "count"], rows=clouds),
        Table(title="Milliseconds", header=["stage", "p50", "p95", "max"], rows=rows),
    ]
    if "iou" in figures:
        iou = [[name, f"{value:.1%}"] for name, value in figures["iou"].items()]
        mean = [["mean (mIoU)", f"{figures['miou']:.1%}"], ["accuracy of points", f"{figures['accuracy']:.1%}"]]
        result.append(Table(title="Labels against the exact ones", header=["class", "IoU"], rows=[*iou, *mean]))
    return result
