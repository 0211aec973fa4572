"""The segmenter node: clouds in, labelled clouds out. Wiring only; the work is in formats/ and network/."""

from __future__ import annotations

import json
import math
import sys
import time
import traceback

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float64, String

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame, PointLabels
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.formats.pointcloud2 import (
    CloudContent,
    cloud_content,
    labelled_cloud,
    read_cloud,
    visualization_cloud,
)
from lidar_semseg_ros.network.segmenter import DROP_CAUSES, STAGES, Segmenter, SegmenterConfig
from lidar_semseg_ros.ros.diagnostics import DiagnosticsPublisher, Tally
from lidar_semseg_ros.ros.messages import cloud_message
from lidar_semseg_ros.ros.parameters import declared
from lidar_semseg_ros.ros.process import run_node
from lidar_semseg_ros.ros.subscribing import NewestSubscription
from lidar_semseg_ros.ros.worker import Worker

MAX_PLAUSIBLE_LATENCY_S = 10.0
LOG_PERIOD_S = 5.0


class SegmenterNode(Node):
    """Labels the newest cloud it has, in one thread; what it could not label is counted by cause."""

    def __init__(self) -> None:
        super().__init__("segmenter")
        self._config = declared(self, SegmenterConfig)
        self._segmenter = Segmenter(self._config, package_share() / "models")
        self._palette = self._segmenter.classes.palette()
        self._segmentation = self.create_publisher(PointCloud2, "~/output/pointcloud/segmentation", 2)
        self._visualization = self.create_publisher(PointCloud2, "~/output/pointcloud/visualization", 1)
        self._durations = {
            stage: self.create_publisher(Float64, f"~/debug/processing_time/{stage}_ms", 1) for stage in STAGES
        }
        self._latency = self.create_publisher(Float64, "~/debug/pipeline_latency_ms", 1)
        self._publish_class_map()
        self._tally = Tally()
        facts = {"model": self._segmenter.description.name, "device": self._segmenter.device}
        self._diagnostics = DiagnosticsPublisher(self, self._tally, ("received", "labelled", *DROP_CAUSES), facts)
        self._worker: Worker[PointCloud2] = Worker(self._work)
        self._segmenter.segment(warm_up_frame())
        self._input = NewestSubscription(self, PointCloud2, "~/input/pointcloud", self._receive)
        self.get_logger().info(f"{self._segmenter.path.name} on {self._segmenter.device}: ready for clouds")

    def _publish_class_map(self) -> None:
        description = self._segmenter.description
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._class_map = self.create_publisher(String, "~/output/class_map", latched)
        text = json.dumps({"model": description.name, **self._segmenter.classes.to_mapping()})
        self._class_map.publish(String(data=text))

    def _receive(self, message: PointCloud2) -> None:
        self._tally.count("received")
        if self._worker.put(message):
            self._tally.count("busy")

    def _work(self, message: PointCloud2) -> None:
        """Label one cloud; whatever is wrong with it, the next one gets its turn."""
        try:
            self._label(message)
        except UserError as error:
            self._tally.count("invalid")
            self.get_logger().warning(f"cloud dropped: {error}", throttle_duration_sec=LOG_PERIOD_S)
        except Exception:
            if rclpy.ok():
                self._tally.count("failed")
                self.get_logger().error(f"cloud failed: {traceback.format_exc()}", throttle_duration_sec=LOG_PERIOD_S)

    def _label(self, message: PointCloud2) -> None:
        start = time.perf_counter()
        content = cloud_content(message)
        frame = read_cloud(content)
        converted = time.perf_counter()
        result = self._segmenter.segment(frame)
        segmented = time.perf_counter()
        self._publish(content, frame, result.labels)
        published = time.perf_counter()
        self._tally.count("labelled")
        self._publish_durations(
            convert=(converted - start) * 1e3,
            prepare=result.prepare_ms,
            network=result.network_ms,
            finish=result.finish_ms,
            publish=(published - segmented) * 1e3,
            total=(published - start) * 1e3,
        )
        latency_s = (self.get_clock().now().nanoseconds - content.stamp_ns) / 1e9
        plausible = 0 <= latency_s <= MAX_PLAUSIBLE_LATENCY_S
        self._latency.publish(Float64(data=latency_s * 1e3 if plausible else math.nan))

    def _publish(self, content: CloudContent, frame: LidarFrame, labels: PointLabels) -> None:
        labelled = labelled_cloud(content, frame, labels, self._palette, self._config.output.layout)
        self._segmentation.publish(cloud_message(labelled))
        if self._visualization.get_subscription_count():
            self._visualization.publish(cloud_message(visualization_cloud(frame, content, labels, self._palette)))

    def _publish_durations(self, **durations_ms: float) -> None:
        for stage, duration_ms in durations_ms.items():
            self._tally.time(stage, duration_ms)
            self._durations[stage].publish(Float64(data=duration_ms))

    def destroy_node(self) -> None:
        """Let the cloud in work be finished, then go."""
        self._worker.stop()
        super().destroy_node()


def warm_up_frame() -> LidarFrame:
    """Make a small sweep on which libraries load their kernels before the first real cloud."""
    import numpy as np

    grid = np.stack(np.meshgrid(np.arange(-5, 5, 0.2), np.arange(-5, 5, 0.2), [-0.5, 0.0]), axis=-1)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=grid.reshape(-1, 3).astype(np.float32))


def main() -> None:
    """Run the node."""
    sys.exit(run_node(SegmenterNode))


if __name__ == "__main__":
    main()
