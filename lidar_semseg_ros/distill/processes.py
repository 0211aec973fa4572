"""Training shared among processes: who they are, and batch norms over the batches of all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=12)
"""The first process may lay out recordings and write checkpoints for long while the others wait."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes that train together, this one being number `rank` of `size` and working on `device`."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def mean(self, values: Tensor) -> Tensor:
        """Average values over all processes; every process must ask."""
        if self.size == 1:
            return values
        summed = values.clone()
        dist.all_reduce(summed)
        return summed / self.size

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that torchrun has started, by NCCL on GPUs and Gloo without; else be the only one."""
    size, rank, local = (int(os.environ.get(name, default)) for name, default in JOINED_BY)
    has_gpu = torch.cuda.is_available()
    device = f"cuda:{local}" if has_gpu else "cpu"
    if has_gpu:
        torch.cuda.set_device(local)
    if size == 1:
        yield World(device=device)
        return
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=PATIENCE)
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        dist.destroy_process_group()


JOINED_BY = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
"""What torchrun tells each process, and what holds without it."""


class _Summed(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed


class SharedBatchNorm(nn.BatchNorm1d):
    """A batch norm over the rows of all processes, which may have different numbers of them.

    PyTorch's own SyncBatchNorm does this on GPUs only; here it is two sums, on any device. The running statistics are
    those of one process with all rows.
    """

    def forward(self, x_NC: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NC)
        wide = x_NC.float()
        total = _Summed.apply(torch.cat([wide.sum(0), wide.new_full((1,), len(wide))]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = wide - mean
        variance = _Summed.apply(centred.square().sum(0)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            for running, found in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(found, self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        normed: Tensor = centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normed.to(x_NC.dtype)


def share_batch_norms(model: nn.Module) -> None:
    """Make every batch norm of a model one over all processes, in place; names and values of weights stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = SharedBatchNorm


def unshare_batch_norms(model: nn.Module) -> None:
    """Undo `share_batch_norms`."""
    for module in model.modules():
        if type(module) is SharedBatchNorm:
            module.__class__ = nn.BatchNorm1d  # type: ignore[assignment]
