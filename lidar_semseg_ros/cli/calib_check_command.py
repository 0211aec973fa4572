"""lidar-semseg calib-check: whether the points of a recording fall on what its cameras show."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lidar_semseg_ros.cli.labelling import frame_of_clouds, recorded_motion
from lidar_semseg_ros.cli.outputs import require_folder
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage, LidarFrame
from lidar_semseg_ros.core.geometry import invert_rigid
from lidar_semseg_ros.core.pairing import NearestPairing, Paired, PairingConfig
from lidar_semseg_ros.formats.bags import EVERYTHING, Bag, BagMessage, Span, cloud_topics, open_bag, why_no_clouds
from lidar_semseg_ros.formats.calibration import calibration_file, read_calibration
from lidar_semseg_ros.formats.dataset import chosen_cloud_topic
from lidar_semseg_ros.formats.images import read_image
from lidar_semseg_ros.formats.pointcloud2 import cloud_content, read_cloud
from lidar_semseg_ros.formats.poses import fixed_transforms
from lidar_semseg_ros.formats.rig import RecordedCamera, Rig, recorded_rig
from lidar_semseg_ros.teacher.alignment import SIGHT, Alignment, EdgeView, alignment, edge_view
from lidar_semseg_ros.teacher.labeller import TakenImage
from lidar_semseg_ros.teacher.lifting import Trajectory, points_in_camera, sighting
from lidar_semseg_ros.view.paint import overlay, range_colors, save_png, titled

logger = logging.getLogger(__name__)

MOMENTS = 8
"""Places of the recording that are looked at: enough edges in all directions, in a few seconds."""
WINDOW_NS = 10**9
EDGE_COLOR = (255, 0, 255)
WIDTH_OF_POINTS = 400
"""An image is so many points wide, so that points have the same size on each screen."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Moment:
    """An image of a camera with the sweep of its time, its points in the camera's frame, and the edges of both."""

    image: CameraImage
    xyz_camera: np.ndarray
    edges: EdgeView


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bag", type=Path, help="a recording with a lidar and cameras, of ROS 1 or ROS 2")
    parser.add_argument(
        "--calibration", help="calibration file, or the name of a shipped one (default: CameraInfo and /tf_static)"
    )
    parser.add_argument("--topic", help="the cloud topic (default: the only one)")
    parser.add_argument("--poses", help="topic of Odometry or PoseStamped, or 'none' (default: as for `label`)")
    parser.add_argument("-o", "--output", type=Path, help="the .png file to draw the points over the images into")


