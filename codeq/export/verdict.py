"""The verdict on an exported file: it is executed on the whole test set, compared and timed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from codeq.common.atomic import write_atomically
from codeq.common.equality import relative_error
from codeq.common.errors import CodeqError
from codeq.common.locks import locked
from codeq.common.progress import counter
from codeq.common.timing import time_in_turns
from codeq.export.runtimes import Runner

BATCHES = (1, 64)  # of the latencies


@dataclass(frozen=True)
class Comparison:
    """Differences of the logits of an exported file from those of the run's network.

    Parameters
    ----------
    max_error : float
        Largest absolute difference of a logit.
    relative_error : float
        Largest difference relative to the largest absolute logit, where masks such as ``-1e30`` do not count, see
        `codeq.common.equality.relative_error`.
    flipped, inputs : int
        Test images whose predicted class differs, and all of them.
    accuracy, reference_accuracy : float
        Fraction of right predictions of the file and of the run's network.
    """

    max_error: float
    relative_error: float
    flipped: int
    inputs: int
    accuracy: float
    reference_accuracy: float


@dataclass(frozen=True)
class Verdict:
    """One entry of ``verdict.json``.

    Parameters
    ----------
    format, file : str
        Format and name of the file.
    bytes : int
        Size of the file.
    checkpoint : str
        File name of the checkpoint whose weights it has, as ``step-7820.pt``.
    compacted : bool
        Whether it is the network without dead channels, or the whole one.
    runtime, threads : str, int
        What executed it, and how many threads it used.
    comparison : Comparison
        On the test set.
    latency_ms : dict of str to float
        Median time of a batch by its size, ms.
    compared : dict
        Bytes and latency in the same runtime of ``dense float``, ``compacted float`` and ``compacted int8``, where the
        runtime has them; of a network that is exported whole, ``dense float`` and ``dense int8``.
    weight_errors : dict of str to float
        For integer formats: layers whose weights the integers do not hold exactly, with the largest difference relative
        to the largest weight.
    parts : dict of str to int
        For a packed file: bytes of its parts.
    weight_bits : dict of str to int
        For a file with weights of 4 bits: bits of the weights of each layer, 4 or 8.
    """

    format: str
    file: str
    bytes: int
    checkpoint: str
    compacted: bool
    runtime: str
    threads: int
    comparison: Comparison
    latency_ms: dict[str, float]
    compared: dict[str, Any]
    weight_errors: dict[str, float] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    weight_bits: dict[str, int] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        plain = asdict(self)
        return {**{key: plain[key] for key in ("format", "file", "bytes")}, **plain.pop("comparison"), **plain}


def compare(reference: Iterable[np.ndarray], exported: Runner, batches: Iterable[Any]) -> Comparison:
    """Run an exported network on test images and compare its logits with those of the run's network.

    Parameters
    ----------
    reference : iterable of ndarray
        Logits `[N, classes]` of each batch.
    exported : callable
        Logits `[N, classes]` of images.
    batches : iterable of (Tensor, Tensor)
        Images and labels.

    Raises
    ------
    CodeqError
        If a result has another shape or is not finite, or there are no images.

    Examples
    --------
    >>> import torch
    >>> batches = [(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))]
    >>> double = compare([np.array([[1.0, 3.0]])], lambda x: 2 * x, batches)
    >>> double.max_error, double.relative_error, double.flipped, double.accuracy
    (3.0, 1.0, 0, 1.0)
    """
    error = relative = 0.0
    flipped = inputs = right = expected_right = 0
    for expected, (images, labels) in zip(reference, batches, strict=True):
        wanted, found = labels.numpy(), exported(images.numpy())
        if found.shape != expected.shape:
            raise CodeqError(f"the exported file returns {list(found.shape)}, the network {list(expected.shape)}")
        if not (np.isfinite(found).all() and np.isfinite(expected).all()):
            raise CodeqError("the exported file or the network returns NaN or inf: it proves nothing")
        difference = np.abs(expected - found)
        error = max(error, float(difference.max(initial=0)))
        relative = max(relative, relative_error(expected, difference))
        flipped += int((expected.argmax(1) != found.argmax(1)).sum())
        right += int((found.argmax(1) == wanted).sum())
        expected_right += int((expected.argmax(1) == wanted).sum())
        inputs += len(wanted)
    if not inputs:
        raise CodeqError("there are no test images to execute the exported file on")
    return Comparison(error, relative, flipped, inputs, right / inputs,
                      expected_right / inputs)  # fmt: skip


def measure_latency(runners: Mapping[str, Runner], input_size: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the median time in ms of a batch of each size in `BATCHES`, for each runner, on random images."""
    times: dict[str, dict[str, float]] = {name: {} for name in runners}
    with counter(len(BATCHES), "timing", "batch size") as bar:
        for batch in BATCHES:
            x = np.random.default_rng(0).random((batch, *input_size), dtype=np.float32)
            calls = {name: partial(run, x) for name, run in runners.items()}
            for call in calls.values():  # chooses kernels
                call()
            for name, found in time_in_turns(calls).items():
                times[name][str(batch)] = 1e3 * found.median
            bar.update()
    return times


def record(folder: Path, verdict: Verdict, files: Sequence[Path]) -> None:
    """Copy the files of a format to `folder`, and write its verdict to ``verdict.json``, in place of earlier ones.

    A copy that fails changes neither the earlier files nor their verdict, and leaves nothing.
    """
    copies = {path: folder / f".{path.name}" for path in files}
    with locked(folder / ".lock", wait=True):  # several exports of one run may go on side by side
        try:
            for path, copied in copies.items():  # since another format of this export may need the files, too
                shutil.copyfile(path, copied)
            others = _without(folder, verdict.format)
            for path, copied in copies.items():
                copied.replace(folder / path.name)
        finally:
            for copied in copies.values():
                copied.unlink(missing_ok=True)
        write_atomically(folder / "verdict.json", json.dumps([*others, verdict.entry()], indent=1).encode())


def remove(folder: Path, format_name: str, files: Sequence[str]) -> None:
    """Remove the files of a format from `folder`, and its verdict, if there are any."""
    if not folder.is_dir():
        return
    with locked(folder / ".lock", wait=True):
        _without(folder, format_name)
        for name in files:
            (folder / name).unlink(missing_ok=True)


def _without(folder: Path, format_name: str) -> list[dict[str, Any]]:
    """Remove the verdict of a format from ``verdict.json``, and return those that are left.

    This comes before any change of the files: a process that is killed in between leaves files without a verdict, and
    no verdict on other files.
    """
    entries = read_verdicts(folder)
    left = [entry for entry in entries if entry["format"] != format_name]
    if left and len(left) < len(entries):
        write_atomically(folder / "verdict.json", json.dumps(left, indent=1).encode())
    elif entries and not left:
        (folder / "verdict.json").unlink()
    return left


def read_verdicts(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of ``verdict.json`` in `folder`; none if nothing has been exported.

    Raises
    ------
    CodeqError
        If the file is damaged.
    """
    path = folder / "verdict.json"
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CodeqError(f"{path} is damaged: {error}") from error
    if not isinstance(found, list) or not all(isinstance(e, dict) and "format" in e for e in found):
        raise CodeqError(f"{path} is damaged: must be a list of verdicts")
    return found
