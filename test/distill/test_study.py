"""What a study compares, and when it says that a claim holds."""

from __future__ import annotations

import numpy as np
import pytest

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import from_mapping
from lidar_semseg_ros.distill.plan import DistillConfig
from lidar_semseg_ros.distill.study import Comparison, StudyConfig, comparisons, deviation, findings, trainings

CONFIG = StudyConfig()


def test_every_cell_is_a_training_and_every_training_is_in_a_table() -> None:
    known = trainings(CONFIG)
    cells = {name for table in comparisons(CONFIG).values() for row in table.rows.values() for name, _ in row}
    starts = {training.start for training in known.values()} - {None}
    assert cells <= set(known) and starts <= set(known)
    assert set(known) == cells | starts


def test_every_row_has_a_cell_for_each_column_and_claims_are_about_cells() -> None:
    for table in comparisons(CONFIG).values():
        assert {len(row) for row in table.rows.values()} == {len(table.columns)}
        for _, *sides in table.claims:
            assert all(row in table.rows and column in table.columns for row, column in sides)


@pytest.mark.parametrize("name", sorted(trainings(CONFIG)))
def test_the_settings_of_a_training_are_settings_of_distill(name: str) -> None:
    config = from_mapping(DistillConfig, trainings(CONFIG)[name].settings)
    assert 0 < config.warmup < config.steps


def test_pretraining_learns_no_exact_labels_and_a_probe_changes_the_last_layer_only() -> None:
    for training in trainings(CONFIG).values():
        config = from_mapping(DistillConfig, training.settings)
        if training.name.endswith("-probe"):
            assert config.train == "head" and training.labels == "exact"
        elif training.name.endswith("-few-shot"):
            assert config.train == "all" and training.labels == "exact" and config.share == CONFIG.share
        elif not training.name.startswith("full-"):
            assert training.labels == "taught"


def test_a_comparison_that_is_not_there_is_named() -> None:
    assert list(comparisons(StudyConfig(only="depth, labels"))) == ["depth", "labels"]
    with pytest.raises(UserError, match=r"no comparison 'widths'; there are labels, pretraining"):
        comparisons(StudyConfig(only="widths"))


def table(better: str, worse: str) -> Comparison:
    claim = ("it helps", (better, "mIoU"), (worse, "mIoU"))
    rows = {"with": (("w", "OS1-64"),), "without": (("o", "OS1-64"),)}
    return Comparison(title="", columns=("mIoU",), rows=rows, claims=(claim,))


def test_claims_are_judged_by_pairs_of_one_seed() -> None:
    # Apart from each other the two overlap widely; seed by seed, one is better by 0.02, 0.03 and 0.04.
    miou = {"w": np.array([0.32, 0.53, 0.74]), "o": np.array([0.30, 0.50, 0.70])}
    (found,) = findings(table("with", "without"), lambda name, _: miou[name])
    assert found.mean == pytest.approx(0.03) and found.deviation == pytest.approx(0.01)
    assert (found.agree, found.seeds, found.holds) == (3, 3, True)
    (reverse,) = findings(table("without", "with"), lambda name, _: miou[name])
    assert reverse.mean == pytest.approx(-0.03) and not reverse.holds and reverse.agree == 0


def test_a_claim_does_not_hold_by_chance() -> None:
    # One seed disagrees; and where all agree, one large difference among tiny ones is no more than its own deviation.
    for differences in ([0.05, 0.06, -0.01], [0.001, 0.001, 0.1]):
        miou = {"w": np.array(differences), "o": np.zeros(3)}
        (found,) = findings(table("with", "without"), lambda name, _, miou=miou: miou[name])
        assert not found.holds


def test_a_single_repetition_bears_out_nothing() -> None:
    miou = {"w": np.array([0.9]), "o": np.array([0.1])}
    (found,) = findings(table("with", "without"), lambda name, _: miou[name])
    assert found.mean == pytest.approx(0.8) and not found.holds


def test_buildings_to_learn_in_and_to_test_in_are_others_and_shares_are_shares() -> None:
    for wrong in ({"buildings": 101}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            from_mapping(StudyConfig, wrong)


def test_one_value_has_no_deviation() -> None:
    assert deviation(np.array([0.4])) == 0.0
    assert deviation(np.array([1.0, 3.0])) == pytest.approx(np.sqrt(2))
