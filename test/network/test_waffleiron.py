from __future__ import annotations

from dataclasses import replace

import numpy as np
import published
import pytest
import torch
from random_networks import random_network

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.network.inputs import InputConfig, grid_cells, prepare
from lidar_semseg_ros.network.waffleiron import (
    WaffleIron,
    WaffleIronConfig,
    config_of,
    folded,
    from_state_dict,
    planes_of,
    to_precision,
)

INPUTS = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-4, -4, -1),
    fov_max_m=(4, 4, 2),
    planes=("z", "y", "x"),
    grids=((16, 16), (16, 6), (16, 6)),
)
SMALL = WaffleIronConfig(inputs=5, width=12, depth=4, outputs=7)
VARIANTS = {
    "waffleiron": SMALL,
    "scalr": replace(SMALL, norm="layer"),
    "scalr downstream": replace(SMALL, norm="layer", head="norm_linear"),
    "scalr plus": replace(SMALL, norm="layer", activation="gelu", head="mlp", head_width=10),
    "batch norm with gelu": replace(SMALL, activation="gelu"),
}


def cloud(points: int, seed: int = 0, spread: float = 3.9) -> LidarFrame:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-spread, -spread, -0.9), (spread, spread, 1.9), (points, 3)).astype(np.float32)
    intensity = rng.uniform(0, 1, points).astype(np.float32)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=xyz, intensity=intensity)


def logits_of(model: WaffleIron, frame: LidarFrame, config: InputConfig = INPUTS) -> np.ndarray:
    features, neighbours, *planes = (torch.from_numpy(array) for array in prepare(frame, config).arrays())
    with torch.inference_mode():
        return model(features, neighbours, planes_of(planes)).float().numpy()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spread", [3.9, 1.0], ids=["grid filled to its border", "grid cropped"])
def test_network_agrees_with_the_published_formulas_written_plainly(
    variant: str, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lidar_semseg_ros.network.inputs.CROP_STEP", 1)
    config, frame = VARIANTS[variant], cloud(150, spread=spread)
    model = random_network(config)
    prepared = prepare(frame, INPUTS)
    xyz = frame.xyz[prepared.kept].astype(np.float64)
    distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=2)
    cells = []
    for plane, (_, columns) in enumerate(INPUTS.grids):
        row, column = grid_cells(frame.xyz[prepared.kept], INPUTS, plane)
        cells.append(row * columns + column)
    expected = published.logits(
        prepared.features.T.astype(np.float64),
        np.argsort(distance, axis=1, kind="stable")[:, 1:17].T,
        cells,
        INPUTS.grids,
        {key: value.double().numpy() for key, value in model.state_dict().items()},
        layer_norm=config.norm == "layer",
        gelu=config.activation == "gelu",
        head=config.head,
    )
    # float32 against float64; logits are of order 1.
    assert np.abs(logits_of(model, frame).T - expected).max() < 1e-4
    assert np.abs(logits_of(folded(model), frame).T - expected).max() < 1e-4


