"""Published checkpoints (WaffleIron, ScaLR) into state dicts of ours, and networks into ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.network.inputs import CroppedPlane, example_input
from lidar_semseg_ros.network.model_file import METADATA_KEY, ModelDescription

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_semseg_ros.network.waffleiron import WaffleIron


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a project stores its weights: under which keys of the file, and what the keys do not say."""

    entries: tuple[str, ...]
    norm: str
    activation: str


LAYOUTS = {
    "waffleiron": Layout(entries=("net",), norm="batch", activation="relu"),
    "scalr": Layout(entries=("net", "model_point", "model_points"), norm="layer", activation="relu"),
    "scalr_plus": Layout(entries=("net", "model_point", "model_points"), norm="layer", activation="gelu"),
}


def read_checkpoint(path: Path, layout: Layout) -> dict[str, Tensor]:
    """Read the state dict of a published checkpoint without running any code in it.

    Published files may hold NumPy scalars, which are allowed; anything else that is no tensor or plain value is
    refused with a UserError.
    """
    content = _load_weights_only(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a checkpoint with {layout.entries}")
    entry = next((name for name in layout.entries if name in content), None)
    if entry is None:
        raise UserError(
            f"{path} holds {', '.join(map(str, content))}, but weights of this layout lie under "
            f"{' or '.join(layout.entries)}; choose another --layout"
        )
    state = {str(key).removeprefix("module."): value for key, value in content[entry].items()}
    has_running_mean = "waffleiron.channel_mix.0.norm.running_mean" in state
    if has_running_mean != (layout.norm == "batch"):
        found = "batch" if has_running_mean else "layer"
        raise UserError(f"{path} has {found} norms, but this layout has {layout.norm} norms; choose another --layout")
    return state


def _load_weights_only(path: Path) -> Any:
    import pickle

    import torch

    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]  # the function that rebuilds a NumPy scalar
    numpy_types: list[Any] = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # its name in files of NumPy 1
        np.dtype,
        *{type(np.dtype(kind)) for kind in "bhilqBHILQefd?"},
    ]
    try:
        with torch.serialization.safe_globals(numpy_types):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} was not loaded: it is damaged or holds more than weights ({reason})") from None


def export_onnx(model: WaffleIron, description: ModelDescription, path: Path) -> None:
    """Write a self-describing ONNX graph of the folded network with any number of points and any grid sizes.

    Inputs: features (N, I) float32, neighbours (N, K) int64, and for every plane p its cell_p (N,), order_p (N,),
    start_p (M,), occupied_p (M,) int64 and weight_p (H, W) float32. Output: logits (N, outputs) float32.
    """
    import onnx
    import torch

    from lidar_semseg_ros.network.waffleiron import folded, planes_of

    class FlatInputs(torch.nn.Module):
        def __init__(self, network: WaffleIron) -> None:
            super().__init__()
            self.network = network

        def forward(self, features: Tensor, neighbours: Tensor, *planes: Tensor) -> Tensor:
            logits: Tensor = self.network(features, neighbours, planes_of(planes))
            return logits

    planes = len(description.inputs.planes)
    names = ["features", "neighbours", *(f"{name}_{plane}" for plane in range(planes) for name in CroppedPlane._fields)]
    program = torch.onnx.export(
        FlatInputs(folded(model)).eval(),
        tuple(torch.from_numpy(array) for array in example_input(description.inputs).arrays()),
        dynamo=True,
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=_dynamic_shapes(planes),
        opset_version=18,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    graph = program.model_proto
    # The exporter notes the lines of code that each operation and value come from, with the paths of this machine.
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.functions):
        del part.metadata_props[:]
    for node in graph.graph.node:
        node.ClearField("doc_string")
    onnx.helper.set_model_props(graph, {METADATA_KEY: description.to_json()})
    onnx.save(graph, path)


def _dynamic_shapes(planes: int) -> tuple[Any, ...]:
    from torch.export import Dim

    points = Dim("points", min=2)
    shapes: list[Any] = []
    for plane in range(planes):
        cells = Dim(f"cells_{plane}", min=2)
        shapes += [{0: points}, {0: points}, {0: cells}, {0: cells}]
        shapes.append({0: Dim(f"rows_{plane}", min=2), 1: Dim(f"columns_{plane}", min=2)})
    return ({0: points}, {0: points}, tuple(shapes))
