"""The demo of the README, on a short drive: three processes over real ROS 2, every cloud accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")
pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")

from lidar_semseg_ros.cli import demo_command
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.formats.bags import open_bag


def test_the_demo_labels_a_drive_live_and_shows_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive, folder = tmp_path / "drive.mcap", tmp_path / "results"
    main(["simulate", "-o", str(drive), "--frames", "12", "--lidar", "VLP-16", "--seed", "8"])
    # Half the speed: on a busy machine nothing should be dropped.
    main(["demo", "--bag", str(drive), "-o", str(folder), "--rate", "0.5"])
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["played"] == 12 == figures["labelled"] + figures["busy"]
    assert figures["lost"] == figures["changed"] == figures["invalid"] == figures["failed"] == 0
    assert figures["labelled"] >= 6
    # Random labels over the classes present would give less than 0.1.
    assert figures["miou"] > 0.3 and figures["accuracy"] > 0.6
    for name in ("report.html", "from_above.png", "from_behind.png", "over_the_camera.png"):
        assert (folder / name).stat().st_size > 5000
    said = capsys.readouterr().out
    for part in ("lost on the way", "cloud seen → labels seen", "network", "mean (mIoU)", "report.html"):
        assert part in said


def test_the_drive_alone_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_command, "DEMO_DRIVE", {"lidar": "VLP-16", "cameras": 0, "frames": 2})
    for _ in range(2):
        main(["demo", "--only-simulate", "-o", str(tmp_path)])
        monkeypatch.setattr(demo_command, "DEMO_DRIVE", {"lidar": "never used"})
    assert [path.name for path in tmp_path.iterdir()] == ["drive.mcap"]
    with open_bag(tmp_path / "drive.mcap") as bag:
        assert bag.message_count("/lidar/points") == 2
