"""Tensors of a state dict as entries of a packed file: codes on a grid, codes of a list of levels, or plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from codeq.common.errors import CodeqError
from codeq.export.entropy import MOST_SYMBOLS, frequencies
from codeq.export.grids import Grid

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of the same size


class Entry(BaseModel):
    """Description of one tensor; a file with anything else in its place is refused.

    Parameters
    ----------
    name : str
        Name in the state dict.
    dtype : str
        Key of `DTYPES`.
    shape : list of int
        Its shape.
    form : {"plain", "grid", "levels", "same"}
        Numbers as they are; codes `q` of a `Grid`; numbers of entries in a list of values; another tensor's memory.
    lowest : int
        Code of symbol 0 on a grid.
    symbols : int
        Number of symbols.
    scales : int
        Number of grids: 1, or one per output channel.
    groups : int or None
        See `Grid`.
    same : str
        Name of the tensor that this one is.
    hidden : bool
        Whether the tensor is a constant of the structure that the state dict does not name.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=1000)
    dtype: str
    shape: list[int] = Field(max_length=64)
    form: Literal["plain", "grid", "levels", "same"] = "plain"
    lowest: int = Field(0, ge=-(1 << 20), le=1 << 20)
    symbols: int = Field(0, ge=0, le=MOST_SYMBOLS)
    scales: int = Field(1, ge=1)
    groups: int | None = Field(None, ge=1)
    same: str = ""
    hidden: bool = False

    def check(self) -> None:
        """Raise a `CodeqError` for a name that is none of a state dict, an unknown type or an impossible shape."""
        # Modules may be called `conv[0]` or `3a/1x1`. Whoever makes a file name of it stays in the folder.
        if not (self.name.isprintable() and all(self.name.split(".")) and self.name[0] != "/"):
            raise CodeqError(
                f"tensor {self.name!r:.200}: must be a dotted name of a state dict, of printable characters, the first "
                "of them no /"
            )
        if self.dtype not in DTYPES:
            raise CodeqError(f"tensor {self.name!r:.200} has type {self.dtype!r:.200}; allowed: {', '.join(DTYPES)}")
        if any(size < 0 or size >= 1 << 40 for size in self.shape):
            raise CodeqError(f"tensor {self.name!r:.200} has shape {self.shape!r:.200}")
        coded = self.form in ("grid", "levels")
        if (coded and not DTYPES[self.dtype].is_floating_point) or (coded and self.symbols < 1):
            raise CodeqError(f"tensor {self.name!r:.200}: {self.form} takes floating-point weights and symbols")
        if self.form == "grid" and self.scales not in (1, self._channels()):
            raise CodeqError(f"tensor {self.name!r:.200} has {self.scales} grids for {self._channels()} channels")
        if self.groups is not None and (len(self.shape) < 2 or self.shape[0] % self.groups):
            raise CodeqError(f"tensor {self.name!r:.200} of shape {self.shape!r:.200} has no {self.groups} groups")

    def _channels(self) -> int:
        if self.groups is None:
            return self.shape[0] if self.shape else 1
        return self.shape[1] * self.groups if len(self.shape) > 1 else 0

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def plain_bytes(self) -> int:
        """Bytes that the tensor takes in the section of plain numbers."""
        size = DTYPES[self.dtype].itemsize
        return size * {"plain": self.elements, "grid": 2 * self.scales, "levels": self.symbols, "same": 0}[self.form]


@dataclass(frozen=True, eq=False)
class Stored:
    """An entry with its data.

    Parameters
    ----------
    entry : Entry
        Description.
    plain : bytes
        Plain numbers, scales or levels.
    symbols : array of int or None
        Symbols to encode, flattened.
    """

    entry: Entry
    plain: bytes
    symbols: np.ndarray | None = None


