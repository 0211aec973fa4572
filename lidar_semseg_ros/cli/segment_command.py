"""lidar-semseg segment: every cloud of a recording labelled, without ROS, with the same labels as the node."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.settings import add_settings, config_from
from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.formats.bags import cloud_topics, new_recording, open_bag, why_no_clouds
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.formats.dataset import chosen_cloud_topic
from lidar_semseg_ros.formats.on_demand import CloudOnDemand, LabelledOnDemand
from lidar_semseg_ros.formats.pointcloud2 import cloud_content
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.view.report import text_table

SEGMENTATION_TOPIC = "/segmenter/output/pointcloud/segmentation"
CLASS_MAP_TOPIC = "/segmenter/output/class_map"
"""Named as the live node's topics, so that tools need not tell them apart."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bag", type=Path, help="a ROS 1 .bag, a ROS 2 bag folder, an .mcap or a .db3 file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .mcap file to write")
    parser.add_argument("--topic", help="the cloud topic (default: the only one)")
    add_settings(parser, SegmenterConfig)


def run(args: argparse.Namespace) -> None:
    """Label every cloud, keep its stamp and its log time, and print what was found."""
    config = config_from(args, SegmenterConfig)
    with open_bag(args.bag) as bag:
        if not cloud_topics(bag):
            raise UserError(why_no_clouds(bag))
        topic = chosen_cloud_topic(bag, args.topic, str(args.bag))
        segmenter = Segmenter(config, package_share() / "models")
        palette = segmenter.classes.palette()
        labels = Counter[int]()
        durations_ms: dict[str, list[float]] = {"prepare": [], "network": [], "finish": []}
        dropped = 0
        with new_recording(args.output) as writer:
            writer.write_json(CLASS_MAP_TOPIC, segmenter.class_map(), bag.start_ns)
            for recorded in tqdm(
                bag.messages([topic]), total=bag.message_count(topic), unit="cloud", disable=None, file=sys.stderr
            ):
                try:
                    content = cloud_content(recorded.message())
                    cloud = CloudOnDemand(content, config.input.fields, config.output.layout, palette)
                    result = segmenter.segment(cloud.sweep(segmenter.takes_bytes))
                    labelled = LabelledOnDemand(cloud, result.labels)
                    answer = labelled.content
                except (UserError, FloatingPointError) as error:
                    dropped += 1
                    print(f"cloud at {recorded.log_time_ns} dropped: {error}", file=sys.stderr)
                    continue
                writer.write_cloud(SEGMENTATION_TOPIC, answer, log_time_ns=recorded.log_time_ns)
                ids, counts = np.unique(labelled.labels.class_id, return_counts=True)
                labels.update(dict(zip(ids.tolist(), counts.tolist())))
                for stage, found in durations_ms.items():
                    found.append(getattr(result, f"{stage}_ms"))
    _print_summary(args.output, segmenter, labels, durations_ms, dropped)


def _print_summary(
    output: Path, segmenter: Segmenter, labels: Counter[int], durations_ms: dict[str, list[float]], dropped: int
) -> None:
    frames = len(durations_ms["network"])
    print(f"{output}: {frames} clouds labelled by {segmenter.path.name} on {segmenter.device}, {dropped} dropped")
    if frames:
        medians = "  ".join(f"{stage} {np.median(found):.1f} ms" for stage, found in durations_ms.items())
        print(f"median per cloud: {medians}")
        print(text_table(["class", "points", "share"], class_shares(labels, segmenter.classes)))


def class_shares(labels: Counter[int], classes: ClassTable) -> list[list[str]]:
    """Give a row per class that occurs, the most frequent first: name, points, share."""
    total = sum(labels.values())
    names = {UNLABELLED: "(unlabelled)"} | dict(enumerate(classes.names))
    return [[names[i], f"{count:,}", f"{count / total:.1%}"] for i, count in labels.most_common()]
