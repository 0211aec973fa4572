from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from lidar_semseg_ros.cli.doctor_command import (
    FAULT,
    NOTE,
    OK,
    _probe,
    model_findings,
    profile_findings,
    runtime_findings,
    transport_findings,
)
from lidar_semseg_ros.cli.live import live_environment
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.formats.config_files import package_share

PROBE: dict[str, Any] = {"rmw": "rmw_fastrtps_cpp", "sent": 15, "arrived": 15, "bytes": 2_000_000, "clouds": []}


def test_every_runtime_that_is_installed_is_listed_with_what_it_runs_on() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    seen = [finding.seen for finding in runtime_findings()]
    assert any(line.startswith(f"PyTorch {torch.__version__} runs on cpu") for line in seen)


def test_a_shipped_model_whose_bytes_were_changed_is_a_fault(tmp_path: Path) -> None:
    shipped = package_share() / "models"
    for name in ("indoor-small.safetensors", "SHA256SUMS"):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    assert [finding.verdict for finding in model_findings(tmp_path)] == [OK]
    with (tmp_path / "indoor-small.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    fault = next(model_findings(tmp_path))
    assert fault.verdict == FAULT and "indoor-small.safetensors" in fault.seen and fault.remedy


@pytest.mark.parametrize(
    ("changes", "environment", "verdict", "advised"),
    [
        ({}, {}, OK, ""),
        ({"arrived": 1}, {}, FAULT, "export FASTRTPS_DEFAULT_PROFILES_FILE="),
        ({"arrived": 1}, {"FASTRTPS_DEFAULT_PROFILES_FILE": "own.xml"}, FAULT, "profile in use"),
        ({"arrived": 1, "rmw": "rmw_cyclonedds_cpp"}, {}, FAULT, "export CYCLONEDDS_URI=file://"),
    ],
)
def test_clouds_that_do_not_arrive_are_a_fault_with_the_remedy_for_that_middleware(
    changes: dict[str, Any], environment: dict[str, str], verdict: str, advised: str
) -> None:
    finding = next(transport_findings(PROBE | changes, environment))
    assert finding.verdict == verdict and advised in finding.remedy
    assert f"{(PROBE | changes)['arrived']} of 15" in finding.seen


def test_clouds_that_are_there_are_listed_and_a_failing_node_is_a_fault() -> None:
    there = list(transport_findings(PROBE | {"clouds": [["/points", "driver", "best effort"]]}, {}))
    assert there[1].seen == "clouds on /points from driver (best effort)"
    assert [finding.verdict for finding in transport_findings(PROBE, {})] == [OK, NOTE]
    assert next(transport_findings({"failure": "no domain"}, {})).verdict == FAULT


def test_a_probe_that_hangs_is_a_fault_like_a_node_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **how: Any) -> None:
        raise subprocess.TimeoutExpired(command, how["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    finding = next(transport_findings(_probe(), {}))
    assert finding.verdict == FAULT and "did not end within 60 s" in finding.seen


def test_a_profile_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    assert next(profile_findings({"FASTRTPS_DEFAULT_PROFILES_FILE": str(tmp_path / "gone.xml")})).verdict == FAULT
    assert list(profile_findings({})) == []


def test_with_the_profile_of_this_package_large_clouds_arrive_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
    for name, value in live_environment().items():
        monkeypatch.setenv(name, value)
    main(["doctor"])
    assert "best-effort clouds of 2 MB arrived" in capsys.readouterr().out
