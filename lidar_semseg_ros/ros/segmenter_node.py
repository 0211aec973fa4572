"""The segmenter node: clouds in, labelled clouds out."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.core.packed import PackedCloud
from lidar_semseg_ros.core.sensor import SensorConfig
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.formats.on_demand import CloudOnDemand, LabelledOnDemand
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content
from lidar_semseg_ros.network.plausibility import doubt
from lidar_semseg_ros.network.segmenter import DROP_CAUSES, STAGES, Segmentation, Segmenter, SegmenterConfig
from lidar_semseg_ros.ros.diagnostics import DiagnosticsPublisher, GapMeter, Tally
from lidar_semseg_ros.ros.drops import LOG_PERIOD_S, Drops
from lidar_semseg_ros.ros.endpoints import NewestSubscription
from lidar_semseg_ros.ros.lidars import namespaces_of
from lidar_semseg_ros.ros.logs import hear_libraries
from lidar_semseg_ros.ros.outputs import Outputs
from lidar_semseg_ros.ros.overlay import Overlay, OverlayConfig
from lidar_semseg_ros.ros.parameters import declared, follow
from lidar_semseg_ros.ros.process import leave, run_nodes
from lidar_semseg_ros.ros.timers import steady_timer
from lidar_semseg_ros.ros.transforms import Transforms
from lidar_semseg_ros.ros.worker import Worker, stop_together

MAX_PLAUSIBLE_LATENCY_S = 10.0
ATTEND_PERIOD_S = 0.1
"""How soon after somebody subscribes to a result the node begins to work."""


@dataclass(frozen=True, kw_only=True)
class LiveSensorConfig(SensorConfig):
    """What a user says of a lidar that is there now."""

    max_age_s: float = setting(
        0.0, "clouds that are older when their turn comes are dropped as stale; 0: never", minimum=0.0, live=True
    )
    level_frame: str = setting(
        "",
        "TF frame whose z axis points up and whose origin lies on the floor, such as base_footprint: tilt and height "
        "of the lidar are taken from /tf at each stamp; empty: from input.roll, input.pitch and input.sensor_height",
    )


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What the filtered cloud leaves out."""

    classes: str = setting(
        "", "classes that ~/output/pointcloud/filtered leaves out, comma-separated, such as floor,person", live=True
    )


@dataclass(frozen=True, kw_only=True)
class SegmenterNodeConfig(SegmenterConfig):
    """Settings of the segmenter node."""

    input: LiveSensorConfig = LiveSensorConfig()
    filter: FilterConfig = FilterConfig()
    overlay: OverlayConfig = OverlayConfig()


