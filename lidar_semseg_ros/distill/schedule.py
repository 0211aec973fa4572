"""How the learning rate changes with the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, warmup: int, steps: int, floor: float = 0.005) -> float:
    """Give the factor of the learning rate: linear from 0, then half a cosine from 1 to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
