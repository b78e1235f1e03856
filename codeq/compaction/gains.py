"""Latency and memory of models side by side, measured on this machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from codeq.common.console import counter
from codeq.common.errors import CodeqError

if TYPE_CHECKING:
    import pandas as pd

ROUNDS = 5  # the models take turns, so that a machine that slows down slows all of them
MIN_SECONDS = 0.05  # for each model in each round


def measure_gains(
    models: Mapping[str, nn.Module],
    input_size: tuple[int, int, int] = (3, 32, 32),
    batch_sizes: Sequence[int] = (1, 128),
    compiled: bool = False,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """Time models against the first of them, and measure the memory they take, on random inputs.

    Parameters
    ----------
    models : mapping of str to Module
        By name; the first is the one to compare with. They are moved to the device and set to evaluation mode.
    input_size : tuple of int
        `(C, H, W)` of one input.
    batch_sizes : sequence of int
        Inputs of a batch.
    compiled : bool
        Also time with `torch.compile`, which takes a minute for each model and batch size on a CPU.
    device : str or device
        Device to run on.

    Returns
    -------
    DataFrame
        Columns `model`, `mode` (``eager`` or ``compiled``), `device`, `batch`, `ms` (median time of a batch), `iqr`
        (interquartile range, ms), `speedup` (× against the first model), `weights_mb` (parameters and buffers, MB of
        10⁶ bytes), `peak_mb` (largest total size of activations at one time, MB; eager only).

    Raises
    ------
    CodeqError
        If `models` is empty.

    Examples
    --------
    >>> wide, narrow = (nn.Sequential(nn.Conv2d(3, c, 3), nn.Conv2d(c, 3, 3)) for c in (64, 4))
    >>> table = measure_gains({"wide": wide, "narrow": narrow}, batch_sizes=[2])
    >>> table.loc[table.model == "narrow", "speedup"].item() > 1, table["weights_mb"].tolist()
    (True, [0.014092, 0.000892])
    """
    import pandas as pd

    if not models:
        raise CodeqError("there are no models to time")
    ready = {name: model.to(device).eval() for name, model in models.items()}
    modes = ("eager", "compiled") if compiled else ("eager",)
    rows: list[dict[str, Any]] = []
    with counter(len(modes) * len(batch_sizes) * ROUNDS, "timing", "round") as bar, torch.no_grad():
        for mode in modes:
            for batch in batch_sizes:
                x = torch.rand(batch, *input_size, device=device)
                calls = {n: torch.compile(m) if mode == "compiled" else m for n, m in ready.items()}
                times = time_in_turns(calls, x, bar)
                first = next(iter(times.values())).median
                rows += [
                    {
                        "model": name, "mode": mode, "device": str(device), "batch": batch,
                        "ms": 1e3 * time.median, "iqr": 1e3 * time.iqr, "speedup": first / time.median,
                        "weights_mb": _bytes(ready[name]) / 1e6,
                        "peak_mb": _peak_bytes(ready[name], x) / 1e6 if mode == "eager" else float("nan"),
                    }
                    for name, time in times.items()
                ]  # fmt: skip
    return pd.DataFrame(rows)


def time_in_turns(calls: Mapping[str, Callable[[Any], Any]], x: Any, bar: Any) -> dict[str, Any]:
    """Time ``call(x)`` for each of the calls in `ROUNDS` rounds, and return a `Measurement` for each, seconds.

    Parameters
    ----------
    calls : mapping of str to callable
        By name; each is called once before.
    x : object
        Argument.
    bar : object
        Its `update` is called after each round.
    """
    from torch.utils.benchmark import Measurement, Timer

    threads = torch.get_num_threads()
    timers = {n: Timer("call(x)", globals={"call": call, "x": x}, num_threads=threads) for n, call in calls.items()}
    for call in calls.values():  # compiles, and chooses kernels
        call(x)
    found: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            found[name].append(timer.blocked_autorange(min_run_time=MIN_SECONDS))
        bar.update()
    return {name: Measurement.merge(parts)[0] for name, parts in found.items()}


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _peak_bytes(model: nn.Module, x: Tensor) -> int:
    with _Allocations() as allocations:
        model(x)
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Adds up the sizes of the storages that operations allocate while they exist."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arrived = [t.untyped_storage() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if not any(storage is other for other in arrived) and storage not in self._known:
                    self._known.add(storage)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, amount: int) -> None:
        self.current += amount
        self.peak = max(self.peak, self.current)
