"""Recordings through player, segmenter and recorder, each in its own process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
from robot import run_node

from lidar_semseg_ros.cli.arrival import account, read_arrival
from lidar_semseg_ros.cli.live import NodeProcess, run_live, running
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import BagWriter, open_bag
from lidar_semseg_ros.formats.dataset import chosen_cloud_topic
from lidar_semseg_ros.formats.loose_scans import read_scan
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, cloud_from_frame

SEGMENTATION = "/segmenter/output/pointcloud/segmentation"


LOOSE = {
    "01_kitti00_semantic_sequence/velodyne": "*.bin",
    "02_kitti_raw_0926_traffic_sequence/velodyne_points": "*.bin",
    "03_nuscenes_sample_6cam": "*.pcd.bin",
    "05_rellis3d_offroad_frame": "0*.bin",
    "06_indoor_rslidar16_webcam/pointcloud": "*.pcd",
    "07_indoor_vlp16_office_rosbag2": "*.pcd",
    "08_indoor_hesai_qt64_rosbag2": "*.pcd",
    "15_indoor_room_scan_pcl": "*.pcd",
}
"""Folders of loose scans, of which the first is taken."""


@pytest.fixture(scope="module")
def loose_bag(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of every set of loose ones as a recording: eight sensors and as many field layouts on one topic."""
    path = tmp_path_factory.mktemp("loose") / "loose.mcap"
    with BagWriter(path) as writer:
        for index, (folder, pattern) in enumerate(LOOSE.items()):
            scan = min((shared_data / folder).glob(pattern))
            writer.write_cloud("/points", cloud_from_frame(read_scan(scan, 10**9 + index * 2 * 10**8, "lidar")))
    return path


@pytest.mark.parametrize("source", ["loose scans", "indoor VLP-16", "luminar", "64 beams"])
def test_live_labels_are_those_of_the_offline_command(
    source: str, shared_data: Path, small_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    paths = {
        "indoor VLP-16": shared_data / "07_indoor_vlp16_office_rosbag2" / "pointcloud2_bag_derived",
        "luminar": shared_data / "09_rosbag1_luminar_pointcloud2" / "test.bag",
        "64 beams": shared_data / "10_rosbag1_64beam_pointcloud2" / "PointCloud2.bag",
    }
    path = request.getfixturevalue("loose_bag") if source == "loose scans" else paths[source]
    with open_bag(path) as bag:
        topic = chosen_cloud_topic(bag, None, source)
        # Slow enough that nothing is dropped, so that every cloud is compared.
        rate = 0.4
        arrived, memory_mb = run_live(path, topic, bag.duration_ns / 1e9, {"model": str(small_model)}, tmp_path, rate)
        arrival = read_arrival(arrived, topic)
        figures = account(bag, topic, arrival)
    assert figures["labelled"] == figures["played"] > 0
    assert max(memory_mb) > 50
    assert figures["lost"] == figures["changed"] == figures["invalid"] == 0
    main(["segment", str(path), "-o", str(tmp_path / "offline.mcap"), "--model", str(small_model)])
    answers = {answer.stamp_ns: answer for answer in arrival.answers()}
    with open_bag(tmp_path / "offline.mcap") as offline:
        for recorded in offline.messages([SEGMENTATION]):
            expected = cloud_content(recorded.message())
            answer = answers.pop(expected.stamp_ns)
            assert np.array_equal(answer.data, expected.data) and answer.fields == expected.fields
    assert not answers


def test_the_player_plays_every_message_of_a_ros_1_bag_in_order_and_ends(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "09_rosbag1_luminar_pointcloud2" / "test.bag"
    recording = {"file": str(tmp_path / "out.mcap"), "topics": "/luminar,/base_scan,/clock"}
    with running("recorder", recording, {}, tmp_path / "recorder.log") as recorder:
        playing = {"bag": str(source), "remap": "/luminar_pointcloud:=/luminar", "wait_for_subscribers": 1}
        with running("player", playing, {}, tmp_path / "player.log") as player:
            assert player.process.wait(60) == 0
        recorder.wait_for("recording /luminar")
        assert recorder.stop() == 0
    with open_bag(source) as bag, open_bag(tmp_path / "out.mcap") as out:
        sent = [recorded.cdr() for recorded in bag.messages(["/luminar_pointcloud"])]
        heard = [recorded.cdr() for recorded in out.messages(["/luminar"])]
        assert heard == sent
        clock = [message.clock for message in (recorded.message() for recorded in out.messages(["/clock"]))]
        seconds = [stamp.sec + stamp.nanosec / 1e9 for stamp in clock]
        assert seconds == sorted(seconds)
        assert bag.start_ns / 1e9 - 1 < seconds[0] and abs(seconds[-1] - bag.end_ns / 1e9) < 0.2


@pytest.mark.parametrize(
    ("recording", "said"),
    [
        ("08_indoor_hesai_qt64_rosbag2/packets_bag_original", "hesai_ros_driver"),
        ("07_indoor_vlp16_office_rosbag2/packets_bag_original", "velodyne_pointcloud"),
        ("11_rosbag2_mcap_zstd_message_image", "no topic of type sensor_msgs/msg/PointCloud2"),
    ],
)
def test_a_recording_without_clouds_is_played_and_says_why_there_are_none(
    shared_data: Path, recording: str, said: str
) -> None:
    ended = run_node("player_node", "-p", f"bag:={shared_data / recording}", "-p", "rate:=100.0")
    assert ended.returncode == 0
    assert said in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "set the parameter 'bag'"),
        (["-p", "bag:=nowhere.bag"], "no recording"),
        (["-p", "bag:={bag}", "-p", "topics:=/lidar"], "has no topic /lidar; it has /points"),
        (["-p", "bag:={bag}", "-p", "remap:=velo"], "is no remap"),
        (["-p", "bag:={bag}", "-p", "rate:=0.0"], "must lie in"),
    ],
)
def test_a_player_that_cannot_start_says_why(loose_bag: Path, arguments: list[str], said: str) -> None:
    ended = run_node("player_node", *(argument.format(bag=loose_bag) for argument in arguments))
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_looping_player_starts_again_until_it_is_stopped(loose_bag: Path, tmp_path: Path) -> None:
    recording = {"file": str(tmp_path / "out.mcap"), "topics": "/points"}
    playing = {"bag": str(loose_bag), "loop": True, "rate": 5.0, "wait_for_subscribers": 1}
    with running("recorder", recording, {}, tmp_path / "recorder.log") as recorder:
        with running("player", playing, {}, tmp_path / "player.log") as player:
            player.wait_for("played the recording 2 times")
            assert player.stop() == 0
        assert recorder.stop() == 0
    with open_bag(tmp_path / "out.mcap") as out:
        stamps = [cloud_content(recorded.message()).stamp_ns for recorded in out.messages(["/points"])]
    assert len(stamps) > len(LOOSE) and stamps[len(LOOSE)] == stamps[0]


def test_a_recorder_does_not_overwrite_a_recording(loose_bag: Path) -> None:
    before = loose_bag.read_bytes()
    ended = run_node("recorder_node", "-p", f"file:={loose_bag}", "-p", "topics:=/a")
    assert ended.returncode == 2 and "exists already" in ended.stderr
    assert loose_bag.read_bytes() == before


def test_a_node_that_dies_at_its_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    process = NodeProcess("segmenter", {"model": "nowhere.onnx"}, {}, tmp_path / "log")
    with pytest.raises(UserError, match="no model file"):
        process.wait_for("ready for clouds")
    assert process.stop() == 2
