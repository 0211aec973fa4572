"""The published formulas written plainly: dense loops in float64 over points, cells and neighbours, nothing clever.

Notation of the papers: channels first, full grids, every step by its own. Shares no code with the package.
"""

from __future__ import annotations

import math

import numpy as np


def _batch_norm(x_CN: np.ndarray, state: dict[str, np.ndarray], key: str) -> np.ndarray:
    mean, variance, weight, bias = (
        state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x_CN - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5) * weight[:, None] + bias[:, None]


def _layer_norm(x_CN: np.ndarray, state: dict[str, np.ndarray], key: str) -> np.ndarray:
    centred = x_CN - x_CN.mean(axis=0)
    scaled = centred / np.sqrt((centred**2).mean(axis=0) + 1e-5)
    return scaled * state[f"{key}.weight"][:, None] + state[f"{key}.bias"][:, None]


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _matrix(state: dict[str, np.ndarray], key: str) -> np.ndarray:
    weight = state[f"{key}.weight"]
    return weight.reshape(weight.shape[:2])


def _depthwise_3x3(grid_CHW: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    channels, height, width = grid_CHW.shape
    padded = np.zeros((channels, height + 2, width + 2))
    padded[:, 1:-1, 1:-1] = grid_CHW
    out = np.empty_like(grid_CHW)
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + 3, column : column + 3]
            out[:, row, column] = (window * weight[:, 0]).sum(axis=(1, 2)) + bias
    return out


def _embedding(features_IN: np.ndarray, neighbours_KN: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    x = _batch_norm(features_IN, state, "embed.norm")
    point = _matrix(state, "embed.conv1") @ x + state["embed.conv1.bias"][:, None]
    pooled = np.full_like(point, -np.inf)
    for row in neighbours_KN:
        difference = _batch_norm(x[:, row] - x, state, "embed.conv2.0")
        hidden = _relu(_batch_norm(_matrix(state, "embed.conv2.1") @ difference, state, "embed.conv2.2"))
        pooled = np.maximum(pooled, _matrix(state, "embed.conv2.4") @ hidden)
    return _matrix(state, "embed.final") @ np.concatenate([point, pooled]) + state["embed.final.bias"][:, None]


def _spatial_mix(x_CN, cell, grid, state, key, norm, activation):
    x = norm(x_CN, state, f"{key}.norm")
    flat = np.zeros((len(x), grid[0] * grid[1]))
    count = np.zeros(grid[0] * grid[1])
    for point, target in enumerate(cell):
        flat[:, target] += x[:, point]
        count[target] += 1
    flat /= count + 1e-6
    hidden = _depthwise_3x3(flat.reshape(-1, *grid), state[f"{key}.ffn.0.weight"], state[f"{key}.ffn.0.bias"])
    mixed = _depthwise_3x3(activation(hidden), state[f"{key}.ffn.2.weight"], state[f"{key}.ffn.2.bias"])
    return mixed.reshape(len(x), -1)[:, cell] * state[f"{key}.scale.weight"].reshape(-1, 1)


def _channel_mix(x_CN, state, key, norm, activation):
    x = norm(x_CN, state, f"{key}.norm")
    hidden = activation(_matrix(state, f"{key}.mlp.0") @ x + state[f"{key}.mlp.0.bias"][:, None])
    mixed = _matrix(state, f"{key}.mlp.2") @ hidden + state[f"{key}.mlp.2.bias"][:, None]
    return mixed * state[f"{key}.scale.weight"].reshape(-1, 1)


def logits(
    features_IN: np.ndarray,
    neighbours_KN: np.ndarray,
    cells: list[np.ndarray],
    grids: list[tuple[int, int]],
    state: dict[str, np.ndarray],
    *,
    layer_norm: bool,
    gelu: bool,
    head: str,
) -> np.ndarray:
    """Compute logits (outputs, N) with full grids; cells[p] is row · W + column on the full grid of plane p."""
    norm = _layer_norm if layer_norm else _batch_norm
    activation = _gelu if gelu else _relu
    x = _embedding(features_IN, neighbours_KN, state)
    depth = sum(key.endswith("mlp.0.weight") for key in state)
    for layer in range(depth):
        plane = layer % len(cells)
        key = f"waffleiron.spatial_mix.{layer}"
        x = x + _spatial_mix(x, cells[plane], grids[plane], state, key, norm, activation)
        x = x + _channel_mix(x, state, f"waffleiron.channel_mix.{layer}", norm, activation)
    if head == "mlp":
        hidden = _relu(_matrix(state, "classif.0") @ x + state["classif.0.bias"][:, None])
        return _matrix(state, "classif.2") @ hidden + state["classif.2.bias"][:, None]
    if head == "norm_linear":
        return _matrix(state, "classif.1") @ _batch_norm(x, state, "classif.0") + state["classif.1.bias"][:, None]
    return _matrix(state, "classif") @ x + state["classif.bias"][:, None]
