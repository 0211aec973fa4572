"""What the segmenter offers beside the labelled cloud: spec by topic, service and parameter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from robot import CLOUDS, LABELLED, Robot, call, good_cloud, room, spin_until
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header, String
from std_srvs.srv import SetBool, Trigger

from lidar_semseg_ros.cli.live import NodeProcess, running
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, cloud_from_frame, column, read_cloud
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.ros.messages import cloud_message, image_message, installed_message, time_message

DIAGNOSTICS_OK, DIAGNOSTICS_ERROR = b"\x00", b"\x02"


class Watcher:
    """Publishes a cloud again and again, as a sensor does, and keeps what one output answers."""

    def __init__(self, node: object, kind: type, output: str, cloud: PointCloud2) -> None:
        self.node, self.cloud, self.seen = node, cloud, []
        self.publisher = node.create_publisher(PointCloud2, CLOUDS, 5)
        node.create_subscription(kind, f"/segmenter/output/{output}", self.seen.append, qos_profile_sensor_data)

    def answer(self) -> object:
        """Give the output's first message."""
        self.node.create_timer(0.1, lambda: self.publisher.publish(self.cloud))
        spin_until(self.node, lambda: bool(self.seen))
        return self.seen[0]


def offline(model: Path, cloud: CloudContent) -> PointLabels:
    return Segmenter(SegmenterConfig(model=str(model), device="cpu"), model.parent).segment(read_cloud(cloud)).labels


def organised_cloud() -> PointCloud2:
    xyz = room(8 * 250)
    xyz[::11] = np.nan
    intensity = np.linspace(0, 200, len(xyz)).astype(np.float32)
    frame = LidarFrame(stamp_ns=42, frame_id="os_sensor", xyz=xyz, intensity=intensity, shape=(8, 250))
    return cloud_message(cloud_from_frame(frame))


@pytest.mark.parametrize("segmenter", [{"filter.classes": "wall, floor,person"}], indirect=True)
def test_the_filtered_cloud_lacks_the_chosen_classes_and_keeps_every_byte_of_the_rest(
    segmenter: NodeProcess, node: object, small_model: Path
) -> None:
    question = organised_cloud()
    answer = cloud_content(Watcher(node, PointCloud2, "pointcloud/filtered", question).answer())
    content = cloud_content(question)
    keep = ~np.isin(offline(small_model, content).class_id, [0, 1, 16])
    assert 0 < keep.sum() < len(keep)
    assert (answer.fields, answer.point_step, answer.stamp_ns, answer.frame_id) == (
        content.fields,
        content.point_step,
        42,
        "os_sensor",
    )
    assert (answer.height, answer.width) == (1, keep.sum())
    assert np.array_equal(answer.data.reshape(-1, answer.point_step), content.data.reshape(len(keep), -1)[keep])


@pytest.mark.parametrize("output", ["label_image", "confidence_image"])
def test_label_and_confidence_images_are_aligned_with_the_cloud(
    segmenter: NodeProcess, node: object, small_model: Path, output: str
) -> None:
    question = organised_cloud()
    answer = Watcher(node, Image, output, question).answer()
    labels = offline(small_model, cloud_content(question))
    expected = labels.class_id if output == "label_image" else np.rint(labels.probability * 255)
    assert (answer.encoding, answer.height, answer.width, answer.step) == ("mono8", 8, 250, 250)
    assert (answer.header.stamp, answer.header.frame_id) == (question.header.stamp, "os_sensor")
    assert np.array_equal(np.frombuffer(answer.data, np.uint8), expected.astype(np.uint8))


def test_an_empty_cloud_has_an_empty_label_image_and_none_fails(segmenter: NodeProcess, node: object) -> None:
    empty = cloud_message(cloud_from_frame(LidarFrame(stamp_ns=7, frame_id="lidar", xyz=np.zeros((0, 3), np.float32))))
    answer = Watcher(node, Image, "label_image", empty).answer()
    assert (answer.encoding, answer.height, answer.width, answer.step, len(answer.data)) == ("mono8", 1, 0, 0, 0)


@pytest.mark.parametrize("shape", [(1, 0), (0, 5), (0, 0), (2, 0, 3)])
def test_pictures_without_pixels_are_messages_without_bytes(shape: tuple[int, ...]) -> None:
    message = image_message(np.zeros(shape, np.uint8), Header())
    assert (message.height, message.width, message.step, len(message.data)) == (*shape[:2], 0, 0)


