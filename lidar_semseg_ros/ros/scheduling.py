"""Whose turn it is on the processor: Linux's scheduling policies, of one thread."""

from __future__ import annotations

import os

POLICIES = ("idle", "other")
"""idle: what no thread of the policy other wants, which takes the processor back as soon as it wakes. man 7 sched."""


def schedule(policy: str) -> None:
    """Set the policy of the calling thread, and of those that it starts from now on.

    OSError where the system has no such policy or refuses it.
    """
    number = getattr(os, f"SCHED_{policy.upper()}", None)
    if number is None:
        raise OSError("this system does not have it")
    # Linux has a policy for each thread; 0 is the one that calls.
    os.sched_setscheduler(0, number, os.sched_param(0))
