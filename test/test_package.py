"""What colcon, pip and users find in the package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from lidar_semseg_ros.cli.main import COMMANDS, main
from lidar_semseg_ros.formats.config_files import class_table, package_share
from lidar_semseg_ros.formats.pointcloud2 import LAYOUTS
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.segmenter import OUTPUT_LAYOUTS

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()


def said_by_setup(*what: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *what], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.split("\n")[: len(what)]


def test_manifest_and_setup_agree_and_colcon_sees_a_ros_package() -> None:
    name, version, email = said_by_setup("--name", "--version", "--maintainer-email")
    maintainer = MANIFEST.find("maintainer").get("email")
    assert (MANIFEST.findtext("name"), MANIFEST.findtext("version"), maintainer) == (name, version, email)
    assert MANIFEST.findtext("export/build_type") == "ament_python"
    assert MANIFEST.findtext("author") == said_by_setup("--author")[0]
    # colcon silently takes a package with an invalid address for one without ROS.
    assert re.fullmatch(r"[\w.+-]+@[\w-]+\.[\w.-]+", email)
    assert (ROOT / "resource" / name).is_file()


def test_every_ros_package_that_is_imported_is_declared() -> None:
    declared = {element.text for element in MANIFEST.iter("exec_depend")}
    imported = set()
    for path in [*(ROOT / "lidar_semseg_ros" / "ros").glob("*.py"), *(ROOT / "launch").glob("*.py")]:
        found = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        imported |= {top for top in found if top not in sys.stdlib_module_names}
    assert imported - {"lidar_semseg_ros", "numpy", "yaml"} <= declared


def data_files(command: str) -> dict[str, list[str]]:
    """What setup.py installs beside the Python modules when it is called with a command."""
    script = (
        "import json, runpy, setuptools\n"
        "setuptools.setup = lambda **said: print(json.dumps(said['data_files']))\n"
        f"runpy.run_path({str(ROOT / 'setup.py')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, command], capture_output=True, text=True, cwd=ROOT, check=True)
    return dict(json.loads(done.stdout))


def test_an_installation_holds_every_file_of_config_launch_and_models() -> None:
    installed = {file for files in data_files("install").values() for file in files}
    for folder in ("config", "launch", "models"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {file for file in files if "__pycache__" not in file} <= installed


def test_after_pip_ros2_run_finds_programs_that_start_those_in_bin(tmp_path: Path) -> None:
    place = "lib/lidar_semseg_ros"
    assert place not in data_files("install")  # there, colcon puts the nodes themselves
    wrappers = [Path(file) for file in data_files("bdist_wheel")[place]]
    assert sorted(path.name for path in wrappers) == ["player", "recorder", "segmenter", "teacher"]
    (tmp_path / "bin").mkdir()
    (tmp_path / place).mkdir(parents=True)
    for wrapper in wrappers:
        program = tmp_path / "bin" / wrapper.name
        program.write_text(f'#!/bin/sh\necho {wrapper.name} "$@"')
        program.chmod(0o755)
        shutil.copy(ROOT / wrapper, tmp_path / place)
        done = subprocess.run([tmp_path / place / wrapper.name, "--ros-args", "a b"], capture_output=True, text=True)
        assert done.stdout == f"{wrapper.name} --ros-args a b\n"


@pytest.mark.parametrize("command", ["--dry-run", "install", "develop"])  # colcon's; the last with --symlink-install
def test_after_colcon_the_command_is_in_bin_and_starts_the_one_beside_the_nodes(command: str, tmp_path: Path) -> None:
    (wrapper,) = data_files(command)["bin"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib" / "lidar_semseg_ros").mkdir(parents=True)
    (tmp_path / "bin" / "lidar-semseg").symlink_to(ROOT / wrapper)
    program = tmp_path / "lib" / "lidar_semseg_ros" / "lidar-semseg"
    program.write_text('#!/bin/sh\necho "$@"')
    program.chmod(0o755)
    done = subprocess.run([tmp_path / "bin" / "lidar-semseg", "info", "a b"], capture_output=True, text=True)
    assert done.stdout == "info a b\n"


@pytest.mark.parametrize("command", ["bdist_wheel", "editable_wheel"])
def test_after_pip_the_command_in_bin_is_its_own(command: str) -> None:
    assert "bin" not in data_files(command)


def test_the_transport_profiles_have_room_for_large_clouds() -> None:
    folder = package_share() / "config" / "rmw"
    fast = ElementTree.parse(folder / "fastdds.xml").getroot()
    assert int(fast.findtext(".//{*}segment_size")) == 64 * 2**20
    assert fast.find(".//{*}participant").get("is_default_profile") == "true"
    cyclone = ElementTree.parse(folder / "cyclonedds.xml").getroot()
    # A smallest size above what Linux grants would keep every node from starting.
    assert cyclone.find(".//{*}SocketReceiveBufferSize").attrib == {"min": "default", "max": "32MiB"}


def test_shipped_class_tables_and_input_settings_can_be_read() -> None:
    sizes = {path.stem: len(class_table(path.stem)) for path in (package_share() / "config" / "classes").glob("*.yaml")}
    assert sizes == {"indoor16": 16, "indoor17": 17, "nuscenes16": 16, "semantickitti19": 19}
    assert class_table("indoor17").names[:16] == class_table("indoor16").names
    for path in (package_share() / "config" / "inputs").glob("*.yaml"):
        InputConfig.from_mapping(yaml.safe_load(path.read_text()), path.name)


def test_the_output_layouts_that_can_be_set_are_those_that_can_be_written() -> None:
    assert tuple(LAYOUTS) == OUTPUT_LAYOUTS


def test_beside_the_pytest_plugins_of_ros_a_module_that_skips_takes_no_other_with_it(tmp_path: Path) -> None:
    pytest.importorskip("launch_testing", reason="launch_testing is not installed: it comes with a ROS 2 installation")
    (tmp_path / "test_skipped.py").write_text("import pytest\npytest.skip('why', allow_module_level=True)\n")
    (tmp_path / "test_other.py").write_text("def test_other(): pass\n")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "1 passed, 1 skipped" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert COMMANDS[command][1:] in said


def test_no_path_of_a_machine_and_no_package_index_in_the_package() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.])/(?:home|root|tmp|work)/|pypi\.org|pythonhosted")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".yaml", ".toml", ".cfg", ".txt", ".xml", "")
            and path.is_file()
            and path != Path(__file__)
        ):
            assert not pattern.search(path.read_text()), name
