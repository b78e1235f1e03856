"""Tables of the exported files of a run, from the verdicts on them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from codeq.common.errors import CodeqError
from codeq.export.verdict import read_verdicts
from codeq.runs import Run
from codeq.runs.checkpoints import checkpoint_entry
from codeq.runs.references import require_run

if TYPE_CHECKING:
    import pandas as pd


def verdict_table(run: Run) -> pd.DataFrame:
    """Return one row for each exported file of a run.

    Returns
    -------
    DataFrame
        `format`, `file`, `bytes`, `checkpoint` (file name; `None` in verdicts of earlier versions), `max_error` (of a
        logit), `flipped` (predictions, of `inputs` test images), `accuracy` and `reference_accuracy` (fractions),
        `runtime`, `threads`, and the median latency of a batch, `ms_1` and `ms_64`.

    Raises
    ------
    CodeqError
        If nothing has been exported.
    """
    import pandas as pd

    columns = ["format", "file", "bytes", "checkpoint", "max_error", "flipped", "inputs", "accuracy",
               "reference_accuracy", "runtime", "threads"]  # fmt: skip
    rows = [
        {name: entry.get(name) for name in columns} | {f"ms_{size}": ms for size, ms in entry["latency_ms"].items()}
        for entry in _verdicts(run)
    ]
    return pd.DataFrame(rows)


def latency_table(run: Run) -> pd.DataFrame:
    """Return the latency of the dense, the compacted and the integer network in each runtime.

    Returns
    -------
    DataFrame
        One row per exported format, network and batch: `format`, `checkpoint` (see `other_checkpoints`), `runtime`,
        `threads`, `model` (``dense float``, ``compacted float``, ``compacted int8``, ``dense int8``), `batch`, `ms`
        (median of a batch), `bytes`. Formats whose runtime is not made for speed, as qonnx's executor, are left out;
        without others there are no rows.

    Raises
    ------
    CodeqError
        If nothing has been exported.
    """
    import pandas as pd

    verdicts = _verdicts(run)
    others = other_checkpoints(run, verdicts)
    rows = [
        {
            "format": entry["format"], "checkpoint": others.get(entry["format"]),
            "runtime": entry["runtime"].partition(" ")[0], "threads": entry["threads"],
            "model": model, "batch": int(batch), "ms": ms, "bytes": found["bytes"],
        }
        for entry in verdicts
        for model, found in entry["compared"].items()
        for batch, ms in found["latency_ms"].items()
    ]  # fmt: skip
    columns = ["format", "checkpoint", "runtime", "threads", "model", "batch", "ms", "bytes"]
    return pd.DataFrame(rows, columns=columns)


def other_checkpoints(run: Run, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the file name of the checkpoint of each exported format that was not made from the run's last one.

    `verdicts` are those on its files, see `codeq.export.verdict.read_verdicts`. Those of earlier versions of
    codeq name none, and count as those of the last one.
    """
    made_of = {entry["format"]: entry.get("checkpoint") for entry in verdicts}
    last = None
    with suppress(CodeqError):  # the checkpoints are gone
        last = checkpoint_entry(run.checkpoints).file if any(made_of.values()) else None
    return {name: checkpoint for name, checkpoint in made_of.items() if checkpoint and checkpoint != last}


def _verdicts(run: Run) -> list[dict[str, Any]]:
    found = read_verdicts(require_run(run).folder / "exports")
    if not found:
        command = f"codeq export {shlex.quote(str(run.folder))} --to onnx"
        raise CodeqError(f"{run.folder} has no exported files; {command} writes one")
    return found
