"""Packed files: a whole network in one file, with the codes of its weights entropy-coded."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.common.paths import path_text, writing
from codeq.export.container import DESCRIPTION_LIMIT, Sections, deflate, inflate, join, read
from codeq.export.entropy import decode, encode, entropy_bytes
from codeq.export.grids import Grid, layer_grids
from codeq.export.structure import PackedNetwork, trace_structure
from codeq.export.tensors import Entry, restore, store, symbol_counts
from codeq.export.varints import read_varints, varints
from codeq.graph.baking import baked_copy

# A file of n bytes holds at most this many numbers, so that a small file cannot ask for all of the memory.
FREE_ELEMENTS, ELEMENTS_PER_BYTE = 1 << 24, 1 << 12
_ENTRIES = TypeAdapter(list[Entry])


@dataclass(frozen=True)
class PackedSizes:
    """Bytes of the parts of a packed file.

    Parameters
    ----------
    codes : int
        Entropy-coded weights.
    bound : int
        Lower bound of `codes`: weights × entropy of their codes, summed over the layers, as the ledger states it.
    fixed : int
        The same codes at a fixed number of bits each, enough for the codes that occur in a layer.
    tables : int
        Frequencies of the codes.
    floats : int
        Everything else that is a number: scales, biases, BatchNorm, layers that are not quantized.
    description : int
        Names, shapes and the structure.
    total : int
        The file.
    """

    codes: int
    bound: int
    fixed: int
    tables: int
    floats: int
    description: int
    total: int


@torch.no_grad()
def save_packed(
    model: nn.Module,
    file: str | os.PathLike[str],
    example: Tensor | None = None,
    grids: Mapping[str, Grid] | None = None,
) -> int:
    """Write the weights of a network, entropy-coded, and optionally its structure to one file.

    The file appears complete, after it has been read back and compared bit for bit.

    Parameters
    ----------
    model : Module
        With or without quantizers; left as it is.
    file : path
        File to write; an existing one is replaced.
    example : Tensor, optional
        `[N, …]`, a batch of inputs: with it, the file holds the structure, too, see `load_packed_network`.
    grids : mapping of str to Grid, optional
        Grids of layers whose weights lie on one without a quantizer, as in a compacted network.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    CodeqError
        If constriction is not installed, a tensor or the structure cannot be expressed, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Linear(64, 32))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {"max_bits": 3})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save_packed(net, f"{folder}/net.codeq")
    ...     state = load_packed(f"{folder}/net.codeq")
    >>> size < 4 * 64 * 32 / 4, torch.equal(state["0.weight"], net[0].weight)
    (True, True)
    """
    baked = baked_copy(model).cpu()
    structure: dict[str, Any] | None = None
    constants: dict[str, Tensor] = {}
    if example is not None:
        structure, constants = trace_structure(baked, example.cpu())
    state = {**baked.state_dict(), **constants}
    stored = store(state, {**layer_grids(model), **(grids or {})}, constants)
    coded = [one for one in stored if one.symbols is not None]
    counts = [symbol_counts(one) for one in coded]
    description = {"tensors": [one.entry.model_dump(exclude_defaults=True) for one in stored], "structure": structure}
    sections = Sections(
        deflate(json.dumps(description, separators=(",", ":"), allow_nan=False).encode()),
        deflate(varints(np.concatenate(counts) if counts else np.empty(0, np.int64))),
        deflate(b"".join(one.plain for one in stored)),
        encode([one.symbols for one in coded if one.symbols is not None]),
    )
    data, path = join(sections), Path(path_text(file))
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with writing(path):
            unfinished.write_bytes(data)
        _check_identical(state, _load(unfinished)[0])
        with writing(path):
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return len(data)


def load_packed(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights of a packed file: the state dict of the network with plain weights, bit for bit.

    Coded weights of -0.0 have become 0.0. Nothing in the file is executed.

    Raises
    ------
    CodeqError
        If the file cannot be read, is damaged or truncated, or holds anything that `save_packed` does not write.
    """
    state, description = _load(Path(path_text(file)))
    hidden = {entry.name for entry in _entries(description) if entry.hidden}
    return {name: tensor for name, tensor in state.items() if name not in hidden}


