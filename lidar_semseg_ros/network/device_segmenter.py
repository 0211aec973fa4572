"""From a sweep to its labels without leaving the device, in two CUDA graphs; needs Triton.

The first graph finds the points to keep. The host reads how many these are, and the second graph, of the capacity that
holds them, prepares them, runs the network and labels every row. Capacities are powers of two and one size between each
two. That of a sweep gets its graph when a few sweeps wanted it; until then a larger one serves, if there is one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED, LidarFrame, PointLabels
from lidar_semseg_ros.network.device_inputs import DeviceInput, DevicePreparation, Sifted
from lidar_semseg_ros.network.fused_network import FusedNetwork, on
from lidar_semseg_ros.network.inference import Runner
from lidar_semseg_ros.network.inputs import InputConfig, prepare, to_points
from lidar_semseg_ros.network.trial import LEAST_AGREEMENT, trial_sweep
from lidar_semseg_ros.network.triton_kernels import MOST_POINTS

LEAST_CAPACITY = 256
PATIENCE = 5
"""A capture takes as long as many sweeps do, so a capacity must be wanted more often than in passing."""
MOST_GRAPHS = 32
"""Enough for all capacities that a lidar or a few meet; what comes after them is done without one."""
PART_REPEATS = 20

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Replays:
    """Work on fixed shapes, captured as CUDA graphs when it is wanted often; without a GPU it is simply done.

    patience: how often the same work must be wanted until its graph is replayed. fault: why none can be captured.
    """

    def __init__(self, device: str) -> None:
        self._captures = device.startswith("cuda")
        self.patience = PATIENCE if self._captures else 1
        self.fault = ""
        self._graphs: dict[tuple[str, int, int], tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._wanted: Counter[tuple[str, int, int]] = Counter()
        # Graphs run one after the other and keep their results alive, so that the rest of their memory can be shared.
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None

    def __len__(self) -> int:
        """Count the graphs."""
        return len(self._graphs)

    def run(self, name: str, rows: int, capacity: int, work: Callable[[int], T]) -> T:
        """Do the work of this name on a room of so many rows, with this capacity or a larger one.

        It reads what lies where it lay the first time, and the next call of this name and room overwrites its result.
        """
        key = (name, rows, capacity)
        if self._captures and key not in self._graphs:
            self._wanted[key] += 1
            if self._wanted[key] >= self.patience and len(self._graphs) < MOST_GRAPHS:
                self._capture(key, work)
        larger = [key for key in self._graphs if key[:2] == (name, rows) and key[2] >= capacity]
        if not larger:
            return work(capacity)
        graph, result = self._graphs[min(larger)]
        graph.replay()
        return result

    def _capture(self, key: tuple[str, int, int], work: Callable[[int], object]) -> None:
        # Whether it succeeds or not: after a failure, it must be wanted anew.
        del self._wanted[key]
        try:
            self._graphs[key] = self._captured(lambda: work(key[2]))
        except torch.OutOfMemoryError:
            raise  # others may need the memory just now
        except RuntimeError as error:
            logger.warning("no CUDA graph could be captured, so every step is launched by itself: %s", error)
            self._captures, self.fault = False, str(error)

    def _captured(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # compiles kernels and lets libraries take their memory, neither of which can be captured
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        return graph, result


class Room:
    """Memory for a sweep of up to R rows, on the host and on the device: x y z of all rows, then their intensities."""

    def __init__(self, rows: int, device: str) -> None:
        on_gpu = device.startswith("cuda")
        self.rows = rows
        self._host = torch.empty(4 * rows, pin_memory=on_gpu)
        self._device = torch.empty(4 * rows, device=device)
        self.xyz, self.intensity = self._device[: 3 * rows].view(rows, 3), self._device[3 * rows :]
        self.labels = torch.empty(3, rows, pin_memory=on_gpu)
        self.sifted = Sifted(
            voxel=torch.empty(rows, 3, dtype=torch.int32, device=device),
            low=torch.empty(3, device=device),
            kept=torch.empty(rows, dtype=torch.int64, device=device),
            total=torch.empty((), dtype=torch.int32, device=device),
        )

    def put(self, xyz: np.ndarray, intensity: np.ndarray | float) -> None:
        """Copy a sweep to the device; the rows beyond it have no return."""
        host, rows = self._host.numpy(), len(xyz)
        host[: 3 * rows] = xyz.reshape(-1)
        host[3 * rows : 3 * self.rows] = np.nan
        host[3 * self.rows :][:rows] = intensity
        host[3 * self.rows :][rows:] = 0
        self._device.copy_(self._host, non_blocking=True)


class DeviceSegmenter:
    """The steps of a sweep on a device: `prepare`, `compute` and `labels`, in this order for every sweep.

    turn: to be held from the first step to the last where several threads use it.
    """

    def __init__(self, network: FusedNetwork, inputs: InputConfig, device: str) -> None:
        self.turn = threading.Lock()
        self.replays = Replays(device)
        self._network, self._inputs, self._device = network, inputs, device
        self._preparation = DevicePreparation(inputs, device)
        self._rooms: dict[int, Room] = {}
        self._room: Room

    def prepare(self, frame: LidarFrame, max_points: int = 0) -> int:
        """Bring a sweep to the device and choose the points to keep, as `inputs.prepare` does; gives their number."""
        rows = capacity_of(len(frame))
        if rows > MOST_POINTS:
            raise UserError(f"a sweep may have {MOST_POINTS:,} points on a GPU, but has {len(frame):,}; use device cpu")
        with torch.inference_mode(), on(self._device):
            if rows not in self._rooms:
                self._rooms[rows] = Room(rows, self._device)
            room = self._room = self._rooms[rows]
            room.put(frame.xyz, self._inputs.intensity_mean if frame.intensity is None else frame.intensity)
            self.replays.run("sift", rows, rows, self._sift)
            sifted = room.sifted
            kept = int(sifted.total)
            if 0 < max_points < kept:
                chosen = torch.from_numpy(np.linspace(0, kept - 1, max_points).astype(np.int64)).to(self._device)
                sifted.kept[:max_points] = sifted.kept[chosen]
                sifted.total.fill_(max_points)
                kept = max_points
        return kept

    def compute(self, kept: int) -> None:
        """Run the network on the points kept, if there are any, and bring the labels of all rows to the host."""
        if kept == 0:
            return
        room = self._room
        with torch.inference_mode(), on(self._device):
            room.labels.copy_(self.replays.run("label", room.rows, capacity_of(kept), self._label))

    def _sift(self, _: int) -> None:
        for place, found in zip(self._room.sifted, self._preparation.sifted(self._room.xyz)):
            place.copy_(found)

    def _prepare(self, capacity: int) -> tuple[DeviceInput, Tensor]:
        room = self._room
        return self._preparation.network_input(room.xyz, room.intensity, room.sifted, capacity)

    def _label(self, capacity: int) -> Tensor:
        prepared, nearest = self._prepare(capacity)
        return labels_of_rows(self._network(prepared), nearest)

    def parts_ms(self) -> dict[str, float]:
        """Time what the device did with the last sweep, each part as a graph of its own: medians, in ms."""
        found = dict.fromkeys(("choose", "prepare", "network", "label"), 0.0)
        with self.turn, torch.inference_mode(), on(self._device):
            replays, rows, capacity = Replays(self._device), self._room.rows, capacity_of(int(self._room.sifted.total))

            def timed(name: str, work: Callable[[int], T]) -> T:
                durations_s = []
                for _ in range(replays.patience + PART_REPEATS):
                    self._wait()
                    start = time.perf_counter()
                    result = replays.run(name, rows, capacity, work)
                    self._wait()
                    durations_s.append(time.perf_counter() - start)
                found[name] = 1e3 * float(np.median(durations_s[replays.patience :]))
                return result

            prepared, nearest = timed("prepare", self._prepare)
            logits = timed("network", lambda _: self._network(prepared))
            timed("label", lambda _: labels_of_rows(logits, nearest))
            timed("choose", self._sift)  # the last, for it forgets a limit to the number of points
        return found

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)

    def labels(self, frame: LidarFrame, kept: int) -> PointLabels:
        """Give the labels of a sweep's rows, as `inputs.to_points` does; NaN where the network gave no number."""
        rows = len(frame)
        if kept == 0:
            return PointLabels(
                class_id=np.full(rows, UNLABELLED, np.uint8),
                probability=np.zeros(rows, np.float32),
                entropy=np.ones(rows, np.float32),
            )
        class_id, probability, entropy = self._room.labels[:, :rows].numpy().copy()
        return PointLabels(class_id=class_id.astype(np.uint8), probability=probability, entropy=entropy)