def run(args: argparse.Namespace) -> None:
    """Print how well each camera fits, and draw the middle one of the moments looked at."""
    require_folder(args.output)
    pictures = []
    for camera, moments in moments_of_cameras(args.bag, args.calibration, args.topic, args.poses).items():
        if not moments:
            print(f"{camera}: no image that can be read lies near a cloud in time; look at the stamps")
            continue
        found = alignment([moment.edges for moment in moments], np.random.default_rng(SEED))
        print(f"{camera}: {in_words(found)}")
        pictures.append(titled(drawn(moments[len(moments) // 2]), f"{camera}: {found.verdict}"))
    if args.output is not None:
        if not pictures:
            raise UserError(f"{args.bag} has no image that can be drawn near a cloud in time")
        save_png(args.output, _stacked(pictures))
        print(f"picture: {args.output} (points by range, red near, blue far; pink: where the depth jumps)")


def moments_of_cameras(
    path: Path, calibration: str | None, topic: str | None, poses: str | None
) -> dict[str, list[Moment]]:
    """Read, for each camera, up to MOMENTS images with their sweeps, spread over the recording.

    Images and clouds that cannot be read are left out with a warning.
    """
    with open_bag(path) as bag:
        if not cloud_topics(bag):
            raise UserError(why_no_clouds(bag))
        topic = chosen_cloud_topic(bag, topic, str(path))
        tree = fixed_transforms(bag)
        lidar_frame = frame_of_clouds(bag, topic)
        described = read_calibration(calibration_file(calibration)) if calibration else None
        rig = recorded_rig(bag, topic, lidar_frame, tree, described)
        trajectory, base_from_lidar, _ = recorded_motion(bag, lidar_frame, tree, poses)
        moments: dict[str, list[Moment]] = {camera.name: [] for camera in rig.cameras}
        spans = _spans(bag)
        for span in spans:
            pairs = [pair for pair in _pairs(bag, topic, rig, span) if pair.images]
            chosen = np.linspace(0, len(pairs) - 1, -(-MOMENTS // len(spans)) if pairs else 0).astype(int)
            for pair in (pairs[index] for index in np.unique(chosen)):
                for camera in rig.cameras:
                    if camera.name in pair.images:
                        with _left_out(camera.topic):
                            taken = _taken(camera, *pair.images[camera.name])
                            moments[camera.name].append(_moment(taken, pair.cloud, trajectory, base_from_lidar))
    return moments


@contextmanager
def _left_out(topic: str) -> Iterator[None]:
    """Go on without a message that cannot be read."""
    try:
        yield
    except UserError as error:
        logger.warning("a message of %s is left out: %s", topic, error)


def _spans(bag: Bag) -> list[Span]:
    """Spread short spans over a long recording; a short one is read as a whole."""
    count = min(bag.duration_ns // (2 * WINDOW_NS), MOMENTS)
    if count < 2:
        return [EVERYTHING]
    starts_ns = bag.start_ns + np.linspace(0, bag.duration_ns - WINDOW_NS, count).astype(np.int64)
    return [Span(start_ns=int(start_ns), end_ns=int(start_ns) + WINDOW_NS) for start_ns in starts_ns]


def _pairs(bag: Bag, topic: str, rig: Rig, span: Span) -> Iterator[Paired[LidarFrame, BagMessage]]:
    """Pair the sweeps of a span with the images nearest in time; what cannot be read is left out."""
    cameras = {camera.topic: camera for camera in rig.cameras}
    pairing: NearestPairing[LidarFrame, BagMessage] = NearestPairing(
        [camera.name for camera in rig.cameras], PairingConfig()
    )
    for recorded in bag.messages({topic, *cameras}, span):
        ready: list[Paired[LidarFrame, BagMessage]] = []
        with _left_out(recorded.topic):
            message = recorded.message()
            if recorded.topic == topic:
                frame = read_cloud(cloud_content(message))
                sweep_s = frame.duration_s()
                began = replace(frame, stamp_ns=rig.lidar.start_ns(frame.stamp_ns, sweep_s))
                ready = pairing.add_cloud(rig.lidar.middle_ns(frame.stamp_ns, sweep_s), began)
            else:
                camera, stamp = cameras[recorded.topic], message.header.stamp
                time_ns = stamp.sec * 10**9 + stamp.nanosec + round(camera.stamp_offset_s * 1e9)
                ready = pairing.add_image(camera.name, time_ns, recorded)
        yield from ready
    yield from pairing.flush()


def _taken(camera: RecordedCamera, time_ns: int, recorded: BagMessage) -> TakenImage:
    return TakenImage(
        time_ns=time_ns,
        image=read_image(recorded.message()),
        camera=camera.camera,
        camera_from_lidar=camera.camera_from_lidar,
    )


def _moment(taken: TakenImage, frame: LidarFrame, trajectory: Trajectory | None, base_from_lidar: np.ndarray) -> Moment:
    around = trajectory.around(frame.stamp_ns) if trajectory else None
    camera_from_base = taken.camera_from_lidar @ invert_rigid(base_from_lidar)
    xyz_camera = points_in_camera(frame, taken.time_ns, camera_from_base, base_from_lidar, around)
    edges = edge_view(taken.image.pixels, taken.camera, frame, xyz_camera, taken.camera_from_lidar[:3, 3])
    return Moment(image=taken.image, xyz_camera=xyz_camera, edges=edges)


def in_words(found: Alignment) -> str:
    """Say what an alignment means."""
    measured = (
        f"{found.edges} depth edges fit the image's better than {found.percentile:.0f} % of the calibrations that are "
        f"wrong by 1 to 3° and 2 to 10 cm"
    )
    pitch, yaw, roll = found.turn_deg
    turn = f"{pitch:+.1f}° about its x axis (right), {yaw:+.1f}° about y (down), {roll:+.1f}° about z (ahead)"
    if found.verdict == "good":
        return f"good; {measured}; the best fit is {found.off_by_deg:.1f}° away"
    if found.verdict == "wrong":
        return f"wrong; {measured}; they would fit best with the points turned, as the camera sees them, by {turn}"
    return (
        f"unclear; {measured}, and halves of them ask for turns {found.disagreement_deg:.1f}° apart; record more of a "
        "place with furniture or trees in all parts of the image"
    )


def drawn(moment: Moment) -> np.ndarray:
    """Draw the visible points of a moment by range, and where the depth jumps, over its image."""
    camera = moment.edges.camera
    seen = sighting(moment.xyz_camera, camera, SIGHT)
    edge_uv, shown = camera.project(moment.edges.xyz_camera)
    colors = np.concatenate([range_colors(seen.depth_m), np.full((shown.sum(), 3), EDGE_COLOR, np.uint8)])
    depth_m = np.concatenate([seen.depth_m, np.zeros(shown.sum())])  # edges lie on top
    radius_px = max(round(camera.width / WIDTH_OF_POINTS / 2), 1)
    return overlay(moment.image.pixels, np.concatenate([seen.uv_px, edge_uv[shown]]), depth_m, colors, radius_px)


def _stacked(pictures: list[np.ndarray]) -> np.ndarray:
    """Put pictures below each other, narrower ones with a black rim to the right."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(one, ((0, 4), (0, width - one.shape[1]), (0, 0))) for one in pictures])
