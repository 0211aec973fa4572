"""The commands on real recordings, as a user types them."""

from __future__ import annotations

import importlib.util
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("torch", reason="PyTorch is not installed")

from stand_in_device import StandInDevice

from lidar_semseg_ros.cli import info_command
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.formats.bags import BagWriter, cloud_topics, open_bag
from lidar_semseg_ros.formats.pointcloud2 import CloudContent, cloud_content, cloud_from_frame, column, read_cloud
from lidar_semseg_ros.network import backends
from lidar_semseg_ros.network.segmenter import Segmentation, Segmenter

SEGMENTATION = "/segmenter/output/pointcloud/segmentation"

GOLDEN = {
    "waffleiron_bn": ("waffleiron", "semantickitti19"),
    "waffleiron_bn_indoor": ("waffleiron", "indoor16"),
    "scalr_ln_downstream": ("scalr", "nuscenes16"),
    "scalr_ln_pretrain": ("scalr", None),
    "scalr_plus_gelu_pretrain": ("scalr_plus", None),
}
RECORDINGS = {
    "01_kitti00_semantic_sequence/velodyne": 12,
    "02_kitti_raw_0926_traffic_sequence/velodyne_points": 20,
    "03_nuscenes_sample_6cam": 1,
    "05_rellis3d_offroad_frame/000104.bin": 1,
    "06_indoor_rslidar16_webcam/pointcloud": 3,
    "07_indoor_vlp16_office_rosbag2/pointcloud2_bag_derived": None,
    "09_rosbag1_luminar_pointcloud2/test.bag": 5,
    "10_rosbag1_64beam_pointcloud2/PointCloud2.bag": 1,
    "15_indoor_room_scan_pcl": 1,
}
"""Each set and how many clouds it holds; loose scans are turned into a recording first."""


