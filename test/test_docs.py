from __future__ import annotations

import re
from pathlib import Path

from lidar_semseg_ros.formats.pointcloud2 import FLOAT32, LAYOUTS, PSEUDO_LABELS, UINT8

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_documents_name_exists() -> None:
    written = {name for path in ROOT.glob("test/**/*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    for document in (ROOT / "docs").glob("*.md"):
        named = set(re.findall(r"`(test_\w+)`", document.read_text()))
        assert named - written == set(), document.name


def test_every_file_that_the_documents_name_exists() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "ros_interface.md"]:
        for name in re.findall(
            r"`((?:test|docs|config|launch|models|lidar_semseg_ros)/[\w./]+\.\w+)", document.read_text()
        ):
            assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_the_layouts_in_the_interface_are_those_that_are_written() -> None:
    document = (ROOT / "docs" / "ros_interface.md").read_text()
    datatypes = {"UINT8": UINT8, "FLOAT32": FLOAT32}
    for name, layout in [*LAYOUTS.items(), ("pseudo_labels", PSEUDO_LABELS)]:
        title, rows = re.search(rf"\n`{name}`(.*)\n\n\| offset .*\n\|[-|]+\n((?:\|.*\n)+)", document).groups()
        assert f": {layout.size} bytes a point" in title, name
        cells = [[cell.strip(" `") for cell in row.split("|")[1:4]] for row in rows.splitlines()]
        told = [(int(offset), datatypes[datatype], field) for offset, datatype, field in cells]
        assert told == [(field.offset, field.datatype, field.name) for field in layout.fields], name
