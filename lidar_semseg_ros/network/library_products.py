"""The products of a network on a CPU by the libraries that PyTorch brings, and what comes before and after them.

For GELU, float16, heads of two products and odd widths, for processors that network/tiles.py does not know or on which
this is measured to be quicker, and for a single call, where compiling would take longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lidar_semseg_ros.network import grid_kernels, point_kernels
from lidar_semseg_ros.network.inputs import NetworkInput
from lidar_semseg_ros.network.waffleiron import WaffleIron
from lidar_semseg_ros.network.weights import embedding_weights, epsilon_of, mix_weights
from lidar_semseg_ros.network.workers import RoomOfThread, as_array

SAME_ROWS = 256
"""In bfloat16, factors have a multiple of so many rows: oneDNN compiles a product for every shape, and keeps it."""


class ChannelMix:
    """tokens ← tokens + W₂ act(W₁ normal tokens + b₁) + b₂; gain and shift of the norm are folded into W₁ and b₁.

    In bfloat16, factors and products are rounded, the sums between them are not.
    """

    def __init__(self, mix: Any, dtype: torch.dtype, room: RoomOfThread) -> None:
        (first, first_bias), (last, last_bias) = mix_weights(mix)
        self._first, self._last = (weight.t().to(dtype).contiguous() for weight in (first, last))
        self._first_bias, self._last_bias = first_bias.to(dtype), last_bias
        self._activation, self._epsilon = mix.mlp[1], epsilon_of(mix.norm)
        self._dtype, self._room = dtype, room

    def update(self, begin: int, end: int, cells_MC: np.ndarray, place: np.ndarray, tokens_NC: Tensor) -> None:
        """Add to the tokens begin … end what their cells hold, then replace them by those of the next layer.

        place: (N,), the row of `cells_MC` that is the cell of each token.
        """
        grid_kernels.inflate(begin, end, cells_MC, place, tokens_NC.numpy())
        tokens_nC = x_nC = tokens_NC[begin:end]
        if self._epsilon >= 0:
            x_nC = self._room.take("normal", tokens_nC.shape)
            grid_kernels.normalise(tokens_nC.numpy(), self._epsilon, x_nC.numpy())
        factor = self._rounded(x_nC)
        hidden = self._room.take("hidden", factor.shape, self._dtype)
        hidden = activated(self._activation, torch.addmm(self._first_bias, factor, self._first, out=hidden))
        if self._dtype == torch.float32:
            tokens_nC.add_(self._last_bias).addmm_(hidden, self._last)
            return
        addend = torch.mm(hidden, self._last, out=factor)[: len(tokens_nC)]
        if self._dtype == torch.bfloat16:
            point_kernels.add(as_array(addend), self._last_bias.numpy(), tokens_nC.numpy())
        else:
            tokens_nC.add_(self._last_bias).add_(addend)

    def _rounded(self, x: Tensor) -> Tensor:
        """Give a factor in the dtype of the product; what lies in rows beyond those of x means nothing."""
        if self._dtype == torch.float32:
            return x
        rounded = self._room.take("rounded", (multiple(len(x), SAME_ROWS), x.shape[1]), self._dtype)
        rounded[: len(x)] = x
        return rounded


class Embedding:
    """The embedding of a chunk of points, by the formula of `EmbeddingWeights`.

    In bfloat16 only the product with Wb is: 50 m is a quarter of a metre there, and Wf₂ costs next to nothing.
    """

    def __init__(self, model: WaffleIron, dtype: torch.dtype, room: RoomOfThread) -> None:
        weights = embedding_weights(model)
        of_points = weights.relative.t(), weights.shift, weights.point.t(), weights.bias
        self._of_points = [weight.contiguous().numpy() for weight in of_points]
        self._rounds = dtype == torch.bfloat16
        self._dtype = torch.bfloat16 if self._rounds else torch.float32
        self._expand = point_kernels.expansion(model.config.inputs, self._rounds)
        self._mix, self._highest = weights.mix.t().to(self._dtype).contiguous(), weights.highest.t().contiguous()
        self._room = room

    def write(self, begin: int, end: int, prepared: NetworkInput, tokens_NC: Tensor) -> None:
        """Embed the points begin … end."""
        x_NI, neighbours_nK, tokens_nC = prepared.features, prepared.neighbours[begin:end], tokens_NC[begin:end]
        points, count = neighbours_nK.shape
        shape = (multiple(points * count, SAME_ROWS) if self._rounds else points * count, tokens_nC.shape[1])
        hidden, mixed = (self._room.take(name, shape, self._dtype) for name in ("hidden", "mixed"))
        hidden_nKC, mixed_nKC = (rows[: points * count].unflatten(0, (points, count)) for rows in (hidden, mixed))
        highest = self._room.take("highest", tokens_nC.shape)
        self._expand(x_NI[begin:end], x_NI, neighbours_nK, *self._of_points, as_array(hidden_nKC), tokens_nC.numpy())
        torch.mm(hidden, self._mix, out=mixed)
        if self._rounds:
            point_kernels.highest_of(as_array(mixed_nKC), highest.numpy())
        else:
            torch.amax(mixed_nKC, 1, out=highest)
        tokens_nC.addmm_(highest, self._highest)


def activated(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an activation, in place where that is possible."""
    if not isinstance(activation, nn.ReLU):
        return activation(x)
    if x.dtype == torch.bfloat16:
        # Negative numbers are negative integers, too, and on these the maximum takes an eighth of the time. So are some
        # NaN, but nothing overflows here that does not in float32, and the tokens would keep it.
        x.view(torch.int16).clamp_(min=0)
        return x
    return x.relu_()


def multiple(count: int, of: int) -> int:
    """Round up to a multiple."""
    return -(-count // of) * of