def test_folding_leaves_the_model_as_it_was() -> None:
    model = random_network(SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    once = folded(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    frame = cloud(300)
    assert np.array_equal(logits_of(once, frame), logits_of(folded(model), frame))


def test_neighbours_in_another_order_give_the_same_logits_to_the_last_bit() -> None:
    model = random_network(SMALL)
    features, neighbours, *planes = (torch.from_numpy(array) for array in prepare(cloud(200), INPUTS).arrays())
    with torch.inference_mode():
        straight = model(features, neighbours, planes_of(planes))
        reversed_ = model(features, neighbours.flip(1), planes_of(planes))
    assert torch.equal(straight, reversed_)


def test_clouds_larger_than_one_embedding_chunk_are_embedded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, frame = random_network(SMALL), cloud(500)
    at_once = logits_of(model, frame)
    monkeypatch.setattr("lidar_semseg_ros.network.waffleiron.EMBEDDING_CHUNK", 37)
    # Other block sizes of the same products: rounding only.
    assert np.abs(logits_of(model, frame) - at_once).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_stays_near_float32(dtype: torch.dtype) -> None:
    model, frame = random_network(SMALL), cloud(400)
    exact = logits_of(folded(model), frame)
    rounded = logits_of(to_precision(folded(model), dtype), frame)
    # bfloat16 keeps 8 bits: 0.4 % per step of logits of order 1.
    assert np.abs(rounded - exact).max() < 0.15
    assert np.mean(rounded.argmax(1) == exact.argmax(1)) > 0.95


@pytest.mark.parametrize("variant", VARIANTS)
def test_shape_of_a_network_can_be_read_off_its_state_dict(variant: str) -> None:
    config = VARIANTS[variant]
    assert config_of(WaffleIron(config).state_dict(), config.activation) == config


@pytest.mark.parametrize(
    ("config", "parameters", "entries"),
    [
        (WaffleIronConfig(inputs=5, width=64, depth=6, outputs=19), 74_343, 143),
        (WaffleIronConfig(inputs=5, width=256, depth=12, outputs=19), 1_863_975, 263),
        (WaffleIronConfig(inputs=5, width=384, depth=12, outputs=16, norm="layer"), 4_121_892, 191),
        (WaffleIronConfig(inputs=5, width=256, depth=48, outputs=16), 6_839_844, 983),
        (
            WaffleIronConfig(inputs=5, width=768, depth=48, outputs=16, norm="layer", head="norm_linear"),
            59_449_380,
            700,
        ),
    ],
    ids=str,
)
def test_published_sizes(config: WaffleIronConfig, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        model = WaffleIron(config)
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


def test_state_dict_has_the_published_keys_and_shapes() -> None:
    state = WaffleIron(WaffleIronConfig(inputs=5, width=64, depth=2, outputs=19)).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    norm = {"weight": (64,), "bias": (64,), "running_mean": (64,), "running_var": (64,), "num_batches_tracked": ()}
    small_norm = {key: (5,) if shape else () for key, shape in norm.items()}
    expected = {
        **{f"embed.norm.{key}": shape for key, shape in small_norm.items()},
        "embed.conv1.weight": (64, 5, 1),
        "embed.conv1.bias": (64,),
        **{f"embed.conv2.0.{key}": shape for key, shape in small_norm.items()},
        "embed.conv2.1.weight": (64, 5, 1, 1),
        **{f"embed.conv2.2.{key}": shape for key, shape in norm.items()},
        "embed.conv2.4.weight": (64, 64, 1, 1),
        "embed.final.weight": (64, 128, 1),
        "embed.final.bias": (64,),
        "classif.weight": (19, 64, 1),
        "classif.bias": (19,),
    }
    for layer in range(2):
        for mix, parts in (
            ("channel_mix", {"mlp.0": (64, 64, 1), "mlp.2": (64, 64, 1)}),
            ("spatial_mix", {"ffn.0": (64, 1, 3, 3), "ffn.2": (64, 1, 3, 3)}),
        ):
            prefix = f"waffleiron.{mix}.{layer}"
            expected |= {f"{prefix}.norm.{key}": shape for key, shape in norm.items()}
            for part, shape in parts.items():
                expected |= {f"{prefix}.{part}.weight": shape, f"{prefix}.{part}.bias": (64,)}
            expected[f"{prefix}.scale.weight"] = (64, 1, 1)
    assert shapes == expected


def test_wrong_keys_and_shapes_are_named() -> None:
    state = dict(WaffleIron(SMALL).state_dict())
    state["embed.extra"] = state.pop("embed.conv1.bias")
    state["classif.weight"] = torch.zeros(7, 13, 1)
    with pytest.raises(UserError) as caught:
        from_state_dict(SMALL, state, "file.pth")
    message = str(caught.value)
    for part in ("file.pth", "missing embed.conv1.bias", "unknown embed.extra", "classif.weight is (7, 13, 1)"):
        assert part in message


def test_gradients_reach_every_parameter() -> None:
    model = WaffleIron(replace(SMALL, norm="layer")).train()
    features, neighbours, *planes = (torch.from_numpy(array) for array in prepare(cloud(100), INPUTS).arrays())
    model(features, neighbours, planes_of(planes)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
