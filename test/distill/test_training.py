from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from taught import INPUTS, two_storeys

from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.distill.augment import intensity_changed, rings_thinned, turned_flipped_scaled
from lidar_semseg_ros.distill.batch_norms import calibrated
from lidar_semseg_ros.distill.batches import collate, training_sample
from lidar_semseg_ros.distill.losses import cross_entropy_and_lovasz, lovasz_softmax
from lidar_semseg_ros.distill.schedule import warmup_cosine
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig, planes_of

NETWORK = WaffleIronConfig(inputs=5, width=16, depth=3, outputs=2)


def test_lovasz_softmax_by_hand() -> None:
    # One class, two of its points and one other. Errors: 0.4, 0.2 (its own), 0.3 (the other).
    # Sorted 0.4, 0.3, 0.2 with Jaccard losses 1/2, 2/3, 1: 0.4/2 + 0.3/6 + 0.2/3 = 0.31667 for class 0.
    probabilities = torch.tensor([[0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    labels = torch.tensor([0, 0, 1])
    class_0 = 0.4 * (1 / 2) + 0.3 * (2 / 3 - 1 / 2) + 0.2 * (1 - 2 / 3)
    # Errors of class 1: 0.4 and 0.2 (others), 0.3 (its own); Jaccard losses 1/2, 1, 1.
    class_1 = 0.4 * (1 / 2) + 0.3 * (1 - 1 / 2) + 0.2 * 0
    assert lovasz_softmax(probabilities, labels).item() == pytest.approx((class_0 + class_1) / 2)


def test_lovasz_of_a_hard_answer_is_one_minus_the_mean_iou() -> None:
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    iou = [np.sum((truth == c) & (answer == c)) / np.sum((truth == c) | (answer == c)) for c in range(3)]
    hard = torch.nn.functional.one_hot(torch.from_numpy(answer), 3).double()
    assert lovasz_softmax(hard, torch.from_numpy(truth)).item() == pytest.approx(1 - np.mean(iou))


def test_gradient_of_the_loss_is_that_of_finite_differences_and_zero_where_unlabelled() -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, UNLABELLED, 2, 2, UNLABELLED, 3, 1])
    assert torch.autograd.gradcheck(lambda x: cross_entropy_and_lovasz(x, labels), logits)
    cross_entropy_and_lovasz(logits, labels).backward()
    assert (logits.grad[labels == UNLABELLED] == 0).all() and (logits.grad[labels != UNLABELLED] != 0).any(dim=1).all()


def test_a_batch_without_a_label_has_no_loss() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    loss = cross_entropy_and_lovasz(logits, torch.full((5,), UNLABELLED))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_turning_flipping_and_scaling_keeps_shapes_up_to_a_tenth() -> None:
    frame, _ = two_storeys(np.random.default_rng(0), 900)
    for seed in range(5):
        changed = turned_flipped_scaled(frame, np.random.default_rng(seed))
        scale = np.linalg.norm(changed.xyz, axis=1) / np.linalg.norm(frame.xyz, axis=1)
        assert np.ptp(scale) < 1e-5 and 0.9 <= scale[0] <= 1.1
        assert np.allclose(changed.xyz[:, 2], frame.xyz[:, 2] * scale, atol=1e-5)


def test_thinning_blanks_whole_rings_and_keeps_rows() -> None:
    frame, _ = two_storeys(np.random.default_rng(0), 900)
    thinned = rings_thinned(frame, np.random.default_rng(0), probability=1.0)
    kept = thinned.has_return()
    assert len(thinned) == len(frame) and 0 < kept.mean() < 0.6
    assert not set(frame.ring[kept]) & set(frame.ring[~kept])


def test_intensity_is_taken_away_or_bent_monotonically() -> None:
    frame, _ = two_storeys(np.random.default_rng(0), 900)
    assert intensity_changed(frame, np.random.default_rng(0), missing=1.0).intensity is None
    bent = intensity_changed(frame, np.random.default_rng(0), missing=0.0).intensity
    assert np.array_equal(np.argsort(bent), np.argsort(frame.intensity))


def test_a_large_sweep_is_cut_to_the_points_around_one_and_labels_follow_their_points() -> None:
    rng = np.random.default_rng(3)
    frame, labels = two_storeys(rng, 3000)
    sample = training_sample(frame, labels, INPUTS, 500, rng)
    # Fewer than 500 where a voxel of the cut sweep holds two of them.
    assert 400 < len(sample.prepared) == len(sample.labels) <= 500
    z = sample.prepared.features[:, 3]
    assert np.array_equal(sample.labels, (z > 0).astype(np.uint8))


def test_samples_in_one_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = WaffleIron(NETWORK).eval()
    rng = np.random.default_rng(0)
    samples = [training_sample(*two_storeys(rng, points), INPUTS, 5000, rng) for points in (300, 800, 500)]
    batch = collate(samples)
    with torch.inference_mode():
        together = model(batch.features, batch.neighbours, batch.planes)
        alone = []
        for sample in samples:
            features, neighbours, *planes = (torch.from_numpy(array) for array in sample.prepared.arrays())
            alone.append(model(features, neighbours, planes_of(planes)))
    # Sums of other lengths: rounding only.
    assert (together - torch.cat(alone)).abs().max() < 1e-5


def test_warm_up_rises_and_the_cosine_falls_to_its_floor() -> None:
    factors = [warmup_cosine(step, 10, 100) for step in range(101)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5025) and factors[100] == pytest.approx(0.005)


def test_calibrated_statistics_are_the_mean_and_variance_of_the_batches() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [collate([training_sample(*two_storeys(rng, 900), INPUTS, 5000, rng)]) for _ in range(3)]
    model = calibrated(WaffleIron(NETWORK), batches)
    expected = torch.stack([batch.features.mean(dim=0) for batch in batches]).mean(dim=0)
    assert torch.allclose(model.embed.norm.running_mean, expected, atol=1e-5)
    variance = torch.stack([batch.features.var(dim=0) for batch in batches]).mean(dim=0)
    assert torch.allclose(model.embed.norm.running_var, variance, rtol=1e-4)
    assert not model.training
