from __future__ import annotations

import numpy as np
import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.teacher.scores import PixelScores, certain_scores, nearest_cells, pixel_scores


def of_pixels(scores: list[list[float]], remap: list[int]) -> PixelScores:
    """One row of pixels."""
    dense = np.float32(scores)[None]
    return pixel_scores(dense, np.uint8(remap), (dense.shape[1], 1))


def test_confidence_and_margin_are_those_worked_out_by_hand() -> None:
    # Classes 0 … 3 of the teacher are the targets 4, 5, 4, 6.
    said = of_pixels([[1, 2, 4, 1], [0.5, 0.25, 0, 0.25], [0, 0.1, 0, 0]], [4, 5, 4, 6])
    assert said.class_id.tolist() == [[4, 4, 5]]
    assert said.confidence[0] == pytest.approx([5 / 8, 0.5, 1])
    assert said.margin[0] == pytest.approx([5 / 8 - 2 / 8, 0.25, 1])


def test_two_names_for_one_thing_do_not_compete() -> None:
    said = of_pixels([[0.3, 0.4, 0.3]], [7, 2, 7])
    assert said.class_id.tolist() == [[7]] and said.confidence[0, 0] == pytest.approx(0.6)
    assert said.margin[0, 0] == pytest.approx(0.2)


def test_an_ignored_class_that_leads_makes_the_pixel_unlabelled_but_keeps_its_vote() -> None:
    said = of_pixels([[0.2, 0.5, 0.3]], [0, UNLABELLED, UNLABELLED])
    assert said.class_id.tolist() == [[UNLABELLED]]
    assert said.confidence[0, 0] == pytest.approx(0.8) and said.margin[0, 0] == pytest.approx(0.6)


def test_a_pixel_without_any_score_is_unlabelled_and_has_no_vote() -> None:
    said = of_pixels([[0, 0], [0, 1e-30]], [3, 4])
    assert said.class_id.tolist() == [[UNLABELLED, 4]]
    assert said.confidence.tolist() == [[0, 1]] and said.margin.tolist() == [[0, 1]]


def test_equal_scores_have_no_margin() -> None:
    said = of_pixels([[0.5, 0.5]], [3, 4])
    assert said.margin.tolist() == [[0]] and said.confidence.tolist() == [[0.5]]


def test_a_teacher_of_one_target_is_always_certain_of_it() -> None:
    said = of_pixels([[0.2], [0.9]], [0])
    assert said.class_id.tolist() == [[0, 0]]
    assert said.confidence.tolist() == [[1, 1]] and said.margin.tolist() == [[1, 1]]


def test_random_scores_agree_with_a_slow_twin() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((6, 5, 9)).astype(np.float32)
    remap = rng.choice(np.uint8([0, 3, 8, UNLABELLED]), 9)
    said = pixel_scores(scores, remap, (10, 12))
    for row, column in np.ndindex(6, 5):
        by_target: dict[int, float] = {}
        for score, target in zip(scores[row, column].tolist(), remap.tolist()):
            by_target[target] = by_target.get(target, 0.0) + score
        (first, most), (_, second) = sorted([*by_target.items(), (-1, 0.0)], key=lambda item: -item[1])[:2]
        total = sum(by_target.values())
        assert said.class_id[row, column] == first
        assert said.confidence[row, column] == pytest.approx(most / total, abs=1e-6)
        assert said.margin[row, column] == pytest.approx((most - second) / total, abs=1e-6)


def test_scores_with_the_classes_first_may_be_seen_through_moveaxis() -> None:
    scores_CHW = np.random.default_rng(1).random((4, 3, 5)).astype(np.float16)
    remap = np.uint8([0, 1, 1, 2])
    there = pixel_scores(np.moveaxis(scores_CHW, 0, -1), remap, (5, 3))
    here = pixel_scores(np.ascontiguousarray(scores_CHW.transpose(1, 2, 0)), remap, (5, 3))
    assert (there.class_id == here.class_id).all() and (there.confidence == here.confidence).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5])
def test_scores_that_are_no_scores_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="probabilities, not logits"):
        of_pixels([[0.1, bad]], [0, 1])


@pytest.mark.parametrize("remap", [np.uint8([0]), np.int64([0, 1])])
def test_a_map_that_does_not_fit_the_scores_is_refused(remap: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"uint8 of shape \(2,\)"):
        pixel_scores(np.ones((1, 1, 2), np.float32), remap, (1, 1))


def test_masks_are_certain_where_they_know_something() -> None:
    said = certain_scores(np.uint8([[3, UNLABELLED]]), (2, 1))
    assert said.confidence.tolist() == [[1, 0]] and said.margin.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("uv_px", "cell"),
    [
        ((-0.49, -0.49), (0, 0)),
        ((1.49, 1.49), (0, 0)),
        ((1.51, 0), (0, 1)),
        ((0, 1.51), (1, 0)),
        ((7.49, 3.49), (1, 3)),
    ],
)
def test_a_pixel_lies_in_the_cell_that_covers_it(uv_px: tuple[float, float], cell: tuple[int, int]) -> None:
    # An image of 8×4 pixels under a grid of 4×2 cells: two pixels a side each.
    row, column = nearest_cells(np.array([uv_px]), (8, 4), (2, 4))
    assert (row[0], column[0]) == cell


@pytest.mark.parametrize(("image_size", "grid"), [((752, 480), (409, 640)), ((7, 5), (5, 7)), ((9, 4), (3, 2))])
def test_every_pixel_shows_the_class_that_a_point_at_its_centre_votes_for(
    image_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    scores = certain_scores(np.random.default_rng(0).integers(0, 200, grid).astype(np.uint8), image_size)
    v, u = np.indices(image_size[::-1]).reshape(2, -1)
    voted = scores.class_id[nearest_cells(np.stack([u, v], axis=1), image_size, grid)]
    assert np.array_equal(scores.at_full_size().ravel(), voted)


@pytest.mark.parametrize(
    "change",
    [
        {"class_id": np.zeros((2, 3), np.int64)},
        {"confidence": np.zeros((3, 2), np.float32)},
        {"margin": np.zeros((2, 3), np.float64)},
        {"class_id": np.zeros(6, np.uint8)},
        {"image_size": (2, 3)},
    ],
)
def test_scores_that_do_not_fit_together_are_refused(change: dict[str, object]) -> None:
    right = certain_scores(np.zeros((2, 3), np.uint8), (3, 2))
    with pytest.raises(UserError):
        PixelScores(**{**vars(right), **change})
