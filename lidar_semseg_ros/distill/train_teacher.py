"""The small vision teacher: a SegFormer that learns from rendered images, for tests and machines without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.distill.losses import cross_entropy_and_lovasz
from lidar_semseg_ros.distill.plan import PRECISIONS
from lidar_semseg_ros.distill.schedule import warmup_cosine

WIDTH, HEIGHT = 320, 240
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPE = {
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [2, 2, 2, 2],
    "num_attention_heads": [1, 2, 4, 8],
    "decoder_hidden_size": 128,
}
"""A quarter of the smallest published SegFormer (Xie et al., NeurIPS 2021): 0.85 M weights."""

PIXELS = 4096
"""Of each image so many are learned from: neighbours tell nearly the same."""

LabelledImages = Callable[[np.random.Generator], Iterator[tuple[np.ndarray, np.ndarray]]]
"""An endless source of images (H, W, 3) uint8 and classes (H, W) uint8, determined by its generator."""


@dataclass(frozen=True, kw_only=True)
class TeacherTrainConfig:
    """Settings of a training run."""

    steps: int = setting(1500, "optimiser steps", minimum=1)
    batch: int = setting(8, "images per step", minimum=1)
    learning_rate: float = setting(1e-3, "peak of the cosine schedule", minimum=0.0)
    warmup: int = setting(100, "steps of linear warm-up", minimum=0)
    workers: int = setting(1, "processes that render images; 0 renders in this one", minimum=0)
    precision: str = setting("float32", "arithmetic of the layers; the loss stays float32", choices=PRECISIONS)
    seed: int = setting(0, "of weights, images and augmentation", minimum=0)


class _Batch(NamedTuple):
    """Images (B, 3, H, W) float32, pixels of them (B, 1, P, 2) float32 as `grid_sample` counts, classes (B · P,)."""

    images: torch.Tensor
    places: torch.Tensor
    classes: torch.Tensor


class _Batches(IterableDataset[_Batch]):
    """Batches of augmented images, made in worker processes; each has its own stream of images."""

    def __init__(self, images: LabelledImages, config: TeacherTrainConfig) -> None:
        self._images, self._config = images, config

    def __iter__(self) -> Iterator[_Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng([self._config.seed, worker.id if worker else 0])
        images = self._images(rng)
        while True:
            seen = [augmented(*next(images), rng) for _ in range(self._config.batch)]
            pixels, classes = (np.stack(arrays) for arrays in zip(*seen))
            yield _batch(pixels, classes, rng)


def _batch(pixels_BHWC: np.ndarray, classes_BHW: np.ndarray, rng: np.random.Generator) -> _Batch:
    images, height, width = classes_BHW.shape
    chosen = np.stack([chosen_pixels(classes, rng) for classes in classes_BHW.reshape(images, -1)])
    line, column = np.divmod(chosen, width)
    places = np.stack([(2 * column + 1) / width - 1, (2 * line + 1) / height - 1], axis=-1).astype(np.float32)
    classes = np.take_along_axis(classes_BHW.reshape(images, -1), chosen, axis=1).astype(np.int64)
    return _Batch(
        images=torch.from_numpy(normalised(pixels_BHWC)),
        places=torch.from_numpy(places[:, None]),
        classes=torch.from_numpy(classes.ravel()),
    )


def chosen_pixels(classes_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose the pixels of an image that are learned from: (PIXELS,) positions, of a class of n pixels ∝ √n.

    Chosen evenly, chairs, tables and people, a hundredth of the pixels each, are not learned in thousands of steps.
    """
    _, of_pixel, pixels = np.unique(classes_N, return_inverse=True, return_counts=True)
    reached = np.cumsum(1 / np.sqrt(pixels)[of_pixel])
    return np.searchsorted(reached, rng.uniform(0, reached[-1], PIXELS)).clip(max=len(classes_N) - 1)


def augmented(pixels: np.ndarray, classes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mirror an image half of the time, and change its exposure, white balance and contrast."""
    if rng.random() < 0.5:
        pixels, classes = pixels[:, ::-1], classes[:, ::-1]
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    changed = 255 * (pixels / 255 * gain).clip(0, 1) ** rng.uniform(0.7, 1.4)
    return changed.astype(np.uint8), np.ascontiguousarray(classes)


def normalised(pixels_BHWC: np.ndarray) -> np.ndarray:
    """Bring images to zero mean and unit variance: (B, 3, H, W) float32."""
    scaled = (pixels_BHWC.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, 1))


def initial_teacher(classes: Sequence[str], seed: int) -> Any:
    """Make a SegFormer of random weights."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(seed)
    named = dict(enumerate(classes))
    label2id = {name: number for number, name in named.items()}
    shape = SegformerConfig(**SHAPE, id2label=named, label2id=label2id, semantic_loss_ignore_index=UNLABELLED)
    return SegformerForSemanticSegmentation(shape)


def saved_teacher(folder: Path, classes: Sequence[str]) -> Any:
    """Read a teacher that `save_teacher` wrote, to train it on; UserError if it is none, or for other classes."""
    from transformers import SegformerForSemanticSegmentation

    try:
        model = SegformerForSemanticSegmentation.from_pretrained(folder, local_files_only=True, dtype="float32")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no SegFormer to go on with: {error}") from error
    if list(model.config.id2label.values()) != list(classes):
        raise UserError(f"{folder} is for other classes; go on with one for the same, or give its --classes")
    return model


def train_teacher(
    model: Any,
    images: LabelledImages,
    config: TeacherTrainConfig,
    on_step: Callable[[int, float, Any], None],
) -> Any:
    """Train a SegFormer on an endless stream of labelled images by cross-entropy and Lovász; UNLABELLED does not count.

    on_step(step, loss, model) is called after every step.
    """
    torch.manual_seed(config.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Channels last, which spares a fifth of a step on a CPU.
    model = model.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = LambdaLR(optimiser, lambda step: warmup_cosine(step, config.warmup, config.steps))
    loader = DataLoader(_Batches(images, config), batch_size=None, num_workers=config.workers)
    for step, batch in zip(range(config.steps), loader):
        pixels = batch.images.to(device, memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits_BChw = model(pixel_values=pixels).logits
        places = batch.places.to(device)
        sampled_BC1P = F.grid_sample(logits_BChw.float(), places, align_corners=False, padding_mode="border")
        logits = sampled_BC1P.movedim(1, -1).flatten(0, -2)
        loss = cross_entropy_and_lovasz(logits, batch.classes.to(device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        on_step(step, loss.item(), model)
    return model


def save_teacher(model: Any, folder: Path) -> None:
    """Write a model in half precision with its image processor, as `from_pretrained` reads them."""
    from transformers import SegformerImageProcessor

    copy.deepcopy(model).half().save_pretrained(folder)
    size = {"height": HEIGHT, "width": WIDTH}
    SegformerImageProcessor(size=size, image_mean=list(MEAN), image_std=list(STD)).save_pretrained(folder)
