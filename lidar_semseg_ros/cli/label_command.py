"""lidar-semseg label: pseudo-labels for every cloud of recordings, from their cameras, without ROS."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from lidar_semseg_ros.cli.inspect_command import print_inspection
from lidar_semseg_ros.cli.labelling import LabelJob, LabelSummary, label_bag, label_one_of_several
from lidar_semseg_ros.cli.settings import add_settings, config_from
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.teacher.labeller import TeacherConfig
from lidar_semseg_ros.teacher.lifting import FARTHEST_POSE_S

Label = Callable[..., LabelSummary | None]
Done = tuple[LabelJob, LabelSummary | None]
"""A recording and what came of it; None if it was labelled already."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bags", type=Path, nargs="+", help="recordings with a lidar and cameras, of ROS 1 or ROS 2")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="the .mcap file to write; for several recordings, a folder, where those labelled already are left alone",
    )
    parser.add_argument("--topic", help="the cloud topic (default: the only one)")
    parser.add_argument(
        "--poses",
        help="topic of Odometry or PoseStamped (default: the only one, or /tf); 'none': the robot is taken to stand "
        "still, and no past sweeps vote",
    )
    parser.add_argument(
        "--calibration", help="calibration file, or the name of a shipped one (default: CameraInfo and /tf_static)"
    )
    parser.add_argument(
        "--masks",
        type=Path,
        help="take classes from masks that were made elsewhere instead of a vision model: a folder for each camera, "
        "named after the frame of its images, with a .png or .npy for each image, named after its stamp in nanoseconds",
    )
    parser.add_argument("--images", action="store_true", help="record the images too")
    parser.add_argument("--workers", type=int, default=1, help="recordings labelled at the same time (default: 1)")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="label on the machines of a Ray cluster ('auto': the one that runs here, 'local': one for this run only)",
    )
    add_settings(parser, TeacherConfig)


def run(args: argparse.Namespace) -> None:
    """Label all recordings and print what came of each; what was begun before and cut off is finished.

    In a folder, recordings that are labelled already are left as they are.
    """
    config = config_from(args, TeacherConfig)
    jobs = [
        LabelJob(
            bag=bag,
            output=output,
            config=config,
            topic=args.topic,
            poses=args.poses,
            calibration=args.calibration,
            images=args.images,
            masks=args.masks,
        )
        for bag, output in zip(args.bags, _outputs(args.bags, args.output))
    ]
    label = label_bag if args.output.suffix == ".mcap" else label_one_of_several
    if args.ray:
        done = _on_ray(label, jobs, args.ray)
    elif args.workers > 1 and len(jobs) > 1:
        done = _in_processes(label, jobs, args.workers)
    else:
        done = ((job, label(job, _bar(job))) for job in jobs)
    for job, summary in done:
        if summary is None:
            print(f"{job.output}: {job.bag} is labelled already")
        else:
            _print(summary)


def _outputs(bags: Sequence[Path], output: Path) -> list[Path]:
    if len(bags) == 1 and output.suffix == ".mcap":
        return [output]
    if output.suffix == ".mcap":
        raise UserError(f"{len(bags)} recordings do not go into one file; give a folder instead of {output}")
    names = [bag.stem for bag in bags]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"two recordings are called {sorted(repeated)[0]}; label them one by one")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {output} ({error}); give another one with --output") from error
    return [output / f"{name}.mcap" for name in names]


def _bar(job: LabelJob) -> Callable[[int, int], None]:
    bar = tqdm(desc=job.bag.name, unit="cloud", disable=None, file=sys.stderr)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


def _in_processes(label: Label, jobs: Sequence[LabelJob], workers: int) -> Iterator[Done]:
    """Label so many recordings at a time; after an error, those that are in work are finished and no more begun."""
    # Fresh processes: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(label, job): job for job in jobs}
        try:
            for one in tqdm(as_completed(running), total=len(jobs), unit="recording", disable=None, file=sys.stderr):
                yield running[one], one.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(label: Label, jobs: Sequence[LabelJob], address: str) -> Iterator[Done]:
    """Label one recording per task; all machines see the recordings under the same paths.

    A task whose process dies is tried again by Ray, and goes on where it was cut off.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at '{address}' ({error}); start one with `ray start --head`, or leave out --ray"
        ) from error
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0 and any(_may_use_gpu(job) for job in jobs))
        remote = ray.remote(num_gpus=gpus)(_label_in)
        running = {remote.remote(label, Path.cwd(), job): job for job in jobs}
        for _ in tqdm(jobs, unit="recording", disable=None, file=sys.stderr):
            (one,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(one), ray.get(one)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except RayError as error:
        raise UserError(f"Ray gave up ({error}); the same command goes on where it was cut off") from error
    finally:
        ray.shutdown()


def _may_use_gpu(job: LabelJob) -> bool:
    # To a task that asks for no GPU, Ray shows none or, lately, all, which then share the first.
    return job.masks is None and job.config.vision.device != "cpu"


def _label_in(label: Label, folder: Path, job: LabelJob) -> LabelSummary | None:
    """Label where the command was given, so that relative paths mean the same; a task begins anywhere."""
    if folder.is_dir():
        os.chdir(folder)
    return label(job)


def _print(summary: LabelSummary) -> None:
    print(f"{summary.output}: {summary.clouds} clouds labelled, {summary.dropped} dropped; poses: {summary.poses}")
    for camera, count in sorted(summary.hits.items()):
        share, skew_ms = count / max(summary.clouds, 1), 1e3 * summary.skew_s[camera]
        print(f"  {camera}: {share:.0%} of the clouds have its image, taken {-skew_ms:+.0f} ms from the sweep's middle")
    for (camera, cause), count in sorted(summary.left_out.items()):
        print(f"  {camera}: {count} images left out as {cause}")
    if summary.without_motion:
        print(
            f"  {summary.without_motion} clouds have no poses within {FARTHEST_POSE_S} s: for them the robot is taken "
            "to stand still, and no past sweeps vote"
        )
    if summary.clouds and not summary.hits:
        print("  no image lies near a cloud in time; look at the stamps, or raise --sync-max-dt-s")
    print_inspection(summary.output, None)
