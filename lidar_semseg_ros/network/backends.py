"""What runs the network: PyTorch on `.safetensors`, ONNX Runtime on `.onnx`. Each imports only its own library."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.network.batching import Batching
from lidar_semseg_ros.network.inputs import NetworkInput, example_input, prepare
from lidar_semseg_ros.network.model_file import ModelDescription, description_in, read_safetensors, require_model_file
from lidar_semseg_ros.network.parts import available_cores

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from lidar_semseg_ros.network.device_segmenter import DeviceSegmenter
    from lidar_semseg_ros.network.inference import Runner
    from lidar_semseg_ros.network.waffleiron import WaffleIron

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "auto")
CPU = ["CPUExecutionProvider"]

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """A loaded model, for any number of threads. device: in words. precision: what it computes in, never auto.

    engine: what computes there, in words, and what keeps a faster one from it. on_device: all steps of a sweep on that
    device, None where the host does the others.
    """

    description: ModelDescription
    device: str
    precision: str
    on_device: DeviceSegmenter | None

    @property
    def engine(self) -> str: ...

    def logits(self, prepared: NetworkInput) -> np.ndarray:
        """Compute logits (N, outputs) float32 of N ≥ 1 kept points."""
        ...


class TorchBackend:
    """The network in PyTorch, on the CPU or a CUDA device."""

    def __init__(self, path: Path, *, device: str, precision: str, threads: int) -> None:
        import torch

        from lidar_semseg_ros.network.waffleiron import WaffleIronConfig, from_state_dict

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device is {device}, but PyTorch {torch.__version__} sees no CUDA GPU; set device to cpu")
        if device == "tensorrt":
            raise UserError(f"device is tensorrt, which takes an .onnx model; export one from {path.name}")
        state, self.description = read_safetensors(path)
        try:
            config = WaffleIronConfig(**self.description.network)
        except TypeError as error:
            raise UserError(f"{path}: its description of the network is damaged ({error})") from None
        model = from_state_dict(config, state, str(path))
        self.device = device
        if precision == "auto":
            self.precision, self._runner = self._chosen(model, threads)
        else:
            self.precision, self._runner = precision, _runner(model, device, precision, threads)
        self._logits = Batching(self._runner.logits_of, self._runner.most_clouds)
        self.on_device = _device_segmenter(self._runner, self.description, device)

    @property
    def engine(self) -> str:
        """Tell what computes, and what keeps a faster one from it."""
        if self.on_device is not None:
            fault = self.on_device.replays.fault
            return f"Triton kernels, without CUDA graphs: {fault}" if fault else "CUDA graphs"
        if self.device == "cpu":
            return "CPU, in place"
        fault = getattr(self._runner, "fault", "")
        return f"PyTorch modules: {fault}" if fault else "Triton kernels, sweeps prepared by the host"

    def _chosen(self, model: WaffleIron, threads: int) -> tuple[str, Runner]:
        """Take the precision that is faster and labels a trial sweep as float32 does; the same answer every time."""
        from lidar_semseg_ros.network.trial import LEAST_AGREEMENT, faster_precisions, trial_sweep

        faster = faster_precisions(self.device, model.config)
        if not faster:
            return "float32", _runner(model, self.device, "float32", threads)
        inputs = self.description.inputs
        # A field of view may lie beside the sensor, where the trial sweep has no points.
        trial = prepare(trial_sweep(inputs), inputs)
        trial = trial if len(trial) else example_input(inputs)
        exact = _runner(model, self.device, "float32", threads, stepwise=True).logits(trial).argmax(1)
        for precision in faster:
            runner = _runner(model, self.device, precision, threads)
            logits = runner.logits(trial)
            agreement = (exact == logits.argmax(1)).float().mean().item() if logits.isfinite().all() else 0.0
            if agreement >= LEAST_AGREEMENT:
                kept = 100 * agreement
                logger.info("precision auto: %s, which keeps %.2f %% of a trial sweep's labels", precision, kept)
                return precision, runner
            changed = 100 * (1 - agreement)
            logger.warning("precision auto: %s changes %.1f %% of a trial sweep's labels", precision, changed)
        logger.warning("precision auto: float32, for no faster one keeps %.0f %% of them", 100 * LEAST_AGREEMENT)
        return "float32", _runner(model, self.device, "float32", threads)

    def logits(self, prepared: NetworkInput) -> np.ndarray:
        """Compute logits (N, outputs) float32 of N ≥ 1 kept points."""
        logits: np.ndarray = self._logits(prepared).numpy()
        return logits


def _runner(model: WaffleIron, device: str, precision: str, threads: int, *, stepwise: bool = False) -> Runner:
    """Make a network ready; stepwise: see CpuWaffleIron."""
    import torch

    from lidar_semseg_ros.network.inference import CpuWaffleIron

    dtype = getattr(torch, precision)
    if precision == "int8":
        from lidar_semseg_ros.network.tiled_network import fit

        if device != "cpu" or not fit(model.config, dtype):
            raise UserError(
                "precision is int8, but that is for CPUs with VNNI and without AMX, and for networks with ReLU, a head "
                f"of one product and width 64, 128, …; device is {device}, the network has {model.config.activation}, "
                f"head {model.config.head} and width {model.config.width}; set precision to auto"
            )
    if device == "cpu":
        return CpuWaffleIron(
            model, dtype, min(threads or torch.get_num_threads(), available_cores()), stepwise=stepwise
        )
    from lidar_semseg_ros.network.fused_network import CudaWaffleIron

    return CudaWaffleIron(model, dtype, device)


def _device_segmenter(runner: Runner, description: ModelDescription, device: str) -> DeviceSegmenter | None:
    """Bring all steps to the device, if it is a GPU whose kernels run, and the model one that labels."""
    if device == "cpu" or description.classes is None:
        return None
    from lidar_semseg_ros.network.fused_network import CudaWaffleIron

    if not isinstance(runner, CudaWaffleIron):
        return None
    if runner.fused is None:
        logger.warning("the network runs step by step, several times slower than it could: %s", runner.fault)
        return None
    from lidar_semseg_ros.network.device_segmenter import device_segmenter

    return device_segmenter(runner, runner.fused, description.inputs, description.classes.palette(), device)


class OnnxBackend:
    """An exported network in ONNX Runtime, with its CPU, CUDA or TensorRT provider."""

    on_device: DeviceSegmenter | None = None

    def __init__(self, path: Path, *, device: str, precision: str, threads: int) -> None:
        import onnxruntime

        require_model_file(path)
        self.precision = precision = "float32" if precision == "auto" else precision
        available = onnxruntime.get_available_providers()
        if device == "auto":
            device = "cuda" if "CUDAExecutionProvider" in available else "cpu"
        self._session = _session(path, threads, _providers(device, precision, available, path))
        used = self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        if used != device.split(":")[0]:
            logger.warning("asked for %s, but ONNX Runtime fell back to %s", device, used)
        self.device, self.engine = used, f"ONNX Runtime, {used}"
        self.description = description_in(self._session.get_modelmeta().custom_metadata_map, path)
        # On the CPU, for TensorRT would build an engine for the shapes of the example.
        _check(self._session if used == "cpu" else _session(path, threads, CPU), self.description, path)
        # One at a time, for each call takes all cores; its graph takes one cloud.
        self._turns = Batching(self._logits_of, most=1)

    def logits(self, prepared: NetworkInput) -> np.ndarray:
        """Compute logits (N, outputs) float32 of N ≥ 1 kept points."""
        return self._turns(prepared)

    def _logits_of(self, prepared: Sequence[NetworkInput]) -> list[np.ndarray]:
        return [_logits(self._session, one) for one in prepared]


def _session(path: Path, threads: int, providers: list[Any]) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types for a file it cannot read
        raise UserError(f"ONNX Runtime cannot load {path}: {error}") from None


def _logits(session: InferenceSession, prepared: NetworkInput) -> np.ndarray:
    names = [entry.name for entry in session.get_inputs()]
    logits: np.ndarray = session.run(["logits"], dict(zip(names, prepared.arrays(), strict=True)))[0]
    return logits


def _check(session: InferenceSession, description: ModelDescription, path: Path) -> None:
    """Raise UserError unless a graph makes finite logits, as many as its description says, of what `prepare` makes."""
    example = example_input(description.inputs)
    try:
        logits = _logits(session, example)
    except Exception as error:  # see _session
        raise UserError(
            f"{path} does not take the inputs that its description names ({error}); export it again"
        ) from None
    if logits.shape != (len(example), description.network["outputs"]):
        raise UserError(
            f"{path} gives logits of shape {logits.shape} for {len(example)} points, but its description says "
            f"{description.network['outputs']} outputs; export it again"
        )
    if not np.isfinite(logits).all():
        raise UserError(f"{path} gives logits that are NaN or infinite; its training diverged, so take another")


def _providers(device: str, precision: str, available: list[str], path: Path) -> list[Any]:
    kind, _, index = device.partition(":")
    on_gpu = {"device_id": int(index or 0)}
    if precision == "int8":
        raise UserError(f"precision is int8, which takes a .safetensors model and a CPU, but the model is {path.name}")
    trt: dict[str, Any] = on_gpu | {
        "trt_fp16_enable": precision == "float16",
        "trt_bf16_enable": precision == "bfloat16",
        "trt_engine_cache_enable": True,
    }
    if kind == "tensorrt":
        # By content, for the names that ONNX Runtime gives to engines are the same for other weights.
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        trt["trt_engine_cache_path"] = str(path.parent / "tensorrt_cache" / digest[:16])
    chains: dict[str, list[Any]] = {
        "cpu": CPU,
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


def devices() -> dict[str, list[str]]:
    """List the installed runtimes and what each can run on: {'PyTorch 2.13.0': ['cpu', 'cuda:0 (NVIDIA …)'], …}."""
    found: dict[str, list[str]] = {}
    if importlib.util.find_spec("torch"):
        import torch

        gpus = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        found[f"PyTorch {torch.__version__}"] = ["cpu", *gpus]
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        providers = [name.removesuffix("ExecutionProvider").lower() for name in onnxruntime.get_available_providers()]
        found[f"ONNX Runtime {onnxruntime.__version__}"] = [name for name in providers if name != "azure"]
    return found
