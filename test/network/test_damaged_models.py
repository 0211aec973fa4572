"""Model files that are damaged, changed, diverged or another's: each is refused by its name when it is loaded."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.network.checkpoints import export_onnx
from lidar_semseg_ros.network.inputs import InputConfig
from lidar_semseg_ros.network.model_file import (
    METADATA_KEY,
    ModelDescription,
    read_description,
    read_safetensors,
    write_safetensors,
)
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig

INPUTS = InputConfig(
    voxel_size_m=0.1, fov_min_m=(-8, -8, -2), fov_max_m=(8, 8, 2), planes=("z", "y"), grids=((32, 32), (32, 8))
)
NETWORK = WaffleIronConfig(inputs=5, width=8, depth=2, outputs=3)
CLASSES = ClassTable(name="three", names=("a", "b", "c"), colors=((0, 0, 0),) * 3)
DESCRIPTION = ModelDescription(
    name="small", network=NETWORK.to_mapping(), inputs=INPUTS, classes=CLASSES, provenance={"source": "random"}
)
KINDS = (".safetensors", ".onnx")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An undamaged model as both kinds of file."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = WaffleIron(NETWORK).eval()
    write_safetensors(folder / "m.safetensors", model.state_dict(), DESCRIPTION)
    export_onnx(model, DESCRIPTION, folder / "m.onnx")
    return {kind: (folder / f"m{kind}").read_bytes() for kind in KINDS}


def load(path: Path) -> Segmenter:
    return Segmenter(SegmenterConfig(model=str(path), device="cpu"), path.parent)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        load(path)
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_undamaged_model_is_loaded(tmp_path: Path, whole: dict[str, bytes], kind: str) -> None:
    path = tmp_path / f"m{kind}"
    path.write_bytes(whole[kind])
    assert load(path).classes == CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_cut_anywhere_is_named(tmp_path: Path, whole: dict[str, bytes], kind: str) -> None:
    path, data = tmp_path / f"m{kind}", whole[kind]
    lengths = {0, 1, 7, 8, 9, 100, len(data) - 1} | set(np.linspace(10, len(data) - 2, 40).astype(int).tolist())
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        assert path.name in refusal(path), length
        with pytest.raises(UserError, match=path.name):
            read_description(path)
            read_safetensors(path)  # the description alone may lie before the cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_random_damage_is_read_or_refused(tmp_path: Path, whole: dict[str, bytes], kind: str) -> None:
    path, rng = tmp_path / f"m{kind}", np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[kind])
        for place in rng.integers(0, rng.choice([200, 3000, len(data)]), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            load(path)
        except UserError as error:
            assert path.name in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_another_hash_than_listed_is_refused(tmp_path: Path, whole: dict[str, bytes], kind: str) -> None:
    path = tmp_path / f"m{kind}"
    path.write_bytes(whole[kind])
    listed = hashlib.sha256(whole[kind]).hexdigest()
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  other{kind}\nno sum at all\n\n{listed} *{path.name}\n")
    load(path)
    sums.write_text(f"{'0' * 64}  {path.name}\n")
    assert "sha256" in refusal(path) and "SHA256SUMS" in refusal(path)
    with pytest.raises(UserError, match="sha256"):
        read_description(path)


def test_a_checksum_file_that_is_no_text_does_not_hide_the_model(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole[".safetensors"])
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\xfe\x00 \x80\n")
    load(path)


def write_header(path: Path, whole: bytes, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a safetensors file with its header changed and its tensors as they were."""
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a tensor of 2⁶⁰ numbers": lambda header: first_tensor(header).update(shape=[2**60]),
    "a tensor of negative size": lambda header: first_tensor(header).update(shape=[-1]),
    "a tensor of another size": lambda header: first_tensor(header).update(shape=[1]),
    "a tensor beyond the file": lambda header: first_tensor(header).update(data_offsets=[0, 2**62]),
    "a tensor that ends before it begins": lambda header: first_tensor(header).update(data_offsets=[8, 0]),
    "an unknown number format": lambda header: first_tensor(header).update(dtype="F12"),
    "a number format that PyTorch has no name for": lambda header: first_tensor(header).update(dtype="F4"),
    "metadata that are a number": lambda header: header.update(__metadata__=5),
    "metadata that are a list": lambda header: header.update(__metadata__=[METADATA_KEY]),
    "a description that is a number": lambda header: header["__metadata__"].update({METADATA_KEY: 5}),
    "no metadata": lambda header: header.pop("__metadata__") and None,
    "a header that is a list": lambda header: [1, 2],
    "a header that is a text": lambda header: "header",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(tmp_path: Path, whole: dict[str, bytes], name: str) -> None:
    path = tmp_path / "m.safetensors"
    write_header(path, whole[".safetensors"], HEADERS[name])
    assert path.name in refusal(path)


def test_weights_in_a_number_format_that_cannot_be_checked_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"a": torch.zeros(4, dtype=torch.float8_e4m3fn)}, DESCRIPTION)
    assert path.name in refusal(path)


