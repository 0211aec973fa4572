"""A network made ready to label sweeps on a GPU: products of cuBLAS and the kernels of network/triton_kernels.py.

Per layer three kernels, of which none touches an empty cell, and two products. Where Triton is not installed, or its
kernels do not compute on an example what the modules of network/waffleiron.py do, these run as they are.
Letters as in network/waffleiron.py; M: occupied cells of a plane, G: these and the hidden ones around them.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_semseg_ros.network.inference import Cells
from lidar_semseg_ros.network.inputs import NetworkInput, random_input
from lidar_semseg_ros.network.waffleiron import WaffleIron, folded, part_to_precision, planes_of, to_precision
from lidar_semseg_ros.network.weights import (
    embedding_weights,
    epsilon_of,
    gain_and_shift,
    kernel_and_bias,
    mix_weights,
)

if TYPE_CHECKING:
    from lidar_semseg_ros.network.device_inputs import DeviceCells, DeviceInput

logger = logging.getLogger(__name__)

EXAMPLE_POINTS, EXAMPLE_CELLS = 40, 8
MOST_CLOUDS = 8
"""In one call, which needs memory for all of them."""
MOST_DIFFERENCE = 0.1
"""Of the logits of kernels and modules, relative: 48 layers in bfloat16 round to a few percent."""


class Embedding:
    """The embedding by the formula of `EmbeddingWeights`, without storing N × K × C."""

    def __init__(self, model: WaffleIron, dtype: torch.dtype) -> None:
        weights = embedding_weights(model)
        # What sees coordinates is not rounded: 50 m in bfloat16 is a quarter of a metre.
        self._point, self._bias = weights.point, weights.bias
        self._relative, self._shift = weights.relative.t().contiguous(), weights.shift
        self._mix, self._highest = (weight.t().to(dtype).contiguous() for weight in (weights.mix, weights.highest))

    def __call__(self, prepared: DeviceInput) -> Tensor:
        """Compute tokens (N, C)."""
        from lidar_semseg_ros.network.triton_kernels import embed_neighbours

        of_point_NC = F.linear(prepared.features, self._point, self._bias).to(self._mix.dtype)
        highest_NC = embed_neighbours(
            prepared.features, prepared.neighbours, prepared.total, self._relative, self._shift, self._mix
        )
        return of_point_NC.addmm_(highest_NC, self._highest)


class SpatialMix:
    """tokens ← tokens + offset + inflate(W₂ ∗ act(W₁ ∗ (gain · mean(norm(tokens + offset)) + shift) + b₁) + b₂)."""

    def __init__(self, mix: Any) -> None:
        self._epsilon = epsilon_of(mix.norm)
        self._gain, self._shift = gain_and_shift(mix.norm)
        first, activation, last = mix.ffn
        self._first, self._last = kernel_and_bias(first), kernel_and_bias(last)
        self._gelu = isinstance(activation, nn.GELU)

    def update(self, tokens_NC: Tensor, offset_C: Tensor, cells: DeviceCells) -> None:
        """Replace the tokens by those after the mix."""
        from lidar_semseg_ros.network.triton_kernels import convolve, flatten, inflate

        by_cell = (cells.order, cells.start, cells.occupied_total)
        mean_MC = flatten(tokens_NC, offset_C, *by_cell, self._gain, self._shift, self._epsilon)
        hidden_GC = convolve(mean_MC, cells.around, cells.hidden_total, *self._first, self._gelu)
        inflate(tokens_NC, offset_C, hidden_GC, cells.hidden, *by_cell, *self._last)


class ChannelMix:
    """tokens ← tokens + W₂ act(W₁ norm(tokens) + b₁), and offset ← b₂ for whoever reads the tokens next.

    A product of cuBLAS adds either a bias or the tokens in its own pass over memory, not both.
    """

    def __init__(self, mix: Any, dtype: torch.dtype) -> None:
        self._epsilon = epsilon_of(mix.norm)
        self._activation = mix.mlp[1]
        (first, bias), (last, self.offset) = mix_weights(mix)
        self._first, self._last = (weight.t().to(dtype).contiguous() for weight in (first, last))
        self._bias = bias.to(dtype)

    def update(self, tokens_NC: Tensor) -> None:
        """Replace the tokens by those after the mix, less the offset."""
        x_NC = F.layer_norm(tokens_NC, tokens_NC.shape[1:], eps=self._epsilon) if self._epsilon >= 0 else tokens_NC
        if isinstance(self._activation, nn.ReLU):
            hidden_NC = torch._addmm_activation(self._bias, x_NC, self._first)
        else:
            # With the fused one the GELU would be cuBLAS's, which approximates it by a tanh.
            hidden_NC = self._activation(torch.addmm(self._bias, x_NC, self._first))
        tokens_NC.addmm_(hidden_NC, self._last)


class FusedNetwork:
    """Prepared points in, logits out, all on one device; needs Triton."""

    def __init__(self, model: WaffleIron, dtype: torch.dtype, device: str) -> None:
        model = folded(model).to(device)
        with torch.no_grad():
            self._embedding = Embedding(model, dtype)
            mixes = zip(model.waffleiron.spatial_mix, model.waffleiron.channel_mix)
            self._layers = [(SpatialMix(spatial), ChannelMix(channel, dtype)) for spatial, channel in mixes]
        self._no_offset = torch.zeros(model.config.width, device=device)
        self._head = part_to_precision(model.classif, dtype)

    def __call__(self, prepared: DeviceInput) -> Tensor:
        """Compute logits (N, outputs) float32; those of rows that are no points mean nothing."""
        tokens_NC, offset_C = self._embedding(prepared), self._no_offset
        for layer, (spatial_mix, channel_mix) in enumerate(self._layers):
            spatial_mix.update(tokens_NC, offset_C, prepared.planes[layer % len(prepared.planes)])
            channel_mix.update(tokens_NC)
            offset_C = channel_mix.offset
        logits: Tensor = self._head(tokens_NC + offset_C.to(tokens_NC.dtype)).float()
        return logits


class CudaWaffleIron:
    """A network on a GPU for sweeps that the host prepared, one or several at a time.

    dtype: of all products but those that see coordinates, and of the tokens.
    fused: the network of kernels, None where they do not run; then the modules do, and `fault` says why.
    """

    most_clouds = MOST_CLOUDS

    def __init__(self, model: WaffleIron, dtype: torch.dtype, device: str) -> None:
        self._device = device
        self._model = to_precision(folded(model), dtype).to(device)
        self.fused: FusedNetwork | None = None
        self.fault = self._try_kernels(model, dtype)

    def _try_kernels(self, model: WaffleIron, dtype: torch.dtype) -> str:
        """Take the kernels if they compute what the modules do on an example; tells why not."""
        if not has_triton():
            return "Triton is not installed"
        example = random_input(model.config.inputs, EXAMPLE_POINTS, EXAMPLE_CELLS)
        logger.info("the kernels of the network are made ready; a first start compiles them")
        with torch.inference_mode(), on(self._device):
            try:
                fused = FusedNetwork(model, dtype, self._device)
                logits = fused(joined([example], self._device)).cpu()
            except Exception as error:  # no C compiler, an old driver, a GPU that Triton does not know: many types
                return f"Triton's kernels do not run here ({type(error).__name__}: {error})"
            expected = self._by_modules(example)
        difference = ((logits - expected).norm() / expected.norm()).item()
        if not difference < MOST_DIFFERENCE:
            return f"Triton's kernels differ from the modules by {difference:.1%}"
        self.fused = fused
        return ""

    def logits(self, prepared: NetworkInput) -> Tensor:
        """Compute logits (N, outputs) float32, on the CPU, of N ≥ 1 kept points."""
        return self.logits_of([prepared])[0]

    def logits_of(self, prepared: Sequence[NetworkInput]) -> list[Tensor]:
        """Compute the logits of several clouds of N ≥ 1 kept points each, as `logits` does of one."""
        with torch.inference_mode(), on(self._device):
            if self.fused is None:
                return [self._by_modules(one) for one in prepared]
            logits = self.fused(joined(prepared, self._device)).cpu()
        return list(logits.split([len(one) for one in prepared]))

    def _by_modules(self, prepared: NetworkInput) -> Tensor:
        arrays = (torch.from_numpy(array).to(self._device) for array in prepared.arrays())
        features, neighbours, *planes = arrays
        # Else a GPU rounds the factors of convolutions in float32 to 10 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits: Tensor = self._model(features, neighbours, planes_of(planes)).float().cpu()
        return logits


def has_triton() -> bool:
    """Tell whether the kernels can be compiled here."""
    return importlib.util.find_spec("triton") is not None


def on(device: str) -> AbstractContextManager[object]:
    """Make a device the one that kernels are launched on."""
    return torch.cuda.device(device) if device.startswith("cuda") else nullcontext()


def joined(prepared: Sequence[NetworkInput], device: str) -> DeviceInput:
    """Put clouds prepared by the host one behind the other, as one input of the kernels; no two share a cell."""
    from lidar_semseg_ros.network.device_inputs import DeviceInput

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.int32)).to(device)

    first = np.cumsum([0, *(len(one) for one in prepared)])
    neighbours = np.concatenate([one.neighbours + begin for one, begin in zip(prepared, first)])
    planes = []
    for plane in range(len(prepared[0].planes)):
        cells = [Cells.on(one.planes[plane]) for one in prepared]
        planes.append(_joined_cells(cells, first, on_device))
    return DeviceInput(
        features=torch.from_numpy(np.concatenate([one.features for one in prepared])).to(device),
        neighbours=on_device(neighbours),
        total=on_device(first[-1]),
        planes=planes,
    )


def _joined_cells(cells: Sequence[Cells], first: np.ndarray, on_device: Any) -> DeviceCells:
    from lidar_semseg_ros.network.device_inputs import DeviceCells

    occupied = np.cumsum([0, *(len(one.hidden) for one in cells)])
    hidden = np.cumsum([0, *(len(one.around) for one in cells)])

    def shifted(windows: Sequence[np.ndarray], begins: np.ndarray) -> Tensor:
        return on_device(np.concatenate([np.where(w < 0, -1, w + begin) for w, begin in zip(windows, begins)]))

    starts = [one.start[:-1] + begin for one, begin in zip(cells, first)]
    return DeviceCells(
        order=on_device(np.concatenate([one.order + begin for one, begin in zip(cells, first)])),
        start=on_device(np.append(np.concatenate(starts), first[-1])),
        around=shifted([one.around for one in cells], occupied),
        hidden=shifted([one.hidden for one in cells], hidden),
        occupied_total=on_device(occupied[-1]),
        hidden_total=on_device(hidden[-1]),
    )
