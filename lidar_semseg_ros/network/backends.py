"""What runs the network: PyTorch on `.safetensors`, ONNX Runtime on `.onnx`. Each imports only its own library."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.network.inputs import NetworkInput
from lidar_semseg_ros.network.model_file import ModelDescription, description_in, read_safetensors, require_model_file

PRECISIONS = ("float32", "bfloat16", "float16")

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """A loaded model. device: what it runs on, in words."""

    description: ModelDescription
    device: str

    def logits(self, prepared: NetworkInput) -> np.ndarray:
        """Compute logits (N, outputs) float32 of N ≥ 1 kept points."""
        ...


class TorchBackend:
    """The network in PyTorch, on the CPU or a CUDA device."""

    def __init__(self, path: Path, *, device: str, precision: str, threads: int) -> None:
        import torch

        from lidar_semseg_ros.network.waffleiron import WaffleIronConfig, folded, from_state_dict, to_precision

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device is {device}, but PyTorch {torch.__version__} sees no CUDA GPU; set device to cpu")
        if device == "tensorrt":
            raise UserError(f"device is tensorrt, which takes an .onnx model; export one from {path.name}")
        if threads:
            torch.set_num_threads(threads)
        state, self.description = read_safetensors(path)
        model = from_state_dict(WaffleIronConfig(**self.description.network), state, str(path))
        self.device = device
        self._model = to_precision(folded(model), getattr(torch, precision)).to(device)

    def logits(self, prepared: NetworkInput) -> np.ndarray:
        """Compute logits (N, outputs) float32 of N ≥ 1 kept points."""
        import torch

        from lidar_semseg_ros.network.waffleiron import planes_of

        with torch.inference_mode():
            features, neighbours, *planes = (torch.from_numpy(array).to(self.device) for array in prepared.arrays())
            logits: np.ndarray = self._model(features, neighbours, planes_of(planes)).float().cpu().numpy()
        return logits


class OnnxBackend:
    """An exported network in ONNX Runtime, with its CPU, CUDA or TensorRT provider."""

    def __init__(self, path: Path, *, device: str, precision: str, threads: int) -> None:
        import onnxruntime

        require_model_file(path)
        if device == "auto":
            available = onnxruntime.get_available_providers()
            device = "cuda" if "CUDAExecutionProvider" in available else "cpu"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=_providers(device, precision, onnxruntime.get_available_providers(), path)
            )
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types for a file it cannot read
            raise UserError(f"ONNX Runtime cannot load {path}: {error}") from None
        used = self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        if used != device.split(":")[0]:
            logger.warning("asked for %s, but ONNX Runtime fell back to %s", device, used)
        self.device = used
        self.description = description_in(self._session.get_modelmeta().custom_metadata_map, path)

    def logits(self, prepared: NetworkInput) -> np.ndarray:
        """Compute logits (N, outputs) float32 of N ≥ 1 kept points."""
        names = [entry.name for entry in self._session.get_inputs()]
        logits: np.ndarray = self._session.run(["logits"], dict(zip(names, prepared.arrays())))[0]
        return logits


def _providers(device: str, precision: str, available: list[str], path: Path) -> list[Any]:
    kind, _, index = device.partition(":")
    on_gpu = {"device_id": int(index or 0)}
    trt = on_gpu | {
        "trt_fp16_enable": precision == "float16",
        "trt_bf16_enable": precision == "bfloat16",
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(path.parent / "tensorrt_cache"),
    }
    chains: dict[str, list[Any]] = {
        "cpu": ["CPUExecutionProvider"],
        "cuda": [("CUDAExecutionProvider", on_gpu), "CPUExecutionProvider"],
        "tensorrt": [("TensorrtExecutionProvider", trt), ("CUDAExecutionProvider", on_gpu), "CPUExecutionProvider"],
    }
    chain = chains[kind]
    first = chain[0] if isinstance(chain[0], str) else chain[0][0]
    if first not in available:
        raise UserError(f"device is {device}, but this ONNX Runtime only has {', '.join(available)}; set device to cpu")
    if precision != "float32" and kind != "tensorrt":
        raise UserError(f"precision {precision} with an .onnx model needs device tensorrt; {path.name} is float32")
    return chain


BACKENDS: dict[str, type[TorchBackend] | type[OnnxBackend]] = {".safetensors": TorchBackend, ".onnx": OnnxBackend}
