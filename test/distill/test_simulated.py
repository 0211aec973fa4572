"""Training on sweeps that are made when they are drawn: what is learned, shared buildings, resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from taught import INPUTS, STOREYS, two_storeys
from torch import nn

from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame
from lidar_semseg_ros.distill.batch_norms import CALIBRATION_BATCHES, calibrated
from lidar_semseg_ros.distill.beginning import initial_network
from lidar_semseg_ros.distill.distillation import distill
from lidar_semseg_ros.distill.objectives import Student
from lidar_semseg_ros.distill.plan import DistillConfig
from lidar_semseg_ros.distill.processes import World
from lidar_semseg_ros.distill.run_files import RunFiles
from lidar_semseg_ros.distill.samples import TaughtBatches
from lidar_semseg_ros.distill.simulated import SimulatedSweeps
from lidar_semseg_ros.network.inputs import prepare, to_points
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig, planes_of

NETWORK = WaffleIronConfig(inputs=5, width=16, depth=3, outputs=2)


class Storeys:
    """A place whose points say by their intensity in which building they were measured."""

    made = 0

    def __init__(self, rng: np.random.Generator) -> None:
        Storeys.made += 1
        self.intensity = np.float32(rng.uniform(0, 200))

    def view(self, rng: np.random.Generator) -> tuple[LidarFrame, np.ndarray]:
        frame, labels = two_storeys(rng, 900)
        frame.intensity[:] = self.intensity
        return frame, labels


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    Storeys.made = 0


def batches_of(config: DistillConfig, rank: int = 0) -> TaughtBatches:
    return TaughtBatches(SimulatedSweeps(Storeys, STOREYS, config.seed), INPUTS, config, rank=rank)


def trained(
    folder: Path, config: DistillConfig, stop_after: int | None = None
) -> tuple[WaffleIron, list[dict[str, float]]]:
    """Train; stop_after: as if killed after so many steps."""
    rows: list[dict[str, float]] = []

    def on_step(step: int, losses: dict[str, float]) -> None:
        rows.append(losses)
        if step + 1 == stop_after:
            raise KeyboardInterrupt

    student = Student(initial_network(NETWORK, config.seed), config.objectives, 0, config.precision, config.seed)
    files = RunFiles(folder / "m.safetensors", "settings")
    model = distill(student, batches_of(config), config, World(), None, files, on_step)
    files.finish()
    return model, rows


def test_training_learns_a_simple_rule_and_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    config = DistillConfig(steps=60, batch=2, max_points=600, warmup=5, ema=0.8, workers=0, learning_rate=5e-3)
    model, rows = trained(tmp_path, config)
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-5:]) < 0.4 * losses[0]
    frame, labels = Storeys(np.random.default_rng(99)).view(np.random.default_rng(98))
    prepared = prepare(frame, INPUTS)
    features, neighbours, *planes = (torch.from_numpy(array) for array in prepared.arrays())
    with torch.inference_mode():
        logits = model(features, neighbours, planes_of(planes)).numpy()
    assert np.mean(to_points(logits, prepared).class_id == labels) > 0.95
    again, same = trained(tmp_path, config)
    assert same == rows
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_finished_network_has_batch_norms_that_fit_its_averaged_weights(tmp_path: Path) -> None:
    config = DistillConfig(steps=20, batch=1, max_points=600, warmup=2, ema=0.8, workers=0)
    model, _ = trained(tmp_path, config)
    batches = batches_of(config)
    last = [batches[step].batch for step in range(20 - CALIBRATION_BATCHES, 20)]
    expected = torch.stack([batch.features.mean(dim=0) for batch in last]).mean(dim=0)
    assert torch.allclose(model.embed.norm.running_mean, expected, atol=1e-5)
    anew = calibrated(model, last)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), anew.state_dict().values()))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms and all(norm.momentum == 0.1 for norm in norms) and not model.training


def test_a_run_that_was_killed_goes_on_with_the_losses_of_one_that_was_not(tmp_path: Path) -> None:
    # Over the step at which new buildings are made, and with other workers than before.
    config = DistillConfig(steps=52, batch=1, max_points=100, warmup=2, ema=0.8, workers=0, checkpoint=10)
    whole, rows = trained(tmp_path, config)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, config, stop_after=47)
    resumed, rest = trained(tmp_path, DistillConfig(**{**vars(config), "workers": 2}))
    assert rest == rows[40:]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    table = (tmp_path / "m.losses.csv").read_text().splitlines()
    assert [float(line.split(",")[1]) for line in table[1:]] == [row["loss"] for row in rows]


def test_a_batch_depends_on_its_step_alone() -> None:
    config = DistillConfig(batch=2, max_points=300)
    straight, crooked = batches_of(config), batches_of(config)
    for step in (70, 3, 100):
        crooked[step]
    for step in (24, 60):
        one, other = straight[step], crooked[step]
        assert torch.equal(one.batch.features, other.batch.features) and one.names == other.names
    assert straight[24].names != straight[60].names


def test_two_processes_share_the_batch_of_one_that_takes_twice_as_many_sweeps() -> None:
    halves = [batches_of(DistillConfig(batch=2, max_points=300), rank)[1] for rank in (0, 1)]
    whole = batches_of(DistillConfig(batch=4, max_points=300))[1]
    assert torch.equal(torch.cat([half.batch.features for half in halves]), whole.batch.features)
    assert halves[0].names + halves[1].names == whole.names


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 8, 12, 24])
def test_a_building_serves_eight_sweeps_however_many_workers_take_turns(workers: int) -> None:
    for worker in range(workers):
        sweeps = SimulatedSweeps(Storeys, STOREYS, seed=0)
        for step in range(worker, 96, workers):
            for slot in range(4):
                sweeps.draw(np.random.default_rng(0), step, slot)
    assert Storeys.made == 96 * 4 / 8


def test_every_seed_and_every_place_of_a_round_has_its_own_building() -> None:
    seen = set()
    for seed in (0, 1):
        sweeps = SimulatedSweeps(Storeys, STOREYS, seed)
        for step in range(96):
            for slot in (0, 3, 4):
                building, _ = sweeps.draw(np.random.default_rng(0), step, slot)
                seen.add(building.sweep(0).frame.intensity[0])
    # Four times 24 steps show two groups of places in a batch, and every second 24 the buildings of those before.
    assert len(seen) == 2 * 2 * 24 * 2


def test_a_point_that_the_simulator_does_not_label_is_not_learned_from() -> None:
    class Glass:
        def __init__(self, rng: np.random.Generator) -> None:
            pass

        def view(self, rng: np.random.Generator) -> tuple[LidarFrame, np.ndarray]:
            frame, labels = two_storeys(rng, 500)
            labels[::2] = UNLABELLED
            return frame, labels

    config = DistillConfig(batch=1, max_points=1000)
    taught = TaughtBatches(SimulatedSweeps(Glass, STOREYS, 0), INPUTS, config)[0]
    known = taught.batch.labels != UNLABELLED
    assert 0.4 < known.float().mean() < 0.6
    assert (taught.weights[known] == 1).all() and (taught.weights[~known] == 0).all()
    assert torch.equal(taught.batch.labels[known].bool(), taught.batch.features[known, 3] > 0)
