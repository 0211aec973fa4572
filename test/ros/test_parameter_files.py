"""The parameter files and the reference that are written from the settings, and what nodes take of them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed (source one, or install the extra [ros])")

from rclpy.parameter import Parameter

from lidar_semseg_ros.core.options import from_mapping, to_mapping
from lidar_semseg_ros.core.sensor import RangeConfig
from lidar_semseg_ros.ros.parameters import declared, follow
from lidar_semseg_ros.ros.segmenter_node import SegmenterNodeConfig
from lidar_semseg_ros.ros.teacher_node import TeacherNodeConfig

ROOT = Path(__file__).resolve().parents[2]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def test_the_parameter_files_and_the_reference_are_as_written_from_the_settings() -> None:
    files = runpy.run_path(str(ROOT / "docs" / "write_parameters.py"))["rendered"]()
    assert {str(path.relative_to(ROOT)) for path in files} == {
        "config/segment.yaml",
        "config/teacher.yaml",
        "docs/parameters.md",
    }
    for path, text in files.items():
        assert path.read_text() == text, f"{path.name} is stale: python docs/write_parameters.py"


def test_the_reference_tells_type_default_range_and_whether_a_parameter_may_change() -> None:
    reference = (ROOT / "docs" / "parameters.md").read_text()
    assert "| `min_score` | float | `0.0` | 0.0 … 1.0 | yes | points whose class probability is lower" in reference
    assert "| `threads` | int | `0` | 0 … 1024 |  | CPU threads" in reference
    assert "| `input.range.max` | float | `.inf` | ≥ 0.0 | yes | largest distance" in reference
    assert "| `overlay.compressed` | bool | `false` |  |  | ~/input/image carries" in reference
    # The same fields are read by the segmenter, which follows changes, and by the teacher, which does not.
    assert [row.split("|")[5].strip() for row in reference.splitlines() if "fields.ring`" in row] == ["yes", ""]


@pytest.mark.parametrize(("name", "config"), [("segment", SegmenterNodeConfig), ("teacher", TeacherNodeConfig)])
def test_a_parameter_file_holds_every_setting_and_each_has_its_default(name: str, config: type) -> None:
    parameters = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())["/**"]["ros__parameters"]
    assert flat(parameters) == to_mapping(config())


def test_the_parameters_of_the_demo_and_of_the_readme_are_known() -> None:
    shown = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    files = [yaml.safe_load(text) for text in [*shown, (ROOT / "config" / "demo.yaml").read_text()]]
    assert len(files) == 2
    for file in files:
        from_mapping(SegmenterNodeConfig, file["/**"]["ros__parameters"])


def test_a_node_that_follows_no_changes_refuses_them_and_one_that_does_takes_the_live_ones() -> None:
    rclpy.init()
    try:
        deaf, attentive = rclpy.create_node("deaf"), rclpy.create_node("attentive")
        declared(deaf, RangeConfig)
        heard: list[RangeConfig] = []
        follow(attentive, declared(attentive, RangeConfig, followed=True), heard.append)
        far = [Parameter("max", value=20.0)]
        assert not deaf.set_parameters(far)[0].successful and deaf.get_parameter("max").value == float("inf")
        assert attentive.set_parameters(far)[0].successful and heard == [RangeConfig(max=20.0)]
    finally:
        rclpy.shutdown()