@pytest.fixture(scope="session")
def imported(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden checkpoints, imported with the command."""
    folder = tmp_path_factory.mktemp("imported")
    models = {}
    for name, (layout, classes) in GOLDEN.items():
        source = shared_data / "00_golden_network_outputs" / name
        said = json.loads((source / "config.json").read_text())
        settings = {
            "voxel_size_m": said["voxel_size_m"],
            "fov_min_m": said["fov_min"],
            "fov_max_m": said["fov_max"],
            "planes": said["planes"],
            "grids": said["grids"],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        models[name] = folder / f"{name}.safetensors"
        arguments = ["import", str(source / "ckpt_last.pth"), "--layout", layout, "-o", str(models[name])]
        main([*arguments, "--config", str(folder / f"{name}.yaml"), *(["--classes", classes] if classes else [])])
    return models


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with status 2 and give what it says."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    return said


@pytest.mark.parametrize("name", GOLDEN)
def test_published_checkpoints_are_imported_exported_and_described(
    name: str, imported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(imported[name]), "-o", str(tmp_path / "m.onnx")])
    for path in (imported[name], tmp_path / "m.onnx"):
        capsys.readouterr()
        main(["info", str(path)])
        said = capsys.readouterr().out
        assert "ckpt_last.pth" in said and GOLDEN[name][0] in said
        assert ("floor" in said) == (GOLDEN[name][1] == "indoor16")


@pytest.mark.parametrize("place", RECORDINGS)
def test_every_point_of_a_recording_comes_back_labelled_with_its_header(
    place: str, shared_data: Path, imported: dict[str, Path], tmp_path: Path
) -> None:
    source = shared_data / place
    if source.suffix != ".bag" and "rosbag2" not in place:
        main(["convert", str(source), "-o", str(tmp_path / "scans.mcap")])
        source = tmp_path / "scans.mcap"
    output = tmp_path / "out.mcap"
    main(["segment", str(source), "-o", str(output), "--model", str(imported["waffleiron_bn_indoor"])])
    with open_bag(source) as bag, open_bag(output) as out:
        topic = next(name for name, kind in bag.topics.items() if kind.endswith("PointCloud2"))
        asked, answered = list(bag.messages([topic])), list(out.messages([SEGMENTATION]))
        assert len(asked) == len(answered) == (RECORDINGS[place] or len(asked)) > 0
        for question, answer in zip(asked, answered):
            sent, labelled = cloud_content(question.message()), cloud_content(answer.message())
            assert question.log_time_ns == answer.log_time_ns
            assert (sent.stamp_ns, sent.frame_id, sent.height, sent.width) == (
                labelled.stamp_ns,
                labelled.frame_id,
                labelled.height,
                labelled.width,
            )
            frame = read_cloud(sent)
            assert np.array_equal(read_cloud(labelled).xyz, frame.xyz, equal_nan=True)
            class_id = column(labelled, "class_id")
            assert np.isin(class_id, [*range(16), 255]).all()
            assert (class_id[~frame.has_return()] == 255).all()


def test_a_simulated_drive_is_a_recording_that_can_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")
    bag = tmp_path / "drive.mcap"
    main(["simulate", "-o", str(bag), "--frames", "2", "--lidar", "VLP-16", "--cameras", "2", "--seed", "3"])
    with open_bag(bag) as drive:
        assert {"/tf_static", "/tf", "/odom", "/lidar/points", "/ground_truth/labels"} <= set(drive.topics)
        assert (
            drive.message_count("/camera_1/image_raw/compressed") == drive.message_count("/camera_0/camera_info") == 2
        )
        transforms = next(drive.messages(["/tf_static"])).message().transforms
        assert {t.child_frame_id for t in transforms} == {"lidar", "camera_0", "camera_1"}
    main(["info", str(bag)])
    assert "/lidar/points" in capsys.readouterr().out


def test_evaluation_counts_only_labelled_points_and_a_perfect_model_has_an_miou_of_one(
    tmp_path: Path, imported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(imported["waffleiron_bn_indoor"])
    rng = np.random.default_rng(0)
    from lidar_semseg_ros.formats.dataset import LABEL_TOPIC

    xyz = rng.uniform((-8, -8, -1), (8, 8, 2), (4000, 3)).astype(np.float32)
    cloud = cloud_from_frame(LidarFrame(stamp_ns=10, frame_id="lidar", xyz=xyz))
    with BagWriter(tmp_path / "in.mcap") as writer:
        writer.write_cloud("/lidar/points", cloud)
    main(["segment", str(tmp_path / "in.mcap"), "-o", str(tmp_path / "out.mcap"), "--model", model])
    with open_bag(tmp_path / "out.mcap") as out:
        answer = column(cloud_content(next(out.messages([SEGMENTATION])).message()), "class_id").copy()
    answer[:1000] = 255
    with BagWriter(tmp_path / "truth.mcap") as writer:
        writer.write_class_ids(LABEL_TOPIC, answer[None], 10, "lidar")
        writer.write_cloud("/lidar/points", cloud)
    main(["evaluate", str(tmp_path / "truth.mcap"), "--model", model, "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["miou"] == figures["accuracy"] == 1.0
    assert np.sum(figures["confusion"]) == 3000
    assert "mIoU 100.0%" in capsys.readouterr().out


def test_a_bag_of_packets_names_the_driver_that_makes_clouds_of_them(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = shared_data / "07_indoor_vlp16_office_rosbag2" / "packets_bag_original"
    said = failing(["segment", str(bag), "-o", str(tmp_path / "o.mcap")], capsys)
    assert "velodyne_pointcloud" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["segment", "nowhere.bag", "-o", "o.mcap"], "no recording nowhere.bag"),
        (["segment", "nowhere.bag", "-o", "o.mcap", "--min-score", "2"], "must lie in 0.0 … 1.0"),
        (["import", "c.pth", "--layout", "scalr", "--config", "nowhere", "-o", "m.safetensors"], "no checkpoint c.pth"),
        (["import", "c.pth", "--layout", "scalr", "--config", "scalr_kitti", "-o", "m.pt"], "must end in .safetensors"),
        (["info", "nothing"], "nor a shipped model"),
        (["convert", "nowhere", "-o", "o.mcap"], "holds no scans"),
        (["play", "x.bag", "--rate", "0"], "must lie in"),
        (["bench", "--json", "nowhere/f.json"], "no folder nowhere to write f.json to"),
        (["evaluate", "x.bag", "--json", "nowhere/f.json"], "no folder nowhere to write f.json to"),
        (["evaluate", "x.bag", "--report", "nowhere/r.html"], "no folder nowhere to write r.html to"),
        (["calib-check", "x.bag", "-o", "nowhere/a.png"], "no folder nowhere to write a.png to"),
    ],
)
def test_a_mistake_ends_in_one_line_that_tells_what_to_do(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in failing(arguments, capsys)


def test_a_class_table_of_another_size_is_refused(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = shared_data / "00_golden_network_outputs" / "waffleiron_bn" / "ckpt_last.pth"
    arguments = ["import", str(checkpoint), "--layout", "waffleiron", "--config", "waffleiron_kitti"]
    said = failing([*arguments, "--classes", "nuscenes16", "-o", str(tmp_path / "m.safetensors")], capsys)
    assert "19 outputs" in said and "16 classes" in said


def test_without_standard_input_a_recording_is_played_without_a_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr("os.execv", lambda path, command: became.append(command))
    main(["play", "x.bag"])
    assert "keyboard:=false" in became[0] and 'bag:="x.bag"' in became[0]


def cloud_of(stamp_ns: int, intensity: bool = True) -> CloudContent:
    rng = np.random.default_rng(stamp_ns)
    xyz = rng.uniform((-8, -8, -1), (8, 8, 2), (2000, 3)).astype(np.float32)
    strengths = rng.uniform(0, 60, 2000).astype(np.float32) if intensity else None
    return cloud_from_frame(LidarFrame(stamp_ns=stamp_ns, frame_id="lidar", xyz=xyz, intensity=strengths))


def test_clouds_that_cannot_be_segmented_are_dropped_with_a_line_each_and_the_others_labelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with BagWriter(tmp_path / "in.mcap") as writer:
        for stamp_ns in range(1, 5):
            writer.write_cloud("/lidar/points", cloud_of(stamp_ns, intensity=stamp_ns != 2))
    segmented = Segmenter.segment

    def overflowing(self: Segmenter, frame: LidarFrame) -> Segmentation:
        if frame.stamp_ns == 3:
            raise FloatingPointError("the model gave NaN or infinity in float16; take float32")
        return segmented(self, frame)

    monkeypatch.setattr(Segmenter, "segment", overflowing)
    output = tmp_path / "out.mcap"
    main(["segment", str(tmp_path / "in.mcap"), "-o", str(output), "--input-intensity-missing", "error"])
    said = capsys.readouterr()
    assert "2 clouds labelled" in said.out and "2 dropped" in said.out
    assert "cloud at 2 dropped: " in said.err and "cloud at 3 dropped: the model gave NaN" in said.err
    with open_bag(output) as out:
        assert [one.log_time_ns for one in out.messages([SEGMENTATION])] == [1, 4]


def test_bytes_that_a_device_has_finished_are_written_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = StandInDevice()
    monkeypatch.setattr(backends, "_device_segmenter", lambda runner, description, name: device)
    with BagWriter(tmp_path / "in.mcap") as writer:
        writer.write_cloud("/lidar/points", cloud_of(1))
    main(["segment", str(tmp_path / "in.mcap"), "-o", str(tmp_path / "out.mcap"), "--output-layout", "append"])
    assert "1 clouds labelled" in capsys.readouterr().out and len(device.clouds) == 1
    with open_bag(tmp_path / "out.mcap") as out:
        written = next(cloud_content(one.message()) for one in out.messages([SEGMENTATION]))
    assert np.array_equal(column(written, "z"), column(cloud_of(1), "z")) and (column(written, "class_id") == 3).all()


@pytest.mark.parametrize("command", ["segment", "convert", "simulate"])
def test_what_ends_in_its_midst_is_not_taken_for_a_whole_recording_and_is_made_anew_by_the_same_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, scans = tmp_path / "out.mcap", tmp_path / "scans"
    scans.mkdir()
    with BagWriter(tmp_path / "in.mcap") as writer:
        for stamp_ns in (1, 2, 3):
            writer.write_cloud("/lidar/points", cloud_of(stamp_ns))
            (scans / f"{stamp_ns}.bin").write_bytes(np.ones((5, 4), np.float32).tobytes())
    if command == "simulate":
        pytest.importorskip("embreex", reason="the simulator's ray caster is not installed (extra [sim])")
    arguments = {
        "segment": ["segment", str(tmp_path / "in.mcap")],
        "convert": ["convert", str(scans)],
        "simulate": ["simulate", "--frames", "3", "--lidar", "VLP-16", "--cameras", "0"],
    }[command]
    with monkeypatch.context() as broken:
        written = BagWriter.write_cloud

        def killed(self: BagWriter, topic: str, content: CloudContent, log_time_ns: int | None = None) -> None:
            if content.stamp_ns >= 2 and self.size() > 0:
                raise KeyboardInterrupt
            written(self, topic, content, log_time_ns)

        broken.setattr(BagWriter, "write_cloud", killed)
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "-o", str(output)])
    assert ended.value.code == 130 and not output.exists()
    main([*arguments, "-o", str(output)])
    with open_bag(output) as out:
        assert [out.message_count(topic) for topic in cloud_topics(out)] == [3]
    assert not list(tmp_path.glob("*.part.mcap"))


def test_a_process_that_is_ended_from_outside_is_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose_a_process(_: object) -> None:
        with ProcessPoolExecutor(1) as pool:
            pool.submit(os._exit, 9).result()

    monkeypatch.setattr(info_command, "run", lose_a_process)
    with pytest.raises(SystemExit) as ended:
        main(["info", "any.mcap"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "ended from outside" in said
