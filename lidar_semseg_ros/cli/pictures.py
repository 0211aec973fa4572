"""Pictures of labelled clouds of a recording, with its exact labels and camera where it has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lidar_semseg_ros.core.classes import UNLABELLED_COLOR, ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import transform_points
from lidar_semseg_ros.core.pairing import KEPT_S
from lidar_semseg_ros.formats.bags import Bag, Span, header_stamp_ns
from lidar_semseg_ros.formats.dataset import exact_labels
from lidar_semseg_ros.formats.images import read_image
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, column, read_cloud
from lidar_semseg_ros.formats.poses import fixed_transforms
from lidar_semseg_ros.formats.rig import recorded_rig
from lidar_semseg_ros.view.paint import birds_eye, legend, overlay, perspective, side_by_side, titled
from lidar_semseg_ros.view.report import Picture

MAX_PAIR_DIFFERENCE_S = 0.1
MAX_DELAY_NS = round(KEPT_S * 1e9)
"""Cloud and image of one time were logged no farther apart."""
COMPARED_PX = 540
RIGHT_COLOR, WRONG_COLOR = (60, 110, 80), (255, 60, 60)


def pictures_of(bag: Bag, topic: str, cloud: CloudContent, classes: ClassTable) -> list[Picture]:
    """Draw a labelled cloud of the recording's topic from above, from behind and over a camera's image."""
    frame = read_cloud(cloud)
    class_id = column(cloud, "class_id")
    color = classes.palette()[class_id]
    extent_m = _extent_m(frame.xyz[frame.has_return()])
    below_m = _ceiling_m(frame.xyz[:, 2], class_id, classes)
    truth = exact_labels(bag).get(cloud.stamp_ns)
    views = [titled(birds_eye(frame.xyz, color, half_extent_m=extent_m, below_m=below_m), "labelled live")]
    if truth is not None:
        exact = birds_eye(frame.xyz, classes.palette()[truth], half_extent_m=extent_m, below_m=below_m)
        views.append(titled(exact, "exact labels"))
    above = side_by_side(views)
    shown = class_id if truth is None else np.concatenate([class_id, truth])
    found = [int(i) for i in np.unique(shown) if i != UNLABELLED]
    above = np.concatenate([above, legend(classes, found, above.shape[1])])
    behind = perspective(frame.xyz, color, back_m=0.7 * extent_m, up_m=0.6 * extent_m, below_m=below_m)
    pictures = [
        Picture(title="From above", caption=f"{2 * extent_m:.0f} m across, cut below the ceiling", pixels=above),
        Picture(title="From behind", caption="the same cloud", pixels=behind),
    ]
    over_image = _over_image(bag, topic, frame, color)
    if over_image is not None:
        pictures.append(Picture(title="Over the camera", caption="labelled points, projected", pixels=over_image))
    return pictures


def comparison_picture(
    frame: LidarFrame, labels: Mapping[str, np.ndarray], truth: np.ndarray, classes: ClassTable
) -> Picture:
    """Draw a sweep from above once for each kind of labels (N,) by title, and where the last ones are wrong."""
    palette, last = classes.palette(), list(labels.values())[-1]
    extent_m = _extent_m(frame.xyz[frame.has_return()])
    below_m = _ceiling_m(frame.xyz[:, 2], truth, classes)
    judged = np.where(truth == UNLABELLED, 0, np.where(truth == last, 1, 2))
    colors = {title: palette[class_id] for title, class_id in labels.items()}
    colors["errors"] = np.array([UNLABELLED_COLOR, RIGHT_COLOR, WRONG_COLOR], np.uint8)[judged]
    views = [
        titled(birds_eye(frame.xyz, color, half_extent_m=extent_m, below_m=below_m, size_px=COMPARED_PX), title)
        for title, color in colors.items()
    ]
    row = side_by_side(views)
    found = np.unique(np.concatenate(list(labels.values())))
    key = legend(classes, [int(number) for number in found if number != UNLABELLED], row.shape[1])
    caption = f"{2 * extent_m:.0f} m across, cut below the ceiling; errors are red, points without a truth gray"
    return Picture(title="One sweep from above", caption=caption, pixels=np.concatenate([row, key]))


def _extent_m(xyz: np.ndarray) -> float:
    """Find how far 97 % of the points reach."""
    return float(np.clip(np.percentile(np.abs(xyz[:, :2]).max(axis=1), 97), 3.0, 60.0)) if len(xyz) else 10.0


def _ceiling_m(z: np.ndarray, class_id: np.ndarray, classes: ClassTable) -> float:
    """Find the height below which one looks into rooms: under the ceiling, where the model knows ceilings."""
    if "ceiling" not in classes.names:
        return float("inf")
    ceiling = z[class_id == classes.id_of("ceiling")]
    return float(np.percentile(ceiling, 10)) - 0.3 if len(ceiling) > 50 else float("inf")


def _over_image(bag: Bag, topic: str, frame: LidarFrame, color: np.ndarray) -> np.ndarray | None:
    """Draw the points over the nearest image of the first camera; None where the recording lacks something for it."""
    try:
        camera = recorded_rig(bag, topic, frame.frame_id, fixed_transforms(bag), None).cameras[0]
        image = _nearest_image(bag, topic, camera.topic, frame.stamp_ns)
    except UserError:
        return None
    if image is None:
        return None
    points = transform_points(camera.camera_from_lidar, frame.xyz.astype(np.float64))
    uv_px, shown = camera.camera.project(np.nan_to_num(points, nan=-1.0))
    shown &= frame.has_return()
    return overlay(image.pixels, uv_px[shown], points[shown, 2], color[shown])


def _nearest_image(bag: Bag, cloud_topic: str, image_topic: str, stamp_ns: int) -> CameraImage | None:
    """Read the image nearest to a cloud of the recording among those that were logged about when it was."""
    clouds = bag.messages([cloud_topic])
    logged_ns = next((one.log_time_ns for one in clouds if header_stamp_ns(one.message()) == stamp_ns), None)
    if logged_ns is None:
        return None
    about = Span(logged_ns - MAX_DELAY_NS, logged_ns + MAX_DELAY_NS)
    messages = (recorded.message() for recorded in bag.messages([image_topic], about))
    nearest = min(messages, key=lambda message: abs(header_stamp_ns(message) - stamp_ns), default=None)
    if nearest is None or abs(header_stamp_ns(nearest) - stamp_ns) > MAX_PAIR_DIFFERENCE_S * 1e9:
        return None
    return read_image(nearest)
