"""`label` and `inspect` on a simulated drive with two cameras and a tiny teacher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_reader import decoded_by_others
from midway import kill_midway, wait_midway

transformers = pytest.importorskip("transformers", reason="teachers need transformers, the extra 'teacher'")
pytest.importorskip("embreex", reason="the simulator needs embreex, the extra [sim]")

from lidar_semseg_ros.cli.inspect_command import inspection, reachable
from lidar_semseg_ros.cli.main import main
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.metrics import overall_accuracy
from lidar_semseg_ros.distill.train_teacher import TeacherTrainConfig, initial_teacher, save_teacher, train_teacher
from lidar_semseg_ros.formats.bags import open_bag
from lidar_semseg_ros.formats.config_files import class_table
from lidar_semseg_ros.formats.dataset import (
    CLASS_MAP_TOPIC,
    LABEL_TOPIC,
    PSEUDO_LABEL_TOPIC,
    pseudo_labelled_sweeps,
    taught_classes,
    teacher_settings,
)
from lidar_semseg_ros.formats.pointcloud2 import cloud_content
from lidar_semseg_ros.sim.drive import random_images
from lidar_semseg_ros.view.paint import save_png

ROOT = Path(__file__).parents[2]
FRAMES = 8


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drive") / "drive.mcap"
    main(["simulate", "-o", str(path), "--lidar", "VLP-16", "--cameras", "2", "--frames", str(FRAMES), "--seed", "3"])
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SegFormer that has seen two images: it says something else of each class of pixel, most of it wrong."""
    folder = tmp_path_factory.mktemp("teacher")
    config = TeacherTrainConfig(steps=2, batch=1, workers=0)
    names = class_table("indoor17").names
    model = train_teacher(initial_teacher(names, 0), lambda rng: random_images(rng, 64, 48), config, lambda *_: None)
    save_teacher(model, folder)
    return folder


def arguments(bag: Path, teacher: Path, output: Path, *more: str) -> list[str]:
    chosen = ["--vision-model", str(teacher), "--class-map", "", "--voting-min-confidence", "0"]
    return ["label", str(bag), "-o", str(output), *chosen, *more]


def content(path: Path) -> list[tuple[str, int, bytes]]:
    with open_bag(path) as opened:
        return sorted((one.topic, one.log_time_ns, one.cdr()) for one in opened.messages())


