"""The small vision teacher: a SegFormer that learns from rendered images, for tests and machines without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.options import setting
from lidar_semseg_ros.distill.train import warmup_cosine

WIDTH, HEIGHT = 320, 240
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPE = {
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [2, 2, 2, 2],
    "num_attention_heads": [1, 2, 4, 8],
    "decoder_hidden_size": 128,
}
"""A quarter of the smallest published SegFormer (Xie et al., NeurIPS 2021): 0.85 M weights."""

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
    seed: int = setting(0, "of weights, images and augmentation", minimum=0)


class _Batches(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches of augmented images, made in worker processes; each has its own stream of images."""

    def __init__(self, images: LabelledImages, config: TeacherTrainConfig) -> None:
        self._images, self._config = images, config

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        rng = np.random.default_rng([self._config.seed, worker.id if worker else 0])
        images = self._images(rng)
        while True:
            samples = [augmented(*next(images), rng) for _ in range(self._config.batch)]
            pixels, classes = (np.stack(arrays) for arrays in zip(*samples))
            yield torch.from_numpy(normalised(pixels)), torch.from_numpy(classes.astype(np.int64))


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


def train_teacher(
    images: LabelledImages,
    classes: Sequence[str],
    config: TeacherTrainConfig,
    on_step: Callable[[int, float, Any], None],
) -> Any:
    """Train a SegFormer on an endless stream of labelled images; UNLABELLED pixels do not count.

    on_step(step, loss, model) is called after every step.
    """
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(config.seed)
    named = dict(enumerate(classes))
    model: Any = SegformerForSemanticSegmentation(
        SegformerConfig(
            **SHAPE,
            id2label=named,
            label2id={name: number for number, name in named.items()},
            semantic_loss_ignore_index=UNLABELLED,
        )
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = LambdaLR(optimiser, lambda step: warmup_cosine(step, config.warmup, config.steps))
    loader = DataLoader(_Batches(images, config), batch_size=None, num_workers=config.workers)
    for step, (pixels, labels) in zip(range(config.steps), loader):
        loss = model(pixel_values=pixels.to(device), labels=labels.to(device)).loss
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
