"""The player node: a recording of any kind as live topics and /clock, without a conversion step."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from functools import partial
from pathlib import Path

import rclpy
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor, SetParametersResult
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool, Trigger

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import POINT_CLOUD, open_bag, why_no_clouds
from lidar_semseg_ros.formats.playback import (
    PlaybackConfig,
    chosen_topics,
    messages_from,
    parse_remaps,
    played_span,
)
from lidar_semseg_ros.ros.messages import installed_message, time_message
from lidar_semseg_ros.ros.parameters import declared
from lidar_semseg_ros.ros.playback import Keyboard, Playback
from lidar_semseg_ros.ros.process import leave, run_node
from lidar_semseg_ros.ros.timers import steady_timer

LATCHED = ("/tf_static", "/robot_description", "/map")
"""Topics whose late subscribers expect the last message, also where the recording does not say so."""
LEAST_DEPTH, MOST_DEPTH = 10, 1000
KEY_SEEK_S = 5.0
PATIENCE_S = 3.0
"""How long to wait for subscribers without a word."""
SWITCH_INTERVAL_S = 0.0005
"""After how long the thread that reads ahead lets go of the interpreter for the one that publishes on time."""


class PlayerNode(Node):
    """Publishes a bag in its own time, in a thread, and shuts down at its end; services and keys steer it.

    has_failed: whether the bag could not be played to its end.
    """

    def __init__(self) -> None:
        super().__init__("player")
        self._config = declared(self, PlaybackConfig)
        if not self._config.bag:
            raise UserError("nothing to play; set the parameter 'bag' to a recording")
        self._bag = open_bag(Path(self._config.bag).expanduser())
        self._topics = chosen_topics(self._bag, self._config)
        self._start_ns, self._end_ns = played_span(self._bag, self._config)
        if POINT_CLOUD not in self._topics.values():
            self.get_logger().warning(why_no_clouds(self._bag))
        self._outlets = self._make_outlets()
        # Two clocks would make time jump to and fro; that of a simulation fits the stamps it was recorded with.
        own_clock = self._config.clock and "/clock" not in self._outlets
        self._clock_publisher = self.create_publisher(Clock, "/clock", 1) if own_clock else None
        self._playback = self._make_playback()
        self._offer_control()
        self._stopping = threading.Event()
        self.has_failed = False
        self._thread = threading.Thread(target=self._play, name="playback", daemon=True)
        # Only once the node is spun, for a recording may be at its end at once, and with it the node.
        self._beginning = steady_timer(self, 0.0, self._begin)

    def _begin(self) -> None:
        self._beginning.cancel()
        self._thread.start()

    def _latched(self) -> set[str]:
        return {topic for topic in self._topics if topic in LATCHED or topic in self._bag.latched}

    def _make_outlets(self) -> dict[str, Publisher]:
        remaps = parse_remaps(self._config.remap)
        publishers = {}
        for topic, kind in self._topics.items():
            message_class = installed_message(kind)
            if message_class is None:
                self.get_logger().warning(f"{topic} is not played: message type {kind} is not installed")
                continue
            qos = QoSProfile(depth=LEAST_DEPTH)
            if topic in self._latched():
                qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
                # Each message of /tf_static may hold other frames, and a late subscriber needs them all.
                qos.depth = min(max(LEAST_DEPTH, self._bag.message_count(topic)), MOST_DEPTH)
            publishers[topic] = self.create_publisher(message_class, remaps.get(topic, topic), qos)
        return publishers

    def _make_playback(self) -> Playback:
        played = list(self._outlets)
        clouds = {topic for topic in played if self._topics[topic] == POINT_CLOUD}
        return Playback(
            lambda start_ns: messages_from(self._bag, played, self._latched(), start_ns, self._end_ns),
            publish=lambda topic, data: self._outlets[topic].publish(data),
            tick=self._publish_clock,
            is_step=lambda topic: topic in clouds or not clouds,
            complain=lambda said: self.get_logger().warning(said, throttle_duration_sec=5.0),
            rate=self._config.rate,
            paused=self._config.paused,
        )

    def _offer_control(self) -> None:
        self.create_service(SetBool, "~/pause", self._answer_pause)
        self.create_service(Trigger, "~/step", self._answer_step)
        self._keyboard: Keyboard | None = None
        if self._config.keyboard:
            self.get_logger().info(f"keys: space pauses, s steps, left and right seek by {KEY_SEEK_S:g} s")
            self._keyboard = Keyboard(
                {
                    b" ": lambda: self._pause(not self._playback.is_paused),
                    b"s": self._step,
                    b"\x1b[C": partial(self._seek_by, KEY_SEEK_S),
                    b"\x1b[D": partial(self._seek_by, -KEY_SEEK_S),
                }
            )
        # A parameter, since no service of std_srvs takes a number: it is checked, and the caller hears the outcome.
        text = "set it to jump there, in seconds from the recording's start"
        span = [FloatingPointRange(from_value=0.0, to_value=self._bag.duration_ns / 1e9)]
        self.declare_parameter("seek_s", 0.0, ParameterDescriptor(description=text, floating_point_range=span))
        self.add_on_set_parameters_callback(self._accept)

    def _answer_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = True, self._pause(request.data)
        return response

    def _pause(self, paused: bool) -> str:
        self._playback.pause(paused)
        state = "paused" if paused else "playing"
        self.get_logger().info(state)
        return state

    def _answer_step(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._step()
        response.message = "" if response.success else "only what is paused can be stepped; call ~/pause first"
        return response

    def _step(self) -> bool:
        if self._playback.is_paused:
            self._playback.step()
        return self._playback.is_paused

    def _accept(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "seek_s":
                self._playback.seek(self._bag.start_ns + round(parameter.value * 1e9))
        return SetParametersResult(successful=True)

    def _seek_by(self, seconds: float) -> None:
        wanted_ns = self._playback.time_ns() + round(seconds * 1e9)
        self._playback.seek(min(max(wanted_ns, self._bag.start_ns), self._bag.end_ns))

    def _play(self) -> None:
        try:
            self._wait_for_subscribers()
            for turn in itertools.count(1):
                has_ended = self._playback.play(self._start_ns)
                if not has_ended or not self._config.loop or not self._playback.published:
                    break
                self.get_logger().info(f"played the recording {turn} times")
            for publisher in filter(None, [*self._outlets.values(), self._clock_publisher]):
                publisher.wait_for_all_acked(Duration(seconds=5))
            self.get_logger().info(f"played {self._playback.published} messages")
        except UserError as error:
            self.has_failed = True
            self.get_logger().error(str(error))
        except Exception:
            if rclpy.ok():  # else the node is being taken down under us
                self.has_failed = True
                raise
        finally:
            rclpy.try_shutdown()

    def _wait_for_subscribers(self) -> None:
        clouds = [publisher for topic, publisher in self._outlets.items() if self._topics[topic] == POINT_CLOUD]
        wanted, started = self._config.wait_for_subscribers, time.monotonic()
        while clouds and max(publisher.get_subscription_count() for publisher in clouds) < wanted:
            if started and time.monotonic() - started > PATIENCE_S:
                names = ", ".join(publisher.topic_name for publisher in clouds)
                self.get_logger().info(
                    f"waiting for {wanted} subscribers of {names}; a segmenter subscribes as soon as somebody (RViz, "
                    f"ros2 topic echo, a recorder) subscribes to what it publishes"
                )
                started = 0.0
            if self._stopping.wait(0.05):
                return

    def _publish_clock(self, now_ns: int) -> None:
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=time_message(now_ns)))

    def destroy_node(self) -> None:
        """Stop playing and give the terminal back, then go."""
        self._stopping.set()
        self._playback.stop()
        if self._thread.is_alive():
            self._thread.join(2.0)
        if self._keyboard is not None:
            self._keyboard.stop()
        super().destroy_node()


def main() -> None:
    """Run the node; the exit status is 1 when the recording could not be played to its end."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    players: list[PlayerNode] = []

    def make() -> PlayerNode:
        players.append(PlayerNode())
        return players[0]

    status = run_node(make)
    leave(status or int(any(player.has_failed for player in players)))


if __name__ == "__main__":
    main()
