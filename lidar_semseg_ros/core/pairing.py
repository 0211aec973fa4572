"""Which image belongs to which cloud: the nearest in stamp."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lidar_semseg_ros.core.options import setting

Cloud = TypeVar("Cloud")
Image = TypeVar("Image")

KEPT_S = 2.0
"""How long images are kept; lidars and cameras of one robot do not deliver later than this."""
MOST_IMAGES = 200
MOST_CLOUDS = 50
"""So many are kept at most: stamps that stand still would make none of them old."""
JUMP_S = 1.0
"""A stamp that lies so far behind its forerunner is a jump in time, such as a bag that begins anew."""


def nearest_stamp(stamps_ns: np.ndarray | Sequence[int], stamp_ns: int, max_difference_s: float) -> int | None:
    """Find the index of the stamp nearest to stamp_ns, or None if none lies within max_difference_s."""
    if len(stamps_ns) == 0:
        return None
    # As Python's own integers, for a stamp may be any number and a difference may need more than 64 bits.
    differences_ns = np.abs(np.array(stamps_ns, object) - stamp_ns)
    nearest = int(np.argmin(differences_ns))
    return nearest if differences_ns[nearest] <= max_difference_s * 1e9 else None


@dataclass(frozen=True, kw_only=True)
class PairingConfig:
    """Which images go with a cloud."""

    max_dt_s: float = setting(
        0.05, "an image goes with a cloud if their times differ by at most so many seconds", minimum=0.0
    )
    max_wait_s: float = setting(
        0.3,
        "a cloud waits for a camera until something that is so many seconds newer has come; more than a camera's delay",
        minimum=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Paired(Generic[Cloud, Image]):
    """A cloud with, by camera, the time and the image that goes with it; a camera that has none is left out."""

    time_ns: int
    cloud: Cloud
    images: Mapping[str, tuple[int, Image]]


class NearestPairing(Generic[Cloud, Image]):
    """Gives each cloud, of each camera, the image nearest in time; live and offline alike.

    Only the times of what comes decide, on the clock that all sensors share: the same messages in the same order give
    the same pairs. A cloud is ready once no camera can bring a nearer image any more, or none is waited for any more.
    After a jump back in time, clouds that wait go as they are and images from before are forgotten. Not thread-safe.
    """

    def __init__(self, cameras: Iterable[str], config: PairingConfig) -> None:
        self._config = config
        self._images: dict[str, deque[tuple[int, Image]]] = {camera: deque(maxlen=MOST_IMAGES) for camera in cameras}
        self._clouds: deque[tuple[int, Cloud]] = deque()
        self._newest_ns: dict[str, int] = {}

    def add_image(self, camera: str, time_ns: int, image: Image) -> list[Paired[Cloud, Image]]:
        """Take an image; give the clouds that are now ready."""
        before = self._jumped(camera, time_ns)
        images = self._images[camera]
        images.append((time_ns, image))
        while images[0][0] < images[-1][0] - KEPT_S * 1e9:
            images.popleft()
        return before + self._ready()

    def add_cloud(self, time_ns: int, cloud: Cloud) -> list[Paired[Cloud, Image]]:
        """Take a cloud; give those that are now ready."""
        before = self._jumped("", time_ns)
        self._clouds.append((time_ns, cloud))
        return before + self._ready()

    def flush(self) -> list[Paired[Cloud, Image]]:
        """Give all clouds that wait, as they are: nothing more will come."""
        waiting = [self._paired(*cloud) for cloud in self._clouds]
        self._clouds.clear()
        return waiting

    def _jumped(self, stream: str, time_ns: int) -> list[Paired[Cloud, Image]]:
        """Begin anew if this stream's time has jumped back."""
        before: list[Paired[Cloud, Image]] = []
        if time_ns < self._newest_ns.get(stream, time_ns) - JUMP_S * 1e9:
            before = self.flush()
            for images in self._images.values():
                images.clear()
            self._newest_ns.clear()
        self._newest_ns[stream] = max(time_ns, self._newest_ns.get(stream, time_ns))
        return before

    def _ready(self) -> list[Paired[Cloud, Image]]:
        ready = []
        while self._clouds and (len(self._clouds) > MOST_CLOUDS or self._is_ready(self._clouds[0][0])):
            ready.append(self._paired(*self._clouds.popleft()))
        return ready

    def _is_ready(self, time_ns: int) -> bool:
        late_ns = time_ns + self._config.max_wait_s * 1e9
        if max(self._newest_ns.values()) > late_ns:
            return True
        return all(self._newest_ns.get(camera, time_ns - 1) >= time_ns for camera in self._images)

    def _paired(self, time_ns: int, cloud: Cloud) -> Paired[Cloud, Image]:
        chosen = {}
        for camera, images in self._images.items():
            nearest = nearest_stamp([image_ns for image_ns, _ in images], time_ns, self._config.max_dt_s)
            if nearest is not None:
                chosen[camera] = images[nearest]
        return Paired(time_ns=time_ns, cloud=cloud, images=chosen)