def load_packed_network(file: str | os.PathLike[str]) -> PackedNetwork:
    """Read the network of a packed file that was saved with its structure, ready to run.

    It needs no code of the model. The operations of the file are carried out only if they belong to PyTorch's core ATen
    set, functions that compute tensors from tensors; how much they compute is up to the file.

    Raises
    ------
    CodeqError
        As `load_packed`, and if the file has no structure.
    """
    state, description = _load(Path(path_text(file)))
    if description["structure"] is None:
        raise CodeqError(f"{file} holds weights only; save_packed(model, file, example) adds the structure")
    return PackedNetwork(description["structure"], state).eval()


def packed_sizes(file: str | os.PathLike[str]) -> PackedSizes:
    """Return the bytes of the parts of a packed file.

    Raises
    ------
    CodeqError
        As `load_packed`.
    """
    path = Path(path_text(file))
    sections = read(path)
    description = _describe(sections)
    entries = _checked_entries(description, sum(map(len, sections.parts)))
    tables = _tables(sections, entries)
    bound = sum(np.ceil(entropy_bytes(table)) for table in tables)
    fixed = sum(-(-int(table.sum()) * max(len(table) - 1, 1).bit_length() // 8) for table in tables)
    described, counted, floats, codes = map(len, sections.parts)
    return PackedSizes(codes, int(bound), fixed, counted, floats, described, path.stat().st_size)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    sections = read(path)
    description = _describe(sections)
    entries = _checked_entries(description, sum(map(len, sections.parts)))
    tables = _tables(sections, entries)
    needed = sum(entry.plain_bytes for entry in entries)
    plain = inflate(sections.floats, needed, "floats")
    if len(plain) != needed:
        raise CodeqError(f"section floats has {len(plain):,} bytes, the tensors take {needed:,}")
    coded = [entry.name for entry in entries if entry.form in ("grid", "levels")]
    symbols = dict(zip(coded, decode(sections.codes, tables), strict=True))
    return restore(entries, plain, symbols), description


def _describe(sections: Sections) -> dict[str, Any]:
    try:
        found = json.loads(inflate(sections.description, DESCRIPTION_LIMIT, "description"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CodeqError(f"section description is no JSON that can be read: {error}"[:500]) from error
    if not isinstance(found, dict) or found.keys() != {"tensors", "structure"}:
        raise CodeqError("section description must have the keys tensors and structure")
    return found


def _refuse(constant: str) -> None:
    raise CodeqError(f"section description holds {constant}")


def _entries(description: dict[str, Any]) -> list[Entry]:
    try:
        return _ENTRIES.validate_python(description["tensors"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CodeqError(f"tensor {where} of the file: {first['msg']}"[:500]) from error


def _checked_entries(description: dict[str, Any], file_bytes: int) -> list[Entry]:
    entries = _entries(description)
    known: dict[str, Entry] = {}
    for entry in entries:
        entry.check()
        if entry.name in known:
            raise CodeqError(f"tensor {entry.name!r:.200} occurs twice")
        if entry.form == "same":
            other = known.get(entry.same)
            if other is None or (other.dtype, other.shape) != (entry.dtype, entry.shape):
                raise CodeqError(f"tensor {entry.name!r:.200} is said to be {entry.same!r:.200}, which it cannot be")
        known[entry.name] = entry
    elements = sum(entry.elements for entry in entries if entry.form != "same")
    if elements > FREE_ELEMENTS + ELEMENTS_PER_BYTE * file_bytes:
        raise CodeqError(f"the file of {file_bytes:,} bytes announces {elements:,} numbers: more than it can hold")
    return entries


def _tables(sections: Sections, entries: Iterable[Entry]) -> list[np.ndarray]:
    coded = [entry for entry in entries if entry.form in ("grid", "levels")]
    total = sum(entry.symbols for entry in coded)
    numbers = read_varints(inflate(sections.tables, 10 * total, "tables"), total)
    tables = np.split(numbers, np.cumsum([entry.symbols for entry in coded])[:-1]) if coded else []
    for entry, table in zip(coded, tables, strict=True):
        if int(table.sum()) != entry.elements:
            raise CodeqError(f"tensor {entry.name!r:.200}: its table does not count {entry.elements:,} weights")
    return tables


def _check_identical(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Check that what was written is read back; anything else is a mistake of this file."""
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert tensor.shape == found[name].shape
        assert torch.equal(_bits(tensor), _bits(found[name])), name


def _bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, NaN included; -0.0 counts as 0.0."""
    return (tensor.detach() + 0 if tensor.is_floating_point() else tensor).contiguous().reshape(-1).view(torch.uint8)
