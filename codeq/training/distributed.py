"""The processes that train one model together, as `torchrun` starts them; alone, everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codeq.common.errors import CodeqError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is.

    Parameters
    ----------
    rank : int
        0 … `world` - 1; only rank 0 writes files and prints.
    world : int
        Number of processes.
    local_rank : int
        Number of this process on its machine, and of its GPU.

    Examples
    --------
    >>> Ranks().first, Ranks().mean(torch.tensor([1.0, 2.0])).tolist()
    (True, [1.0, 2.0])
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up `values` over all processes; changed in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Average `values` over all processes; changed in place."""
        return self.sum(values).div_(self.world) if self.world > 1 else values

    def from_first(self, value: T) -> T:
        """Return the `value` of rank 0 in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def replicate(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap `model` so that its gradients are averaged over all processes.

        On GPUs BatchNorm sees the global batch (SyncBatchNorm). There is no such kernel for the CPU: there each process
        normalizes with its own part of the batch, and the running statistics of rank 0 are everybody's.
        """
        if self.world == 1:
            return model
        on_gpu = device.type == "cuda"
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(model) if on_gpu else model
        return nn.parallel.DistributedDataParallel(synchronized, device_ids=[self.local_rank] if on_gpu else None)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes of this training, if `torchrun` started several, for as long as the context lasts.

    Raises
    ------
    CodeqError
        On a device that cannot be shared in this way.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield Ranks()
        return
    if device.type == "mps":
        raise CodeqError("device 'mps' trains in one process; start without torchrun")
    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Return the GPU of this process where several share a machine: `cuda` means one for each.

    Raises
    ------
    CodeqError
        If all of several processes are told to take the same GPU.
    """
    if device.type == "cuda" and device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CodeqError(f"device '{device}' is one GPU; under torchrun write cuda, and every process takes its own")
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device
