"""What the process keeps of the memory it has freed."""

from __future__ import annotations

import ctypes

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next array of this process; for a training and for the recorder.

    By default glibc maps every array of more than some megabytes anew and gives it back when it is freed, and the
    kernel clears each of its pages again: in every step of a training, and for every cloud that is recorded. Not for
    the nodes that label, which would hold some 120 MB more and gain no time that could be measured. Other C libraries
    are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
