"""Send malformed clouds among good ones to a running segmenter over DDS, and see that it counts every one and lives.

    python test/fuzz/fuzz_live.py --messages 10000

The malformed clouds are those of fuzz_readers.py, from a seed. Prints what became of them and how the memory grew;
test/ros/test_fuzz_live_short.py does the same with a few hundred.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TEST = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TEST), str(TEST.parent)]

import numpy as np
from fuzz.fuzz_readers import STAMP_NS, Decisions, cloud_message

from lidar_semseg_ros.cli.live import NodeProcess, live_environment, running
from lidar_semseg_ros.network.segmenter import DROP_CAUSES

CLOUDS_PER_S = 60.0
GOOD_EVERY = 10
WARM_UP = 0.1
"""The part of the messages after which memory is compared."""
DEPTH = 1000
YEARS_S = 3.15576e7
SETTINGS = {
    # Of the stamps of the fuzzer some are of 1970 and before: these are stale.
    "input.max_age_s": 20 * YEARS_S,
    # The newest wins by default, and then nobody knows how many came; here every one is to be received.
    "qos_overrides./robot/points.subscription.depth": DEPTH,
}


def fuzzed_cloud(rng: np.random.Generator) -> Any:
    """Make a PointCloud2 in which up to three things are not as they should be."""
    from sensor_msgs.msg import PointCloud2, PointField

    drawn = cloud_message(Decisions(rng.bytes(400)))
    message = PointCloud2(
        height=drawn.height,
        width=drawn.width,
        fields=[
            PointField(name=field.name, offset=field.offset, datatype=field.datatype, count=field.count)
            for field in drawn.fields
        ],
        is_bigendian=drawn.is_bigendian,
        point_step=drawn.point_step,
        row_step=drawn.row_step,
        is_dense=drawn.is_dense,
    )
    message.header.frame_id = drawn.header.frame_id
    message.header.stamp.sec = drawn.header.stamp.sec
    message.header.stamp.nanosec = drawn.header.stamp.nanosec
    message.data = array.array("B", drawn.data)
    return message


def fuzz(process: NodeProcess, node: Any, messages: int, rng: np.random.Generator) -> dict[str, Any]:
    """Send clouds, every tenth of them good, and one good cloud at the end; give what became of them.

    The segmenter must have been started with SETTINGS. AssertionError if it ends, if a cloud is not counted, or if
    the good cloud at the end does not come back.
    """
    from robot import Robot, good_cloud, spin_until

    robot = Robot(node, depth=DEPTH)
    spin_until(node, robot.meets)
    robot.ask(good_cloud(STAMP_NS))
    start, memory_mb = time.monotonic(), [process.memory_mb()]
    for k in range(1, messages + 1):
        robot.publisher.publish(good_cloud(STAMP_NS + k, points=300) if k % GOOD_EVERY == 0 else fuzzed_cloud(rng))
        due = start + k / CLOUDS_PER_S
        spin_until(node, lambda due=due: time.monotonic() >= due)
        if k in (int(messages * WARM_UP), messages):
            memory_mb.append(process.memory_mb())
        assert process.process.poll() is None, process.last_words()
    sent = messages + 1

    def accounted() -> bool:
        count = {cause: int(robot.values.get(cause, 0)) for cause in ("received", "labelled", *DROP_CAUSES)}
        return count.pop("received") == sent == sum(count.values())

    spin_until(node, accounted)
    robot.ask(good_cloud(STAMP_NS + messages + 1))
    assert process.process.poll() is None, process.last_words()
    return {
        "sent": sent,
        "seconds": round(time.monotonic() - start, 1),
        **{cause: int(robot.values[cause]) for cause in ("received", "labelled", *DROP_CAUSES)},
        "rss_mb at the start, after a tenth, at the end": [round(value, 1) for value in memory_mb],
    }


def main() -> None:
    """Start a segmenter, fuzz it, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="indoor-small")
    args = parser.parse_args()
    os.environ.update(live_environment())
    import rclpy
    from robot import CLOUDS

    rclpy.init()
    node = rclpy.create_node("robot")
    settings = {"model": args.model, "device": "cpu", **SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "segmenter.log"
        with running("segmenter", settings, {"~/input/pointcloud": CLOUDS}, log) as process:
            process.wait_for("ready for clouds")
            print(json.dumps(fuzz(process, node, args.messages, np.random.default_rng(args.seed)), indent=1))
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
