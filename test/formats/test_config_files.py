from __future__ import annotations

from pathlib import Path

import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats import config_files
from lidar_semseg_ros.formats.config_files import class_table, package_share, read_yaml, share_of


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_source_checkout_is_the_share_folder(tmp_path: Path) -> None:
    package = folder(tmp_path / "checkout" / "lidar_semseg_ros")
    folder(tmp_path / "checkout" / "config")
    (tmp_path / "checkout" / "package.xml").touch()
    assert share_of(package) == tmp_path / "checkout"


@pytest.mark.parametrize(
    "installed",
    [
        "venv/lib/python3.11/site-packages/lidar_semseg_ros",  # pip
        "install/lidar_semseg_ros/lib/python3.10/site-packages/lidar_semseg_ros",  # colcon
        "usr/local/lib/python3.12/dist-packages/lidar_semseg_ros",  # Debian
    ],
)
def test_installed_package_finds_its_share_folder(tmp_path: Path, installed: str) -> None:
    package = folder(tmp_path / installed)
    folder(package.parent / "config")  # of somebody else: there is no package.xml beside it
    prefix = package.parents[3]
    share = folder(prefix / "share" / "lidar_semseg_ros")
    assert share_of(package) == share


def test_package_without_its_files_is_said_to_be_not_installed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="install the package"):
        share_of(folder(tmp_path / "alone" / "lidar_semseg_ros"))


def test_this_package_finds_its_own_configuration() -> None:
    assert (package_share() / "config" / "classes").is_dir()


def test_keys_that_are_merged_in_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n")
    assert read_yaml(path)["b"] == {"x": 1, "y": 3}


def test_yaml_is_read_into_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: {c: [x, ä]}\n", encoding="utf-8")
    assert read_yaml(path) == {"a": 1, "b": {"c": ["x", "ä"]}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"a\.yaml, line 3"),
        ("a: 1\n\tb: 2\n", r"a\.yaml, line 2"),
        ("a: \x07\n", r"a\.yaml"),
        ("a: {b: 1, c: 2,\n b: 1}\n", r"a\.yaml, line 2: 'b' is there twice"),
        ("a: 2001-13-45\n", r"a\.yaml: month must be in 1\.\.12"),
        ("a: " + "[" * 5000, r"a\.yaml: .*recursion"),
        ("- 1\n- 2\n", "holds list"),
        ("", "holds NoneType"),
    ],
)
def test_faulty_yaml_is_refused_with_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_yaml(path)


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match=r"a\.yaml, line 1"):
        read_yaml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no_such\.yaml"):
        read_yaml(tmp_path / "no_such.yaml")


def test_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.yaml"):
        read_yaml(path)


TABLE = "name: two\nclasses:\n  - {id: 0, name: wall, color: [1, 2, 3]}\n  - {id: 1, name: floor, color: [4, 5, 6]}\n"


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder(tmp_path / "share" / "config" / "classes") / "two.yaml").write_text(TABLE)
    monkeypatch.setattr(config_files, "package_share", lambda: tmp_path / "share")
    return tmp_path


def test_class_table_is_found_by_its_name(share: Path) -> None:
    assert class_table("two").names == ("wall", "floor")


def test_class_table_is_read_from_a_path(share: Path) -> None:
    (share / "mine.yaml").write_text(TABLE.replace("two", "mine"))
    assert class_table(str(share / "mine.yaml")).name == "mine"


def test_unknown_class_table_is_refused_with_those_that_exist(share: Path) -> None:
    with pytest.raises(UserError, match=r"no class table 'three'; .* one of two"):
        class_table("three")


def test_fault_in_a_class_table_names_its_file(share: Path) -> None:
    path = share / "mine.yaml"
    path.write_text(TABLE.replace("id: 1", "id: 7"))
    with pytest.raises(UserError, match=r"mine\.yaml.*\[0, 7\]"):
        class_table(str(path))


@pytest.mark.parametrize(
    ("name", "classes", "last"),
    [("indoor16", 16, "other"), ("indoor17", 17, "person"), ("nuscenes16", 16, None), ("semantickitti19", 19, None)],
)
def test_shipped_class_tables_can_be_read(name: str, classes: int, last: str | None) -> None:
    table = class_table(name)
    assert (table.name, len(table)) == (name, classes)
    assert last is None or table.names[-1] == last