@pytest.mark.parametrize("length", [0, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, whole: dict[str, bytes], length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + whole[".safetensors"][8:])
    assert f"header of {length} bytes" in refusal(path)


def test_a_header_nested_without_end_is_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "m.safetensors", b"[" * 200_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert path.name in refusal(path)


DESCRIPTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "is no mapping": (lambda values: [1], "description is damaged"),
    "is of another format": (lambda values: values.update(format=99), "format 99"),
    "lacks its inputs": (lambda values: values.pop("inputs") and None, "inputs"),
    "has inputs that are a list": (lambda values: values.update(inputs=["voxel_size_m"]), "description is damaged"),
    "has an infinite grid": (lambda values: values["inputs"].update(grids=[[1e999, 1], [1, 1]]), "damaged"),
    "has another number of classes": (
        lambda values: values["classes"]["classes"].pop() and None,
        "3 outputs.*2 classes",
    ),
    "has classes that are numbers": (lambda values: values.update(classes=[1, 2, 3]), "damaged|classes"),
    "has no classes": (lambda values: values.update(classes=None), "features, not classes"),
    "has a network that is a list": (lambda values: values.update(network=[3]), "damaged"),
    "has fewer features than its network takes": (
        lambda values: values["inputs"]["features"].pop() and None,
        "inputs for each point",
    ),
    "has a wider network": (lambda values: values["network"].update(width=16), "instead of"),
    "has a deeper network": (lambda values: values["network"].update(depth=3), "missing"),
    "has an unknown network setting": (lambda values: values["network"].update(dropout=0.1), "dropout"),
    "lacks a network setting": (lambda values: values["network"].pop("depth") and None, "depth"),
    "has a network setting of the wrong type": (lambda values: values["network"].update(width="8"), "damaged"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_model_whose_description_is_wrong_is_refused(tmp_path: Path, whole: dict[str, bytes], name: str) -> None:
    change, words = DESCRIPTIONS[name]
    values = json.loads(DESCRIPTION.to_json())
    changed = change(values)
    text = json.dumps(values if changed is None else changed)
    path = tmp_path / "m.safetensors"
    write_header(path, whole[".safetensors"], lambda header: header["__metadata__"].update({METADATA_KEY: text}))
    with pytest.raises(
        UserError, match=rf"(?s)m\.safetensors.*({words})|({words}).*m\.safetensors|small has .*{words}"
    ):
        load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_safetensors_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    path = tmp_path / "m.safetensors"
    for key in WaffleIron(NETWORK).state_dict():
        state = WaffleIron(NETWORK).state_dict()
        if not state[key].is_floating_point():
            continue
        state[key].view(-1)[-1] = value
        write_safetensors(path, state, DESCRIPTION)
        assert f"NaN or infinite, in 1 tensors such as {key}" in refusal(path)


def changed_graph(whole: dict[str, bytes], path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load_from_string(whole[".onnx"])
    change(model)
    onnx.save(model, path)
    return path


def test_a_graph_with_a_weight_that_is_nan_is_refused(tmp_path: Path, whole: dict[str, bytes]) -> None:
    model = onnx.load_from_string(whole[".onnx"])
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert len(weights) > 10
    for tensor in weights:
        undamaged = onnx.numpy_helper.to_array(tensor)
        damaged = undamaged.copy()
        damaged.reshape(-1)[-1] = np.nan
        tensor.CopyFrom(onnx.numpy_helper.from_array(damaged, tensor.name))
        onnx.save(model, tmp_path / "m.onnx")
        assert "NaN or infinite" in refusal(tmp_path / "m.onnx"), tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(undamaged, tensor.name))


def without_description(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def test_a_graph_without_description_is_refused(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = changed_graph(whole, tmp_path / "m.onnx", without_description)
    assert "does not describe itself" in refusal(path)
    with pytest.raises(UserError, match="does not describe itself"):
        read_description(path)


def described_graph(path: Path, inputs: list[Any], nodes: list[Any], outputs: list[Any]) -> Path:
    """Write some graph with our description."""
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    onnx.helper.set_model_props(model, {METADATA_KEY: DESCRIPTION.to_json()})
    model.ir_version = 8
    onnx.save(model, path)
    return path


def test_a_graph_of_other_inputs_is_refused(tmp_path: Path) -> None:
    picture = onnx.helper.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    result = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    copy = onnx.helper.make_node("Identity", ["picture"], ["logits"])
    path = described_graph(tmp_path / "m.onnx", [picture], [copy], [result])
    assert "does not take the inputs" in refusal(path)


def our_inputs(whole: dict[str, bytes]) -> list[Any]:
    return list(onnx.load_from_string(whole[".onnx"]).graph.input)


def test_a_graph_without_logits_is_refused(tmp_path: Path, whole: dict[str, bytes]) -> None:
    other = onnx.helper.make_tensor_value_info("boxes", onnx.TensorProto.FLOAT, None)
    copy = onnx.helper.make_node("Identity", ["features"], ["boxes"])
    assert "m.onnx" in refusal(described_graph(tmp_path / "m.onnx", our_inputs(whole), [copy], [other]))


def test_a_graph_with_another_number_of_logits_is_refused(tmp_path: Path, whole: dict[str, bytes]) -> None:
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)
    copy = onnx.helper.make_node("Identity", ["features"], ["logits"])
    said = refusal(described_graph(tmp_path / "m.onnx", our_inputs(whole), [copy], [logits]))
    assert "shape (" in said and ", 5)" in said and "3 outputs" in said


def test_a_graph_of_other_planes_is_refused(tmp_path: Path, whole: dict[str, bytes]) -> None:
    other = {**json.loads(DESCRIPTION.to_json())}
    other["inputs"] |= {"planes": ["z"], "grids": [[32, 32]]}

    def describe(model: onnx.ModelProto) -> None:
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(other)})

    assert "does not take the inputs" in refusal(changed_graph(whole, tmp_path / "m.onnx", describe))


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04" + bytes(50), b"{}", b"\x08\x0a"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, kind: str, data: bytes) -> None:
    path = tmp_path / f"m{kind}"
    path.write_bytes(data)
    assert path.name in refusal(path)
    with pytest.raises(UserError, match=path.name):
        read_description(path)
