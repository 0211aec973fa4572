"""The one exception that is written for the person who runs the program."""

from __future__ import annotations

EXTRAS = {
    "torch": "torch",
    "safetensors": "torch",
    "onnxruntime": "onnx",
    "onnx": "onnx",
    "onnxscript": "export",
    "embreex": "sim",
}
"""Optional packages and the extra of this package that brings them."""


class UserError(Exception):
    """Something the user can mend; the message says what was wrong, what was seen and what to do."""


def missing_package(error: ModuleNotFoundError) -> UserError:
    """Say which extra brings the package that could not be imported."""
    name = (error.name or "").partition(".")[0]
    remedy = f"pip install 'lidar_semseg_ros[{EXTRAS[name]}]'" if name in EXTRAS else f"install {name}"
    return UserError(f"this needs the Python package {name}, which is not installed; {remedy}")
