"""lidar-semseg demo: a recording, live through the segmenter over ROS 2, with a table and pictures at the end."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lidar_semseg_ros.cli.arrival import account, read_arrival, tables
from lidar_semseg_ros.cli.live import run_live
from lidar_semseg_ros.cli.pictures import pictures_of
from lidar_semseg_ros.cli.settings import add_settings, config_from, given_settings
from lidar_semseg_ros.cli.simulate_command import simulate
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import from_mapping
from lidar_semseg_ros.formats.bags import cloud_topics, open_bag, why_no_clouds
from lidar_semseg_ros.formats.dataset import chosen_cloud_topic
from lidar_semseg_ros.network.segmenter import SegmenterConfig
from lidar_semseg_ros.sim.drive import SimConfig
from lidar_semseg_ros.view.paint import save_png
from lidar_semseg_ros.view.report import html_report, text_table

DEMO_DRIVE = {"lidar": "OS1-64", "cameras": 1, "frames": 200, "seed": 2024}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--bag", type=Path, help="a recording to use instead of a simulated drive")
    source.add_argument("--only-simulate", action="store_true", help="make the drive if it is not there, and no more")
    parser.add_argument("--topic", help="its cloud topic (default: the only one)")
    parser.add_argument("--rate", type=float, default=1.0, help="speed of playing (default: 1)")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder for results (default: demo)")
    add_settings(parser, SegmenterConfig)


def run(args: argparse.Namespace) -> None:
    """Play, segment and record in three processes, then check; exit status 1 if a cloud was lost or changed."""
    config_from(args, SegmenterConfig)  # faults are told before anything starts
    folder = args.output
    folder.mkdir(parents=True, exist_ok=True)
    source = args.bag or _demo_drive(folder)
    if args.only_simulate:
        return
    with open_bag(source) as bag:
        if not cloud_topics(bag):
            raise UserError(why_no_clouds(bag))
        topic = chosen_cloud_topic(bag, args.topic, str(source))
        arrived, memory_mb = run_live(source, topic, bag.duration_ns / 1e9, given_settings(args), folder, args.rate)
        arrival = read_arrival(arrived, topic)
        if not arrival.labelled_ns:
            raise UserError(f"no labelled cloud arrived; the logs are in {folder}")
        figures = account(bag, topic, arrival) | {"memory_mb": memory_mb}
        pictures = pictures_of(bag, topic, arrival.middle(), arrival.classes)
    for table in tables(figures):
        print(f"\n{table.title}\n{text_table(table.header, table.rows)}")
    (folder / "figures.json").write_text(json.dumps(figures, indent=1))
    for picture in pictures:
        save_png(folder / f"{picture.title.lower().replace(' ', '_')}.png", picture.pixels)
    html_report(folder / "report.html", f"Live segmentation of {source.name}", [*pictures, *tables(figures)])
    print(f"\npictures and tables: {folder / 'report.html'}")
    if figures["lost"] or figures["changed"]:
        print(f"error: {figures['lost']} clouds lost, {figures['changed']} changed on the way", file=sys.stderr)
        sys.exit(1)


def _demo_drive(folder: Path) -> Path:
    """Simulate the drive of the demo, once."""
    path = folder / "drive.mcap"
    if not path.is_file():
        print("simulating a drive through a building …", file=sys.stderr)
        simulate(from_mapping(SimConfig, DEMO_DRIVE), path)
    return path
