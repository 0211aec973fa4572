"""Write docs/parameters.md, config/segment.yaml and config/teacher.yaml from the settings of the nodes.

`python docs/write_parameters.py` after a change of a setting; a test compares the files with what it would write.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from lidar_semseg_ros.core.options import Setting, settings_of
from lidar_semseg_ros.formats.playback import PlaybackConfig
from lidar_semseg_ros.ros.recorder_node import RecorderConfig
from lidar_semseg_ros.ros.segmenter_node import SegmenterNodeConfig
from lidar_semseg_ros.ros.teacher_node import TeacherNodeConfig

ROOT = Path(__file__).resolve().parents[1]
NODES = {
    "segmenter": SegmenterNodeConfig,
    "teacher": TeacherNodeConfig,
    "player": PlaybackConfig,
    "recorder": RecorderConfig,
}
LIVE = ("segmenter",)
"""The nodes that follow changes of their live parameters."""
LAUNCHED = {
    "segmenter": (
        "segment",
        "Those that are live may be changed while the node runs. model:= and device:= of segment.launch.py go before "
        "these.",
    ),
    "teacher": (
        "teacher",
        "teacher.launch.py always sets cameras and compressed by its arguments of these names, and vision.model by "
        "teacher_model:= and extrinsics by calibration:= where these are given, whatever stands here.",
    ),
}
"""The parameter file of a node, by its launch file, and what the launch file's arguments do to it."""
WIDTH = 120

REFERENCE = """\
# Parameters of the nodes

Written by `python docs/write_parameters.py` from the settings in the code; do not edit.

Those marked live may be changed while the node runs; the others are read-only then. Units end the names: `_s` seconds,
`_m` metres, `_deg` degrees, `_px` pixels, `_hz` hertz, `_gb` 10⁹ bytes; elsewhere the meaning tells. rclpy adds some of
its own: `use_sim_time` and, of clouds and outputs, `qos_overrides.*`. The segmenter and the teacher have full parameter
files, `config/segment.yaml` and `config/teacher.yaml`: copy one, change it, and give it as `params_file:=`.
"""


def rendered() -> dict[Path, str]:
    """Give what each file should hold."""
    files = {
        ROOT / "config" / f"{stem}.yaml": _parameter_file(node, note, settings_of(NODES[node]))
        for node, (stem, note) in LAUNCHED.items()
    }
    tables = [_table(node, settings_of(config)) for node, config in NODES.items()]
    return files | {ROOT / "docs" / "parameters.md": "\n".join([REFERENCE, *tables])}


def _table(node: str, settings: list[Setting]) -> str:
    rows = [f"## Node `{node}`", "", "| name | type | default | valid | live | meaning |", "|---|---|---|---|---|---|"]
    for entry in settings:
        default, live = f"`{_scalar(entry.default)}`", "yes" if entry.live and node in LIVE else ""
        text = entry.text.replace("<", r"\<")
        rows.append(f"| `{entry.name}` | {entry.kind.__name__} | {default} | {_valid(entry)} | {live} | {text} |")
    return "\n".join(rows) + "\n"


def _parameter_file(node: str, note: str, settings: list[Setting]) -> str:
    """Lay out all parameters with their defaults, each below a comment; groups are indented."""
    head = (
        f"All parameters of the {node} with their defaults, written by docs/write_parameters.py. Copy the file, change "
        "the copy and give it as params_file:=; what is not in it keeps its default. Brackets hold what is valid. "
        + note
    )
    lines = [*_comment(head, ""), "/**:", "  ros__parameters:"]
    groups_before: list[str] = []
    for entry in settings:
        *groups, name = entry.name.split(".")
        for depth, group in enumerate(groups):
            if groups[: depth + 1] != groups_before[: depth + 1]:
                lines.append(f"{'  ' * (depth + 2)}{group}:")
        groups_before = groups
        indent = "  " * (len(groups) + 2)
        brackets = ", ".join(filter(None, [_valid(entry), "live" if entry.live and node in LIVE else ""]))
        lines += _comment(f"{entry.text} [{brackets}]" if brackets else entry.text, indent)
        lines.append(f"{indent}{name}: {_scalar(entry.default)}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    start = indent + "# "
    # A no-break space keeps the sign at its number.
    kept = text.replace("≥ ", "≥\u00a0")
    lines = textwrap.wrap(kept, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value).splitlines()[0]


def _valid(entry: Setting) -> str:
    low, high = (None if end is None else entry.kind(end) for end in (entry.minimum, entry.maximum))
    if entry.choices:
        said = ", ".join(entry.choices)
    elif low is not None:
        said = f"≥ {low}" if high is None else f"{low} … {high}"
    else:
        said = "" if high is None else f"≤ {high}"
    return said


if __name__ == "__main__":
    for file, content in rendered().items():
        file.write_text(content)