@pytest.fixture(scope="module")
def labelled(bag: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "labelled.mcap"
    main(arguments(bag, teacher, path))
    return path


def test_every_cloud_is_there_with_all_its_bytes_and_a_label_or_none_for_each_point(bag: Path, labelled: Path) -> None:
    with open_bag(bag) as source, open_bag(labelled) as made:
        originals = [cloud_content(one.message()) for one in source.messages(["/lidar/points"])]
        clouds = [cloud_content(one.message()) for one in made.messages([PSEUDO_LABEL_TOPIC])]
        sweeps = list(pseudo_labelled_sweeps(made, PSEUDO_LABEL_TOPIC))
    assert len(clouds) == FRAMES
    for original, cloud, sweep in zip(originals, clouds, sweeps):
        assert (cloud.stamp_ns, cloud.frame_id) == (original.stamp_ns, original.frame_id)
        step = original.point_step
        assert np.array_equal(cloud.data.reshape(-1, cloud.point_step)[:, :step], original.data.reshape(-1, step))
        given = sweep.class_id != UNLABELLED
        assert 0.1 < given.mean() < 0.9 and (sweep.probability[given] > 0).all()
        assert (sweep.views[given] > 0).all() and not sweep.class_id[given].max() > 16


def test_a_recording_stands_for_itself(bag: Path, labelled: Path, teacher: Path) -> None:
    with open_bag(labelled) as made, open_bag(bag) as source:
        settings = teacher_settings(made, PSEUDO_LABEL_TOPIC)
        assert taught_classes(made, PSEUDO_LABEL_TOPIC, "").names == class_table("indoor17").names
        for topic in ("/tf_static", "/odom", "/camera_0/camera_info", LABEL_TOPIC, CLASS_MAP_TOPIC):
            assert made.message_count(topic) == source.message_count(topic), topic
        assert made.message_count("/camera_0/image_raw/compressed") == 0
    assert settings["teacher"]["model"] == str(teacher) and len(settings["teacher"]["sha256"]) == 64
    assert settings["settings"]["voting.min_share"] == 0.55
    assert set(settings["cameras"]) == {"camera_0", "camera_1"}
    # The second camera looks to the left: the lidar's y is its z.
    camera_from_lidar = np.reshape(settings["cameras"]["camera_1"]["camera_from_lidar"], (4, 4))
    assert np.allclose(camera_from_lidar[2, :3], [0, 1, 0])


def test_images_are_recorded_where_they_are_asked_for(bag: Path, teacher: Path, tmp_path: Path) -> None:
    main(arguments(bag, teacher, tmp_path / "a.mcap", "--images"))
    topic = "/camera_1/image_raw/compressed"
    assert [one for one in content(tmp_path / "a.mcap") if one[0] == topic] == [
        one for one in content(bag) if one[0] == topic
    ]


def test_readers_of_others_decode_all_that_is_recorded(bag: Path, teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    main(arguments(bag, teacher, path, "--images"))
    found = decoded_by_others(path)
    with open_bag(path) as ours:
        assert set(found) == set(ours.topics)
        clouds = [cloud_content(one.message()) for one in ours.messages([PSEUDO_LABEL_TOPIC])]
    assert [bytes(one.data) for one in found[PSEUDO_LABEL_TOPIC]] == [cloud.data.tobytes() for cloud in clouds]
    assert len(found["/camera_0/image_raw/compressed"]) == len(found["/camera_0/camera_info"]) == FRAMES
    assert bytes(found["/camera_0/image_raw/compressed"][0].data).startswith(b"\xff\xd8")
    assert found["/camera_0/camera_info"][0].width == 640
    assert {frame.child_frame_id for frame in found["/tf_static"][0].transforms} == {"lidar", "camera_0", "camera_1"}
    assert json.loads(found["/teacher/output/settings"][0].data)["never_labelled"] == []


def test_a_run_that_was_killed_again_and_again_is_finished_with_the_same_result_and_nothing_is_done_twice(
    bag: Path, teacher: Path, labelled: Path, tmp_path: Path
) -> None:
    output, part = tmp_path / "a.mcap", tmp_path / "a.part.mcap"
    command = [sys.executable, "-m", "lidar_semseg_ros.cli.main", *arguments(bag, teacher, output)]
    done = [0]
    for size in (2_000_000, 3_500_000):
        kill_midway(command, lambda size=size: part.exists() and part.stat().st_size > size)
        assert [path.name for path in tmp_path.iterdir()] == ["a.part.mcap"]
        with open_bag(part) as cut_off:
            done.append(cut_off.message_count(PSEUDO_LABEL_TOPIC))
    assert done[0] < done[1] < done[2] < FRAMES
    # What was killed while it copied leaves both files; the older one is whole.
    part.rename(tmp_path / "a.cut-off.mcap")
    part.write_bytes((tmp_path / "a.cut-off.mcap").read_bytes()[:1_000_000])
    main(arguments(bag, teacher, output))
    assert content(output) == content(labelled)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mcap"]


def test_on_ray_recordings_become_the_same_bytes_wherever_a_task_begins_and_faults_are_told_in_one_line(
    bag: Path,
    masks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray", reason="Ray is missing, the extra 'ray'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.chdir(tmp_path)
    for name in ("one.mcap", "two.mcap"):
        Path(name).write_bytes(bag.read_bytes())
    chosen = ["label", "one.mcap", "two.mcap", "--masks", os.path.relpath(masks), "--class-map", ""]
    main([*chosen, "-o", "plain"])
    main([*chosen, "-o", "on_ray", "--ray", "local"])
    for name in ("one.mcap", "two.mcap"):
        assert (tmp_path / "on_ray" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*chosen, "-o", "none", "--ray", "local", "--topic", "/none"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and re.search(r"^error: (one|two)\.mcap has no cloud topic /none; it has", said, re.M)
    assert not list((tmp_path / "none").iterdir())


def test_what_a_process_of_ray_was_killed_at_is_finished_by_the_next(bag: Path, teacher: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is missing, the extra 'ray'")
    # Ray gives each task one thread; with more, sums come in another order.
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    labelling = [sys.executable, "-m", "lidar_semseg_ros.cli.main"]
    plain, output, part = (tmp_path / f"{name}.mcap" for name in ("plain", "a", "a.part"))
    subprocess.run([*labelling, *arguments(bag, teacher, plain)], cwd=ROOT, env=environment, check=True)
    command = [*labelling, *arguments(bag, teacher, output, "--ray", "local")]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        wait_midway(process, lambda: part.exists() and part.stat().st_size > 2_000_000)
        os.kill(_task_of(process.pid), signal.SIGKILL)
    assert process.returncode == 0 and content(output) == content(plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mcap", "plain.mcap"]


def _task_of(pid: int) -> int:
    """Find the process of Ray, below this one, that labels."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    parents = {int(child): int(parent) for child, parent, _ in rows}
    for child, _, title in rows:
        above = int(child)
        while above not in (0, pid):
            above = parents.get(above, 0)
        if above == pid and title.startswith("ray::") and "_label_in" in title:
            return int(child)
    raise AssertionError("no process of Ray labels")


def test_several_recordings_go_into_a_folder_in_parallel(
    bag: Path, teacher: Path, labelled: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second.mcap"
    second.write_bytes(bag.read_bytes())
    chosen = arguments(bag, teacher, tmp_path / "out", "--workers", "2")
    main([*chosen[:2], str(second), *chosen[2:]])
    assert content(tmp_path / "out" / "drive.mcap") == content(labelled)
    assert (tmp_path / "out" / "second.mcap").is_file()


@pytest.fixture(scope="module")
def masks(bag: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cameras see, exactly, as files."""
    folder = tmp_path_factory.mktemp("made") / "masks"
    with open_bag(bag) as source:
        for name in ("camera_0", "camera_1"):
            (folder / name).mkdir(parents=True)
            for recorded in source.messages([f"/ground_truth/{name}"]):
                image = recorded.message()
                stamp_ns = image.header.stamp.sec * 10**9 + image.header.stamp.nanosec
                pixels = np.frombuffer(bytes(image.data), np.uint8).reshape(image.height, image.width)
                save_png(folder / name / f"{stamp_ns}.png", pixels)
    return folder


def test_masks_made_elsewhere_are_lifted_and_exact_ones_make_exact_labels(
    bag: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["label", str(bag), "-o", str(tmp_path / "a.mcap"), "--masks", str(masks), "--class-map", ""])
    found = inspection(tmp_path / "a.mcap")
    # Points at edges may take their neighbour's class; without motion undone it would be 90 %.
    assert overall_accuracy(reachable(found)) > 0.97 and found.coverage > 0.2
    assert "masks of masks" in capsys.readouterr().out


def test_inspect_tells_coverage_confidence_and_how_right_the_teacher_is(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(labelled), "--picture", str(tmp_path / "a.png")])
    said = capsys.readouterr().out
    with open_bag(labelled) as made:
        sweeps = list(pseudo_labelled_sweeps(made, PSEUDO_LABEL_TOPIC))
    shares = [(one.class_id != UNLABELLED)[one.frame.has_return()].mean() for one in sweeps]
    assert f"{FRAMES} clouds, {np.mean(shares):.1%} of their points labelled" in said
    assert "against the exact labels: mIoU" in said and "confidence" in said
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_poses_that_are_not_wanted_are_ignored_and_no_past_sweeps_vote(
    bag: Path, teacher: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(bag, teacher, tmp_path / "a.mcap", "--poses", "none"))
    assert "poses: none" in capsys.readouterr().out
    with open_bag(tmp_path / "a.mcap") as still, open_bag(labelled) as moving:
        sweeps = [list(pseudo_labelled_sweeps(made, PSEUDO_LABEL_TOPIC)) for made in (still, moving)]
    votes = [[int(sweep.views.max()) for sweep in of_one] for of_one in sweeps]
    # Two cameras that overlap nowhere; of the drive, up to 10 past sweeps count.
    assert max(votes[0]) <= 2 < max(votes[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--calibration", "nowhere"], "no calibration 'nowhere'"),
        (["--calibration", "ntu_viral"], "which the recording lacks"),
        (["--topic", "/none"], "has no cloud topic /none"),
        (["--poses", "/none"], "topics with poses are /odom"),
        (["--class-map", "ade20k"], "has 17 classes, but ade20k maps 150"),
        (["--vision-model", "nowhere/at-all"], "hf download nowhere/at-all"),
        (["--classes", "semantickitti19"], "give a map"),
    ],
)
def test_what_cannot_be_labelled_is_an_error_that_says_what_to_do(
    change: list[str], said: str, bag: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(bag, teacher, tmp_path / "a.mcap", *change))
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_recording_without_labels_or_cameras_is_refused(
    bag: Path, labelled: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, said in (
        (["inspect", str(bag)], "lidar-semseg label"),
        (arguments(bag, teacher, labelled), "exists already"),
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert said in capsys.readouterr().err
    blind = tmp_path / "blind.mcap"
    main(["simulate", "-o", str(blind), "--lidar", "VLP-16", "--cameras", "0", "--frames", "1"])
    with pytest.raises(SystemExit):
        main(arguments(blind, teacher, tmp_path / "a.mcap"))
    assert "no camera of the recording can be used" in capsys.readouterr().err


def test_the_settings_are_json_for_other_tools(labelled: Path) -> None:
    with open_bag(labelled) as made:
        text = next(made.messages(["/teacher/output/settings"])).message().data
    assert json.loads(text)["never_labelled"] == []
