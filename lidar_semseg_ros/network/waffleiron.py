"""WaffleIron: the whole network, on points as rows.

Puy, Boulch, Marlet: "Using a Waffle Iron for Automotive Point Cloud Semantic Segmentation", ICCV 2023; the layer-norm
and GELU variants and the heads are those of ScaLR (Puy et al., CVPR 2024) and its successor. State-dict keys and shapes
are those of the published checkpoints.

    tokens = embedding(points, neighbours)                              (N, C)
    for each layer d, with the plane d mod P of the plane list:
        tokens ← tokens + scale · inflate(conv(conv(flatten(norm(tokens)))))     spatial mix, on a 2D grid
        tokens ← tokens + scale · MLP(norm(tokens))                              channel mix, on every point
    logits = head(tokens)                                               (N, outputs)

Shape letters: N points of all clouds of a batch one after the other, I input channels, C width, K neighbours, B clouds,
H × W cells of a plane. Tokens are row-major (N, C): every per-point product is one matrix product, without padding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_semseg_ros.core.errors import UserError

EMBEDDING_CHUNK = 4096
"""Points whose neighbourhoods are embedded at a time in inference, so that N × K × C is never stored whole."""


@dataclass(frozen=True, kw_only=True)
class WaffleIronConfig:
    """The shape of a network; everything here can be read off a state dict but the activation.

    inputs: I, channels per point. width: C. depth: number of layers, each one spatial and one channel mix.
    outputs: classes, or features of a pre-training head.
    norm: 'batch' (WaffleIron) or 'layer' (ScaLR). activation: 'relu', or 'gelu' (ScaLR v0.2).
    head: 'linear', 'norm_linear' (batch norm before it: ScaLR downstream), 'mlp' (ScaLR v0.2 pre-training).
    head_width: hidden width of the 'mlp' head, 0 for the others.
    """

    inputs: int
    width: int
    depth: int
    outputs: int
    norm: str = "batch"
    activation: str = "relu"
    head: str = "linear"
    head_width: int = 0

    def __post_init__(self) -> None:
        for name in ("inputs", "width", "depth", "outputs"):
            if getattr(self, name) < 1:
                raise UserError(f"a network needs {name} ≥ 1, but it is {getattr(self, name)}")
        for name, choices in (("norm", NORMS), ("activation", ACTIVATIONS), ("head", HEADS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, but it is '{getattr(self, name)}'")
        if (self.head == "mlp") != (self.head_width > 0):
            raise UserError(f"head_width belongs to the 'mlp' head: head is '{self.head}', width {self.head_width}")

    def to_mapping(self) -> dict[str, Any]:
        """Give the form a model file holds; `WaffleIronConfig(**mapping)` reads it back."""
        return asdict(self)


class Plane(NamedTuple):
    """Where the points of B clouds lie on one 2D grid, cropped to what is occupied; M cells are.

    cell: (N,) int64, row · W + column, plus b · H · W for cloud b.
    order: (N,) int64, the points sorted by cell. start: (M,) int64, where in `order` each occupied cell begins.
    occupied: (M,) int64, the occupied cells, ascending.
    weight: (B, H, W) float32, 1 / (points in the cell + 1e-6) for occupied cells and 0 for empty ones. It must keep one
        ring of empty cells around the occupied box, unless the full grid ends there: a convolution makes the hidden
        cells beside an occupied cell non-zero, and the next one reads them.
    """

    cell: Tensor
    order: Tensor
    start: Tensor
    occupied: Tensor
    weight: Tensor


def planes_of(tensors: Sequence[Tensor]) -> list[Plane]:
    """Group the flat list of one cloud's plane tensors, (H, W) weights included, into planes."""
    width = len(Plane._fields)
    groups = [tensors[i : i + width] for i in range(0, len(tensors), width)]
    return [Plane(cell, order, start, occupied, weight_HW[None]) for cell, order, start, occupied, weight_HW in groups]


class PointwiseConv1d(nn.Conv1d):
    """A 1×1 convolution with the parameters of Conv1d, on rows: (N, in) → (N, out)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution with the parameters of Conv2d, on rows: (…, in) → (…, out)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class LayerScale(nn.Conv1d):
    """One factor per channel, stored as a grouped 1×1 convolution: (…, C) → (…, C)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 1, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.flatten()


NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
HEADS = ("linear", "norm_linear", "mlp")


