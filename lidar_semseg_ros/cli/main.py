"""Entry point of the command `lidar-semseg`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from concurrent.futures import BrokenExecutor
from typing import Any

from lidar_semseg_ros.core.errors import UserError, missing_package

COMMANDS = {
    "demo": "run everything live on a simulated (or your own) recording and show the result",
    "segment": "label every cloud of a recording, without ROS",
    "play": "replay a recording of any kind into ROS 2",
    "simulate": "record a robot driving through a simulated building, with exact labels",
    "convert": "turn a folder of loose scans into a recording",
    "calib-check": "tell whether lidar and cameras of a recording are calibrated to each other, with a picture",
    "label": "make pseudo-labels for recordings from their cameras, without ROS",
    "inspect": "summarise the pseudo-labels of a recording, with a picture",
    "distill": "train a network on recordings that a teacher has labelled",
    "train": "train a network on simulated buildings",
    "train-teacher": "train a small vision teacher on images of simulated buildings",
    "evaluate": "compare a model's labels with exact labels and pseudo-labels of recordings, and try its robustness",
    "study": "compare ways to pre-train and to label on simulated buildings, with a table",
    "import": "make a self-describing model of a published checkpoint",
    "export": "turn a .safetensors model into ONNX",
    "info": "say what a model file or a recording holds",
    "doctor": "check this machine: runtimes, models, ROS 2, and whether large clouds arrive",
    "bench": "time the stages of a model on this machine",
}
"""Sub-commands in the order of --help; each is the module cli/<name>_command.py with `add_arguments` and `run`."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exit status 2 with one line on stderr for what the user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="lidar-semseg", description="Live semantic segmentation of lidar.")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("lidar_semseg_ros").setLevel(logging.INFO)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    try:
        for name, text in COMMANDS.items():
            subparser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
            # Only the module of the command that runs is imported: most pull in heavy libraries.
            if name in argv[:1]:
                _module(name).add_arguments(subparser)
        args = parser.parse_args(argv)
        _module(args.command).run(args)
    except ModuleNotFoundError as error:
        _end(missing_package(error))
    except UserError as error:
        _end(error)
    except BrokenExecutor:
        what = "a process of this command was ended from outside, perhaps because memory ran out"
        _end(UserError(f"{what}; with fewer --workers, the same command goes on where it stopped"))
    except KeyboardInterrupt:
        sys.exit(130)


def _module(command: str) -> Any:
    return importlib.import_module(f"lidar_semseg_ros.cli.{command.replace('-', '_')}_command")


def _end(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
