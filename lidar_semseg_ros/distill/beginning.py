"""The network a training begins with: random weights, or those of a model whose head may be another."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.distill.plan import Plan
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.model_file import ModelDescription, read_safetensors

if TYPE_CHECKING:
    from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig

logger = logging.getLogger(__name__)

HEAD = "classif."


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A network with the inputs it takes. origin: what its weights come from, by key; empty if they are random."""

    network: WaffleIron
    inputs: InputConfig
    origin: dict[str, str]


def beginning(plan: Plan, features: int) -> Beginning:
    """Make the network of a plan; features: D of the image teacher, 0 without one.

    Its outputs are the classes, or, where no labels are learned, features as long as the teacher's. Of the model to
    begin with, the head is kept if it is for classes of the same names; else a warning says why not. UserError if that
    model does not fit the plan.
    """
    from lidar_semseg_ros.network.waffleiron import from_state_dict

    if plan.start is None:
        if plan.inputs is None:
            raise UserError("the training configuration describes no 'inputs'; add them, or begin with a model")
        shape = {"inputs": len(plan.inputs.features), **plan.network}
        config = _config({**shape, "outputs": _outputs(plan, features, int(shape.get("width", 1)))})
        return Beginning(network=initial_network(config, plan.config.seed), inputs=plan.inputs, origin={})
    weights, start = read_safetensors(plan.start)
    _require_fit(plan, start)
    shape = dict(start.network)
    why_anew = _why_anew(start, plan)
    keeps_head = why_anew is None
    if not keeps_head:
        logger.warning("the head of %s is made anew, for %s", plan.start, why_anew)
        # A head of several layers belongs to what the model was trained for.
        head = {} if shape.get("head", "linear") != "mlp" else {"head": "linear", "head_width": 0}
        shape |= {**head, "outputs": _outputs(plan, features, int(shape["width"]))}
    config = _config(shape)
    if not keeps_head:
        fresh = initial_network(config, plan.config.seed).state_dict()
        weights = {key: value for key, value in weights.items() if not key.startswith(HEAD)}
        weights |= {key: value for key, value in fresh.items() if key.startswith(HEAD)}
    network = from_state_dict(config, weights, str(plan.start))
    digest = hashlib.sha256(plan.start.read_bytes()).hexdigest()
    origin = {"start": f"{start.name}, sha256 {digest[:12]}, its head {'kept' if keeps_head else 'made anew'}"}
    origin |= {f"start {key}": value for key, value in start.provenance.items()}
    return Beginning(network=network, inputs=start.inputs, origin=origin)


def initial_network(config: WaffleIronConfig, seed: int) -> WaffleIron:
    """Make a network of random weights; the same seed gives the same weights."""
    import torch

    from lidar_semseg_ros.network.waffleiron import WaffleIron

    torch.manual_seed(seed)
    return WaffleIron(config)


def _config(shape: dict[str, object]) -> WaffleIronConfig:
    from lidar_semseg_ros.network.waffleiron import WaffleIronConfig

    try:
        return WaffleIronConfig(**shape)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(
            f"'network' of the training configuration is incomplete or has unknown entries: {error}"
        ) from error


def _outputs(plan: Plan, features: int, width: int) -> int:
    return len(plan.classes) if plan.classes is not None else features or width


def _why_anew(start: ModelDescription, plan: Plan) -> str | None:
    """Say why the head of a model cannot go on; None if it can."""
    if plan.classes is None:
        return "no labels are learned"
    if start.classes is None:
        return "it knows no classes"
    if start.classes.names != plan.classes.names:
        return f"its classes are those of {start.classes.name}, but those of {plan.classes.name} are learned"
    return None


def _require_fit(plan: Plan, start: ModelDescription) -> None:
    if plan.inputs is not None and plan.inputs != start.inputs:
        raise UserError(f"{plan.start} takes other inputs than the training configuration says; leave 'inputs' out")
    for key, value in plan.network.items():
        if key in start.network and start.network[key] != value and key not in ("outputs", "head", "head_width"):
            raise UserError(
                f"{plan.start} has {key} {start.network[key]}, but 'network' of the training configuration says "
                f"{value}; leave 'network' out, or begin with another model"
            )
