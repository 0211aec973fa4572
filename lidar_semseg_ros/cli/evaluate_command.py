"""lidar-semseg evaluate: a model's labels against the exact labels of recordings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lidar_semseg_ros.cli.settings import add_settings, config_from
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.metrics import confusion_matrix, iou_per_class, mean_iou, overall_accuracy
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.formats.dataset import LABEL_TOPIC, chosen_cloud_topic, labelled_sweeps
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.view.report import text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bags", type=Path, nargs="+", help="recordings with exact labels, as `simulate` writes them")
    parser.add_argument("--topic", help="the cloud topic (default: the only one)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    add_settings(parser, SegmenterConfig)


def run(args: argparse.Namespace) -> None:
    """Label every sweep and print the IoU of each class."""
    segmenter = Segmenter(config_from(args, SegmenterConfig), package_share() / "models")
    classes = segmenter.classes
    confusion = np.zeros((len(classes), len(classes) + 1), np.int64)
    for path in args.bags:
        with open_bag(path) as bag:
            if LABEL_TOPIC not in bag.topics:
                raise UserError(f"{path} holds no exact labels ({LABEL_TOPIC}); make one with `lidar-semseg simulate`")
            topic = chosen_cloud_topic(bag, args.topic, str(path))
            sweeps = labelled_sweeps(bag, topic)
            for frame, truth in tqdm(
                sweeps, total=bag.message_count(topic), desc=path.name, unit="sweep", disable=None, file=sys.stderr
            ):
                confusion += confusion_matrix(truth, segmenter.segment(frame).labels.class_id, len(classes))
    iou = iou_per_class(confusion)
    points = confusion.sum(axis=1)
    rows = [[classes.names[i], f"{points[i]:,}", f"{iou[i]:.1%}" if points[i] else "–"] for i in range(len(classes))]
    print(text_table(["class", "points", "IoU"], rows))
    present = int((points > 0).sum())
    print(
        f"mIoU {mean_iou(confusion):.1%} over {present} of {len(classes)} classes (those in the recordings), "
        f"accuracy {overall_accuracy(confusion):.1%}, {points.sum():,} points"
    )
    if args.json:
        figures = {
            "model": segmenter.description.name,
            "miou": mean_iou(confusion),
            "accuracy": overall_accuracy(confusion),
            "iou": {name: float(iou[i]) for i, name in enumerate(classes.names) if points[i]},
            "confusion": confusion.tolist(),
        }
        args.json.write_text(json.dumps(figures, indent=1))
