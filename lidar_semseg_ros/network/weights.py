"""What the layers of a network compute at inference, as few factors and sums: norms are folded into products."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lidar_semseg_ros.network.waffleiron import WaffleIron


class EmbeddingWeights(NamedTuple):
    """token_i = P x_i + p + Wf₂ max_j Wb ReLU(A (x_j − x_i) + a).

    point: P, (C, I). bias: p. relative: A, (C, I). shift: a. mix: Wb, highest: Wf₂, (C, C).
    """

    point: Tensor
    bias: Tensor
    relative: Tensor
    shift: Tensor
    mix: Tensor
    highest: Tensor


def embedding_weights(model: WaffleIron) -> EmbeddingWeights:
    """Fold all norms of the embedding into its products."""
    embed: Any = model.embed
    gain_I, shift_I = gain_and_shift(embed.norm)
    relative_norm, expand, expand_norm, _, mix = embed.conv2
    relative_gain_I, relative_shift_I = gain_and_shift(relative_norm)
    hidden_gain_C, hidden_shift_C = gain_and_shift(expand_norm)
    expand_CI = hidden_gain_C[:, None] * expand.weight.flatten(1)
    of_point, of_neighbours = embed.final.weight.flatten(1).chunk(2, dim=1)
    point_CI = of_point @ embed.conv1.weight.flatten(1)
    return EmbeddingWeights(
        point=point_CI * gain_I,
        bias=point_CI @ shift_I + of_point @ embed.conv1.bias + embed.final.bias,
        relative=expand_CI * relative_gain_I * gain_I,
        shift=expand_CI @ relative_shift_I + hidden_shift_C,
        mix=mix.weight.flatten(1),
        highest=of_neighbours,
    )


def mix_weights(mix: Any) -> list[tuple[Tensor, Tensor]]:
    """Give weight and bias of a folded channel mix's two products, with gain and shift of a layer norm in the first."""
    (first, first_bias), last = ((layer.weight.flatten(1), layer.bias) for layer in (mix.mlp[0], mix.mlp[2]))
    if epsilon_of(mix.norm) >= 0:
        gain_C, shift_C = gain_and_shift(mix.norm)
        first, first_bias = first * gain_C, first_bias + first @ shift_C
    return [(first, first_bias), last]


def head_weights(model: WaffleIron) -> tuple[Tensor, Tensor]:
    """Give weight (outputs, C) and bias of a head that is one product, with the norm before it, if it has one."""
    head: Any = model.classif
    if model.config.head == "linear":
        return head.weight.flatten(1), head.bias
    norm, linear = head
    gain_C, shift_C = gain_and_shift(norm)
    weight = linear.weight.flatten(1)
    return weight * gain_C, linear.bias + weight @ shift_C


def epsilon_of(norm: nn.Module) -> float:
    """Give a layer norm's epsilon; negative for a norm that has nothing to do on a token but gain and shift."""
    return norm.eps if isinstance(norm, nn.LayerNorm) else -1.0


def gain_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Write what a norm does at inference (a layer norm: after centring and scaling) as x · gain + shift."""
    if isinstance(norm, nn.LayerNorm):
        return norm.weight, norm.bias
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return gain, norm.bias - norm.running_mean * gain


def kernel_and_bias(convolution: Any) -> tuple[Tensor, Tensor]:
    """Give a depthwise 3×3 convolution as (9, C) and (C,)."""
    return convolution.weight.flatten(1).t().contiguous(), convolution.bias
