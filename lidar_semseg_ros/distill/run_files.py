"""What a run leaves beside its model: checkpoints, losses, and the batch that stopped it."""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.distill.batches import Batch
from lidar_semseg_ros.distill.objectives import Lesson

logger = logging.getLogger(__name__)


class RunFiles:
    """The files of the run that makes one model."""

    def __init__(self, output: Path, settings: str) -> None:
        """Name them; settings: all that the course of the run depends on, for a checkpoint of another is refused."""
        self.checkpoint = output.with_suffix(".checkpoint")
        self.losses = output.with_suffix(".losses.csv")
        self._output = output
        self._settings = settings
        self._board = _tensorboard(output.with_suffix(".tensorboard"))

    def read_checkpoint(self) -> dict[str, Any] | None:
        """Read the checkpoint of an earlier run; None if there is none, UserError if that did something else."""
        if not self.checkpoint.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            settings = state.pop("settings")
        except Exception as error:  # what torch makes of damaged bytes is of many types
            raise UserError(f"{self.checkpoint} is damaged ({error}); remove it to begin anew") from error
        if settings != self._settings:
            raise UserError(
                f"{self.checkpoint} is of a run with other settings or recordings; remove it to begin anew, or take "
                "those settings again"
            )
        return state

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by a newer one; where that cannot be written, the older one stays."""
        buffer = BytesIO()
        torch.save({**state, "settings": self._settings}, buffer)
        try:
            _replace(self.checkpoint, buffer.getvalue())
        except OSError as error:
            logger.warning("%s was not renewed (%s); the one before stays", self.checkpoint, error)

    def write_losses(self, names: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
        """Write the losses of all steps so far as a table; what was not measured (NaN) is an empty cell."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", *names])
        writer.writerows(
            [step, *("" if math.isnan(value) else value for value in row)] for step, row in enumerate(rows)
        )
        try:
            _replace(self.losses, text.getvalue().encode())
        except OSError as error:
            logger.warning("%s was not renewed (%s)", self.losses, error)

    def show(self, step: int, names: Sequence[str], row: Sequence[float]) -> None:
        """Send values of a step to TensorBoard where it is installed."""
        if self._board is not None:
            for name, value in zip(names, row):
                self._board.add_scalar(name, value, step)

    def save_offending(
        self, step: int, rank: int, sweeps: Sequence[str], batch: Batch, lesson: Lesson, student: Mapping[str, Tensor]
    ) -> str:
        """Save all that the loss of a step was computed from, which is no number; say where, or why it is not saved.

        student: the weights. The file is a torch.save of plain types, one for each process.
        """
        state = {
            "step": step,
            "sweeps": list(sweeps),
            "batch": {**batch._asdict(), "planes": [plane._asdict() for plane in batch.planes]},
            "lesson": lesson._asdict(),
            "student": dict(student),
        }
        path = self._output.with_suffix(f".offending-{rank}.pt")
        buffer = BytesIO()
        torch.save(state, buffer)
        try:
            _replace(path, buffer.getvalue())
        except OSError as error:
            return f"the batch could not be saved as {path} ({error})"
        return f"the batch is saved as {path}"

    def finish(self) -> None:
        """Remove the checkpoint of a run that is complete."""
        self.checkpoint.unlink(missing_ok=True)
        if self._board is not None:
            self._board.close()


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
