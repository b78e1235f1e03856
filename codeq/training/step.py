"""The work of the device in one training step, run directly or replayed from a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from codeq.common.errors import CodeqError

Step = Callable[[Tensor, Tensor], None]
Recording = tuple[torch.cuda.CUDAGraph, Tensor, Tensor]  # with the batch that it reads


class DirectSteps:
    """Runs every step as it is called."""

    def use_settings(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin a stretch, at most an epoch, in which all settings but the learning rates stay the same."""

    def run(self, step: Step, x: Tensor, y: Tensor) -> None:
        """Train on one batch."""
        step(x, y)


class ReplayedSteps:
    """Records the kernels of a step as a CUDA graph, once for each stretch of equal settings, and replays them.

    A step of a small network is hundreds of kernels that take the CPU longer to start than the GPU to run; a replay
    starts all of them at once. What Python computes is part of the recording: coefficients, which `use_settings`
    renews, but also whatever a user's model or loss counts in Python. Learning rates may change with every batch: the
    recorded kernels read them from the device. Where an optimizer takes only numbers, a new rate is recorded anew.

    Batches of a shape not seen before run directly, which also warms up what may not be recorded.

    Parameters
    ----------
    device : torch.device
        Of the parameters.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._warm: set[torch.Size] = set()
        self._recorded: dict[torch.Size, Recording] = {}
        self._outdated: list[Recording] = []
        self._groups: list[dict[str, Any]] = []
        self._rates: list[Tensor | None] = []  # on the device, of the groups whose optimizer reads them there
        self._current: list[float] = []

    def use_settings(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin a stretch, at most an epoch, in which all settings but the learning rates stay the same."""
        self._discard_recordings()
        self._groups = list(optimizer.param_groups)
        for group in self._groups:
            if "capturable" in group:
                group["capturable"] = True
        on_device = [group.get("capturable") or group.get("fused") for group in self._groups]
        self._rates = [torch.zeros((), device=self._device) if read else None for read in on_device]
        self._current = [0.0] * len(self._groups)

    def _discard_recordings(self) -> None:
        # The pool of memory that all recordings share lasts as long as one of them.
        self._outdated += self._recorded.values()
        self._recorded = {}

    def _update_rates(self) -> None:
        """Write the learning rates of the groups to the device; what has recorded them as numbers is outdated."""
        for i, (group, rate) in enumerate(zip(self._groups, self._rates, strict=True)):
            if group["lr"] == self._current[i]:
                continue
            self._current[i] = group["lr"]
            if rate is not None:
                rate.fill_(group["lr"])
            else:
                self._discard_recordings()

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Let the optimizer read the rates from the device; its groups, which checkpoints keep, hold numbers again."""
        for group, rate in zip(self._groups, self._rates, strict=True):
            if rate is not None:
                group["lr"] = rate
        try:
            yield
        finally:
            for group, current in zip(self._groups, self._current, strict=True):
                group["lr"] = current

    def run(self, step: Step, x: Tensor, y: Tensor) -> None:
        """Train on one batch.

        Raises
        ------
        CodeqError
            For a step that cannot be recorded, because it waits for the GPU.
        """
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._update_rates()
            if x.shape not in self._warm:
                # A rate on the device is rounded to float32. A resumed training begins with a batch like this one, and
                # is to compute what replays have computed in the whole one.
                with self._rates_on_device():
                    step(x, y)
                self._warm.add(x.shape)
            else:
                if x.shape not in self._recorded:
                    self._recorded[x.shape] = self._record(step, x, y)
                    self._outdated = []
                graph, recorded_x, recorded_y = self._recorded[x.shape]
                recorded_x.copy_(x)
                recorded_y.copy_(y)
                graph.replay()
        current.wait_stream(self._stream)

    def _record(self, step: Step, x: Tensor, y: Tensor) -> Recording:
        graph, x, y = torch.cuda.CUDAGraph(), x.clone(), y.clone()
        # Not `torch.cuda.graph`, which empties the cache of free memory at every recording.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            with self._rates_on_device():
                step(x, y)
        except BaseException as error:
            with suppress(RuntimeError):  # a recording that failed cannot be ended without an error, but has to be
                graph.capture_end()
            if not isinstance(error, RuntimeError):
                raise
            raise CodeqError(
                f"the training step cannot be recorded as a CUDA graph, set cuda_graph: false. {str(error)[:200]}"
            ) from error
        graph.capture_end()
        return graph, x, y
