"""Networks of checkpoints: as the configuration describes them, or compacted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codeq.common.errors import CodeqError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from codeq.config import ExperimentConfig


def is_compacted(content: object) -> bool:
    """Return whether a checkpoint, or the content of a file, holds a compacted network that can be trained."""
    return isinstance(content, Mapping) and isinstance(content.get("structure"), Mapping)


def build_network(config: ExperimentConfig, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Build the network that a configuration describes, with its quantizers of weights.

    Raises
    ------
    CodeqError
        If it cannot be built.
    """
    from codeq.models import build_model

    return build_model(
        config.model, num_classes, config.model_kwargs,
        img_size=config.img_size, quantizer=config.quantizer, pretrained=pretrained,
    )  # fmt: skip


def whole_network(trained: nn.Module, config: ExperimentConfig, num_classes: int) -> nn.Module:
    """Return the network that compacted ones of a run are compared with in size and speed, with plain weights.

    Parameters
    ----------
    trained : Module
        Network of the run with plain weights. It is returned itself, unless the run began with a compacted network:
        then the result is the network that `config` describes, with other weights.
    config : ExperimentConfig
        Configuration of the run.
    num_classes : int
        Classes of its data set.

    Raises
    ------
    CodeqError
        As `build_network`.
    """
    from codeq.compaction.origins import origins_of
    from codeq.graph.baking import baked_copy

    return baked_copy(build_network(config, num_classes)) if origins_of(trained) else trained


def build_saved_network(
    config: ExperimentConfig, content: Mapping[str, Any], source: object, quantize: bool = False
) -> nn.Module:
    """Build the network of a checkpoint, whose weights are still to be loaded.

    Parameters
    ----------
    config : ExperimentConfig
        Configuration of the run.
    content : mapping
        Of the checkpoint: ``num_classes``; of a compacted network also ``input_size``, ``model`` and ``structure``.
        Costs of a compacted network are compared with those of the whole one.
    source : str or path
        Origin of the content, for messages.
    quantize : bool
        See `codeq.compaction.assembly.build_compacted`.

    Raises
    ------
    CodeqError
        If the model cannot be built, or the structure is damaged or that of another network.
    """
    from codeq.compaction.assembly import build_compacted
    from codeq.metrics.reference import set_reference

    model = build_network(config, content["num_classes"])
    if not is_compacted(content):
        return model
    try:
        compacted = build_compacted(content["structure"], content["model"], model, quantize)
    except CodeqError as error:
        raise CodeqError(f"{source}: {error}") from error
    set_reference(compacted, model, content["input_size"])
    return compacted


def load_saved_network(
    config: ExperimentConfig, content: Mapping[str, Any], source: str | os.PathLike[str]
) -> nn.Module:
    """Return the network of a checkpoint with its weights and quantizers, in evaluation mode on the CPU.

    Raises
    ------
    CodeqError
        As `build_saved_network`, and if the weights do not fit.
    """
    from codeq.graph.activations import restore_activation_quantizers
    from codeq.quantizer.activations import named_activation_quantizers

    model, settings = build_saved_network(config, content, source), config.activations
    if settings and not list(named_activation_quantizers(model)):
        restore_activation_quantizers(
            model, tuple(content["input_size"]), settings.bits, settings.method, symmetric=settings.symmetric,
            residual=settings.residual,
        )  # fmt: skip
    load_weights(model, content["model"], source)
    return model.eval()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Load the state dict `weights` of the file `source` into `model`.

    Raises
    ------
    CodeqError
        If names or shapes differ, as after a change of the model's class, with those that do; and if the file has
        different values for two names of one tensor.

    Examples
    --------
    >>> from torch import nn
    >>> load_weights(nn.Linear(2, 1), nn.Linear(3, 1, bias=False).state_dict(), "step-1.pt")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: step-1.pt does not fit today's Linear: Missing key(s) in state_dict: "bias". size mismatch for
    weight: copying a param with shape torch.Size([1, 3]) from checkpoint, the shape in current model is
    torch.Size([1, 2]).
    """
    import torch

    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        _, *reasons = (line.strip() for line in str(error).splitlines())
        shown = " ".join(reason if len(reason) <= 200 else f"{reason[:200]}…" for reason in reasons[:8])
        more = f" ({len(reasons) - 8} more)" if len(reasons) > 8 else ""
        raise CodeqError(f"{source} does not fit today's {type(model).__name__}: {shown}{more}") from error
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name) if isinstance(tensor, torch.Tensor) else name
        if first == name or first not in weights or name not in weights:  # modules may rename what they load
            continue
        if not torch.isclose(weights[first], weights[name], rtol=0, atol=0, equal_nan=True).all():
            raise CodeqError(
                f"{source} does not fit today's {type(model).__name__}: {first} and {name} are one tensor there, and "
                "have different values in the file"
            )
