"""The training loop: batches of taught sweeps in, a network out.

for every step:
batch                                             drawn by the step alone
what the image teacher says of its images         asked once, then stored
loss = Σ weight · objective(student(batch))
gradient, mean over all processes, clipped; AdamW at warm-up and cosine; running mean of the weights
now and then, how good the averaged weights are on recordings that are kept apart, and a checkpoint
the averaged weights, with batch norms measured anew
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import CameraImage
from lidar_semseg_ros.distill.batch_norms import CALIBRATION_BATCHES, calibrated
from lidar_semseg_ros.distill.objectives import Lesson, Student, by_view, pixel_features, terms
from lidar_semseg_ros.distill.plan import DistillConfig
from lidar_semseg_ros.distill.processes import World, share_batch_norms, unshare_batch_norms
from lidar_semseg_ros.distill.run_files import RunFiles
from lidar_semseg_ros.distill.samples import Store, TaughtBatch, TaughtBatches, View, ids_at
from lidar_semseg_ros.distill.schedule import warmup_cosine
from lidar_semseg_ros.network.waffleiron import WaffleIron
from lidar_semseg_ros.teacher.vision import Teacher

logger = logging.getLogger(__name__)

FIRST_COLUMNS = ("loss", "learning_rate", "gradient")
"""Of the table of losses; the objectives follow, and where there is validation, its mean IoU."""
VALIDATION_COLUMN = "validation_miou"


class ImageTeacher:
    """What models say of images, stored so that they are asked once for each: features, and masks if wanted.

    features: their dimension D.
    """

    def __init__(
        self, teacher: Teacher, store: Store, masks: Teacher | None = None, mask_store: Store | None = None
    ) -> None:
        """Take a model of features, and one of masks; with each, the store of its answers."""
        self._teacher, self._store = teacher, store
        self._masks, self._mask_store = masks, mask_store
        probe = CameraImage(stamp_ns=0, frame_id="", pixels=np.zeros((32, 32, 3), np.uint8))
        self.features = int(teacher.features([probe])[0].values.shape[-1])

    def complete(self, views: Sequence[View]) -> list[View]:
        """Add what the views lack."""
        return [self._completed(view) for view in views]

    def _completed(self, view: View) -> View:
        # Images one by one: what a batch of them gives differs by rounding from what single ones give.
        if view.features is None:
            view = replace(view, features=_said(self._store, view, self._features))
        if view.superpixel is None:
            assert self._mask_store is not None
            ids = _said(self._mask_store, view, self._segments)
            view = replace(view, superpixel=ids_at(ids, view.uv_px))
        return view

    def _features(self, image: CameraImage) -> np.ndarray:
        return self._teacher.features([image])[0].values.astype(np.float16)

    def _segments(self, image: CameraImage) -> np.ndarray:
        assert self._masks is not None
        return self._masks.segments([image])[0]


def _said(store: Store, view: View, ask: Callable[[CameraImage], np.ndarray]) -> np.ndarray:
    """Give what a model says of the image of a view; another view may have asked meanwhile."""
    said = store.read(view.key)
    if said is None:
        assert view.image is not None
        said = ask(view.image)
        store.write(view.key, said)
    return said


def distill(
    student: Student,
    batches: TaughtBatches,
    config: DistillConfig,
    world: World,
    teacher: ImageTeacher | None,
    files: RunFiles,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    validation: Callable[[WaffleIron], float] | None = None,
    on_best: Callable[[int, WaffleIron, float], None] = lambda steps, network, miou: None,
) -> WaffleIron:
    """Train a student; the averaged weights of its network are returned, on the CPU.

    The run goes on from its checkpoint if there is one. on_step(step, losses) is called after every step. validation
    gives the mean IoU of a network, and is asked every config.validate steps and at the end; on_best(steps, network,
    mean IoU) is called when that was better than ever; both in the first process only. What on_best raises
    ends the run, and the next one judges that step again. UserError if a loss is no number; the batch is saved and
    named.
    """
    run = _Run(student, config, world, files)
    begin = run.resumed()
    loader: DataLoader[Any] = DataLoader(
        _Reported(batches), None, sampler=range(begin, config.steps), num_workers=config.workers, collate_fn=_as_it_is
    )
    for step, taught in zip(range(begin, config.steps), loader):
        if isinstance(taught, UserError):
            raise taught
        losses = run.step(step, taught, teacher)
        if validation is not None and run.is_to_be_validated(step):
            losses |= run.validated(step, batches, validation, on_best)
        on_step(step, losses)
        # Also the last step, for the model itself may not find room on the disk.
        if (step + 1) % config.checkpoint == 0 or step + 1 == config.steps:
            run.save(step + 1)
    return run.finished(batches)


class _Reported(Dataset[Any]):
    """Batches, or the UserError in place of one: raised in a worker process, it would arrive with a traceback."""

    def __init__(self, batches: TaughtBatches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> TaughtBatch | UserError:
        try:
            return self._batches[step]
        except UserError as error:
            return error


class _Run:
    """What changes from step to step, and with it what a checkpoint holds."""

    def __init__(self, student: Student, config: DistillConfig, world: World, files: RunFiles) -> None:
        self._config, self._world, self._files = config, world, files
        self._device = torch.device(world.device)
        self._student = student.to(self._device)
        self._averaged = AveragedModel(student.network, multi_avg_fn=_averaging(config.ema))
        learning: nn.Module = student.network.classif if config.train == "head" else student
        # A frozen network keeps the statistics of its batch norms, too.
        student.requires_grad_(False).eval()
        learning.requires_grad_(True).train()
        self._parameters = [weights for weights in student.parameters() if weights.requires_grad]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self._learner: nn.Module = student
        if world.size > 1:
            share_batch_norms(student)
            self._learner = DistributedDataParallel(student, broadcast_buffers=False)
        self._weights = {name: weight for name, weight in config.objectives.weights().items() if weight}
        self._names = [*FIRST_COLUMNS, *self._weights, *([VALIDATION_COLUMN] if config.validate else [])]
        self._rows: list[list[float]] = []
        self._left_out: set[str] = set()

    def step(self, step: int, taught: TaughtBatch, teacher: ImageTeacher | None) -> dict[str, float]:
        """Learn from a batch; give the losses, mean over all processes."""
        self._tell(taught.left_out)
        config = self._config
        lesson = lesson_of(taught, config, teacher, self._device)
        rate = config.learning_rate * warmup_cosine(step, config.warmup, config.steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        said = self._learner(taught.batch.to(self._device), lesson)
        found = terms(said, lesson, config.objectives)
        loss = torch.stack([weight * found[name] for name, weight in self._weights.items()]).sum()
        self._optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, config.clip)
        shown = self._world.mean(
            torch.stack([loss, norm, *(found[name] for name in self._weights)]).detach().double()
        ).tolist()
        if not np.isfinite(shown).all():
            # The gradient is a mean over all processes: where it alone is no number, any of them may have made it so.
            self._stop(step, taught, lesson, is_mine=not bool(loss.isfinite()) or bool(np.isfinite(shown[0])))
        self._optimiser.step()
        self._averaged.update_parameters(self._student.network)
        row = [shown[0], rate, *shown[1:]]
        self._rows.append(row + [np.nan] * (len(self._names) - len(row)))
        if self._world.rank == 0:
            self._files.show(step, self._names, row)
        return dict(zip(self._names, row))

    def _tell(self, left_out: Mapping[str, str]) -> None:
        """Warn of images that cannot be used, once of each."""
        for key, why in left_out.items():
            if key not in self._left_out:
                logger.warning("%s", why)
            self._left_out.add(key)

    def is_to_be_validated(self, step: int) -> bool:
        """Whether it is time to validate after a step; in the first process only."""
        every = self._config.validate
        is_time = every > 0 and ((step + 1) % every == 0 or step + 1 == self._config.steps)
        return is_time and self._world.rank == 0

    def validated(
        self,
        step: int,
        batches: TaughtBatches,
        validation: Callable[[WaffleIron], float],
        on_best: Callable[[int, WaffleIron, float], None],
    ) -> dict[str, float]:
        """Find how good the averaged weights are after a step, and write it into its row."""
        network = self._averaged_network(step + 1, batches)
        miou = validation(network)
        if not any(miou <= row[-1] for row in self._rows):
            # First, so that no checkpoint knows of a best network that could not be kept.
            on_best(step + 1, network, miou)
        self._rows[-1][-1] = miou
        self._files.show(step, [VALIDATION_COLUMN], [miou])
        return {VALIDATION_COLUMN: miou}

    def _stop(self, step: int, taught: TaughtBatch, lesson: Lesson, *, is_mine: bool) -> None:
        saved = ""
        if is_mine:
            said = self._files.save_offending(
                step, self._world.rank, taught.names, taught.batch, lesson, self._student.state_dict()
            )
            saved = f"; {said}"
        # Whoever ends first has the others ended, perhaps while they write.
        self._world.wait()
        raise UserError(
            f"the loss or its gradient is no number any more at step {step}, for sweeps {', '.join(taught.names)}"
            f"{saved}. Look at these sweeps, or take a smaller learning_rate or clip; the last checkpoint stays"
        )

    def save(self, steps: int) -> None:
        """Write a checkpoint after so many steps."""
        if self._world.rank == 0:
            state = {
                "steps": steps,
                "student": self._student.state_dict(),
                "averaged": self._averaged.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "losses": torch.tensor(self._rows, dtype=torch.float64),
            }
            self._files.write_checkpoint(state)
            self._files.write_losses(self._names, self._rows)

    def resumed(self) -> int:
        """Go back to the checkpoint if there is one, and give the number of steps done."""
        state = self._files.read_checkpoint()
        if state is None:
            return 0
        self._student.load_state_dict(state["student"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rows = state["losses"].tolist()
        return int(state["steps"])

    def finished(self, batches: TaughtBatches) -> WaffleIron:
        """Give the averaged weights of all steps, on the CPU; warn of objectives that nothing was learned by."""
        if self._world.rank == 0:
            self._files.write_losses(self._names, self._rows)
            for name, losses in zip(self._names, zip(*self._rows)):
                if name in self._weights and not any(losses):
                    logger.warning(
                        "objectives.%s was 0 in all %d steps, so nothing was learned by it: no batch had what it needs "
                        "(points that an image shows, segments, labels)",
                        name,
                        len(losses),
                    )
        return self._averaged_network(self._config.steps, batches).cpu()

    def _averaged_network(self, steps: int, batches: TaughtBatches) -> WaffleIron:
        """Give the weights averaged over so many steps, in the first process with batch norms that fit them."""
        network: Any = copy.deepcopy(self._averaged.module)
        unshare_batch_norms(network)
        if self._world.rank == 0 and self._config.train == "all":
            # Made again rather than kept, so that they are the same ones after a kill.
            last = range(max(0, steps - CALIBRATION_BATCHES), steps)
            network = calibrated(network.requires_grad_(True), (batches[step].batch for step in last))
        finished: WaffleIron = network.eval()
        return finished


def lesson_of(taught: TaughtBatch, config: DistillConfig, teacher: ImageTeacher | None, device: torch.device) -> Lesson:
    """Gather what the objectives learn from a batch."""
    features = 0 if teacher is None else teacher.features
    views = taught.views if teacher is None else teacher.complete(taught.views)
    point, pixels, superpixel = pixel_features(views, features, of_classes=config.objectives.superpixels == "classes")
    most = config.objectives.contrast_points if config.objectives.xmodel else 0
    seen, by_views, shows = by_view(point, pixels, most)
    arrays = {"point": point, "pixels": pixels, "superpixel": superpixel}
    arrays |= {"seen": seen, "views": by_views, "shows": shows}
    return Lesson(
        labels=taught.batch.labels.to(device),
        weights=taught.weights.to(device),
        **{name: torch.from_numpy(array).to(device) for name, array in arrays.items()},
        segment=taught.segment.to(device),
        is_later=taught.is_later.to(device),
    )


def _averaging(decay: float) -> Callable[..., None]:
    """Average weights over about 1 / (1 − decay) steps, and over fewer at the start, which is soon forgotten."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        share = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(averaged, current, 1 - share)

    return torch.no_grad()(update)


def _as_it_is(taught: Any) -> Any:
    return taught
