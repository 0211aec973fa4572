"""Every objective against a number worked out by hand, a twin of plain loops, and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import Tensor

from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.distill.losses import (
    cross_entropy_and_lovasz,
    feature_distillation,
    knowledge_distillation,
    point_to_segment,
    superpixel_contrast,
    temporal_contrast,
    view_contrast,
    weighted_cross_entropy_and_lovasz,
)
from lidar_semseg_ros.distill.objectives import pixel_features
from lidar_semseg_ros.distill.samples import View

POINTS, LATER, CLASSES, FEATURES, VIEWS = 14, 11, 4, 5, 3
RNG = np.random.default_rng(7)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, UNLABELLED, 2, 2, UNLABELLED, 3, 1, 0, 0])
WEIGHTS = torch.tensor([0.5, 1, 2, 0.1, 3, 1, 1, 0, 0.7, 1, 0.2, 0.9, 1, 0.4], dtype=torch.float64)
SEGMENTS = torch.tensor([4, 4, 9, -1, 9, 2, 2, 2, -1, 7, 7, 9, 4, 2])
LATER_SEGMENTS = torch.tensor([9, 2, -1, 4, 4, 8, 9, 2, 8, -1, 4])  # 7 is no longer seen, 8 is new
SEEN = torch.from_numpy(RNG.random((VIEWS, POINTS)) < 0.6)
SEEN[:, 3] = False


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


PIXELS, LATER_POINTS, VIEW_FEATURES = random(POINTS, FEATURES), random(LATER, FEATURES), random(VIEWS, POINTS, FEATURES)
TEACHER_LOGITS = random(POINTS, CLASSES, seed=5)
Objective = Callable[[Tensor], Tensor]
OBJECTIVES: dict[str, tuple[Objective, int]] = {
    "weighted": (lambda x: weighted_cross_entropy_and_lovasz(x, LABELS, WEIGHTS), CLASSES),
    "features": (lambda x: feature_distillation(x, PIXELS.to(x)), FEATURES),
    "superpixels": (lambda x: superpixel_contrast(x, PIXELS.to(x), SEGMENTS), FEATURES),
    "temporal": (lambda x: temporal_contrast(x, SEGMENTS, LATER_POINTS.to(x), LATER_SEGMENTS), FEATURES),
    "segments": (lambda x: point_to_segment(x, SEGMENTS), FEATURES),
    "views": (lambda x: view_contrast(x, VIEW_FEATURES.to(x), SEEN), FEATURES),
    "knowledge": (lambda x: knowledge_distillation(x, TEACHER_LOGITS.to(x), 2.0), CLASSES),
}
"""Each as a function of what the student gives, and the width of that."""


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def contrast_by_loops(anchors: list[np.ndarray], targets: list[np.ndarray], temperature: float = 0.07) -> float:
    losses = []
    for own, anchor in enumerate(anchors):
        likeness = [np.exp(float(anchor @ target) / temperature) for target in targets]
        losses.append(-np.log(likeness[own] / sum(likeness)))
    return float(np.mean(losses))


def mean_of_segment(features: Tensor, segments: Tensor, segment: int) -> np.ndarray:
    rows = [unit(feature) for feature, of in zip(features.numpy(), segments.tolist()) if of == segment]
    return np.sum(rows, axis=0) / len(rows)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    objective, width = OBJECTIVES[name]
    student = random(POINTS, width, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(objective, student)
    (gradient,) = torch.autograd.grad(objective(student), student)
    assert (gradient != 0).any()


def test_gradients_reach_the_other_side_of_every_contrast() -> None:
    student = random(POINTS, FEATURES, seed=3)
    assert torch.autograd.gradcheck(
        lambda x: superpixel_contrast(student, x, SEGMENTS), PIXELS.clone().requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda x: temporal_contrast(student, SEGMENTS, x, LATER_SEGMENTS), LATER_POINTS.clone().requires_grad_()
    )
    views = VIEW_FEATURES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: view_contrast(student, x, SEEN), views)
    view_contrast(student, views, SEEN).backward()
    assert (views.grad[~SEEN] == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_the_points_does_not_matter(name: str) -> None:
    student = random(POINTS, OBJECTIVES[name][1], seed=3)
    order = torch.from_numpy(np.random.default_rng(1).permutation(POINTS))
    later = torch.from_numpy(np.random.default_rng(2).permutation(LATER))
    shuffled = student[order]
    again = {
        "weighted": lambda: weighted_cross_entropy_and_lovasz(shuffled, LABELS[order], WEIGHTS[order]),
        "features": lambda: feature_distillation(shuffled, PIXELS[order]),
        "superpixels": lambda: superpixel_contrast(shuffled, PIXELS[order], SEGMENTS[order]),
        "temporal": lambda: temporal_contrast(shuffled, SEGMENTS[order], LATER_POINTS[later], LATER_SEGMENTS[later]),
        "segments": lambda: point_to_segment(shuffled, SEGMENTS[order]),
        "views": lambda: view_contrast(shuffled, VIEW_FEATURES[:, order], SEEN[:, order]),
        "knowledge": lambda: knowledge_distillation(shuffled, TEACHER_LOGITS[order], 2.0),
    }[name]()
    assert again.item() == pytest.approx(OBJECTIVES[name][0](student).item(), rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_large_small_and_no_values_give_a_finite_loss_and_gradient(name: str, kind: torch.dtype) -> None:
    objective, width = OBJECTIVES[name]
    for size in (1e4, 1e-6, 0.0):
        student = (size * random(POINTS, width)).to(kind).requires_grad_()
        loss = objective(student)
        loss.backward()
        assert loss.isfinite() and loss.dtype == torch.float32
        assert student.grad.isfinite().all()


def nothing_valid(x: Tensor) -> dict[str, Tensor]:
    """Every objective where no entry counts, of x (N, D)."""
    none = torch.full((len(x),), -1)
    unknown = torch.full_like(x.detach(), float("nan"))
    other = torch.arange(len(x))
    return {
        "unlabelled": cross_entropy_and_lovasz(x, torch.full((len(x),), UNLABELLED)),
        "weightless": weighted_cross_entropy_and_lovasz(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x))),
        "features": feature_distillation(x, unknown),
        "superpixels": superpixel_contrast(x, torch.ones_like(x), none),
        "no pixels": superpixel_contrast(x, unknown, other),
        "temporal": temporal_contrast(x, none, x, none),
        "other segments": temporal_contrast(x, other, x, other + len(x)),
        "segments": point_to_segment(x, none),
        "views": view_contrast(x, x.detach()[None], torch.zeros(1, len(x), dtype=torch.bool)),
        "knowledge": knowledge_distillation(x, unknown, 2.0),
    }


@pytest.mark.parametrize("points", [0, 1, 6])
def test_where_nothing_counts_the_loss_and_its_gradient_are_zero(points: int) -> None:
    # So large that their sum is not finite: 0 must not come of multiplying it.
    student = torch.full((points, 4), 3e38).requires_grad_()
    for name, loss in nothing_valid(student).items():
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.shape == () and loss.item() == 0 and (gradient == 0).all(), name


def test_a_single_segment_has_nothing_to_be_told_from() -> None:
    student, one = random(6, 3), torch.full((6,), 5)
    assert superpixel_contrast(student, random(6, 3, seed=1), one).item() == 0
    assert temporal_contrast(student, one, random(4, 3, seed=1), torch.full((4,), 5)).item() == 0
    assert point_to_segment(student, one).item() == 0
    assert view_contrast(student[:1], random(2, 1, 3), torch.ones(2, 1, dtype=torch.bool)).item() == 0


def test_weighted_labels_by_hand() -> None:
    # Probabilities (3/4, 1/4) of class 0, twice of class 1. Cross-entropy: (3·log(4/3) + 1·log 4) / 4.
    # Errors of class 0: 1/4 of weight 3 (its own), 3/4 of weight 1; J after the first is 1 − 3/(3 + 1) = 1/4, then 1:
    # 3/4 · 1/4 + 1/4 · 3/4 = 3/8. Of class 1: 3/4 of weight 1 (its own), 1/4 of weight 3; J = 1, 1: 3/4.
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.75, 0.25]], dtype=torch.float64))
    loss = weighted_cross_entropy_and_lovasz(logits, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    cross_entropy = (3 * np.log(4 / 3) + np.log(4)) / 4
    assert loss.item() == pytest.approx(cross_entropy + (3 / 8 + 3 / 4) / 2)


def test_a_point_of_weight_two_counts_as_two_points() -> None:
    logits, labels = random(8, CLASSES), torch.tensor([0, 1, 2, 3, 0, UNLABELLED, 1, 1])
    times = torch.tensor([1, 2, 3, 1, 2, 2, 0, 4])
    repeated = torch.arange(8).repeat_interleave(times)
    assert weighted_cross_entropy_and_lovasz(logits, labels, times.double()).item() == pytest.approx(
        cross_entropy_and_lovasz(logits[repeated], labels[repeated]).item()
    )


def test_confidence_is_relative_and_without_it_all_count_alike() -> None:
    logits = random(POINTS, CLASSES)
    once = weighted_cross_entropy_and_lovasz(logits, LABELS, WEIGHTS)
    assert weighted_cross_entropy_and_lovasz(logits, LABELS, 9 * WEIGHTS).item() == pytest.approx(once.item())
    alike = weighted_cross_entropy_and_lovasz(logits, LABELS, torch.full((POINTS,), 0.3))
    assert alike.item() == pytest.approx(cross_entropy_and_lovasz(logits, LABELS).item())


def test_a_label_of_unknown_confidence_does_not_count() -> None:
    logits = random(3, CLASSES)
    weights = torch.tensor([1.0, float("nan"), -1.0])
    loss = weighted_cross_entropy_and_lovasz(logits, torch.tensor([0, 1, 2]), weights)
    assert loss.item() == pytest.approx(cross_entropy_and_lovasz(logits[:1], torch.tensor([0])).item())


def test_weighted_cross_entropy_and_lovasz_as_loops() -> None:
    logits = random(POINTS, CLASSES, seed=3)
    rows = [n for n in range(POINTS) if LABELS[n] != UNLABELLED and WEIGHTS[n] > 0]
    probability = {n: np.exp(logits[n].numpy()) / np.exp(logits[n].numpy()).sum() for n in rows}
    weight = {n: float(WEIGHTS[n]) for n in rows}
    cross_entropy = -sum(weight[n] * np.log(probability[n][LABELS[n]]) for n in rows) / sum(weight.values())
    lovasz = []
    for c in sorted({int(LABELS[n]) for n in rows}):
        own = {n for n in rows if LABELS[n] == c}
        error = {n: 1 - probability[n][c] if n in own else probability[n][c] for n in rows}
        loss, before, wrong = 0.0, 0.0, set()
        for n in sorted(rows, key=lambda n: -error[n]):
            wrong.add(n)
            # With exactly these wrong, the answer is the own points but for the missed, and the intruders.
            jaccard = 1 - sum(weight[m] for m in own - wrong) / sum(weight[m] for m in own | wrong)
            loss += error[n] * (jaccard - before)
            before = jaccard
        lovasz.append(loss)
    found = weighted_cross_entropy_and_lovasz(logits, LABELS, WEIGHTS).item()
    assert found == pytest.approx(cross_entropy + np.mean(lovasz))


def test_feature_distillation_by_hand_and_as_loops() -> None:
    # Alike but for the length: 0. At a right angle: √2. Opposite: 2. The last is not taught.
    student = torch.tensor([[3.0, 0], [0, 5], [1, 0], [1, 1]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0], [2, 0], [-4, 0], [float("nan"), 0]], dtype=torch.float64)
    assert feature_distillation(student, teacher).item() == pytest.approx((0 + np.sqrt(2) + 2) / 3)
    student = random(POINTS, FEATURES, seed=3)
    apart = [np.linalg.norm(unit(f) - unit(g)) for f, g in zip(student.numpy(), PIXELS.numpy())]
    assert feature_distillation(student, PIXELS).item() == pytest.approx(np.mean(apart))


def test_a_student_without_direction_is_drawn_towards_its_teacher() -> None:
    student, teacher = torch.zeros(1, 2, requires_grad=True), torch.tensor([[3.0, 4.0]])
    feature_distillation(student, teacher).backward()
    assert torch.allclose(student.grad, torch.tensor([[-0.6, -0.8]]))


def test_superpixel_contrast_by_hand_and_as_loops() -> None:
    # Superpixel 0 has two points along x and y, 1 has one along −x; their pixels: x and x, and y. At τ = 1/2
    # k = (½, ½), (−1, 0) and q = (1, 0), (0, 1): 2⟨k, q⟩ = [[1, 1], [−2, 0]].
    points = torch.tensor([[2.0, 0], [0, 3], [-1, 0], [9, 9]], dtype=torch.float64)
    pixels = torch.tensor([[1.0, 0], [5, 0], [0, 1], [7, 7]], dtype=torch.float64)
    loss = superpixel_contrast(points, pixels, torch.tensor([0, 0, 1, -1]), temperature=0.5)
    assert loss.item() == pytest.approx((np.log(2) + np.log(1 + np.exp(-2))) / 2)
    student, ids = random(POINTS, FEATURES, seed=3), (2, 4, 7, 9)
    anchors = [mean_of_segment(student, SEGMENTS, i) for i in ids]
    targets = [mean_of_segment(PIXELS, SEGMENTS, i) for i in ids]
    assert superpixel_contrast(student, PIXELS, SEGMENTS).item() == pytest.approx(contrast_by_loops(anchors, targets))


def test_superpixels_that_are_classes_have_no_negatives_of_their_class_in_other_images() -> None:
    features = np.float16([[[1, 0], [0, 1]]])  # one row of two patches
    views = [
        View(
            key=str(image),
            point=np.array([2 * image, 2 * image + 1]),
            uv_px=np.array([[0.0, 0.0], [19.0, 0.0]]),
            superpixel=np.array([4, 7]),
            image_size=(20, 10),
            features=features,
            image=None,
        )
        for image in range(2)
    ]
    points = torch.eye(2).repeat(2, 1)  # all right
    losses = []
    for of_classes in (True, False):
        point, pixels, superpixel = (torch.from_numpy(array) for array in pixel_features(views, 2, of_classes))
        losses.append(superpixel_contrast(points[point], pixels, superpixel).item())
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert losses[1] == pytest.approx(np.log(2), abs=1e-5)  # each has its like in the other image against it


def test_a_superpixel_is_its_points_with_a_pixel() -> None:
    pixels = PIXELS.clone()
    pixels[[0, 9, 10]] = float("nan")  # one of segment 4, all of 7
    kept = [n for n in range(POINTS) if n not in (0, 9, 10)]
    student = random(POINTS, FEATURES, seed=3)
    without = superpixel_contrast(student[kept], PIXELS[kept], SEGMENTS[kept])
    assert superpixel_contrast(student, pixels, SEGMENTS).item() == pytest.approx(without.item())


def test_temporal_contrast_by_hand_and_as_loops() -> None:
    # Segments 1 and 2 are seen twice; 2 has turned by 90° and looks like 1. At τ = 1 ⟨f, f'⟩ = [[1, 1], [0, 0]].
    points = torch.tensor([[2.0, 0], [0, 3], [1, 1]], dtype=torch.float64)
    later = torch.tensor([[4.0, 0], [-1, -1], [1, 0]], dtype=torch.float64)
    loss = temporal_contrast(points, torch.tensor([1, 2, 3]), later, torch.tensor([2, 4, 1]), temperature=1.0)
    assert loss.item() == pytest.approx(np.log(2))
    student, both = random(POINTS, FEATURES, seed=3), (2, 4, 9)
    anchors = [mean_of_segment(student, SEGMENTS, i) for i in both]
    targets = [mean_of_segment(LATER_POINTS, LATER_SEGMENTS, i) for i in both]
    found = temporal_contrast(student, SEGMENTS, LATER_POINTS, LATER_SEGMENTS).item()
    assert found == pytest.approx(contrast_by_loops(anchors, targets))


def test_point_to_segment_by_hand_and_as_loops() -> None:
    # Segment 3: two points along x and y, mean (½, ½); segment 6: one along y. At τ = 1/2 the points have
    # 2⟨f, f̄⟩ = (1, 0), (1, 2) and (1, 2); their own are the first, the first and the second.
    points = torch.tensor([[1.0, 0], [0, 2], [0, 7]], dtype=torch.float64)
    loss = point_to_segment(points, torch.tensor([3, 3, 6]), temperature=0.5)
    e = np.e
    assert loss.item() == pytest.approx((np.log((e + 1) / e) + np.log((e + e**2) / e) + np.log((e + e**2) / e**2)) / 3)
    student = random(POINTS, FEATURES, seed=3)
    means = {i: mean_of_segment(student, SEGMENTS, i) for i in (2, 4, 7, 9)}
    losses = []
    for feature, segment in zip(student.numpy(), SEGMENTS.tolist()):
        if segment >= 0:
            likeness = {i: np.exp(unit(feature) @ mean / 0.07) for i, mean in means.items()}
            losses.append(-np.log(likeness[segment] / sum(likeness.values())))
    assert point_to_segment(student, SEGMENTS).item() == pytest.approx(np.mean(losses))


def test_view_contrast_by_hand_and_as_loops() -> None:
    # Point 0 is seen by both views, as x and as y: mean (½, ½); point 1 by the second only, as x; point 2 by none.
    # With the points along x and y and τ = 1/2, 2⟨p, mean⟩ = [[1, 2], [1, 0]].
    points = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    nan = float("nan")
    views = torch.tensor([[[2.0, 0], [nan, nan], [1, 0]], [[0, 3], [1, 0], [1, 0]]], dtype=torch.float64)
    seen = torch.tensor([[True, False, False], [True, True, False]])
    loss = view_contrast(points, views, seen, temperature=0.5)
    e = np.e
    assert loss.item() == pytest.approx((np.log((e + e**2) / e) + np.log(e + 1)) / 2)
    student, visible = random(POINTS, FEATURES, seed=3), [n for n in range(POINTS) if SEEN[:, n].any()]
    means = []
    for n in visible:
        of_views = [unit(VIEW_FEATURES[v, n].numpy()) for v in range(VIEWS) if SEEN[v, n]]
        means.append(np.sum(of_views, axis=0) / len(of_views))
    expected = contrast_by_loops([unit(student[n].numpy()) for n in visible], means)
    assert len(visible) < POINTS
    assert view_contrast(student, VIEW_FEATURES, SEEN).item() == pytest.approx(expected)


def test_knowledge_distillation_by_hand_and_as_loops() -> None:
    # At T = 2 the teacher says (3/4, 1/4) and the student (1/2, 1/2); the second point is not taught.
    student = torch.zeros(2, 2, dtype=torch.float64)
    teacher = torch.tensor([[2 * np.log(3), 0], [float("nan"), 0]], dtype=torch.float64)
    divergence = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert knowledge_distillation(student, teacher, 2.0).item() == pytest.approx(4 * divergence)
    student, losses = random(POINTS, CLASSES, seed=3), []
    for said, taught in zip(student.numpy(), TEACHER_LOGITS.numpy()):
        p, q = (np.exp(logits / 3) / np.exp(logits / 3).sum() for logits in (taught, said))
        losses.append(sum(p[c] * np.log(p[c] / q[c]) for c in range(CLASSES)))
    found = knowledge_distillation(student, TEACHER_LOGITS, 3.0).item()
    assert found == pytest.approx(9 * np.mean(losses))


def test_a_student_who_says_what_the_teacher_says_has_nothing_to_learn() -> None:
    logits = (TEACHER_LOGITS + 5).requires_grad_()  # the same probabilities
    loss = knowledge_distillation(logits, TEACHER_LOGITS, 2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-12 and logits.grad.abs().max() < 1e-12


def test_teachers_as_sure_as_numbers_allow_give_no_nan() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    loss = knowledge_distillation(student, torch.tensor([[1e30, 0, -1e30], [0, 0, 0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(3) / 2) and student.grad.isfinite().all()
