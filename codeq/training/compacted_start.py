"""Start of a training from a compacted network, whose layers have fewer channels than the configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError, quote
from codeq.common.modes import evaluation_mode
from codeq.config import ExperimentConfig
from codeq.config.activations import ActivationsConfig
from codeq.config.serialize import serialize
from codeq.data.base import BaseDataset
from codeq.quantizer.activations import belongs_to_activations
from codeq.runs.networks import build_saved_network, load_weights
from codeq.training.initial_weights import load_initial_weights

# Keys of a configuration that describe the network, which must be those of the run that was compacted.
NETWORK_KEYS = ("model", "model_kwargs", "img_size", "quantizer")


def start_compacted(config: ExperimentConfig, content: Mapping[str, Any], source: str) -> nn.Module:
    """Return the compacted network of a file or checkpoint, with its weights.

    A float one gets the quantizers of the configuration, as any other float network does that a training starts from.

    Parameters
    ----------
    config : ExperimentConfig
        Must describe the network before compaction as the run did that was compacted.
    content : mapping
        See `codeq.runs.networks.build_saved_network`; ``config`` holds the configuration of that run.
    source : str
        Value of `init_from`, for messages.

    Raises
    ------
    CodeqError
        If the configurations differ, or the content is damaged.
    """
    named = f"init_from={quote(source)}"
    _check_network(config, content, named)
    quantize = bool(config.quantizer) and not content["config"].get("quantizer")
    model = build_saved_network(config, content, named, quantize)
    # Quantizers of activations that the run attached to the compacted network are calibrated anew.
    weights = {name: value for name, value in content["model"].items() if not belongs_to_activations(name)}
    if quantize:
        load_initial_weights(model, weights, source, strict=True, announce=False)
    else:
        load_weights(model, weights, named)
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CodeqError(f"{named}: {broken[0][:200]} has values that are not finite")
    try:
        with evaluation_mode(model):
            model(torch.zeros(1, *content["input_size"], device="cpu"))
    except Exception as error:  # indices out of range, maps of other shapes
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CodeqError(f"{named}: the compacted network is damaged: {reason}") from error
    return model


def check_images(content: Mapping[str, Any], dataset: BaseDataset, source: str) -> None:
    """Raise a `CodeqError` if a compacted network is for other images or classes than those of the data set."""
    found = content["num_classes"], tuple(content["input_size"])
    if found != (wanted := (dataset.num_classes, dataset.input_size)):
        raise CodeqError(
            f"init_from={quote(source)}: the compacted network takes images of {found[1]} and has {found[0]} classes, "
            f"dataset {dataset.name!r} has images of {wanted[1]} and {wanted[0]} classes"
        )


def _check_network(config: ExperimentConfig, content: Mapping[str, Any], named: str) -> None:
    given, size, state = content.get("config"), content.get("input_size"), content.get("model")
    sized = isinstance(size, list) and all(type(number) is int for number in (*size, content.get("num_classes")))
    if not (sized and isinstance(given, Mapping) and isinstance(state, Mapping)):
        raise CodeqError(f"{named} holds a structure, but not the other parts of a compacted network")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise CodeqError(f"{named} holds a compacted network with weights that are no tensors")
    wanted, keys = config.to_dict(), [*NETWORK_KEYS]
    if isinstance(activations := given.get("activations"), Mapping):  # without the keys of later versions
        given = {**given, "activations": {**serialize(ActivationsConfig()), **activations}}
        keys.append("activations")
    if not given.get("quantizer"):
        keys.remove("quantizer")
    if different := [key for key in keys if given.get(key) != wanted[key]]:
        pairs = "; ".join(f"{key}: {quote(wanted[key])} instead of {quote(given.get(key))}" for key in different)
        raise CodeqError(f"{named} is a compacted network of another configuration: {pairs}")
