"""Importing, exporting, describing and running model files."""

from __future__ import annotations

import functools
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lidar_semseg_ros.core.classes import ClassTable
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import LidarFrame
from lidar_semseg_ros.network.backends import _providers
from lidar_semseg_ros.network.checkpoints import LAYOUTS, export_onnx, read_checkpoint
from lidar_semseg_ros.network.inputs import InputConfig, prepare
from lidar_semseg_ros.network.model_file import (
    ModelDescription,
    read_description,
    read_safetensors,
    write_safetensors,
)
from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig
from lidar_semseg_ros.network.waffleiron import WaffleIron, WaffleIronConfig

INPUTS = InputConfig(
    voxel_size_m=0.1,
    fov_min_m=(-8, -8, -2),
    fov_max_m=(8, 8, 2),
    planes=("z", "y", "x"),
    grids=((32, 32), (32, 8), (32, 8)),
)
NETWORK = WaffleIronConfig(inputs=5, width=16, depth=4, outputs=5)
CLASSES = ClassTable(name="five", names=tuple("abcde"), colors=((0, 0, 0),) * 5)
VARIANTS = {
    "batch": NETWORK,
    "layer": replace(NETWORK, norm="layer", head="norm_linear"),
    "gelu": replace(NETWORK, norm="layer", activation="gelu"),
}


def random_network(config: WaffleIronConfig = NETWORK) -> WaffleIron:
    torch.manual_seed(0)
    return WaffleIron(config).eval()


def described(config: WaffleIronConfig = NETWORK, **more: object) -> ModelDescription:
    values = {"name": "small", "network": config.to_mapping(), "inputs": INPUTS, "classes": CLASSES}
    return ModelDescription(**{**values, "provenance": {"source": "random"}, **more})


def cloud(points: int = 3000, seed: int = 0) -> LidarFrame:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-7, -7, -1.5), (7, 5, 1.5), (points, 3)).astype(np.float32)
    return LidarFrame(stamp_ns=0, frame_id="", xyz=xyz, intensity=rng.uniform(0, 1, points).astype(np.float32))


def saved(path: Path, config: WaffleIronConfig = NETWORK) -> Path:
    write_safetensors(path, random_network(config).state_dict(), described(config))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The ONNX form of each variant, made when it is first asked for: an export takes seconds."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def made(variant: str) -> Path:
        path, config = folder / f"{variant}.onnx", VARIANTS[variant]
        export_onnx(random_network(config), described(config), path)
        return path

    return made


def backend_logits(path: Path, frame: LidarFrame) -> np.ndarray:
    segmenter = Segmenter(SegmenterConfig(model=str(path), device="cpu"), path.parent)
    return segmenter.backend.logits(prepare(frame, INPUTS))


def test_a_model_file_gives_back_its_weights_and_description(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors")
    state, description = read_safetensors(path)
    assert description == described() == read_description(path)
    original = random_network().state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in state)


def test_an_infinite_label_distance_survives_the_file_and_a_finite_one_too() -> None:
    for distance_m in (float("inf"), 2.5):
        description = described(inputs=replace(INPUTS, max_label_distance_m=distance_m))
        text = description.to_json()
        assert "Infinity" not in text
        assert ModelDescription.from_json(text, "").inputs.max_label_distance_m == distance_m


def test_a_class_table_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"5 outputs.*1 class"):
        described(classes=ClassTable(name="one", names=("a",), colors=((0, 0, 0),)))


@pytest.mark.parametrize("damage", ["cut header", "cut weights", "not ours", "not safetensors", "empty"])
def test_a_damaged_model_file_is_named(tmp_path: Path, damage: str) -> None:
    path = saved(tmp_path / "m.safetensors")
    data = path.read_bytes()
    if damage == "not ours":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    else:
        cut = {"cut header": data[:100], "cut weights": data[:-50], "not safetensors": b"PK" * 100, "empty": b""}
        path.write_bytes(cut[damage])
    with pytest.raises(UserError, match=r"m\.safetensors"):
        read_safetensors(path)


