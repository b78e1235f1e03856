"""A device that is not there: tensors that compute on the CPU but behave as those of an Apple or NVIDIA GPU.

A tensor of the emulated device wraps one of the CPU. Code reaches it as it reaches a GPU, by `.to(DEVICE)`, and leaves
it by `.cpu()`. Each operation on it has to obey the rules of a GPU; what does not raises `NotOnDevice`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

# A device type that PyTorch knows, that runs backward passes in the calling thread, and that nothing else uses.
DEVICE = torch.device("lazy")
COMPOSITE = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
TABLE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
# They wait for the device: their result, or its size, is read by the host.
SYNCHRONIZING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "histc", "item",
}  # fmt: skip
MOVING = {"_to_copy", "copy_", "copy"}


class NotOnDevice(AssertionError):
    """An operation that the emulated device does not have, or that makes the host wait for it."""


@cache
def kernels() -> dict[str, set[str]]:
    """Return the dispatch keys of every operation in PyTorch's own table; one without keys is composite."""
    keys: dict[str, set[str]] = {}
    delegates: dict[str, str] = {}
    for block in TABLE.read_text().split("\n- func: ")[1:]:
        name = block[: block.index("(")]
        section = re.search(r"\n  dispatch:\n((?:    .*\n?)+)", block)
        lines = re.findall(r"^    ([\w, ]+):", section.group(1), re.MULTILINE) if section else []
        keys[name] = {key.strip() for line in lines for key in line.split(",")} or {"CompositeImplicitAutograd"}
        if delegate := re.search(r"\n  structured_delegate: (\S+)", block):
            delegates[name] = delegate.group(1)
        if made := re.search(r"\n  autogen: (.*)", block):
            keys |= {name.strip(): {"CompositeExplicitAutograd"} for name in made.group(1).split(",")}
    return keys | {name: keys[delegate] for name, delegate in delegates.items()}


class OnDevice(Tensor):
    """A tensor of the emulated device; `inner` holds its elements."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.inner!r})"

    # PyTorch does not dispatch these three.

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotOnDevice(f"{func} on a tensor of the device outside of the emulation")


class Emulation(TorchDispatchMode):
    """Makes `DEVICE` exist, and holds operations on it to the rules of a GPU.

    No float64, as on Apple's GPU; a kernel for Apple's GPU or a composite one in PyTorch's table; no operation on
    tensors of several devices, but for numbers; no copy that does not wait, because Apple's GPU would read memory that
    may be freed by then; and inside `step`, nothing that makes the host wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_step = False
        self.seen: set[str] = set()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Refuse what makes the host wait for the device."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def __enter__(self) -> Any:
        # `module.to` makes new parameters: assigning to `.data` would leave the wrapped tensor behind.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        arrives = any(isinstance(tensor, OnDevice) for tensor in tensors)
        target = kwargs.get("device")
        leaves = arrives if target is None else torch.device(target) == DEVICE
        name = func.name().removeprefix("aten::").removesuffix(".default")
        if arrives or leaves:
            self._check(func, name, tensors, args, moves=arrives != leaves)
            if kwargs.get("non_blocking"):
                raise NotOnDevice(f"{name} does not wait until Apple's GPU has read the memory of the CPU")
        inner_args, inner_kwargs = pytree.tree_map_only(OnDevice, lambda t: t.inner, (args, kwargs))
        if target is not None and leaves:
            inner_kwargs = inner_kwargs | {"device": torch.device("cpu")}
        result = func(*inner_args, **inner_kwargs)
        if not leaves or not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            return result
        if func.overloadpacket is torch.ops.aten.copy_ and not isinstance(args[0], OnDevice):
            return args[0]
        wrapped = pytree.tree_map_only(Tensor, OnDevice, result)
        for tensor in pytree.tree_leaves(wrapped):
            if isinstance(tensor, Tensor) and tensor.dtype in (torch.double, torch.complex128):
                raise NotOnDevice(f"{name} makes {tensor.dtype} on the device, which Apple's GPU does not have")
        return return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _check(self, func: Any, name: str, tensors: list[Tensor], args: Any, moves: bool) -> None:
        packet = name.split(".")[0]
        self.seen.add(name)
        if func.namespace != "aten" or not kernels().get(name, set()) & {"MPS", *COMPOSITE}:
            raise NotOnDevice(f"{func.name()} has no kernel for Apple's GPU")
        here = {isinstance(tensor, OnDevice) for tensor in tensors if tensor.ndim}
        if len(here) > 1 and packet not in MOVING:
            raise NotOnDevice(f"{name} takes tensors of the device and of the CPU")
        masks = args[1] if packet in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        waits = packet in SYNCHRONIZING or any(m is not None and m.dtype in (torch.bool, torch.uint8) for m in masks)
        crosses = moves or (packet in MOVING and len({isinstance(t, OnDevice) for t in tensors}) > 1)
        if self.in_step and (waits or (crosses and tensors)):
            raise NotOnDevice(f"{name} makes the host wait for the device inside a step")
