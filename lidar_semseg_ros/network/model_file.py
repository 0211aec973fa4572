"""Model files that describe themselves: weights, network, inputs, classes and origin travel together.

A `.safetensors` file holds the weights of network/waffleiron.py and a JSON description in its header; an `.onnx` file
holds the folded graph and the same description in its metadata. Neither can run code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.network.inputs import InputConfig

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "lidar_semseg_ros"
FORMAT = 1
CHECKSUMS = "SHA256SUMS"
"""A file of this name beside a model, as `sha256sum` writes it, is checked before the model is read."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Everything but the weights.

    network: the fields of WaffleIronConfig. classes: None for a network that predicts features.
    provenance: where the weights come from, free text by key (source, licence, command, data …).
    """

    name: str
    network: Mapping[str, Any]
    inputs: InputConfig
    classes: ClassTable | None
    provenance: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.classes is not None and len(self.classes) != self.network["outputs"]:
            raise UserError(
                f"{self.name} has {self.network['outputs']} outputs, but class table {self.classes.name} has "
                f"{len(self.classes)} classes; choose the table the weights were trained with"
            )
        if len(self.inputs.features) != self.network["inputs"]:
            raise UserError(
                f"{self.name} has {self.network['inputs']} inputs for each point, but its input settings name "
                f"{len(self.inputs.features)} ({', '.join(self.inputs.features)}); name those it was trained with"
            )

    def to_json(self) -> str:
        """Give the text that travels in model files."""
        return json.dumps(
            {
                "format": FORMAT,
                "name": self.name,
                "network": dict(self.network),
                "inputs": self.inputs.to_mapping(),
                "classes": self.classes.to_mapping() if self.classes else None,
                "provenance": dict(self.provenance),
            }
        )

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelDescription:
        """Read `to_json` back; UserError names `source`."""
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise UserError(f"{source} has model format {values['format']}; this version reads format {FORMAT}")
            return cls(
                name=values["name"],
                network=values["network"],
                inputs=InputConfig.from_mapping(values["inputs"], source),
                classes=ClassTable.from_mapping(values["classes"], source) if values["classes"] else None,
                provenance=values["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{source}: its model description is damaged ({error!r})") from None


def require_model_file(path: Path) -> None:
    """Raise UserError unless the file exists and agrees with the checksum file beside it, if there is one."""
    if not path.is_file():
        raise UserError(f"there is no model file {path}")
    checksums = path.with_name(CHECKSUMS)
    if not checksums.is_file():
        return
    listed = {name.strip().lstrip("*"): digest for digest, name in _lines_of_two(checksums.read_text(errors="replace"))}
    if path.name in listed and hashlib.sha256(path.read_bytes()).hexdigest() != listed[path.name]:
        raise UserError(f"{path} is damaged or was changed: its sha256 is not the one in {checksums}")


def _lines_of_two(text: str) -> list[tuple[str, str]]:
    return [(parts[0], parts[1]) for line in text.splitlines() if len(parts := line.split(maxsplit=1)) == 2]


def write_safetensors(path: Path, state: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Write weights and description as one `.safetensors` file; UserError if it cannot be written."""
    import safetensors
    from safetensors.torch import save_file

    contiguous = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    try:
        save_file(contiguous, path, metadata={METADATA_KEY: description.to_json()})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}; make room there, or give another place") from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelDescription]:
    """Read weights and description of a `.safetensors` file.

    UserError if it is damaged, not one of ours, or has weights that are not finite.
    """
    import safetensors
    from safetensors.torch import load_file

    require_model_file(path)
    description = _description_in_safetensors(path)
    try:
        state = load_file(path)
        faulty = [key for key, weights in state.items() if not weights.isfinite().all()]
    except (safetensors.SafetensorError, KeyError, NotImplementedError) as error:  # also number formats of 8 and 4 bits
        raise UserError(f"{path} is damaged or no safetensors file of weights ({error})") from None
    if faulty:
        raise UserError(
            f"{path} has weights that are NaN or infinite, in {len(faulty)} tensors such as {faulty[0]}; its training "
            f"diverged or it is damaged, so take another"
        )
    return state, description


def read_description(path: Path) -> ModelDescription:
    """Read only the description of a model file of either kind; UserError if it is damaged or not one of ours."""
    require_model_file(path)
    if path.suffix == ".safetensors":
        return _description_in_safetensors(path)
    if path.suffix == ".onnx":
        import onnx

        try:
            properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        except Exception as error:  # protobuf and what onnx makes of it fail in several unrelated types
            raise UserError(f"{path} is damaged or no ONNX file ({error})") from None
        return description_in(properties, path)
    raise UserError(f"{path} is no model file; models end in .safetensors or .onnx")


def description_in(metadata: Mapping[str, str], path: Path) -> ModelDescription:
    """Find the description among a file's metadata; UserError if there is none."""
    if METADATA_KEY not in metadata:
        raise UserError(f"{path} does not describe itself; make it with `lidar-semseg import` or `lidar-semseg export`")
    return ModelDescription.from_json(metadata[METADATA_KEY], str(path))


def _description_in_safetensors(path: Path) -> ModelDescription:
    """Read the JSON header: its length as a little-endian uint64, then the text."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= path.stat().st_size - 8:
            raise UserError(f"{path} is damaged or no safetensors file (header of {length} bytes)")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged or no safetensors file ({error})") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return description_in(metadata if isinstance(metadata, dict) else {}, path)
