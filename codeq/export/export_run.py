"""Export of the network of a run, with the verdict on the file."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from codeq.common.checks import check_collection, is_number
from codeq.common.errors import CodeqError, quote, unknown_name
from codeq.common.paths import make_folder, writing
from codeq.common.progress import counted
from codeq.compaction import compact
from codeq.config import ExperimentConfig
from codeq.data import BaseDataset, load_dataset, training_part
from codeq.export.builders import BUILDERS, INTEGER_FORMATS, Source
from codeq.export.grids import compacted_grids, layer_grids
from codeq.export.program import EXAMPLES
from codeq.export.runtimes import file_bytes, run_torch, runtime_errors
from codeq.export.verdict import Comparison, Verdict, compare, measure_latency, record, remove
from codeq.graph.baking import baked_copy
from codeq.quantizer.activations import ActivationQuantizer
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointName, checkpoint_entry
from codeq.runs.networks import whole_network
from codeq.runs.references import require_run

BATCH = 64  # images
CALIBRATION_BATCHES = 8
# Largest relative difference of a logit of a float file, and largest fraction of flipped predictions of one that rounds
# activations: a value at the middle of two levels takes the other one after a difference of 1e-7, in any float format.
FLOAT_TOLERANCE, FLIP_TOLERANCE = 1e-4, 0.005


class RefusedExport(CodeqError):
    """One or more formats that were not exported, with a reason for each; the others were."""


def export_run(
    run: Run,
    to: Sequence[str],
    checkpoint: CheckpointName | str = "last",
    whole: bool = False,
    tolerance: float | None = None,
    calibrated: nn.Module | None = None,
    int4: bool = False,
) -> Iterator[Verdict]:
    """Export the network of a run to ``exports/`` in its folder, execute each file on the test set, and time it.

    A file and its entry in ``exports/verdict.json`` appear only if the verdict is within the tolerance.

    Parameters
    ----------
    run : Run
        With a checkpoint; its data set has to be available.
    to : sequence of {"onnx", "qdq", "qonnx", "openvino", "pt2", "packed"}
        Formats.
    checkpoint : {"last", "best"} or str
        Checkpoint to export, as of `Run.load_model`.
    whole : bool
        Export the network as it was trained, not compacted.
    tolerance : float, optional
        For float formats the largest difference of a logit, relative to the largest logit of the run's network (default
        1e-4). For ``qdq`` and ``qonnx``, and for all formats of a run with quantized activations, the largest fraction
        of test images whose predicted class differs (default 0.005).
    calibrated : Module, optional
        The run's network with calibrated quantizers of activations, see `codeq.analysis.calibrate_run`: integer formats
        take their scales. Default: those that the run has trained, if any.
    int4 : bool
        Store the weights of ``qdq`` in 4 bits in layers where these hold them, which makes the file smaller and slower.

    Yields
    ------
    Verdict
        For each format, once its file is complete.

    Raises
    ------
    CodeqError
        Before the work, for an unknown format and a run that cannot be exported.
    RefusedExport
        At the end, after all other formats, for those whose verdict is above the tolerance, whose package is missing,
        or that cannot express the network.
    """
    check_export(to, tolerance, int4)
    file = checkpoint_entry(require_run(run).checkpoints, checkpoint).file
    yield from export_network(run, run.load_model(file), file, to, whole, tolerance, calibrated, int4)


def export_network(
    run: Run, model: nn.Module, file: str, to: Sequence[str], whole: bool, tolerance: float | None,
    calibrated: nn.Module | None, int4: bool,
) -> Iterator[Verdict]:  # fmt: skip
    """Export the network `model` of a run, which was read from its checkpoint `file`; the rest as `export_run`."""
    config = run.config
    whole_set = load_dataset(config.dataset, config.data_dir, config.img_size)
    dataset = training_part(whole_set, config.validation, config.seed)  # of which activations are calibrated
    with writing(run.folder):
        made = tempfile.TemporaryDirectory(prefix=".exports-", dir=run.folder)
    with made:
        source = _source(model, config, dataset, whole, Path(made.name), calibrated, int4, file)
        reference = run_torch(source.trained)
        expected = [reference(images.numpy()) for images, _ in counted(dataset.test_batches(BATCH), "evaluating")]
        refusals = []
        for name in dict.fromkeys(to):
            try:
                verdict = _export(source, expected, name, dataset, tolerance, run.folder / "exports")
            except CodeqError as error:
                refusals.append(f"{name}: {error}")
            else:
                yield verdict
    if refusals:
        raise RefusedExport("\n".join(refusals))


def check_export(to: Sequence[str], tolerance: float | None = None, int4: bool = False) -> None:
    """Raise a `CodeqError` for arguments of `export_run` that no run can be exported with."""
    check_collection("to", to)
    if not to:
        raise CodeqError(f"no format to export to: must be one or more of {', '.join(BUILDERS)}")
    for name in to:
        if name not in BUILDERS:
            raise unknown_name("format", name, BUILDERS)
    if int4 and "qdq" not in to:
        raise CodeqError("int4: weights of 4 bits are for the format qdq, which is none of those to export")
    if tolerance is not None and not (is_number(tolerance) and 0 <= float(tolerance) < 1):
        raise CodeqError(f"tolerance={quote(tolerance)}: must be a fraction, at least 0 and below 1")


def _export(
    source: Source, expected: list[np.ndarray], to: str, dataset: BaseDataset, tolerance: float | None, folder: Path
) -> Verdict:
    with writing(folder), runtime_errors():
        built = BUILDERS[to](source)
    compared = {name: runner for name, (_, runner) in built.compared.items()}
    try:
        with runtime_errors():
            found = compare(expected, built.runner, counted(dataset.test_batches(BATCH), f"comparing {to}"))
            _judge(to in INTEGER_FORMATS or _rounds(source.network), found, tolerance)
            times = measure_latency({to: built.runner, **compared}, dataset.input_size)
    except CodeqError:
        remove(folder, to, [path.name for path in built.files])  # an earlier one may be of other weights
        raise
    sizes = {name: file_bytes(*paths) if paths else None for name, (paths, _) in built.compared.items()}
    verdict = Verdict(
        to, built.files[0].name, file_bytes(*built.files), source.checkpoint, source.network is not source.trained,
        built.runtime, torch.get_num_threads(), found, times[to],
        {name: {"bytes": sizes[name], "latency_ms": times[name]} for name in compared},
        {name: error for name, error in built.weight_errors.items() if error}, built.parts, built.weight_bits,
    )  # fmt: skip
    make_folder(folder)
    with writing(folder):
        record(folder, verdict, built.files)
    return verdict


def _source(
    model: nn.Module, config: ExperimentConfig, dataset: BaseDataset, whole: bool, folder: Path,
    calibrated: nn.Module | None, int4: bool, checkpoint: str,
) -> Source:  # fmt: skip
    example = next(iter(dataset.test_batches(EXAMPLES)))[0]
    trained, grids = baked_copy(model), layer_grids(model)
    dense = whole_network(trained, config, dataset.num_classes)
    network, report = trained, None if whole else compact(model, example)
    if report:
        network, grids = baked_copy(report.model), compacted_grids(grids, report)
    scaled = network
    if calibrated is not None:
        scaled = copy.deepcopy(calibrated)
        scaled.load_state_dict(model.state_dict(), strict=False)  # of the exported checkpoint
        scaled = baked_copy(scaled if whole else compact(scaled, example).model)
    images = dataset.first_images(BATCH, CALIBRATION_BATCHES, seed=0)
    return Source(model, trained, network, dense, grids, scaled, example, images, folder, int4, checkpoint)


def _rounds(network: nn.Module) -> bool:
    """Return whether a network quantizes activations."""
    return any(isinstance(module, ActivationQuantizer) and module.enabled for module in network.modules())


def _judge(by_flips: bool, found: Comparison, tolerance: float | None) -> None:
    if by_flips:
        limit = FLIP_TOLERANCE if tolerance is None else tolerance
        if found.flipped > limit * found.inputs:
            raise CodeqError(
                f"{found.flipped} of {found.inputs} predictions flip, more than the tolerance of {limit:.2%} "
                f"(accuracy {found.accuracy:.2%}, {found.reference_accuracy:.2%} before); nothing is kept. "
                "--tolerance T allows a larger fraction"
            )
        return
    limit = FLOAT_TOLERANCE if tolerance is None else tolerance
    if not found.relative_error <= limit:
        raise CodeqError(
            f"the largest difference of a logit is {found.relative_error:.1e} of the largest logit, more than "
            f"the tolerance of {limit:.0e}; {found.flipped} of {found.inputs} predictions flip; nothing is kept. "
            "--tolerance T allows a larger one"
        )
