"""The one exception that is written for the person who runs the program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

EXTRAS = {
    "torch": "torch",
    "safetensors": "torch",
    "onnxruntime": "onnx",
    "onnx": "onnx",
    "onnxscript": "export",
    "embreex": "sim",
    "transformers": "teacher",
    "skimage": "teacher",
    "sklearn": "teacher",
    "ray": "ray",
}
"""Optional packages and the extra of this package that brings them."""


class UserError(Exception):
    """Something the user can mend; the message says what was wrong, what was seen and what to do."""


def as_ros_defines(kind: str, error: type[UserError] = UserError) -> Callable[[F], F]:
    """Decorate a reader of messages: a recording may define a type of ROS in its own way, without what is needed."""

    def decorate(reader: F) -> F:
        @functools.wraps(reader)
        def read(*arguments: Any, **more: Any) -> Any:
            try:
                return reader(*arguments, **more)
            except AttributeError as missing:
                raise error(f"this is no {kind} as ROS defines it: {missing}") from missing

        return cast(F, read)

    return decorate


def missing_package(error: ModuleNotFoundError) -> UserError:
    """Say which extra brings the package that could not be imported."""
    name = (error.name or "").partition(".")[0]
    remedy = f"pip install 'lidar_semseg_ros[{EXTRAS[name]}]'" if name in EXTRAS else f"install {name}"
    return UserError(f"this needs the Python package {name}, which is not installed; {remedy}")
