"""lidar-semseg doctor: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.config_files import package_share
from lidar_semseg_ros.network.backends import devices
from lidar_semseg_ros.network.model_file import read_description

OK, NOTE, FAULT = "ok", "note", "FAULT"

OPTIONAL_ROS_PACKAGES = {
    "tf2_ros": "transforms from /tf (input.level_frame, the overlay without a calibration file)",
    "vision_msgs": "~/output/label_info",
    "launch_ros": "ros2 launch",
}
"""Packages that only a ROS 2 installation has, and what is missing without them."""

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
SHARED_MEMORY = Path("/dev/shm")
SEGMENT_BYTES = 64 * 2**20
"""Shared memory that config/rmw/fastdds.xml takes per process."""
SOCKET_BYTES = 4 * 2**20
"""Receive buffer that Cyclone DDS needs for a large cloud in one burst."""
PROBE_TIMEOUT_S = 60


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report: how it is, what was seen, and what to do where it is not as it should be."""

    verdict: str
    seen: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--no-ros", action="store_true", help="leave out the checks that start ROS 2 nodes")


def run(args: argparse.Namespace) -> None:
    """Print a finding per line; exit status 1 if there is a fault."""
    faults = 0
    for finding in _findings(args.no_ros):
        print(f"[{finding.verdict:>5}] {finding.seen}", flush=True)
        if finding.remedy:
            print(f"        → {finding.remedy}")
        faults += finding.verdict == FAULT
    if faults:
        sys.exit(1)


def _findings(without_ros: bool) -> Iterator[Finding]:
    yield from runtime_findings()
    yield from model_findings(package_share() / "models")
    if without_ros:
        return
    if importlib.util.find_spec("rclpy") is None:
        yield Finding(FAULT, "ROS 2 is not installed", "source one, or `pip install 'lidar_semseg_ros[ros]'`")
        return
    yield from _package_findings()
    yield from profile_findings(os.environ)
    yield from _shared_memory_findings()
    yield from transport_findings(_probe(), os.environ)


def runtime_findings() -> Iterator[Finding]:
    """Look for what runs a network, and on what."""
    found = devices()
    for runtime, names in found.items():
        yield Finding(OK, f"{runtime} runs on {', '.join(names)}")
    if not found:
        yield Finding(FAULT, "neither PyTorch nor ONNX Runtime is installed", "pip install torch, or onnxruntime(-gpu)")
    elif shutil.which("nvidia-smi") and not any("cuda" in name for names in found.values() for name in names):
        yield Finding(
            FAULT,
            "there is an NVIDIA driver, but neither PyTorch nor ONNX Runtime can use its GPU",
            "install their CUDA builds: pip install torch (from its CUDA index), or onnxruntime-gpu",
        )


def model_findings(models: Path) -> Iterator[Finding]:
    """Read every shipped model's description, which also checks its SHA-256."""
    for path in sorted(models.glob("*.safetensors")) + sorted(models.glob("*.onnx")):
        try:
            description = read_description(path)
        except UserError as error:
            yield Finding(FAULT, str(error), "fetch the model anew, or train it by the command in models/README.md")
        except ModuleNotFoundError as error:
            yield Finding(NOTE, f"{path.name} cannot be read without {error.name}", f"pip install {error.name}")
        else:
            classes = f"{len(description.classes)} classes" if description.classes else "features"
            yield Finding(OK, f"model {path.name}: {classes}, SHA-256 as published")


def _package_findings() -> Iterator[Finding]:
    for name, purpose in OPTIONAL_ROS_PACKAGES.items():
        if importlib.util.find_spec(name) is None:
            yield Finding(
                NOTE, f"{name} is not installed: no {purpose}", f"apt install ros-$ROS_DISTRO-{name.replace('_', '-')}"
            )
        else:
            yield Finding(OK, f"{name} is installed")


def profile_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the variables that choose the transport's profile."""
    for name in PROFILE_VARIABLES:
        profile = environment.get(name)
        if profile and not Path(profile).is_file():
            yield Finding(FAULT, f"{name} names {profile}, which is not there", f"export {name}={_profile()}")


def _profile() -> Path:
    return package_share() / "config" / "rmw" / "fastdds.xml"


def _shared_memory_findings() -> Iterator[Finding]:
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    verdict, remedy = OK, ""
    if free < 3 * SEGMENT_BYTES:
        verdict = FAULT
        remedy = (
            f"each process takes {SEGMENT_BYTES >> 20} MiB: in a container, start it with --shm-size=1g or --ipc=host"
        )
    yield Finding(verdict, f"{SHARED_MEMORY} has {free >> 20} MiB free", remedy)
    left = len(list(SHARED_MEMORY.glob("fastrtps_*")))
    if left > 200:
        yield Finding(
            NOTE, f"{left} segments of Fast DDS lie in {SHARED_MEMORY}, perhaps of killed nodes", "fastdds shm clean"
        )


def _probe() -> dict[str, Any]:
    command = [sys.executable, "-m", "lidar_semseg_ros.ros.transport_probe"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failure": f"the probe did not end within {PROBE_TIMEOUT_S} s"}
    try:
        return dict(json.loads(ended.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return {"failure": (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]}


def transport_findings(probe: dict[str, Any], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Judge what the probe saw (ros/transport_probe.py)."""
    if "failure" in probe:
        yield Finding(FAULT, f"no ROS 2 node could be started: {probe['failure']}", "run `ros2 doctor`")
        return
    sent, arrived, size = (int(probe[key]) for key in ("sent", "arrived", "bytes"))
    seen = (
        f"{arrived} of {sent} best-effort clouds of {size / 1e6:.0f} MB arrived from another process ({probe['rmw']})"
    )
    if arrived >= sent - 1:
        yield Finding(OK, seen)
    elif "cyclone" in str(probe["rmw"]):
        limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
        remedy = f"export CYCLONEDDS_URI={_profile().with_name('cyclonedds.xml').as_uri()} for every process"
        if limit < SOCKET_BYTES:
            remedy += f"; sudo sysctl -w net.core.rmem_max={SOCKET_BYTES} (now {limit})"
        yield Finding(FAULT, seen, remedy)
    elif any(environment.get(name) for name in PROFILE_VARIABLES):
        yield Finding(FAULT, seen, "the profile in use does not carry large clouds; compare it with " + str(_profile()))
    else:
        both = " ".join(f"{name}={_profile()}" for name in PROFILE_VARIABLES)
        yield Finding(FAULT, seen, f"for the lidar's driver and for every other process: export {both}")
    for topic, node, reliability in probe["clouds"]:
        yield Finding(OK, f"clouds on {topic} from {node} ({reliability})")
    if not probe["clouds"]:
        yield Finding(NOTE, "no node publishes PointCloud2 now", "start the lidar's driver, or `lidar-semseg play BAG`")