class SegmenterNode(Node):
    """Labels the newest cloud it has, in one thread, while somebody wants labels; what it drops is counted by cause."""

    def __init__(self, namespace: str = "", beside: SegmenterNode | None = None) -> None:
        """Be ready for the clouds of a lidar.

        namespace: instead of that of the process; empty: that of the process. beside: the node of another lidar of the
        process, whose model this one uses, too.
        """
        # A remap rule of its own, which goes before the process's.
        super().__init__("segmenter", cli_args=["--ros-args", "-r", f"__ns:={namespace}"] if namespace else None)
        if beside is None:  # whoever loads a model hears what is said about it
            hear_libraries(self)
        self._config = declared(self, SegmenterNodeConfig, followed=True)
        self._segmenter = Segmenter(self._config, package_share() / "models", beside._segmenter if beside else None)
        self._removed = self._ids_of(self._config.filter)
        self._outputs = Outputs(self, self._segmenter)
        self._palette = self._segmenter.classes.palette()
        self._overlay = Overlay(self, self._config.overlay, self._palette, lambda: self._transforms)
        if self._config.input.level_frame:
            self._transforms  # noqa: B018 - to fail at the start, not at the first cloud
        self._durations = {
            stage: self.create_publisher(Float64, f"~/debug/processing_time/{stage}_ms", 1) for stage in STAGES
        }
        self._latency = self.create_publisher(Float64, "~/debug/pipeline_latency_ms", 1)
        self._tally, self._gaps = Tally(), GapMeter()
        self._drops = Drops(self, self._tally)
        events = ("received", "labelled", *DROP_CAUSES, "missing")
        self._diagnostics = DiagnosticsPublisher(self, self._tally, events, self._facts, self._idle)
        self._worker: Worker[PointCloud2] = Worker(self._drops.guarded(self._label))
        self._workers: list[Worker[PointCloud2]] = beside._workers if beside else []
        self._workers.append(self._worker)
        self._segmenter.segment(warm_up_frame())
        self._enabled = True
        self._input: NewestSubscription | None = None
        self._topic = self.resolve_topic_name("~/input/pointcloud")
        self._last_stamp_ns, self._looked_s = 0, -math.inf
        self.create_service(SetBool, "~/enable", self._enable)
        self.create_service(Trigger, "~/reset", self._reset)
        self.create_service(Trigger, "~/dump_timings", self._dump_timings)
        follow(self, self._config, self._reconfigure)
        self._attending = steady_timer(self, ATTEND_PERIOD_S, self._attend)
        self._watching = steady_timer(self, LOG_PERIOD_S, self._watch)
        facts = self._facts()
        how = f"{facts['precision']}, {facts['engine']}"
        self.get_logger().info(f"{self._segmenter.path.name} on {facts['device']}: ready for clouds ({how})")

    def _facts(self) -> dict[str, str]:
        backend, model = self._segmenter.backend, self._segmenter.description.name
        return {"model": model, "device": backend.device, "precision": backend.precision, "engine": backend.engine}

    @cached_property
    def _transforms(self) -> Transforms:
        return Transforms(self, "input.level_frame" if self._config.input.level_frame else "the overlay")

    def _ids_of(self, config: FilterConfig) -> np.ndarray:
        names = [name.strip() for name in config.classes.split(",") if name.strip()]
        return np.array([self._segmenter.classes.id_of(name) for name in names], np.uint8)

    def _reconfigure(self, config: SegmenterNodeConfig) -> None:
        self._removed = self._ids_of(config.filter)
        self._config = self._segmenter.config = config
        self._overlay.config = config.overlay

    # Attention: nothing is received while nobody listens.

    def _idle(self) -> str:
        if not self._enabled:
            return "disabled by ~/enable"
        return "" if self._input else "idle: nobody subscribes to an output"

    def _attend(self) -> None:
        overlaid = self._overlay.wanted()
        wanted = self._enabled and (overlaid or self._outputs.wanted())
        self._overlay.attend(wanted and overlaid)
        if wanted and self._input is None:
            self._input = NewestSubscription(self, PointCloud2, "~/input/pointcloud", self._receive)
        elif not wanted and self._input is not None:
            self._input.destroy()
            self._input = None
            self._drop_waiting()

    def _watch(self) -> None:
        """Say what is likely wrong where no cloud can come."""
        if self._input is not None and not self.count_publishers(self._topic):
            kind = "sensor_msgs/msg/PointCloud2"
            clouds = [name for name, kinds in self.get_topic_names_and_types() if kind in kinds]
            there = [name for name in clouds if self.count_publishers(name) and "/output/" not in name]
            choice = f"there are {', '.join(there)}; remap ~/input/pointcloud" if there else "no topic has clouds now"
            self.get_logger().warning(f"nobody publishes clouds on {self._topic}: {choice}")
        if self.get_parameter("use_sim_time").value and self.get_clock().now().nanoseconds == 0:
            self.get_logger().warning("use_sim_time is true, but nothing comes on /clock; latencies are invalid")

    # One message, in the executor's thread: received, or dropped.

    def _receive(self, message: PointCloud2) -> None:
        self._tally.count("received")
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if stamp_ns < self._last_stamp_ns:
            self._overlay.clear()
        self._last_stamp_ns = stamp_ns
        self._tally.count("missing", self._gaps.missing_before(stamp_ns))
        if self._worker.put(message):
            self._tally.count("busy")

    def _drop_waiting(self) -> None:
        if self._worker.clear():
            self._tally.count("busy")

    # One message, in the worker's thread: labelled.

    def _label(self, message: PointCloud2) -> None:
        config, removed = self._config, self._removed
        start = time.perf_counter()
        content = cloud_content(message)
        age_s = self._age_s(content.stamp_ns)
        if 0 < config.input.max_age_s < age_s:
            self._drops.drop("stale", f"it is {age_s:.2f} s old, and input.max_age_s is {config.input.max_age_s}")
            return
        cloud = CloudOnDemand(content, config.input.fields, config.output.layout, self._palette)
        sweep = cloud.sweep(self._segmenter.takes_bytes)
        converted = time.perf_counter()
        result = self._segmented(sweep, self._level_from_lidar(config, content))
        segmented = time.perf_counter()
        labelled = LabelledOnDemand(cloud, result.labels)
        self._outputs.publish(labelled, removed)
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
        age_s = self._age_s(content.stamp_ns)
        self._latency.publish(Float64(data=age_s * 1e3 if 0 <= age_s <= MAX_PLAUSIBLE_LATENCY_S else math.nan))
        self._look_at(labelled)

    def _segmented(self, sweep: LidarFrame | PackedCloud, level_from_lidar: np.ndarray | None) -> Segmentation[Any]:
        """Segment, and once more if that fails: a GPU that others use too can be out of memory for a moment."""
        try:
            return self._segmenter.segment(sweep, level_from_lidar)
        except UserError:
            raise
        except Exception as error:
            self.get_logger().warning(f"labelling failed, once more: {error!r}", throttle_duration_sec=LOG_PERIOD_S)
            return self._segmenter.segment(sweep, level_from_lidar)

    def _age_s(self, stamp_ns: int) -> float:
        return (self.get_clock().now().nanoseconds - stamp_ns) / 1e9

    def _level_from_lidar(self, config: SegmenterNodeConfig, content: CloudContent) -> np.ndarray | None:
        if not config.input.level_frame:
            return None
        return self._transforms.lookup(config.input.level_frame, content.frame_id, content.stamp_ns)

    def _publish_durations(self, **durations_ms: float) -> None:
        for stage, duration_ms in durations_ms.items():
            self._tally.time(stage, duration_ms)
            self._durations[stage].publish(Float64(data=duration_ms))

    def _look_at(self, labelled: LabelledOnDemand) -> None:
        """Draw the overlay if somebody watches, and say now and then if the labels are hardly to be trusted."""
        sensor, inputs, cloud = self._config.input, self._segmenter.description.inputs, labelled.cloud
        if time.monotonic() - self._looked_s >= LOG_PERIOD_S:
            self._looked_s = time.monotonic()
            classes, is_levelled = self._segmenter.classes, bool(sensor.level_frame)
            said = doubt(cloud.frame, labelled.labels, classes, inputs, sensor, is_levelled)
            if said:
                self.get_logger().warning(said, throttle_duration_sec=12 * LOG_PERIOD_S)
        if self._overlay.wanted():
            try:
                self._overlay.publish(cloud.frame, labelled.labels)
            except UserError as error:
                self.get_logger().warning(f"no overlay: {error}", throttle_duration_sec=LOG_PERIOD_S)

    # Services.

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        self._attend()
        response.success, response.message = True, self._idle() or "working"
        return response

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._worker.clear()
        self._overlay.clear()
        self._tally.clear()
        self._gaps = GapMeter()
        response.success, response.message = True, "counters, timings and buffers are empty"
        return response

    def _dump_timings(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        stages = {
            stage: {"median_ms": round(median_ms, 3), "p95_ms": round(p95_ms, 3)}
            for stage, (median_ms, p95_ms) in self._tally.percentiles_ms().items()
        }
        response.success, response.message = True, json.dumps({"counts": self._tally.counts(), "stages": stages})
        return response

    def destroy_node(self) -> None:
        """Let the clouds in work be finished, then go; the lidars of a process end at the same time."""
        stop_together(self._workers)
        self._workers.clear()
        super().destroy_node()


def warm_up_frame() -> LidarFrame:
    """Make a small sweep on which libraries load their kernels before the first real cloud."""
    grid = np.stack(np.meshgrid(np.arange(-5, 5, 0.2), np.arange(-5, 5, 0.2), [-0.5, 0.0]), axis=-1)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=grid.reshape(-1, 3).astype(np.float32))


def segmenters() -> Iterator[SegmenterNode]:
    """Make a node, or one for each lidar that the command line names; all use the model that the first one loads."""
    first: SegmenterNode | None = None
    for namespace in namespaces_of(sys.argv) or [""]:
        node = SegmenterNode(namespace, beside=first)
        first = first or node
        yield node


def main() -> None:
    """Run the node, or those of several lidars."""
    leave(run_nodes(segmenters))


if __name__ == "__main__":
    main()
