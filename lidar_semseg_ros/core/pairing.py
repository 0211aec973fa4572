"""Which image belongs to which cloud: the nearest in stamp."""

from __future__ import annotations

import numpy as np


def nearest_stamp(stamps_ns: np.ndarray, stamp_ns: int, max_difference_s: float) -> int | None:
    """Find the index of the stamp nearest to stamp_ns, or None if none lies within max_difference_s."""
    if len(stamps_ns) == 0:
        return None
    differences_ns = np.abs(np.asarray(stamps_ns, np.int64) - stamp_ns)
    nearest = int(np.argmin(differences_ns))
    return nearest if differences_ns[nearest] <= max_difference_s * 1e9 else None
