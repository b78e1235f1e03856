"""Post-training quantization of the activations of a finished run, and its accuracy before and after."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn

from codeq.common.atomic import new_folder
from codeq.common.errors import CodeqError
from codeq.common.paths import write_by, writing
from codeq.common.progress import counted
from codeq.data import load_dataset, training_part
from codeq.evaluator import Evaluator
from codeq.graph.activations import attach_activation_quantizers, restore_activation_quantizers
from codeq.graph.residuals import residual_adds
from codeq.quantizer.activations import ActivationMethod, ResidualOperands, toggle_activation_quantization
from codeq.quantizer.calibration import calibrate
from codeq.quantizer.modules import check_bits
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointName, checkpoint_entry
from codeq.runs.networks import load_weights
from codeq.runs.references import require_run

FOLDER = "calibrated"
BATCHES = 8  # of training images, whose activations give the ranges


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate_run`.

    Parameters
    ----------
    bits : int
        Of the quantized activations.
    method : str
        See `ActivationQuantizer`.
    symmetric : bool
        See `ActivationQuantizer`.
    checkpoint : str
        Checkpoint of the run.
    layers : list of str
        Layers whose inputs are quantized.
    calibration_images, test_images : int
        Training images that give the ranges, and images of both accuracies.
    accuracy_before, accuracy_after : float
        Fractions, with float and with quantized activations; LSQ steps are at their initial values.
    bops_before, bops_after : float
        Unstructured BOPs as fractions of those of the dense 32-bit network.
    residual : str
        See `attach_activation_quantizers`.
    shared_adds : list of str
        Residual adds whose operands share a quantizer.
    float_adds : dict of str to str
        Residual adds whose operands stay float, where others share, with the reasons.
    exclude_layers : list of str
        Patterns of layers whose inputs stay float.
    """

    bits: int
    method: str
    symmetric: bool
    checkpoint: str
    layers: list[str]
    calibration_images: int
    test_images: int
    accuracy_before: float
    accuracy_after: float
    bops_before: float
    bops_after: float
    residual: str
    shared_adds: list[str]
    float_adds: dict[str, str]
    exclude_layers: list[str]


def calibrate_run(
    run: Run,
    bits: int = 8,
    method: ActivationMethod = "percentile",
    symmetric: bool = False,
    checkpoint: CheckpointName = "last",
    residual: ResidualOperands = "float",
    exclude_layers: Sequence[str] = (),
) -> Calibration:
    """Quantize the activations of a run's network by calibration, and write the result to ``calibrated/``.

    ``calibration.json`` holds the result, ``model.pt`` the state dict with the ranges, for `load_calibrated`. The
    folder appears when both are complete, and replaces an earlier one; the run itself is not changed.

    Parameters
    ----------
    run : Run
        With a checkpoint and float activations; its data set has to be available.
    bits, method, symmetric
        See `ActivationQuantizer`.
    checkpoint : {"last", "best"}
        Checkpoint to calibrate.
    residual, exclude_layers
        See `attach_activation_quantizers`.

    Raises
    ------
    CodeqError
        If the run's activations are quantized already, `bits` is no integer from 2 to 16, there is no intact checkpoint
        or no data set, the run folder is not writable, or the quantizers cannot be attached.
    """
    config = require_run(run).config
    if config.activations:
        raise CodeqError(
            f"{run.folder}: the activations of this run were quantized in its training; nothing to calibrate"
        )
    bits = check_bits("bits", bits)  # an integer of Python, which JSON takes
    with new_folder(run.folder / FOLDER) as folder:
        made_of = checkpoint_entry(run.checkpoints, checkpoint).file
        model = run.load_model(made_of)
        dataset = load_dataset(config.dataset, config.data_dir, config.img_size)
        trained = training_part(dataset, config.validation, config.seed)
        images = trained.first_images(config.batch_size, BATCHES, seed=config.seed)
        evaluator = Evaluator(model, dataset.input_size)
        adds = residual_adds(model, dataset.input_size) if residual == "shared" else []
        layers = attach_activation_quantizers(model, images[0], bits, method, exclude_layers, symmetric, residual)
        calibrate(model, counted(images, "calibrating"))
        toggle_activation_quantization(model, enabled=False)
        tests = dataset.test_batches()
        before = evaluator.evaluate(model, counted(tests, "float activations"))
        toggle_activation_quantization(model, enabled=True)
        after = evaluator.evaluate(model, counted(tests, f"{bits}-bit activations"))
        result = Calibration(
            bits, method, symmetric, checkpoint, layers, sum(map(len, images)), len(dataset.test),
            before.test_accuracy or 0.0, after.test_accuracy or 0.0,
            1 / before.unstructured_bops_ratio, 1 / after.unstructured_bops_ratio, residual,
            [add.name for add in adds if not add.reason], {add.name: add.reason for add in adds if add.reason},
            list(exclude_layers),
        )  # fmt: skip
        entry = {"file": made_of, **asdict(result)}
        with writing(run.folder / FOLDER):
            (folder / "calibration.json").write_text(json.dumps(entry, indent=1))
            write_by(partial(torch.save, model.state_dict()), folder / "model.pt")
    return result


def load_calibrated(run: Run, checkpoint: CheckpointName = "last") -> nn.Module:
    """Return the network that `calibrate_run` wrote, in evaluation mode on the CPU.

    Parameters
    ----------
    run : Run
        That was calibrated.
    checkpoint : {"last", "best"}
        As of `Run.load_model`.

    Raises
    ------
    CodeqError
        If there is no intact checkpoint, and as `calibrated_copy`.
    """
    file = checkpoint_entry(require_run(run).checkpoints, checkpoint).file
    return calibrated_copy(run, run.load_model(file), file, checkpoint)


def calibrated_copy(run: Run, model: nn.Module, file: str, checkpoint: CheckpointName) -> nn.Module:
    """Return a copy of a network of a run with the quantizers of activations that `calibrate_run` wrote.

    Parameters
    ----------
    run : Run
        That was calibrated.
    model : Module
        As `Run.load_model` returns it, of the checkpoint `file`.
    file : str
        Name of the checkpoint's file.
    checkpoint : {"last", "best"}
        Role in which it was read, for the message.

    Raises
    ------
    CodeqError
        If the run has no such result, it is damaged, or that of other weights than those of `file`.
    """
    path = run.folder / FOLDER
    try:
        settings = json.loads((path / "calibration.json").read_text())
        state = torch.load(path / "model.pt", map_location="cpu", weights_only=True)
        bits, method, symmetric = (settings[key] for key in ("bits", "method", "symmetric"))
        calibrated = settings.get("file") or checkpoint_entry(run.checkpoints, settings["checkpoint"]).file
    except OSError as error:
        raise CodeqError(f"{path}: no calibrated network ({error.strerror}); run codeq calibrate first") from error
    except (ValueError, TypeError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CodeqError(f"{path} is damaged, run codeq calibrate again: {error!s:.200}") from error
    if calibrated != file:
        raise CodeqError(
            f"{path} was calibrated with {calibrated}, and the {checkpoint} checkpoint is {file}: run "
            f"codeq calibrate --checkpoint {checkpoint}, or remove the folder"
        )
    model = copy.deepcopy(model)
    dataset = load_dataset(run.config.dataset, run.config.data_dir, run.config.img_size)
    excluded, residual = settings.get("exclude_layers", []), settings.get("residual", "float")
    restore_activation_quantizers(model, dataset.input_size, bits, method, excluded, symmetric, residual)
    load_weights(model, state, path / "model.pt")
    return model.eval()
