from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="teachers need PyTorch")
pytest.importorskip("transformers", reason="teachers need transformers, the extra 'teacher'")

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.distill.train_teacher import (
    PIXELS,
    TeacherTrainConfig,
    augmented,
    chosen_pixels,
    initial_teacher,
    save_teacher,
    saved_teacher,
    train_teacher,
)

NAMES = ("dark", "bright")


def halves(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images whose left is dark and whose right is bright; where they meet, nobody knows."""
    while True:
        edge = int(rng.integers(20, 44))
        classes = np.zeros((48, 64), np.uint8)
        classes[:, edge:] = 1
        pixels = np.where(classes[..., None] == 1, 200, 60) + rng.integers(-20, 20, (48, 64, 3))
        classes[:, edge - 2 : edge + 2] = UNLABELLED
        yield pixels.astype(np.uint8), classes


def trained(precision: str) -> tuple[list[float], Any]:
    losses: list[float] = []
    config = TeacherTrainConfig(steps=12, batch=2, warmup=2, workers=0, learning_rate=3e-3, precision=precision)
    model = train_teacher(initial_teacher(NAMES, 0), halves, config, lambda _, loss, __: losses.append(loss))
    return losses, model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_what_the_images_show_and_repeats_it(precision: str) -> None:
    losses, model = trained(precision)
    assert len(losses) == 12 and np.mean(losses[-3:]) < 0.7 * losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert trained(precision)[0] == losses


def test_a_class_of_n_pixels_is_chosen_like_the_root_of_n_and_evenly_within() -> None:
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.repeat([0, 1, 7], [90_000, 9_000, 100]).astype(np.uint8))
    chosen = np.concatenate([chosen_pixels(classes, rng) for _ in range(20)])
    assert len(chosen) == 20 * PIXELS
    share = np.array([(classes[chosen] == number).mean() for number in (0, 1, 7)])
    roots = np.sqrt([90_000, 9_000, 100])
    assert share == pytest.approx(roots / roots.sum(), abs=0.01)
    assert len(np.unique(chosen[classes[chosen] == 7])) == 100
    first_half = (chosen[classes[chosen] == 0] < len(classes) // 2).mean()
    assert first_half == pytest.approx(0.5, abs=0.02)


def test_an_image_of_one_class_is_chosen_from_evenly() -> None:
    chosen = chosen_pixels(np.zeros(10, np.uint8), np.random.default_rng(0))
    assert np.bincount(chosen, minlength=10) / PIXELS == pytest.approx(np.full(10, 0.1), abs=0.03)


def test_augmentation_moves_image_and_classes_together() -> None:
    rng = np.random.default_rng(3)
    pixels, classes = next(halves(rng))
    turned = [augmented(pixels, classes, rng) for _ in range(20)]
    for changed, moved in turned:
        assert changed[moved == 1].mean() > changed[moved == 0].mean() + 40
    mirrored = [not np.array_equal(moved, classes) for _, moved in turned]
    assert 3 < sum(mirrored) < 17


def test_a_training_goes_on_only_with_a_teacher_of_the_same_classes(tmp_path: Path) -> None:
    save_teacher(initial_teacher(NAMES, 0), tmp_path)
    assert list(saved_teacher(tmp_path, NAMES).config.id2label.values()) == list(NAMES)
    with pytest.raises(UserError, match="is for other classes"):
        saved_teacher(tmp_path, ("dark", "light"))
    with pytest.raises(UserError, match="holds no SegFormer to go on with"):
        saved_teacher(tmp_path / "none", NAMES)