def test_the_class_map_names_model_and_version_and_label_info_the_classes(segmenter: NodeProcess, node: object) -> None:
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    heard: list[str] = []
    node.create_subscription(String, "/segmenter/output/class_map", lambda m: heard.append(m.data), latched)
    spin_until(node, lambda: bool(heard))
    class_map = json.loads(heard[0])
    assert class_map["model"] == "quick" and len(class_map["version"]) == 12
    label_info = installed_message("vision_msgs/msg/LabelInfo")
    if label_info is None:
        assert not node.count_publishers("/segmenter/output/label_info")
        return
    infos: list[object] = []
    node.create_subscription(label_info, "/segmenter/output/label_info", infos.append, latched)
    spin_until(node, lambda: bool(infos))
    assert {entry.class_id: entry.class_name for entry in infos[0].class_map}[255] == "unlabelled"


def test_nobody_subscribed_means_no_input_and_the_first_subscriber_wakes_it(
    segmenter: NodeProcess, node: object
) -> None:
    publisher = node.create_publisher(PointCloud2, CLOUDS, 5)
    messages: list[str] = []
    from diagnostic_msgs.msg import DiagnosticArray

    node.create_subscription(DiagnosticArray, "/diagnostics", lambda m: messages.append(m.status[0].message), 10)
    spin_until(node, lambda: len(messages) >= 2)
    assert messages[-1] == "idle: nobody subscribes to an output"
    assert publisher.get_subscription_count() == 0
    listener = node.create_subscription(PointCloud2, LABELLED, lambda _: None, 2)
    spin_until(node, lambda: publisher.get_subscription_count() == 1)
    node.destroy_subscription(listener)
    spin_until(node, lambda: publisher.get_subscription_count() == 0)


def test_enable_stops_and_starts_it(segmenter: NodeProcess, node: object) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    assert call(node, SetBool, "/segmenter/enable", SetBool.Request(data=False)).message == "disabled by ~/enable"
    spin_until(node, lambda: robot.publisher.get_subscription_count() == 0)
    assert call(node, SetBool, "/segmenter/enable", SetBool.Request(data=True)).success
    spin_until(node, robot.meets)
    robot.ask(good_cloud(3))


def test_timings_are_dumped_as_json_and_reset_empties_the_counters(segmenter: NodeProcess, node: object) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.ask(good_cloud(1))
    robot.settle(received=1)
    dumped = json.loads(call(node, Trigger, "/segmenter/dump_timings", Trigger.Request()).message)
    assert dumped["counts"]["labelled"] == 1
    assert set(dumped["stages"]) == {"convert", "prepare", "network", "finish", "publish", "total"}
    assert 0 < dumped["stages"]["network"]["median_ms"] <= dumped["stages"]["total"]["median_ms"]
    assert call(node, Trigger, "/segmenter/reset", Trigger.Request()).success
    robot.settle(received=0)


def set_parameter(node: object, name: str, value: ParameterValue) -> object:
    request = SetParameters.Request(parameters=[Parameter(name=name, value=value)])
    return call(node, SetParameters, "/segmenter/set_parameters", request).results[0]


def text(value: str) -> ParameterValue:
    return ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)


def number(value: float) -> ParameterValue:
    return ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)