def store(state: Mapping[str, Tensor], grids: Mapping[str, Grid], hidden: Iterable[str] = ()) -> list[Stored]:
    """Choose the form of each tensor of a state dict: the smallest that gives it back bit for bit.

    A weight of -0.0, which quantizers make of small negative weights, becomes 0.0: its sign would cost a bit a weight.

    Parameters
    ----------
    state : mapping of str to Tensor
        Tensors by name, on the CPU.
    grids : mapping of str to Grid
        By the name of the layer, whose ``weight`` it is for.
    hidden : iterable of str
        Names of constants of the structure.
    """
    stored: list[Stored] = []
    first: dict[Any, str] = {}
    constants = set(hidden)
    for name, tensor in state.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES or tensor.is_sparse or tensor.is_quantized:
            raise CodeqError(f"{name}: a tensor of {tensor.dtype} cannot be packed; allowed: {', '.join(DTYPES)}")
        known: dict[str, Any] = {
            "name": name, "dtype": dtype, "shape": list(tensor.shape), "hidden": name in constants
        }  # fmt: skip
        # Tied weights are one tensor under several names.
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()
        if tensor.numel() and place in first:
            stored.append(Stored(Entry(**known, form="same", same=first[place]), b""))
        else:
            first[place] = name
            layer = name.rpartition(".")[0]
            stored.append(_smallest(known, tensor.detach().contiguous(), grids.get(layer)))
        stored[-1].entry.check()
    return stored


def _smallest(known: dict[str, Any], tensor: Tensor, grid: Grid | None) -> Stored:
    if not tensor.is_floating_point() or tensor.ndim < 2 or not str(known["name"]).endswith("weight"):
        return Stored(Entry(**known), _to_bytes(tensor))
    tensor = tensor + 0.0  # -0.0 becomes 0.0
    if grid is not None and grid.step.dtype == tensor.dtype:
        codes = grid.codes(tensor)
        lowest, highest = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
        if highest - lowest < MOST_SYMBOLS and _identical(grid.weights(codes, tensor.dtype), tensor):
            scales = torch.cat([grid.step.reshape(-1), grid.shift.reshape(-1)])
            entry = Entry(
                **known, form="grid", lowest=lowest, symbols=highest - lowest + 1, scales=grid.step.numel(),
                groups=grid.groups,
            )  # fmt: skip
            return Stored(entry, _to_bytes(scales), (codes - lowest).ravel())
    levels, symbols = np.unique(_as_integers(tensor).numpy(), return_inverse=True)
    if 0 < len(levels) <= min(MOST_SYMBOLS, tensor.numel() // 4):
        entry = Entry(**known, form="levels", symbols=len(levels))
        return Stored(entry, levels.tobytes(), symbols.ravel())
    return Stored(Entry(**known), _to_bytes(tensor))


def restore(entries: list[Entry], plain: bytes, symbols: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the tensors of entries that have been checked, given their plain numbers and decoded symbols."""
    state: dict[str, Tensor] = {}
    at = 0
    for entry in entries:
        dtype, data = DTYPES[entry.dtype], plain[at : at + entry.plain_bytes]
        at += entry.plain_bytes
        if entry.form == "same":
            state[entry.name] = state[entry.same]
        elif entry.form == "grid":
            step, shift = _from_bytes(data, dtype).chunk(2)
            shape = (entry.scales, *(1,) * (len(entry.shape) - 1)) if entry.scales > 1 else ()
            grid = Grid(step.reshape(shape), shift.reshape(shape), entry.groups)
            state[entry.name] = grid.weights(
                symbols[entry.name].reshape(entry.shape).astype(np.int64) + entry.lowest, dtype
            )
        elif entry.form == "levels":
            index = torch.from_numpy(symbols[entry.name].astype(np.int64))
            state[entry.name] = _from_bytes(data, dtype)[index].reshape(entry.shape)
        else:
            state[entry.name] = _from_bytes(data, dtype).reshape(entry.shape)
    return state


def symbol_counts(stored: Stored) -> np.ndarray:
    """Return the table of frequencies of the symbols of an entry."""
    counts = frequencies(cast(np.ndarray, stored.symbols))
    return np.pad(counts, (0, stored.entry.symbols - len(counts)))


def _as_integers(tensor: Tensor) -> Tensor:
    return tensor.view(_BYTES[tensor.element_size()])


def _identical(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(_as_integers(first), _as_integers(second))


def _to_bytes(tensor: Tensor) -> bytes:
    numbers = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return numbers.tobytes()


def _from_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    if not data:
        return torch.empty(0, dtype=dtype)
    if dtype is torch.bool:  # any other byte than 0 and 1 is not a bool
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(data), dtype=dtype)
