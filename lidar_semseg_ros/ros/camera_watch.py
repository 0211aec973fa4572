"""Cameras that fall silent while clouds come, and that return: nobody looks at images that are not there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

SILENT_AFTER_S = 2.0
SILENT_AFTER_CLOUDS = 5
"""Without so many clouds meanwhile, as when a bag is paused, no camera is missed."""


class CameraWatch:
    """Says once when a camera falls silent and once when it returns; every call from the executor's thread."""

    def __init__(
        self,
        topics: Mapping[str, str],
        consequence: str,
        say: Callable[[str], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to listen.

        topics: by camera, what its images come on. consequence: what becomes of the clouds while a camera is silent.
        now_s: a monotonic clock, in seconds.
        """
        self._topics, self._consequence, self._say, self._now_s = topics, consequence, say, now_s
        self.begin()

    def begin(self) -> None:
        """Begin to listen, with patience for every camera."""
        self._last_s = dict.fromkeys(self._topics, self._now_s())
        self._clouds_since: Counter[str] = Counter()
        self._silent: set[str] = set()

    def cloud(self) -> None:
        """Note that a cloud came."""
        now_s = self._now_s()
        for camera, last_s in self._last_s.items():
            self._clouds_since[camera] += 1
            is_missed = now_s - last_s >= SILENT_AFTER_S and self._clouds_since[camera] >= SILENT_AFTER_CLOUDS
            if is_missed and camera not in self._silent:
                self._silent.add(camera)
                self._say(f"{self._silence(camera)}; until it returns {self._consequence}")

    def image(self, camera: str) -> None:
        """Note that an image came."""
        now_s = self._now_s()
        if camera in self._silent:
            self._silent.remove(camera)
            self._say(f"images of {camera} come again, after {now_s - self._last_s[camera]:.1f} s")
        self._last_s[camera] = now_s
        self._clouds_since[camera] = 0

    def silences(self) -> str:
        """Tell in words which cameras are silent now, '' if none is."""
        return "; ".join(self._silence(camera) for camera in self._topics if camera in self._silent)

    def _silence(self, camera: str) -> str:
        return (
            f"no image of {camera} has come for {self._now_s() - self._last_s[camera]:.1f} s on {self._topics[camera]}"
        )
