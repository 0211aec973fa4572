"""The published networks' answers on real clouds (../shared/data/00_golden_network_outputs)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.network.checkpoints import LAYOUTS, read_checkpoint
from lidar_semseg_ros.network.inference import CpuWaffleIron
from lidar_semseg_ros.network.inputs import InputConfig, NetworkInput, grid_cells, prepare, to_points
from lidar_semseg_ros.network.waffleiron import WaffleIron, config_of, folded, from_state_dict, planes_of

GOLDEN = {
    "waffleiron_bn": "waffleiron",
    "waffleiron_bn_indoor": "waffleiron",
    "scalr_ln_downstream": "scalr",
    "scalr_ln_pretrain": "scalr",
    "scalr_plus_gelu_pretrain": "scalr_plus",
}


class Golden:
    """One folder of golden outputs, imported and prepared by our code."""

    def __init__(self, folder: Path, layout: str) -> None:
        said = json.loads((folder / "config.json").read_text())
        self.expected = np.load(folder / "expected.npz")
        self.config = InputConfig.from_mapping(
            {
                "voxel_size_m": said["voxel_size_m"],
                "fov_min_m": said["fov_min"],
                "fov_max_m": said["fov_max"],
                "planes": said["planes"],
                "grids": said["grids"],
                "features": said["features"],
                "neighbours": said["neighbours"],
            },
            str(folder),
        )
        state = read_checkpoint(folder / "ckpt_last.pth", LAYOUTS[layout])
        self.model = from_state_dict(config_of(state, LAYOUTS[layout].activation), state, str(folder)).eval()
        cloud = self.expected["cloud"]
        self.frame = LidarFrame(stamp_ns=0, frame_id="", xyz=cloud[:, :3].copy(), intensity=cloud[:, 3].copy())
        self.prepared = prepare(self.frame, self.config)


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request: pytest.FixtureRequest, shared_data: Path) -> Golden:
    return Golden(shared_data / "00_golden_network_outputs" / request.param, GOLDEN[request.param])


def logits_of(model: WaffleIron, prepared: NetworkInput) -> np.ndarray:
    features, neighbours, *planes = (torch.from_numpy(array) for array in prepared.arrays())
    with torch.inference_mode():
        return model(features, neighbours, planes_of(planes)).numpy()


def test_voxels_cells_and_the_way_back_are_the_published_ones(golden: Golden) -> None:
    kept_xyz = golden.frame.xyz[golden.prepared.kept]
    assert np.array_equal(kept_xyz, golden.expected["kept_points"])
    assert np.array_equal(golden.prepared.nearest, golden.expected["upsample"])
    for plane, cells in enumerate(golden.expected["cells"]):
        row, column = grid_cells(kept_xyz, golden.config, plane)
        assert np.array_equal(row * golden.config.grids[plane][1] + column, cells)


def test_neighbour_sets_are_the_published_ones_up_to_ties(golden: Golden) -> None:
    xyz = golden.expected["kept_points"].astype(np.float64)
    ours, theirs = (
        np.sort(np.linalg.norm(xyz[neighbours] - xyz[:, None], axis=2), axis=1)
        for neighbours in (golden.prepared.neighbours, golden.expected["neighbours"][1:].T)
    )
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("form", ["as trained", "folded", "on a CPU"])
def test_logits_and_labels_are_the_published_ones(golden: Golden, form: str) -> None:
    if form == "on a CPU":
        logits = CpuWaffleIron(golden.model, torch.float32, threads=2).logits(golden.prepared).numpy()
    else:
        model = golden.model if form == "as trained" else folded(golden.model)
        logits = logits_of(model, golden.prepared)
    expected = golden.expected["logits"]
    # The data's README asks for 1e-4 of the logits' standard deviation: rounding of another order of summation.
    assert np.abs(logits[golden.expected["logits_rows"]] - expected).max() <= 1e-4 * expected.std()
    labels = to_points(logits, golden.prepared).class_id
    assert np.mean(labels == golden.expected["labels"]) >= 0.9999
