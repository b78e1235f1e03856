"""Processes that train one model together; a process alone does nothing here."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.common.launch import environment_ranks, warnings_of_first
from codeq.training.synchronized_norms import synchronize_norms

T = TypeVar("T")

# Of gloo, when another process is gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
_groups = itertools.count()  # process groups that this process has made


@dataclass(frozen=True)
class Ranks:
    """Rank of this process and the world size, with the collective operations of a training.

    Parameters
    ----------
    rank : int
        0 … `world` - 1; rank 0 alone writes files and prints.
    world : int
        Number of processes.
    device : torch.device
        Device of this process.

    Examples
    --------
    >>> Ranks().first, Ranks().mean(torch.tensor([1.0, 2.0])).tolist()
    (True, [1.0, 2.0])
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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

    def any(self, flag: bool) -> bool:
        """Return in every process whether `flag` is set in one of them."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()

    def from_first(self, value: T) -> T:
        """Return the `value` of rank 0 in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return the `value` of every process, by rank, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def on_first(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 alone, and return its result in every process.

        Raises
        ------
        CodeqError
            On the other ranks, if it failed on rank 0.
        """
        if self.world == 1:
            return make()
        result: tuple[Any, str] = (None, "")
        if self.first:
            try:
                result = (make(), "")
            except BaseException as error:
                self.from_first((None, f"{type(error).__name__}: {error}"))
                raise
        value, failure = self.from_first(result)
        if failure:
            raise CodeqError(f"rank 0 failed with {failure}")
        return value

    def first_then_others(self, load: Callable[[], T]) -> T:
        """Call `load` on rank 0, which may download something, and then on the others; errors as `on_first`."""
        loaded: list[T] = []
        self.on_first(lambda: loaded.append(load()))
        return loaded[0] if loaded else load()

    @contextmanager
    def together(self, resume: str) -> Iterator[None]:
        """Raise a `CodeqError` where another process is gone, for lack of memory, say; `resume` is the command then.

        Gloo reports that as an error of the connection, in a collective operation or the backward pass.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not any(sign in str(error) for sign in _LOST):
                raise
            raise CodeqError(
                f"another of the {self.world} processes has ended; the last checkpoint resumes with: {resume}"
            ) from error

    def seed(self, seed: int) -> None:
        """Give this process its own random stream for dropout; rank 0 keeps the stream of a process alone."""
        if self.rank:
            torch.manual_seed(int(np.random.SeedSequence((seed, self.rank)).generate_state(1, np.uint64)[0]))

    def replicate(self, model: nn.Module, unused: Iterable[nn.Parameter] = ()) -> nn.Module:
        """Wrap `model` so that its gradients are averaged over all processes, except those of the parameters `unused`.

        No batch reaches these: their gradients, of regularizers alone, are the same in every process.

        On GPUs BatchNorm sees the global batch (`synchronize_norms`, whose errors are raised). There is no such kernel
        for the CPU: there each process normalizes with its own part of the batch, and the running statistics of rank 0
        hold, see `share_buffers`.
        """
        if self.world == 1:
            return model
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            synchronize_norms(model)
        left_out = list(unused)
        # DistributedDataParallel waits for the gradients of all parameters that are trainable when it is made.
        for parameter in left_out:
            parameter.requires_grad_(False)
        replicated = nn.parallel.DistributedDataParallel(model, device_ids=[self.device] if on_gpu else None)
        for parameter in left_out:
            parameter.requires_grad_()
        return replicated

    @torch.no_grad()
    def share_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of rank 0, BatchNorm's statistics among them, to the model of every process."""
        if self.world > 1:
            for buffer in model.buffers():
                # Not every backend sends booleans.
                dist.broadcast(buffer.view(torch.uint8) if buffer.dtype == torch.bool else buffer, src=0)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes of this training, as long as the context lasts.

    A process group that exists is used, and left as it is. Otherwise one is made if ``torchrun`` started several
    processes, and destroyed at the end. Only the first process logs warnings.

    Parameters
    ----------
    device : torch.device
        As configured; ``cuda`` means one GPU for each process.

    Raises
    ------
    CodeqError
        For incomplete environment variables, a device that cannot be shared in this way, more processes than GPUs, and
        a process group that cannot be made or does not support the device.
    """
    existing = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if existing else environment_ranks()
    if world > 1 and device.type == "mps":
        raise CodeqError("device 'mps' trains in one process; start without torchrun")
    ranks = Ranks(rank, world, _own_gpu(device, world))
    with ExitStack() as stack:
        stack.enter_context(warnings_of_first(rank))
        if ranks.device.type == "cuda":  # streams, random states and properties of a GPU are those of the current one
            stack.enter_context(torch.cuda.device(ranks.device))
        if world > 1:
            try:
                if not existing:
                    _start_group("nccl" if device.type == "cuda" else "gloo")
                    stack.callback(dist.destroy_process_group)
                ranks.sum(torch.zeros(1, device=ranks.device))  # a group for other devices fails here
            except (ValueError, RuntimeError) as error:
                raise CodeqError(f"{world} processes cannot train together on '{ranks.device}': {error}") from error
        yield ranks


def _start_group(backend: str) -> None:
    """Make the process group, under names in the store of ``torchrun`` that no earlier group of this process has used.

    The store survives a group. Without names of its own, the next training of the same script would read the addresses
    that the processes of the last one have left there.
    """
    store, rank, world = next(dist.rendezvous("env://"))
    prefix = dist.PrefixStore(f"codeq-{next(_groups)}", store)
    dist.init_process_group(backend, store=prefix, rank=rank, world_size=world)


def _own_gpu(device: torch.device, world: int) -> torch.device:
    """Return the device of this process; of several GPUs the one that ``LOCAL_RANK`` numbers."""
    local = os.environ.get("LOCAL_RANK", "")
    if device.type != "cuda" or world == 1 or not local.isdecimal():
        return device
    if device.index not in (None, int(local)):
        raise CodeqError(f"device '{device}' is one GPU; under torchrun write cuda, and every process takes its own")
    count = torch.cuda.device_count()
    if int(local) >= count:
        raise CodeqError(
            f"LOCAL_RANK={local}: every process takes one GPU, and there are {count} of them here; start torchrun with "
            f"--nproc-per-node at most {count}"
        )
    return torch.device("cuda", int(local))
