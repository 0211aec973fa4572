"""A config dataclass as the parameters of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.options import Setting, from_mapping, settings_of, to_mapping

C = TypeVar("C")

OWNED_BY_ROS = ("use_sim_time", "start_type_description_service", "qos_overrides.")
"""Parameters (or beginnings of their names) that rclpy declares by itself."""


def declared(node: Node, config_class: type[C], *, followed: bool = False) -> C:
    """Declare every setting as a parameter and return the config of what the user set.

    followed: the live ones may be changed, and `follow` acts on it; else all are read-only. UserError for a parameter
    the node does not have and for a value of the wrong type or range.
    """
    # The overrides have no public accessor; without them a misspelt parameter would be silently ignored.
    overrides: dict[str, Any] = {
        name: parameter.value
        for name, parameter in node._parameter_overrides.items()
        if not name.startswith(OWNED_BY_ROS)
    }
    config = from_mapping(config_class, overrides)
    values = to_mapping(config)
    for entry in settings_of(config_class):
        descriptor = _descriptor(entry, read_only=not (followed and entry.live))
        node.declare_parameter(entry.name, values[entry.name], descriptor, ignore_override=True)
    return config


def follow(node: Node, config: C, apply: Callable[[C], None]) -> None:
    """Call `apply` with a new config whenever live parameters are set; what it or the config refuses stays unset."""
    values = to_mapping(config)

    def changed(parameters: list[Parameter]) -> SetParametersResult:
        new = {parameter.name: parameter.value for parameter in parameters if parameter.name in values}
        if not new:
            return SetParametersResult(successful=True)
        try:
            apply(from_mapping(type(config), values | new))
        except UserError as error:
            return SetParametersResult(successful=False, reason=str(error))
        values.update(new)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(changed)


def _descriptor(entry: Setting, read_only: bool) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=entry.text, read_only=read_only)
    if entry.choices:
        descriptor.additional_constraints = f"one of {', '.join(entry.choices)}"
    if entry.minimum is not None and entry.kind is int:
        top = 2**31 - 1 if entry.maximum is None else int(entry.maximum)
        descriptor.integer_range = [IntegerRange(from_value=int(entry.minimum), to_value=top)]
    if entry.minimum is not None and entry.kind is float:
        top_value = float("inf") if entry.maximum is None else float(entry.maximum)
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(entry.minimum), to_value=top_value)]
    return descriptor
