"""The model of a training with its initial weights, and the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.common.progress import counted
from codeq.config import ExperimentConfig, serialize
from codeq.data import load_dataset, training_part
from codeq.data.base import BaseDataset
from codeq.graph.activations import attach_activation_quantizers
from codeq.quantizer.activations import named_activation_quantizers
from codeq.quantizer.calibration import calibrate
from codeq.runs.networks import build_network
from codeq.training.compacted_start import check_images, start_compacted
from codeq.training.distributed import Ranks
from codeq.training.initial_weights import load_initial_weights, read_source
from codeq.training.memory_format import to_channels_last

CALIBRATION_BATCHES = 8  # whose activations give the first ranges of the quantizers


def build_model_and_data(
    config: ExperimentConfig, ranks: Ranks, initialize: bool, compacted: Mapping[str, Any] | None
) -> tuple[nn.Module, BaseDataset]:
    """Build the model with its initial weights and load the data, each of which may download something.

    Where the number of classes is known, the model comes first: its mistakes are found before data is decoded.

    Parameters
    ----------
    config : ExperimentConfig
        Configuration of the training.
    ranks : Ranks
        The processes that train together.
    initialize : bool
        Whether initial weights are those that the configuration names, see `build_training`.
    compacted : mapping, optional
        Checkpoint with a compacted network, to be built like it.

    Raises
    ------
    CodeqError
        For a model or data set that cannot be built, and for initial weights that cannot be read or do not fit.
    """
    source = config.init_from if initialize else None
    weights, compacted = read_source(source) if source else (None, compacted)

    def build(num_classes: int) -> nn.Module:
        if compacted:
            model = start_compacted(config, compacted, str(config.init_from))
        else:
            model = build_network(config, num_classes, pretrained=config.pretrained and initialize)
        model = model.to(ranks.device)
        return to_channels_last(model) if config.channels_last else model

    known = config.num_classes
    model = ranks.first_then_others(lambda: build(known)) if known else None
    dataset = ranks.first_then_others(lambda: load_data(config))
    if known not in (None, dataset.num_classes):
        raise CodeqError(f"num_classes={known}: dataset {config.dataset!r} has {dataset.num_classes}")
    if model is None:
        model = ranks.first_then_others(lambda: build(dataset.num_classes))
    if compacted:
        check_images(compacted, dataset, str(config.init_from))
    elif source and weights:
        load_initial_weights(model, weights, source, config.init_from_strict, announce=ranks.first)
    if config.activations and not list(named_activation_quantizers(model)):
        train = training_part(dataset, config.validation, config.seed)
        first = train.first_images(config.batch_size, CALIBRATION_BATCHES, seed=config.seed)
        attach_configured_activations(model, config, first[0])
        calibrate(model, counted(first, "calibrating", ranks.first))
    return model, dataset


def load_data(config: ExperimentConfig) -> BaseDataset:
    """Load the data set of a configuration, with its augmentation."""
    dataset = load_dataset(config.dataset, config.data_dir, config.img_size, workers=config.workers)
    return dataset.augmented(**serialize(config.augmentation)) if config.augmentation else dataset


def attach_configured_activations(model: nn.Module, config: ExperimentConfig, example: Tensor) -> None:
    """Attach the quantizers of activations that `config` asks for, without ranges yet."""
    settings = config.activations
    assert settings is not None
    example = example.to(next(model.parameters()).device)
    attach_activation_quantizers(
        model, example, settings.bits, settings.method, symmetric=settings.symmetric, residual=settings.residual
    )