def device_segmenter(runner: Runner, network: FusedNetwork, inputs: InputConfig, device: str) -> DeviceSegmenter | None:
    """Bring all steps to the device, if it labels a trial sweep as `runner` does one that the host prepared.

    Else the reason is logged.
    """
    trial = trial_sweep(inputs)
    prepared = prepare(trial, inputs)
    if not len(prepared):
        logger.warning("the host prepares the sweeps, for none of a trial sweep's points lie where the model looks")
        return None
    expected = to_points(runner.logits(prepared).numpy(), prepared).class_id
    try:
        segmenter = DeviceSegmenter(network, inputs, device)
        for _ in range(segmenter.replays.patience):  # the last time by a graph
            kept = segmenter.prepare(trial)
            segmenter.compute(kept)
        agreement = float(np.mean(segmenter.labels(trial, kept).class_id == expected))
    except Exception as error:  # as with the network's kernels, of many types
        logger.warning("the host prepares the sweeps, for the kernels do not run here: %s", error)
        return None
    if agreement < LEAST_AGREEMENT:
        logger.warning("the host prepares the sweeps, for the GPU labels only %.1f %% alike", 100 * agreement)
        return None
    return segmenter


def capacity_of(count: int) -> int:
    """Round up to a power of two or the size halfway to the next, at least LEAST_CAPACITY."""
    power = 1 << (max(count, LEAST_CAPACITY) - 1).bit_length()
    between = power // 4 * 3
    return between if between >= LEAST_CAPACITY and count <= between else power


def labels_of_rows(logits: Tensor, nearest_R: Tensor) -> Tensor:
    """Compute class, probability and entropy of every row from logits (N, classes): (3, R) float32."""
    share = logits.softmax(1)
    probability, best = share.max(1)
    nats = -(share * logits.log_softmax(1)).sum(1)
    entropy = (nats / float(np.log(max(logits.shape[1], 2)))).clamp(0, 1)
    of_points = torch.stack([best.float(), probability, entropy])
    unlabelled = torch.zeros_like(of_points[:, :1])
    unlabelled[0] += UNLABELLED
    unlabelled[2] += 1
    return torch.where(nearest_R < 0, unlabelled, of_points[:, nearest_R.clamp(min=0)])
