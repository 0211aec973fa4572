from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.images import read_image
from lidar_semseg_ros.formats.loose_images import image_files, images_of_scans


def paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_images_go_with_the_scans_of_the_same_name() -> None:
    scans = paths("s/000.pcd.bin", "s/001.pcd.bin", "s/002.pcd.bin")
    assert images_of_scans(scans, paths("i/002.png", "i/000.png")) == [Path("i/000.png"), None, Path("i/002.png")]


def test_names_that_are_times_with_a_point_are_the_same_too() -> None:
    scans, images = paths("100.25.bin", "100.75.pcd.bin", "101.25.PCD"), paths("101.25.png", "100.75.png", "7.png")
    assert images_of_scans(scans, images) == [None, Path("100.75.png"), Path("101.25.png")]


def test_images_with_names_of_their_own_go_with_the_scans_in_their_order() -> None:
    assert images_of_scans(paths("a.bin", "b.bin"), paths("x.jpg", "y.jpg")) == paths("x.jpg", "y.jpg")


def test_images_that_belong_to_no_scan_are_an_error() -> None:
    with pytest.raises(UserError, match="name each image as its scan"):
        images_of_scans(paths("a.bin", "b.bin"), paths("x.jpg"))


def test_only_images_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in image_files(tmp_path)] == ["a.JPG", "b.png"]
    with pytest.raises(UserError, match="holds no images"):
        image_files(tmp_path / "c.txt")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        np.full((5, 4), number + 1, np.float32).tofile(folder / f"{number}.bin")
    return folder


def test_converted_images_are_the_files_with_the_stamp_of_their_scan(scans: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (0, 2):
        image.fromarray(np.full((4, 6, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
    main(["convert", str(scans), "-o", str(tmp_path / "a.mcap"), "--images", f"left={folder}"])
    with open_bag(tmp_path / "a.mcap") as bag:
        stamps = [one.message().header.stamp for one in bag.messages(["/lidar/points"])]
        messages = [one.message() for one in bag.messages(["/left/image_raw/compressed"])]
        assert [bytes(one.data) for one in messages] == [(folder / f"{n}.png").read_bytes() for n in (0, 2)]
        assert [one.header.stamp for one in messages] == [stamps[0], stamps[2]]
        assert (read_image(messages[1]).pixels == 80).all()


@pytest.mark.parametrize("given", [["left"], ["le ft=."], ["left=.", "left=."]])
def test_a_camera_without_a_name_of_its_own_is_an_error(
    given: list[str], scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    arguments = [text.replace("=.", f"={tmp_path}") for text in given]
    with pytest.raises(SystemExit):
        main(
            [
                "convert",
                str(scans),
                "-o",
                str(tmp_path / "a.mcap"),
                *(x for one in arguments for x in ("--images", one)),
            ]
        )
    assert "CAMERA=PATH" in capsys.readouterr().err
