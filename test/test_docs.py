from __future__ import annotations

import re
from pathlib import Path

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
