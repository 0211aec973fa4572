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


@pytest.fixture(scope="module")
def kitti_bag(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first scans of KITTI raw as a recording."""
    path = tmp_path_factory.mktemp("kitti") / "kitti.mcap"
    scans = sorted((shared_data / "02_kitti_raw_0926_traffic_sequence" / "velodyne_points").glob("*.bin"))
    with BagWriter(path) as writer:
        for index, scan in enumerate(scans[:6]):
            writer.write_cloud("/kitti/velo", cloud_from_frame(read_scan(scan, 10**9 + index * 10**8, "velo")))
    return path


@pytest.mark.parametrize("source", ["kitti", "indoor VLP-16", "luminar"])
def test_live_labels_are_those_of_the_offline_command(
    source: str, shared_data: Path, small_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    paths = {
        "indoor VLP-16": shared_data / "07_indoor_vlp16_office_rosbag2" / "pointcloud2_bag_derived",
        "luminar": shared_data / "09_rosbag1_luminar_pointcloud2" / "test.bag",
    }
    path = request.getfixturevalue("kitti_bag") if source == "kitti" else paths[source]
    with open_bag(path) as bag:
        topic = chosen_cloud_topic(bag, None, source)
        # Slow enough that nothing is dropped, so that every cloud is compared.
        rate = 0.2
        arrived, memory_mb = run_live(path, topic, bag.duration_ns / 1e9, {"model": str(small_model)}, tmp_path, rate)
        arrival = read_arrival(arrived, topic)
        figures = account(bag, topic, arrival)
    assert figures["labelled"] == figures["played"] > 0
    assert max(memory_mb) > 50
    assert figures["lost"] == figures["changed"] == figures["invalid"] == 0
    main(["segment", str(path), "-o", str(tmp_path / "offline.mcap"), "--model", str(small_model)])
    with open_bag(tmp_path / "offline.mcap") as offline:
        for recorded in offline.messages([SEGMENTATION]):
            expected = cloud_content(recorded.message())
            answer = arrival.labelled.pop(expected.stamp_ns)
            assert np.array_equal(answer.data, expected.data) and answer.fields == expected.fields
    assert not arrival.labelled


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


def test_a_packet_bag_is_played_around_and_names_the_driver(shared_data: Path) -> None:
    bag = shared_data / "08_indoor_hesai_qt64_rosbag2" / "packets_bag_original"
    ended = run_node("player_node", "-p", f"bag:={bag}", "-p", "rate:=100.0")
    assert ended.returncode == 0
    assert "hesai_ros_driver" in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "set the parameter 'bag'"),
        (["-p", "bag:=nowhere.bag"], "no recording"),
        (["-p", "bag:={bag}", "-p", "topics:=/lidar"], "has no topic /lidar; it has /kitti/velo"),
        (["-p", "bag:={bag}", "-p", "remap:=velo"], "is no remap"),
        (["-p", "bag:={bag}", "-p", "rate:=0.0"], "must lie in"),
    ],
)
def test_a_player_that_cannot_start_says_why(kitti_bag: Path, arguments: list[str], said: str) -> None:
    ended = run_node("player_node", *(argument.format(bag=kitti_bag) for argument in arguments))
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_looping_player_starts_again_until_it_is_stopped(kitti_bag: Path, tmp_path: Path) -> None:
    recording = {"file": str(tmp_path / "out.mcap"), "topics": "/kitti/velo"}
    playing = {"bag": str(kitti_bag), "loop": True, "rate": 5.0, "wait_for_subscribers": 1}
    with running("recorder", recording, {}, tmp_path / "recorder.log") as recorder:
        with running("player", playing, {}, tmp_path / "player.log") as player:
            player.wait_for("played the recording 2 times")
            assert player.stop() == 0
        assert recorder.stop() == 0
    with open_bag(tmp_path / "out.mcap") as out:
        stamps = [cloud_content(recorded.message()).stamp_ns for recorded in out.messages(["/kitti/velo"])]
    assert len(stamps) > 6 and stamps[6] == stamps[0]


def test_a_recorder_does_not_overwrite_a_recording(kitti_bag: Path) -> None:
    before = kitti_bag.read_bytes()
    ended = run_node("recorder_node", "-p", f"file:={kitti_bag}", "-p", "topics:=/a")
    assert ended.returncode == 2 and "exists already" in ended.stderr
    assert kitti_bag.read_bytes() == before


def test_a_node_that_dies_at_its_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    process = NodeProcess("segmenter", {"model": "nowhere.onnx"}, {}, tmp_path / "log")
    with pytest.raises(UserError, match="no model file"):
        process.wait_for("ready for clouds")
    assert process.stop() == 2
