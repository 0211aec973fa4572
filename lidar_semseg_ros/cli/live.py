"""Nodes as processes around a recording: play it, segment it live, record what arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lidar_semseg_ros.cli.play_command import node_command
from lidar_semseg_ros.cli.segment_command import CLASS_MAP_TOPIC, SEGMENTATION_TOPIC
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.segmenter import STAGES

STAGE_TOPIC = "/segmenter/debug/processing_time/{}_ms"
LATENCY_TOPIC = "/segmenter/debug/pipeline_latency_ms"
START_TIMEOUT_S = 600.0
"""A first start compiles, which takes minutes on a small computer."""
LATE_S = 120.0
"""So much longer than its recording a player may take, its own start included."""
LAST_WORDS_S = 2.5
"""How long after the last cloud to wait: it may still be in work, and diagnostics come once a second."""


def live_environment() -> dict[str, str]:
    """Set a ROS domain of its own on this machine only, with a transport that carries large clouds."""
    profile = str(package_share() / "config" / "rmw" / "fastdds.xml")
    return os.environ | {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
    }


class NodeProcess:
    """A node in a process of its own; its log goes to a file and can be waited on.

    arguments: further ones of ROS, and after "--" the node's own.
    """

    def __init__(
        self,
        node: str,
        parameters: Mapping[str, Any],
        remaps: Mapping[str, str],
        log: Path,
        arguments: Sequence[str] = (),
    ) -> None:
        command = node_command(node, dict(parameters))
        for source, target in remaps.items():
            command += ["-r", f"{source}:={target}"]
        command += arguments
        self._node, self._log = node, log
        self._said = threading.Condition()
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            command, env=live_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._log.open("w") as file:
            for line in self.process.stdout:
                file.write(line)
                with self._said:
                    self._lines.append(line.rstrip())
                    self._said.notify_all()
        with self._said:
            self._said.notify_all()

    def wait_for(self, text: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the node has logged a text; UserError with its last words if it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        with self._said:
            while not any(text in line for line in self._lines):
                if not self._reader.is_alive() or time.monotonic() >= deadline:
                    raise UserError(f"the {self._node} did not start; its last words: {self.last_words()}")
                self._said.wait(0.5)

    def memory_mb(self) -> float:
        """Read the resident memory from Linux's /proc; 0 elsewhere."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        except (OSError, IndexError, ValueError):
            return 0.0

    def last_words(self) -> str:
        """Give the last line of the log."""
        return self._lines[-1] if self._lines else "(nothing)"

    def stop(self) -> int:
        """Interrupt the node and wait for its end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join(1)
        return status


@contextmanager
def running(*arguments: Any) -> Iterator[NodeProcess]:
    """Start a node and stop it in any case."""
    node = NodeProcess(*arguments)
    try:
        yield node
    finally:
        node.stop()


def run_live(
    bag: Path, topic: str, duration_s: float, segmenter: Mapping[str, Any], folder: Path, rate: float = 1.0
) -> tuple[Path, list[float]]:
    """Play a bag to a segmenter and record what arrives in a third process.

    Gives the recording's path and the segmenter's memory in MB, once a second. Every node is ready before the first
    cloud is played, so that all that is missing was dropped or lost.
    """
    arrived = folder / "arrived.mcap"
    arrived.unlink(missing_ok=True)
    topics = [topic, SEGMENTATION_TOPIC, CLASS_MAP_TOPIC, LATENCY_TOPIC, "/diagnostics"]
    topics += [STAGE_TOPIC.format(stage) for stage in STAGES]
    recording = {"file": str(arrived), "topics": ",".join(topics)}
    playing = {"bag": str(bag), "topics": topic, "rate": rate, "clock": False, "wait_for_subscribers": 2}
    with (
        running("recorder", recording, {}, folder / "recorder.log") as recorder,
        running("segmenter", segmenter, {"~/input/pointcloud": topic}, folder / "segmenter.log") as node,
    ):
        print("loading the model; a first start compiles for half a minute and more …", file=sys.stderr)
        node.wait_for("ready for clouds")
        recorder.wait_for(f"recording {SEGMENTATION_TOPIC}")
        with running("player", playing, {}, folder / "player.log") as player:
            memory_mb = _watch(player, node, duration_s / rate)
        time.sleep(LAST_WORDS_S)
    return arrived, memory_mb


def _watch(player: NodeProcess, segmenter: NodeProcess, duration_s: float) -> list[float]:
    """Show a bar until the player has played everything; the segmenter's memory once a second."""
    start = time.monotonic()
    memory_mb: list[float] = []
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s"
    with tqdm(total=duration_s, desc="live", bar_format=form, disable=None, file=sys.stderr) as bar:
        while player.process.poll() is None:
            elapsed_s = time.monotonic() - start
            bar.update(min(elapsed_s, duration_s) - bar.n)
            if elapsed_s >= len(memory_mb):
                memory_mb.append(segmenter.memory_mb())
            if elapsed_s > duration_s + LATE_S:
                raise UserError(f"the player hangs; its last words: {player.last_words()}")
            time.sleep(0.1)
    if player.process.returncode:
        raise UserError(f"the player failed: {player.last_words()}")
    return memory_mb