def test_a_changed_model_file_does_not_pass_its_checksum(tmp_path: Path) -> None:
    import hashlib

    path = saved(tmp_path / "m.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  m.safetensors\n")
    read_safetensors(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="sha256"):
        read_safetensors(path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx_and_torch_give_the_same_logits_for_any_number_of_points(
    tmp_path: Path, exported: Callable[[str], Path], variant: str
) -> None:
    config = VARIANTS[variant]
    path, onnx_path = saved(tmp_path / "m.safetensors", config), exported(variant)
    assert read_description(onnx_path) == described(config)
    for points in (40, 3000, 9000):
        frame = cloud(points, seed=points)
        by_torch, by_onnx = backend_logits(path, frame), backend_logits(onnx_path, frame)
        assert np.abs(by_torch - by_onnx).max() <= 1e-3
        assert np.mean(by_torch.argmax(axis=1) == by_onnx.argmax(axis=1)) >= 0.999


def test_onnx_runtime_gives_the_same_logits_every_time(exported: Callable[[str], Path]) -> None:
    # Its parallel scatter-add does not (see WaffleIron's sum per cell), so the graph must not hold one.
    import onnx

    for node in onnx.load(exported("batch")).graph.node:
        assert all(attribute.s != b"add" for attribute in node.attribute if attribute.name == "reduction")
    first, second = (backend_logits(exported("batch"), cloud(20000)) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_exported_graph_says_nothing_of_the_machine_that_made_it(exported: Callable[[str], Path]) -> None:
    content = exported("batch").read_bytes()
    assert b".py" not in content and str(Path(__file__).parents[2]).encode() not in content


def test_an_onnx_robot_never_loads_torch(exported: Callable[[str], Path]) -> None:
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from lidar_semseg_ros.core.frame import LidarFrame\n"
        "from lidar_semseg_ros.network.segmenter import Segmenter, SegmenterConfig\n"
        f"segmenter = Segmenter(SegmenterConfig(model={str(exported('batch'))!r}, device='cpu'), Path('.'))\n"
        "xyz = np.random.default_rng(0).uniform(-1, 1, (500, 3)).astype(np.float32)\n"
        "labels = segmenter.segment(LidarFrame(stamp_ns=0, frame_id='', xyz=xyz)).labels\n"
        "assert len(labels) == 500 and labels.class_id.max() < 5\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_a_segmenter_labels_every_row_in_order(tmp_path: Path) -> None:
    frame = cloud()
    frame.xyz[10:20] = np.nan
    segmenter = Segmenter(SegmenterConfig(model=str(saved(tmp_path / "m.safetensors")), device="cpu"), tmp_path)
    labels = segmenter.segment(frame).labels
    assert (labels.class_id[10:20] == 255).all() and len(labels) == len(frame)
    unsure = float(np.median(labels.probability))
    gated = Segmenter(
        SegmenterConfig(model=str(tmp_path / "m.safetensors"), device="cpu", min_score=unsure), tmp_path
    ).segment(frame)
    assert np.array_equal(gated.labels.class_id == 255, labels.probability < np.float32(unsure))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "nowhere.onnx"}, "no model file"),
        ({"model": "huge"}, "shipped are m"),
        ({"device": "gpu"}, "cuda:N"),
        ({"device": "tensorrt"}, "onnx"),
    ],
)
def test_a_wrong_model_or_device_says_what_to_do(tmp_path: Path, settings: dict, said: str) -> None:
    path = saved(tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=said):
        Segmenter(SegmenterConfig(**{"model": str(path), **settings}), tmp_path)


@pytest.mark.parametrize("device", ["cpu", "cuda", "tensorrt"])
def test_onnx_models_are_not_computed_in_bytes(device: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"int8, which takes a \.safetensors model and a CPU, but the model is m\.onnx"):
        _providers(device, "int8", [], tmp_path / "m.onnx")


def test_engines_of_tensorrt_are_kept_apart_by_the_bytes_of_the_model(tmp_path: Path) -> None:
    path, folders = tmp_path / "m.onnx", set()
    for data in (b"one", b"two", b"one"):
        path.write_bytes(data)
        (_, options), *_ = _providers("tensorrt", "float32", ["TensorrtExecutionProvider"], path)
        folders.add(options["trt_engine_cache_path"])
    assert len(folders) == 2 and all(Path(folder).parent == tmp_path / "tensorrt_cache" for folder in folders)


def test_the_version_is_that_of_the_weights_that_were_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors")
    segmenter = Segmenter(SegmenterConfig(model=str(path), device="cpu"), tmp_path)
    before = segmenter.class_map()
    path.write_bytes(b"a training has replaced it")
    assert segmenter.class_map() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set device to cpu"):
        Segmenter(SegmenterConfig(model=str(saved(tmp_path / "m.safetensors")), device="cuda"), tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_cuda_labels_are_those_of_the_cpu(tmp_path: Path, precision: str) -> None:
    path = saved(tmp_path / "m.safetensors")
    on_cpu, on_gpu = (
        Segmenter(SegmenterConfig(model=str(path), device=device, precision=precision), tmp_path)
        .segment(cloud())
        .labels
        for device in ("cpu", "cuda")
    )
    assert np.mean(on_cpu.class_id == on_gpu.class_id) > 0.99


class Malicious:
    """Unpickling it would leave a file behind."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_is_refused_without_being_run(tmp_path: Path, zipped: bool) -> None:
    witness, path = tmp_path / "witness", tmp_path / "ckpt_last.pth"
    content = {"net": random_network().state_dict(), "best_miou": Malicious(witness)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="more than weights"):
        read_checkpoint(path, LAYOUTS["waffleiron"])
    assert not witness.exists()
    pickle.loads(pickle.dumps(Malicious(witness)))
    assert witness.exists()  # the trap works where it is sprung


def test_published_forms_of_checkpoints_are_read(tmp_path: Path) -> None:
    state = random_network().state_dict()
    path = tmp_path / "ckpt_last.pth"
    content = {
        "epoch": 45,
        "net": {f"module.{key}": value for key, value in state.items()},
        "best_miou": np.float64(0.68),
        "scheduler": {"last_lr": [np.float32(1e-5)], "steps": np.int64(3)},
    }
    torch.save(content, path)
    assert read_checkpoint(path, LAYOUTS["waffleiron"]).keys() == state.keys()


@pytest.mark.parametrize(
    ("content", "layout", "said"),
    [
        ({"state_dict": {}}, "waffleiron", "state_dict.*net"),
        ([1, 2], "waffleiron", "list"),
        ({"net": WaffleIron(NETWORK).state_dict()}, "scalr", "batch norms.*layout"),
    ],
)
def test_a_checkpoint_of_another_layout_says_what_it_holds(
    tmp_path: Path, content: object, layout: str, said: str
) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match=said):
        read_checkpoint(tmp_path / "c.pth", LAYOUTS[layout])


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"net": random_network().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"c\.pth was not loaded"):
        read_checkpoint(path, LAYOUTS["waffleiron"])


def test_the_description_is_plain_json(tmp_path: Path) -> None:
    assert json.loads(described().to_json())["classes"]["classes"][4] == {"id": 4, "name": "e", "color": [0, 0, 0]}