def test_live_parameters_change_the_next_cloud_and_wrong_ones_are_refused_with_a_reason(
    segmenter: NodeProcess, node: object
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    assert (column(cloud_content(robot.ask(good_cloud(1))), "class_id") != 255).any()
    assert set_parameter(node, "min_score", number(1.0)).successful
    assert (column(cloud_content(robot.ask(good_cloud(2))), "class_id") == 255).all()
    assert set_parameter(node, "min_score", number(0.0)).successful
    assert set_parameter(node, "input.range.max", number(2.0)).successful
    near = cloud_content(robot.ask(good_cloud(3)))
    range_m = np.linalg.norm(read_cloud(near).xyz, axis=1)
    assert np.array_equal(column(near, "class_id") != 255, range_m <= 2.0)
    refused = set_parameter(node, "filter.classes", text("florr"))
    assert not refused.successful and "no class 'florr'" in refused.reason
    refused = set_parameter(node, "input.range.min", number(3.0))
    assert not refused.successful and "must be less than" in refused.reason
    assert not set_parameter(node, "min_score", number(1.5)).successful
    assert not set_parameter(node, "device", text("cuda")).successful, "read-only"
    robot.ask(good_cloud(4))


def test_parameters_may_change_while_clouds_come_faster_than_they_are_labelled(
    segmenter: NodeProcess, node: object
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    for turn in range(10):
        for tick in range(5):
            robot.publisher.publish(good_cloud(100 * turn + tick + 1, points=5000))
        layout = ("aligned", "append", "autoware")[turn % 3]
        assert set_parameter(node, "output.layout", text(layout)).successful
        assert set_parameter(node, "min_score", number(0.1 * (turn % 3))).successful
    spin_until(node, lambda: 905 in robot.labelled)
    spin_until(node, lambda: robot.values.get("labelled") == str(len(robot.labelled)))
    assert {message.point_step for message in robot.labelled.values()} <= {28, 21, 25}
    assert (robot.values["failed"], robot.values["invalid"]) == ("0", "0")


def test_parameters_tell_what_they_are_for_and_what_they_may_be(segmenter: NodeProcess, node: object) -> None:
    request = DescribeParameters.Request(names=["min_score", "model", "input.max_points", "output.layout"])
    score, model, points, layout = call(node, DescribeParameters, "/segmenter/describe_parameters", request).descriptors
    assert "probability" in score.description and not score.read_only and model.read_only
    assert (score.floating_point_range[0].from_value, score.floating_point_range[0].to_value) == (0.0, 1.0)
    assert points.integer_range[0].from_value == 0
    assert layout.additional_constraints == "one of aligned, autoware, append"


@pytest.mark.parametrize("segmenter", [{"input.max_age_s": 0.5}], indirect=True)
def test_a_cloud_that_is_too_old_is_dropped_as_stale(segmenter: NodeProcess, node: object) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.publisher.publish(good_cloud(1_000_000_000))
    robot.settle(received=1)
    assert (robot.values["stale"], robot.values["labelled"]) == ("1", "0")
    robot.ask(good_cloud(node.get_clock().now().nanoseconds))


@pytest.mark.parametrize("segmenter", [{"input.fields.intensity": "signal"}], indirect=True)
def test_a_field_that_the_user_names_must_be_in_the_cloud(segmenter: NodeProcess, node: object) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.publisher.publish(good_cloud(1))
    robot.settle(received=1)
    assert robot.values["invalid"] == "1"
    segmenter.wait_for("input.fields.intensity is 'signal', but the cloud's fields are x, y, z")


def test_a_publisher_that_returns_with_another_layout_and_clouds_from_the_past_are_labelled(
    segmenter: NodeProcess, node: object
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.ask(good_cloud(9_000_000_000))
    node.destroy_publisher(robot.publisher)
    robot.publisher = node.create_publisher(PointCloud2, CLOUDS, 5)
    spin_until(node, robot.meets)
    # A bag that starts anew, by a driver with other fields: the stamp jumps back.
    question = organised_cloud()
    answer = cloud_content(robot.ask(question))
    assert (answer.height, answer.width) == (8, 250)
    second = node.create_publisher(PointCloud2, CLOUDS, 5)
    spin_until(node, lambda: second.get_subscription_count() > 0)
    second.publish(good_cloud(9_000_000_001))
    spin_until(node, lambda: 9_000_000_001 in robot.labelled)


def test_gaps_in_the_stamps_of_a_steady_sensor_are_counted_as_missing(segmenter: NodeProcess, node: object) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    for tick in [*range(1, 16), 18, 19]:
        robot.ask(good_cloud(tick * 100_000_000, points=200))
    robot.settle(received=17)
    assert robot.values["missing"] == "2"


def test_diagnostics_tell_what_computes_and_how_exactly(segmenter: NodeProcess, node: object) -> None:
    robot = Robot(node)
    spin_until(node, lambda: bool(robot.values))
    told = {name: robot.values[name] for name in ("device", "precision", "engine")}
    assert told == {"device": "cpu", "precision": "float32", "engine": "CPU, in place"}


def test_the_user_may_override_the_quality_of_service_and_hears_whom_it_shuts_out(
    small_model: Path, node: object, tmp_path: Path
) -> None:
    settings = {
        "model": str(small_model),
        "device": "cpu",
        f"qos_overrides.{CLOUDS}.subscription.reliability": "reliable",
        f"qos_overrides.{LABELLED}.publisher.reliability": "best_effort",
    }
    with running("segmenter", settings, {"~/input/pointcloud": CLOUDS}, tmp_path / "log") as process:
        process.wait_for("ready for clouds")
        node.create_publisher(PointCloud2, CLOUDS, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
        node.create_subscription(PointCloud2, LABELLED, lambda _: None, QoSProfile(depth=1))
        process.wait_for(f"/robot gets nothing of {LABELLED}")
        node.create_subscription(
            PointCloud2, LABELLED, lambda _: None, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        )
        # Turned while waiting, so that the discovery of this process goes on.
        process.wait_for(f"nothing of {CLOUDS} comes from /robot")


def test_a_topic_that_nobody_publishes_is_named_with_those_that_are_there(segmenter: NodeProcess, node: object) -> None:
    node.create_publisher(PointCloud2, "/front/points", 1)
    node.create_subscription(PointCloud2, LABELLED, lambda _: None, 2)
    segmenter.wait_for(f"nobody publishes clouds on {CLOUDS}: there are /front/points; remap")


@pytest.mark.parametrize("segmenter", [{"use_sim_time": True}], indirect=True)
def test_simulated_time_without_a_clock_is_named_and_clouds_are_labelled_all_the_same(
    segmenter: NodeProcess, node: object
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.ask(good_cloud(5))
    segmenter.wait_for("use_sim_time is true, but nothing comes on /clock")


def test_intensities_in_another_unit_than_the_models_are_named_with_the_setting_that_mends_it(
    segmenter: NodeProcess, node: object
) -> None:
    robot = Robot(node)
    spin_until(node, robot.meets)
    robot.ask(organised_cloud())
    segmenter.wait_for("set input.intensity.scale")


CALIBRATION = """
lidars: {front: {stamp: start}}
cameras:
  left:
    model: plumb_bob
    width: 160
    height: 120
    fx: 80.0
    fy: 80.0
    cx: 79.5
    cy: 59.5
    distortion: [0, 0, 0, 0]
    direction: camera_from_lidar
    matrix: [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0, 0, 0, 1]
"""


@pytest.mark.parametrize("from_topic", [False, True])
def test_the_overlay_shows_the_labelled_points_on_the_image_nearest_in_time(
    small_model: Path, node: object, tmp_path: Path, from_topic: bool
) -> None:
    calibration = tmp_path / "rig.yaml"
    intrinsics = "\n".join(
        line for line in CALIBRATION.splitlines() if line[4:6] in ("mo", "wi", "he", "fx", "fy", "cx", "cy")
    )
    calibration.write_text(CALIBRATION)
    if from_topic:
        lines = [
            line
            for line in CALIBRATION.splitlines()
            if line not in intrinsics.splitlines() and "distortion" not in line
        ]
        calibration.write_text("\n".join([*lines, "    camera_info_topic: /camera/info"]))
    settings = {"model": str(small_model), "device": "cpu", "overlay.calibration": str(calibration)}
    remaps = {"~/input/pointcloud": CLOUDS, "~/input/image": "/camera/image", "~/input/camera_info": "/camera/info"}
    with running("segmenter", settings, remaps, tmp_path / "log") as process:
        process.wait_for("ready for clouds")
        seen: list[Image] = []
        node.create_subscription(Image, "/segmenter/output/overlay", seen.append, 1)
        clouds = node.create_publisher(PointCloud2, CLOUDS, 5)
        images, infos = (
            node.create_publisher(Image, "/camera/image", 5),
            node.create_publisher(CameraInfo, "/camera/info", 5),
        )
        spin_until(node, lambda: all(p.get_subscription_count() for p in (clouds, images, infos)))
        info = CameraInfo(width=160, height=120, distortion_model="plumb_bob", d=[0.0] * 5)
        info.k = [80.0, 0.0, 79.5, 0.0, 80.0, 59.5, 0.0, 0.0, 1.0]
        stamp_ns = 1_000_000_000
        far, near = (np.full((120, 160, 3), shade, np.uint8) for shade in (10, 200))

        def send() -> None:
            infos.publish(info)
            for pixels, offset_ns in ((far, -90_000_000), (near, 5_000_000)):
                header = Header(stamp=time_message(stamp_ns + offset_ns), frame_id="camera")
                images.publish(image_message(pixels, header))
            clouds.publish(good_cloud(stamp_ns))

        node.create_timer(0.2, send)
        spin_until(node, lambda: bool(seen))
    picture = np.frombuffer(seen[0].data, np.uint8).reshape(120, 160, 3)
    assert seen[0].header.stamp.nanosec == 5_000_000 and seen[0].encoding == "rgb8"
    # Points ahead of the lidar (x > 0) are in front of the camera; the room's walls surround it, so some are drawn.
    drawn = (picture != picture[0, 0]).any(axis=2)
    assert 0.02 < drawn.mean() < 0.98
