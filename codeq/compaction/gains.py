"""Latency and memory of models side by side, measured on this machine."""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from codeq.common.checks import check_collection
from codeq.common.errors import CodeqError
from codeq.common.progress import counter
from codeq.common.timing import time_in_turns
from codeq.quantizer.precision import weight_type

if TYPE_CHECKING:
    import pandas as pd


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
        By name; the first is the one to compare with. They are moved to the device and set to evaluation mode, and
        get inputs of the type of their weights.
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
        (interquartile range, ms), `speedup` (× against the first model, median over rounds in which the models take
        turns), `low` and `high` (smallest and largest speedup of a round), `rounds`, `weights_mb` (parameters and
        buffers, MB of 10⁶ bytes), `peak_mb` (largest total size of activations at one time, MB; eager only). Of n
        independent rounds, the interval from `low` to `high` contains the true median with a probability of
        1 - 2^(1 - n): 75 % for three, the least, and 98 % for seven.

    Raises
    ------
    CodeqError
        If `models` is empty, or `batch_sizes` is no list.

    Examples
    --------
    >>> wide, narrow = (nn.Sequential(nn.Conv2d(3, c, 3), nn.Conv2d(c, 3, 3)) for c in (64, 4))
    >>> table = measure_gains({"wide": wide, "narrow": narrow}, batch_sizes=[2])
    >>> table.loc[table.model == "narrow", "speedup"].item() > 1, table["weights_mb"].tolist()
    (True, [0.014092, 0.000892])
    """
    import pandas as pd

    check_collection("batch_sizes", batch_sizes)
    if not models:
        raise CodeqError("there are no models to time")
    ready = {name: model.to(device).eval() for name, model in models.items()}
    modes = ("eager", "compiled") if compiled else ("eager",)
    rows: list[dict[str, Any]] = []
    with counter(len(modes) * len(batch_sizes), "timing", "batch size") as bar, torch.no_grad():
        for mode in modes:
            for batch in batch_sizes:
                x = torch.rand(batch, *input_size, device=device)
                inputs = {name: x.to(weight_type(m, x.dtype)) for name, m in ready.items()}
                calls = {n: _call(torch.compile(m) if mode == "compiled" else m, inputs[n]) for n, m in ready.items()}
                peak = dict.fromkeys(ready, float("nan"))
                for name in ready:  # the first execution chooses kernels, or compiles
                    if mode == "eager":
                        peak[name] = peak_bytes(calls[name]) / 1e6
                    else:
                        calls[name]()
                times = time_in_turns(calls)
                first = next(iter(times.values()))
                for name, time in times.items():
                    ratios = time.ratios(first)
                    rows.append({
                        "model": name, "mode": mode, "device": str(device), "batch": batch,
                        "ms": 1e3 * time.median, "iqr": 1e3 * time.iqr, "speedup": statistics.median(ratios),
                        "low": min(ratios), "high": max(ratios), "rounds": len(ratios),
                        "weights_mb": _bytes(ready[name]) / 1e6, "peak_mb": peak[name],
                    })  # fmt: skip
                bar.update()
    return pd.DataFrame(rows)


def _call(model: Callable[[Tensor], Any], x: Tensor) -> Callable[[], None]:
    """Return a call of a model on `x` that returns when its device has finished."""
    backend = {"cuda": torch.cuda, "mps": torch.mps}.get(x.device.type)

    def call() -> None:
        model(x)
        if backend is not None:
            backend.synchronize()

    return call


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the largest total size, in bytes, of the tensors that exist at one time of those that `call` creates.

    Tensors that exist before, and what a kernel allocates for itself, do not count.

    Examples
    --------
    >>> x = torch.zeros(100)
    >>> peak_bytes(lambda: (x + 1).sum())
    404
    """
    with _Allocations() as allocations:
        call()
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