class Embedding(nn.Module):
    """x̂ = BN(x);  q_i = max_j Wb ReLU(BN(Wa BN(x̂_j − x̂_i)));  token_i = Wf [W1 x̂_i + b1; q_i] + bf."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.conv1 = PointwiseConv1d(inputs, width, 1)
        self.conv2 = nn.Sequential(
            nn.BatchNorm1d(inputs),
            PointwiseConv2d(inputs, width, 1, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            PointwiseConv2d(width, width, 1, bias=False),
        )
        self.final = PointwiseConv1d(2 * width, width, 1)

    def forward(self, features_NI: Tensor, neighbours_NK: Tensor) -> Tensor:
        x_NI = self.norm(features_NI)
        # Training needs the statistics of all neighbourhoods at once, and a traced graph has no loop over points.
        if self.training or torch.compiler.is_compiling():
            q_NC = self._neighbourhood(x_NI, x_NI, neighbours_NK)
        else:
            chunks = zip(x_NI.split(EMBEDDING_CHUNK), neighbours_NK.split(EMBEDDING_CHUNK))
            q_NC = torch.cat([self._neighbourhood(x_NI, centres_nI, chosen_nK) for centres_nI, chosen_nK in chunks])
        dtype = self.final.weight.dtype
        return self.final(torch.cat([self.conv1(x_NI).to(dtype), q_NC], dim=1))

    def _neighbourhood(self, x_NI: Tensor, centres_nI: Tensor, neighbours_nK: Tensor) -> Tensor:
        # An embedding look-up and not x_NI[…], whose gradient on the CPU depends on the order of threads.
        relative = (F.embedding(neighbours_nK, x_NI) - centres_nI[:, None]).flatten(0, 1)
        norm, expand, expand_norm, relu, mix = self.conv2
        hidden = relu(expand_norm(expand(norm(relative))))
        mixed = mix(hidden.to(mix.weight.dtype))
        return mixed.unflatten(0, neighbours_nK.shape).max(dim=1).values


class SpatialMix(nn.Module):
    """scale · DW₃ₓ₃(act(DW₃ₓ₃(mean of norm(tokens) per cell))), copied back to the points of the cell."""

    def __init__(self, width: int, norm: str, activation: str) -> None:
        super().__init__()
        self.norm = NORMS[norm](width)
        self.ffn = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            ACTIVATIONS[activation](),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
        )
        self.scale: nn.Module = LayerScale(width)

    def forward(self, tokens_NC: Tensor, plane: Plane) -> Tensor:
        x_NC = self.norm(tokens_NC)
        mean_BHWC = plane.weight[..., None] * self._sum_per_cell(x_NC, plane).unflatten(0, plane.weight.shape)
        grid_BCHW = mean_BHWC.to(x_NC.dtype).permute(0, 3, 1, 2)
        mixed_BHWC = self.ffn(grid_BCHW).permute(0, 2, 3, 1)
        return self.scale(mixed_BHWC.flatten(0, 2)).index_select(0, plane.cell)

    def _sum_per_cell(self, x_NC: Tensor, plane: Plane) -> Tensor:
        """Sum the tokens of every cell, (B·H·W, C) float32: float16 overflows and bfloat16 swamps in dense cells."""
        if torch.compiler.is_compiling():
            # ONNX has no segment sum, and ONNX Runtime's parallel ScatterND(add) loses updates on the CPU
            # (onnxruntime issue 18048): differences of a running sum instead, exact enough in float64.
            running_NC = F.pad(x_NC.index_select(0, plane.order).double().cumsum(0), (0, 0, 1, 0))
            total = torch.zeros_like(plane.start[:1]) + x_NC.shape[0]  # len() would fix the traced size
            sum_MC = running_NC.index_select(0, torch.cat([plane.start, total])).diff(dim=0).float()
        else:
            sum_MC = F.embedding_bag(plane.order, x_NC.float(), plane.start, mode="sum")
        cells = plane.weight.numel()
        return sum_MC.new_zeros(cells, x_NC.shape[1]).index_copy(0, plane.occupied, sum_MC)


class ChannelMix(nn.Module):
    """scale · W₂ act(W₁ norm(token) + b₁) + b₂, on every point."""

    def __init__(self, width: int, norm: str, activation: str) -> None:
        super().__init__()
        self.norm: nn.Module = NORMS[norm](width)
        self.mlp = nn.Sequential(
            PointwiseConv1d(width, width, 1), ACTIVATIONS[activation](), PointwiseConv1d(width, width, 1)
        )
        self.scale: nn.Module = LayerScale(width)

    def forward(self, tokens_NC: Tensor) -> Tensor:
        return self.scale(self.mlp(self.norm(tokens_NC)))


class Backbone(nn.Module):
    """The layers; layer d works on plane d mod P of the planes it is given."""

    def __init__(self, width: int, depth: int, norm: str, activation: str) -> None:
        super().__init__()
        self.channel_mix = nn.ModuleList(ChannelMix(width, norm, activation) for _ in range(depth))
        self.spatial_mix = nn.ModuleList(SpatialMix(width, norm, activation) for _ in range(depth))

    def forward(self, tokens_NC: Tensor, planes: Sequence[Plane]) -> Tensor:
        for layer, (spatial_mix, channel_mix) in enumerate(zip(self.spatial_mix, self.channel_mix)):
            tokens_NC = tokens_NC + spatial_mix(tokens_NC, planes[layer % len(planes)])
            tokens_NC = tokens_NC + channel_mix(tokens_NC)
        return tokens_NC


class WaffleIron(nn.Module):
    """Points and their neighbours in, logits out; weights are independent of the grids."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.inputs, config.width)
        self.waffleiron = Backbone(config.width, config.depth, config.norm, config.activation)
        self.classif = _head(config)

    def forward(self, features_NI: Tensor, neighbours_NK: Tensor, planes: Sequence[Plane]) -> Tensor:
        """Compute logits (N, outputs).

        features_NI: float32. neighbours_NK: int64, rows of the K nearest other points of the same cloud, in any order.
        """
        tokens_NC = self.embed(features_NI, neighbours_NK)
        return self.classif(self.waffleiron(tokens_NC, planes))


