"""From the bytes of a cloud to those of the labelled one without leaving the device, in two CUDA graphs; needs Triton.

The first graph reads the points and finds those to keep. The host reads how many these are, and the second graph, of
the capacity that holds them, prepares them, runs the network and writes the bytes of every labelled row. Capacities are
powers of two and one size between each two. That of a sweep gets its graph when a few sweeps wanted it; until then a
larger one serves, if there is one. Clouds whose points are laid out otherwise get rooms and graphs of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lidar_semseg_ros.core.classes import packed_colors
from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.core.frame import UNLABELLED
from lidar_semseg_ros.core.packed import PackedCloud, packed_frame
from lidar_semseg_ros.core.sensor import SensorConfig
from lidar_semseg_ros.network.device_inputs import DeviceInput, DevicePreparation, Sifted
from lidar_semseg_ros.network.device_points import (
    SETTINGS,
    Settings,
    column,
    normalised_coordinates,
    normalised_intensity,
    put_column,
    settings_values,
)
from lidar_semseg_ros.network.fused_network import FusedNetwork, on
from lidar_semseg_ros.network.inference import Runner
from lidar_semseg_ros.network.inputs import InputConfig, prepare, to_points
from lidar_semseg_ros.network.trial import LEAST_AGREEMENT, trial_sweep
from lidar_semseg_ros.network.triton_kernels import MOST_POINTS

LEAST_CAPACITY = 256
PATIENCE = 5
"""A capture takes as long as many sweeps do, so a capacity must be wanted more often than in passing."""
MOST_ROOMS, MOST_GRAPHS = 16, 64
"""Enough for the sizes of the sweeps of a few lidars, and the capacities they meet. A further room takes the place of
the one unused for longest; what comes after so many graphs is done without one."""
MOST_BYTES = 4096
"""Of a point; a sensor's have some tens, and a room holds many points, however few there are."""
HEADER = 16
"""Bytes before the labelled points that come back with them; the first tells whether all is finite."""
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
        self._graphs: dict[tuple[str, Hashable, int], tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._wanted: Counter[tuple[str, Hashable, int]] = Counter()

    def __len__(self) -> int:
        """Count the graphs."""
        return len(self._graphs)

    def run(self, name: str, form: Hashable, capacity: int, work: Callable[[int], T]) -> T:
        """Do the work of this name on clouds of a form, with this capacity or a larger one.

        It reads what lies where it lay the first time, and the next call of this name and form overwrites its result.
        """
        key = (name, form, capacity)
        if self._captures and key not in self._graphs:
            self._wanted[key] += 1
            if self._wanted[key] >= self.patience and len(self._graphs) < MOST_GRAPHS:
                self._capture(key, work)
        larger = [key for key in self._graphs if key[:2] == (name, form) and key[2] >= capacity]
        if not larger:
            return work(capacity)
        graph, result = self._graphs[min(larger)]
        graph.replay()
        return result

    def forget(self, form: Hashable) -> None:
        """Drop the graphs of a form, and that any were wanted."""
        for kept in (self._graphs, self._wanted):
            for key in [key for key in kept if key[1] == form]:
                del kept[key]

    def _capture(self, key: tuple[str, Hashable, int], work: Callable[[int], object]) -> None:
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
        if not self._graphs:  # a pool of memory ends with its last graph
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Graphs run one after the other and keep their results alive, so that the rest of their memory can be shared.
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        return graph, result


class Form(NamedTuple):
    """What clouds have in common that fit into one room: up to so many rows, and dtypes as of a PackedCloud."""

    rows: int
    point: np.dtype
    labelled: np.dtype
    kept: int


class Room:
    """Memory for clouds of a form on the device, and for their bytes on the host."""

    def __init__(self, form: Form, intensity: float, device: str) -> None:
        """Make room; intensity: of clouds that have none."""
        rows, point, labelled, _ = self.form = form
        self._count = 0
        self._on_gpu = device.startswith("cuda")
        self._bytes = torch.empty(rows * point.itemsize, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._values = torch.empty(sum(SETTINGS), dtype=torch.float64, pin_memory=self._on_gpu)
        self.points = torch.empty(rows, point.itemsize, dtype=torch.uint8, device=device)
        self._settings = torch.empty(sum(SETTINGS), dtype=torch.float64, device=device)
        self.settings = Settings(*self._settings.split(SETTINGS))
        self.xyz = torch.empty(rows, 3, device=device)
        self.intensity = torch.full((rows,), intensity, device=device)
        self.sifted = Sifted(
            voxel=torch.empty(rows, 3, dtype=torch.int32, device=device),
            low=torch.empty(3, device=device),
            kept=torch.empty(rows, dtype=torch.int64, device=device),
            total=torch.empty((), dtype=torch.int32, device=device),
        )
        self._finished = torch.zeros(HEADER + rows * labelled.itemsize, dtype=torch.uint8, device=device)
        self.is_finite = self._finished[0]
        self.labelled = self._finished[HEADER:].view(rows, labelled.itemsize)

    def put(self, cloud: PackedCloud, settings: list[float]) -> None:
        """Copy a cloud, and what is done with it, to the device; beyond it lie bytes of others."""
        size, self._count = cloud.rows.size, len(cloud)
        self._bytes.numpy()[:size].reshape(cloud.rows.shape)[...] = cloud.rows
        self.points.view(-1)[:size].copy_(self._bytes[:size], non_blocking=True)
        self._values.numpy()[:] = settings
        self._settings.copy_(self._values, non_blocking=True)

    def fetched(self) -> tuple[np.ndarray, bool]:
        """Copy the cloud's labelled points to the host, (N,) of the form's dtype; with them, whether all is finite.

        The memory belongs to the array and is used again once that is gone.
        """
        end = HEADER + self._count * self.form.labelled.itemsize
        on_host = torch.empty(end, dtype=torch.uint8, pin_memory=self._on_gpu)
        on_host.copy_(self._finished[:end])
        found = on_host.numpy()
        return found[HEADER:].view(self.form.labelled), bool(found[0])


class DeviceSegmenter:
    """The steps of a sweep on a device: `prepare` and `compute`, in this order for every sweep.

    turn: to be held from the first step to the last where several threads use it.
    """

    def __init__(self, network: FusedNetwork, inputs: InputConfig, palette: np.ndarray, device: str) -> None:
        """Make it ready; palette: (256, 3) uint8, colours by class id."""
        self.turn = threading.Lock()
        self.replays = Replays(device)
        self._network, self._inputs, self._device = network, inputs, device
        self._preparation = DevicePreparation(inputs, device)
        self._colors = torch.from_numpy(packed_colors(palette)).to(device)
        self._rooms: dict[Form, Room] = {}
        self._room: Room

    def prepare(self, cloud: PackedCloud, sensor: SensorConfig, model_from_lidar: np.ndarray, min_score: float) -> int:
        """Bring a cloud to the device and choose the points to keep; gives their number.

        That is done as `sensor.normalised` and `inputs.prepare` do it. model_from_lidar: (4, 4), of `sensor.levelling`.
        min_score: as of `segmenter.with_min_score`. UserError where the cloud is too large.
        """
        with torch.inference_mode(), on(self._device):
            room = self._room = self._room_for(cloud)
            room.put(cloud, settings_values(len(cloud), sensor, model_from_lidar, min_score))
            self.replays.run("sift", room.form, room.form.rows, self._sift)
            sifted, most = room.sifted, sensor.max_points
            kept = int(sifted.total)
            if 0 < most < kept:
                chosen = torch.from_numpy(np.linspace(0, kept - 1, most).astype(np.int64)).to(self._device)
                sifted.kept[:most] = sifted.kept[chosen]
                sifted.total.fill_(most)
                kept = most
        return kept

    def compute(self, kept: int) -> tuple[np.ndarray, bool]:
        """Run the network on the points kept, if there are any, and bring the labelled points to the host.

        These are (N,) of the cloud's dtype `labelled`; with them, whether the network gave nothing but finite numbers.
        """
        with torch.inference_mode(), on(self._device):
            if kept:
                self.replays.run("label", self._room.form, capacity_of(kept), self._label)
            else:
                nothing = torch.full((self._room.form.rows,), -1, device=self._device)
                self._write(torch.zeros(1, 2, device=self._device), nothing)
            return self._room.fetched()

    def _room_for(self, cloud: PackedCloud) -> Room:
        rows = capacity_of(len(cloud))
        if rows > MOST_POINTS:
            raise UserError(f"a sweep may have {MOST_POINTS:,} points on a GPU, but has {len(cloud):,}; use device cpu")
        if cloud.point.itemsize > MOST_BYTES:
            raise UserError(
                f"a point may have {MOST_BYTES:,} bytes on a GPU, but has {cloud.point.itemsize:,}; use device cpu"
            )
        form = Form(rows, cloud.point, cloud.labelled, cloud.kept)
        room = self._rooms.pop(form, None)
        while len(self._rooms) >= MOST_ROOMS:
            unused = next(iter(self._rooms))
            self.replays.forget(unused)
            del self._rooms[unused]
        room = self._rooms[form] = room or Room(form, self._inputs.intensity_mean, self._device)
        return room

    def _sift(self, _: int) -> None:
        room = self._room
        room.xyz.copy_(normalised_coordinates(room.points, room.form.point, room.settings))
        if "intensity" in (room.form.point.names or ()):
            room.intensity.copy_(normalised_intensity(room.points, room.form.point, room.settings))
        for place, found in zip(room.sifted, self._preparation.sifted(room.xyz)):
            place.copy_(found)

    def _prepare(self, capacity: int) -> tuple[DeviceInput, Tensor]:
        room = self._room
        return self._preparation.network_input(room.xyz, room.intensity, room.sifted, capacity)

    def _label(self, capacity: int) -> None:
        prepared, nearest = self._prepare(capacity)
        self._write(self._network(prepared), nearest)

    def _write(self, logits: Tensor, nearest_R: Tensor) -> None:
        room, (_, point, labelled, kept) = self._room, self._room.form
        labels = labels_of_rows(logits, nearest_R)
        room.is_finite.copy_(labels.isfinite().all())
        class_id, probability, entropy = with_min_score(labels, room.settings.min_score.float())
        room.labelled[:, :kept] = room.points[:, :kept]
        rgb = self._colors[class_id.long()]
        found = {"class_id": class_id, "probability": probability, "entropy": entropy, "rgb": rgb}
        for name in labelled.names or ():
            values = found[name] if name in found else column(room.points, point, name)
            put_column(room.labelled, labelled, name, values)

    def parts_ms(self) -> dict[str, float]:
        """Time what the device did with the last sweep, each part as a graph of its own: medians, in ms."""
        found = dict.fromkeys(("choose", "prepare", "network", "label"), 0.0)
        with self.turn, torch.inference_mode(), on(self._device):
            replays, form, capacity = Replays(self._device), self._room.form, capacity_of(int(self._room.sifted.total))

            def timed(name: str, work: Callable[[int], T]) -> T:
                durations_s = []
                for _ in range(replays.patience + PART_REPEATS):
                    self._wait()
                    start = time.perf_counter()
                    result = replays.run(name, form, capacity, work)
                    self._wait()
                    durations_s.append(time.perf_counter() - start)
                found[name] = 1e3 * float(np.median(durations_s[replays.patience :]))
                return result

            prepared, nearest = timed("prepare", self._prepare)
            logits = timed("network", lambda _: self._network(prepared))
            timed("label", lambda _: self._write(logits, nearest))
            timed("choose", self._sift)  # the last, for it forgets a limit to the number of points
        return found

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)


def device_segmenter(
    runner: Runner, network: FusedNetwork, inputs: InputConfig, palette: np.ndarray, device: str
) -> DeviceSegmenter | None:
    """Bring all steps to the device, if it labels a trial sweep as `runner` does one that the host prepared.

    Else the reason is logged.
    """
    trial = trial_sweep(inputs)
    prepared = prepare(trial, inputs)
    if not len(prepared):
        logger.warning("the host prepares the sweeps, for none of a trial sweep's points lie where the model looks")
        return None
    expected = to_points(runner.logits(prepared).numpy(), prepared).class_id
    logger.info("the kernels of the other steps are made ready, and CUDA graphs captured")
    try:
        segmenter = DeviceSegmenter(network, inputs, palette, device)
        for _ in range(segmenter.replays.patience):  # the last time by a graph
            labelled, _ = segmenter.compute(segmenter.prepare(packed_frame(trial), SensorConfig(), np.eye(4), 0.0))
        agreement = float(np.mean(labelled["class_id"] == expected))
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
    return torch.where(nearest_R < 0, _unlabelled(of_points), of_points[:, nearest_R.clamp(min=0)])


def with_min_score(labels_3R: Tensor, min_score: Tensor) -> Tensor:
    """Leave rows unlabelled as `segmenter.with_min_score` does; labels as `labels_of_rows` gives them."""
    return torch.where(labels_3R[1] < min_score, _unlabelled(labels_3R), labels_3R)


def _unlabelled(like_3R: Tensor) -> Tensor:
    """Make class, probability and entropy of a row without a label: (3, 1)."""
    unlabelled = torch.zeros_like(like_3R[:, :1])
    unlabelled[0] += UNLABELLED
    unlabelled[2] += 1
    return unlabelled
