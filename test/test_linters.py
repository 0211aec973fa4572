"""The linters of ROS 2, where they are installed; what they would say against ruff's settings is left out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["lidar_semseg_ros", "launch", "setup.py"]
NO_NETWORK = "failed to load external entity"


@pytest.fixture(autouse=True)
def in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def linter(name: str) -> Callable[[list[str]], int | str]:
    pytest.importorskip(f"{name}.main", reason=f"{name} is not installed: it comes with a ROS 2 installation")
    return import_module(f"{name}.main").main


def test_flake8_finds_nothing() -> None:
    assert linter("ament_flake8")(["--config", "setup.cfg", *SOURCES, "test"]) == 0


def test_docstrings_are_as_pep257_and_google_want_them() -> None:
    missing = [f"D10{kind}" for kind in range(8)]  # names that say it all need no docstring
    # D402 takes a formula such as y = f(x) for a signature, D403 the name of a class for a word.
    left_out = [*missing, "D402", "D403"]
    assert linter("ament_pep257")(["--convention", "google", "--add-ignore", *left_out, "--", *SOURCES]) == 0


def test_the_licence_and_the_terms_of_contributions_are_those_of_apache_2() -> None:
    # Source files bear no header of their own.
    assert linter("ament_copyright")(["LICENSE", "CONTRIBUTING.md"]) == 0


def test_xml_files_are_valid(capfd: pytest.CaptureFixture[str]) -> None:
    judged = linter("ament_xmllint")(["package.xml", "config"])
    said = "".join(capfd.readouterr())
    if isinstance(judged, str):
        pytest.skip(judged)
    if NO_NETWORK in said:
        pytest.skip("the schema that package.xml names is on the network, which is not there")
    assert judged == 0, said


def test_the_manifest_is_one_for_colcon() -> None:
    package = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg is not installed: it comes with colcon")
    warnings: list[str] = []
    package.parse_package("package.xml", warnings=warnings).validate(warnings=warnings)
    assert not warnings
