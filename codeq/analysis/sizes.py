"""Bytes of the network of a run in every form: float, packed, entropy-coded, compacted, exported."""

from __future__ import annotations

import gzip
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codeq.analysis.exports import other_checkpoints
from codeq.analysis.network import input_size_of
from codeq.common.errors import CodeqError
from codeq.compaction.origins import origins_of
from codeq.export import save_packed
from codeq.export.verdict import read_verdicts
from codeq.graph.baking import baked_copy
from codeq.metrics import storage_bytes
from codeq.runs import Run
from codeq.runs.checkpoints import peek_checkpoint
from codeq.runs.networks import whole_network
from codeq.runs.references import require_run

if TYPE_CHECKING:
    import pandas as pd

FILES = {
    "onnx": "ONNX, float32", "qdq": "ONNX QDQ, 8 bit", "qonnx": "QONNX", "openvino": "OpenVINO, float32",
    "pt2": "torch.export, float32", "packed": "packed file",
}  # fmt: skip


def size_table(run: Run) -> pd.DataFrame:
    """Return the bytes of the network of a run, last checkpoint, in each form.

    Parameters
    ----------
    run : Run
        With a checkpoint. Files are those of ``codeq export``, as ``exports/verdict.json`` records them.

    Returns
    -------
    DataFrame
        One row per form: `form`, `bytes`, `relative` (a fraction of the first row). ``float32``: all parameters and
        statistics of the whole network, before any compaction, shared ones once, complex numbers as two. ``float32,
        compacted``: those of the checkpoint, where its training began with a compacted network. ``gzip of float32``:
        the same with quantized weights, compressed. ``packed codes``: weights at their learned bits, the rest float32.
        ``packed and entropy-coded``: what `save_packed` writes without a structure; left out if constriction is not
        installed, or it cannot pack a tensor. Then the exported files; that of another checkpoint names it.

    Raises
    ------
    CodeqError
        If there is no intact checkpoint.
    """
    import pandas as pd

    model = require_run(run).load_model()
    numbers = _numbers(model)
    rows = {"float32": len(numbers)}
    if origins_of(model):
        state = peek_checkpoint(run.checkpoints)
        assert state is not None  # the network was loaded from one
        whole = whole_network(model, run.config, state["num_classes"])
        rows = {"float32": len(_numbers(whole)), "float32, compacted": len(numbers)}
    stored = storage_bytes(model, input_size_of(run, model))
    rows["gzip of float32"] = len(gzip.compress(numbers, 9))
    rows["packed codes"] = len(numbers) - stored.float32 + stored.packed
    with tempfile.TemporaryDirectory() as folder, suppress(CodeqError):
        rows["packed and entropy-coded"] = save_packed(model, Path(folder) / "model.codeq")
    verdicts = read_verdicts(run.folder / "exports")
    others = other_checkpoints(run, verdicts)
    for entry in verdicts:
        made_of = f" from {others[entry['format']]}" if entry["format"] in others else ""
        rows[f"{FILES[entry['format']]} (exported{made_of})"] = entry["bytes"]
    table = pd.DataFrame({"form": list(rows), "bytes": list(rows.values())})
    return table.assign(relative=table["bytes"] / table["bytes"].iloc[0])


def _numbers(model: nn.Module) -> bytes:
    """Return all parameters and statistics of a network, quantized ones as they are, as float32."""
    tensors = dict.fromkeys(baked_copy(model).state_dict(keep_vars=True).values())  # which names a shared one twice
    return torch.cat([*map(_real_numbers, tensors)]).numpy().tobytes()


def _real_numbers(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor as float32, two for a complex one; none for integers."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    numbers = tensor.detach() if tensor.is_floating_point() else tensor.new_empty(0)
    return numbers.float().reshape(-1)