def _head(config: WaffleIronConfig) -> nn.Module:
    if config.head == "mlp":
        return nn.Sequential(
            PointwiseConv1d(config.width, config.head_width, 1),
            nn.ReLU(),
            PointwiseConv1d(config.head_width, config.outputs, 1),
        )
    linear = PointwiseConv1d(config.width, config.outputs, 1)
    return nn.Sequential(nn.BatchNorm1d(config.width), linear) if config.head == "norm_linear" else linear


def folded(model: WaffleIron) -> WaffleIron:
    """Give a copy for inference that computes the same with fewer steps; the model itself stays as it is.

    Layer scales go into the weights before them, and in the channel mix a batch norm with running statistics goes into
    the weights after it: W (a·x + b) + c = (W·a) x + (W b + c). A layer norm cannot be folded.
    """
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        mix: Any
        for mix in copied.waffleiron.channel_mix:
            if isinstance(mix.norm, nn.BatchNorm1d):
                _fold_norm(mix)
            _fold_scale(mix, mix.mlp[2])
        for mix in copied.waffleiron.spatial_mix:
            _fold_scale(mix, mix.ffn[2])
    return copied.requires_grad_(False)


def _fold_norm(mix: Any) -> None:
    gain = mix.norm.weight / torch.sqrt(mix.norm.running_var + mix.norm.eps)
    shift = mix.norm.bias - mix.norm.running_mean * gain
    first = mix.mlp[0]
    first.bias += first.weight.flatten(1) @ shift
    first.weight *= gain[:, None]
    mix.norm = nn.Identity()


def _fold_scale(mix: Any, last: Any) -> None:
    factor = mix.scale.weight.flatten()
    last.weight *= factor.reshape(-1, *[1] * (last.weight.ndim - 1))
    last.bias *= factor
    mix.scale = nn.Identity()


def to_precision(model: WaffleIron, dtype: torch.dtype) -> WaffleIron:
    """Bring a folded network's wide products to a lower precision, in place.

    What sees coordinates (the input norms and the two products from I channels) stays float32: 50 m in bfloat16 is a
    quarter of a metre. So do the running statistics of batch norms.
    """
    for part in (model.embed.conv2[4], model.embed.final, model.waffleiron, model.classif):
        part_to_precision(part, dtype)
    return model


def part_to_precision(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Bring a part that sees no coordinates to a lower precision, in place, but for the statistics of batch norms."""
    part.to(dtype)
    for module in part.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.float()
    return part


def config_of(state: Mapping[str, Tensor], activation: str) -> WaffleIronConfig:
    """Read a network's shape off its state dict; UserError names the key that is missing or of no known shape."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in state:
            raise UserError(f"this is no WaffleIron state dict: it has no '{key}'")
        return tuple(state[key].shape)

    width, inputs = shape("embed.conv1.weight")[:2]
    depth = sum(key.startswith("waffleiron.channel_mix.") and key.endswith(".mlp.0.weight") for key in state)
    norm = "batch" if "waffleiron.channel_mix.0.norm.running_mean" in state else "layer"
    head, last, head_width = "linear", "classif.weight", 0
    if "classif.2.weight" in state:
        head, last, head_width = "mlp", "classif.2.weight", shape("classif.0.weight")[0]
    elif "classif.1.weight" in state:
        head, last = "norm_linear", "classif.1.weight"
    return WaffleIronConfig(
        inputs=inputs,
        width=width,
        depth=depth,
        outputs=shape(last)[0],
        norm=norm,
        activation=activation,
        head=head,
        head_width=head_width,
    )


def from_state_dict(config: WaffleIronConfig, state: Mapping[str, Tensor], source: str) -> WaffleIron:
    """Build a network with exactly these weights; UserError names missing, unknown and misshapen keys."""
    with torch.device("meta"):  # without memory: what a damaged file claims may be huge
        model = WaffleIron(config)
    expected = model.state_dict()
    faults = [f"missing {key}" for key in expected if key not in state]
    faults += [f"unknown {key}" for key in state if key not in expected]
    faults += [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        more = f" … and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise UserError(f"{source} does not fit {config}: {'; '.join(faults[:8])}{more}")
    model.load_state_dict({key: state[key].to(value.dtype) for key, value in expected.items()}, assign=True)
    return model
