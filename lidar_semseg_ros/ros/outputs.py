"""What the segmenter publishes of a labelled cloud, each only when somebody subscribes to it."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String

from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.formats.on_demand import LabelledOnDemand
from lidar_semseg_ros.formats.pointcloud2 import filtered_cloud, visualization_cloud
from lidar_semseg_ros.network.segmenter import Segmenter
from lidar_semseg_ros.ros.endpoints import outlet
from lidar_semseg_ros.ros.messages import cloud_message, image_message, installed_message, time_message

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Outputs:
    """The publishers of labelled clouds and of what the labels mean."""

    def __init__(self, node: Node, segmenter: Segmenter) -> None:
        self._segmentation = outlet(node, PointCloud2, "~/output/pointcloud/segmentation", 2)
        self._visualization = outlet(node, PointCloud2, "~/output/pointcloud/visualization", 1)
        self._filtered = outlet(node, PointCloud2, "~/output/pointcloud/filtered", 1)
        self._label_image = outlet(node, Image, "~/output/label_image", qos_profile_sensor_data)
        self._confidence_image = outlet(node, Image, "~/output/confidence_image", qos_profile_sensor_data)
        self._latched = publish_classes(node, segmenter.class_map(), segmenter.classes.names)

    def wanted(self) -> bool:
        """Tell whether anybody subscribes to a result."""
        return any(
            publisher.get_subscription_count()
            for publisher in (
                self._segmentation,
                self._visualization,
                self._filtered,
                self._label_image,
                self._confidence_image,
            )
        )

    def publish(self, labelled: LabelledOnDemand, removed: np.ndarray) -> None:
        """Publish a cloud's labels in every form that is subscribed to; removed: class ids the filtered cloud lacks.

        The labelled cloud goes first, for a GPU has finished its bytes; all else is made from them.
        """
        cloud = labelled.cloud
        if self._segmentation.get_subscription_count():
            self._segmentation.publish(cloud_message(labelled.content))
        if self._visualization.get_subscription_count():
            colored = visualization_cloud(cloud.frame, cloud.content, labelled.labels, cloud.palette)
            self._visualization.publish(cloud_message(colored))
        if self._filtered.get_subscription_count():
            kept = ~np.isin(labelled.labels.class_id, removed)
            self._filtered.publish(cloud_message(filtered_cloud(cloud.content, kept)))
        shape = (cloud.content.height, cloud.content.width)
        header = Header(stamp=time_message(cloud.content.stamp_ns), frame_id=cloud.content.frame_id)
        if self._label_image.get_subscription_count():
            self._label_image.publish(image_message(labelled.labels.class_id.reshape(shape), header))
        if self._confidence_image.get_subscription_count():
            confidence = np.rint(labelled.labels.probability * 255).astype(np.uint8)
            self._confidence_image.publish(image_message(confidence.reshape(shape), header))


def publish_classes(node: Node, class_map: str, names: tuple[str, ...]) -> list[Publisher]:
    """Publish for good what the class ids mean: as JSON, and as LabelInfo where that is installed."""
    publishers = [node.create_publisher(String, "~/output/class_map", LATCHED)]
    publishers[0].publish(String(data=class_map))
    label_info = installed_message("vision_msgs/msg/LabelInfo")
    if label_info is not None:
        publishers.append(node.create_publisher(label_info, "~/output/label_info", LATCHED))
        publishers[1].publish(_label_info(label_info, names))
    return publishers


def _label_info(kind: type, names: tuple[str, ...]) -> object:
    from vision_msgs.msg import VisionClass

    message = kind()
    classes = [*enumerate(names), (UNLABELLED, "unlabelled")]
    message.class_map = [VisionClass(class_id=class_id, class_name=name) for class_id, name in classes]
    return message
