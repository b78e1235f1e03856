"""Removal of dead channels from a network: the entry point of compaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.checks import check_choice, check_flag
from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError, listed, quote
from codeq.compaction.layers import output_channels
from codeq.compaction.origins import constant_parameters, freeze_alike, source_of
from codeq.compaction.precision import set_precision
from codeq.compaction.proof import Proof, prove
from codeq.compaction.quantized import attach_kept_quantizers
from codeq.compaction.rebuild import rebuild
from codeq.flow import Borders, Streams, channel_flow
from codeq.graph.tracing import trace
from codeq.metrics.reference import set_reference
from codeq.quantizer.layers import named_layers
from codeq.quantizer.precision import weight_type, weight_types

TOLERANCE = 1e-10  # relative difference of the outputs in float64
MAX_NAMES = 4  # parameters or layers that a note names

Channels = tuple[np.ndarray, np.ndarray]
Padding = Literal["map", "live", "absorb"]


@dataclass(frozen=True, eq=False)
class CompactionReport:
    """A compacted model, the channels that each layer keeps, and the proof that it computes the same.

    Parameters
    ----------
    model : Module
        Dense, in evaluation mode, of the precision and on the device of the given model; plain, or with quantizers and
        trainable. It takes inputs of the size of the example only.
    kept, removed : dict
        For each conv and linear layer ``(inputs, outputs)``: the original numbers of its channels, in order. A second
        call of a layer is ``name@2``.
    layers : dict
        For each conv and linear layer of `model` ``(name, outputs)``: the layer that it is made from, and the original
        numbers of its output channels.
    unknown : list of str
        Operations whose channels all stay because codeq does not follow them, with their places.
    notes : tuple of str
        What the counts of MACs leave out, one sentence each, see `codeq.graph.ops.ChannelGraph.problems`; with whole
        streams also the layers with dead filters that are kept for want of a coupled group, and with `keep_quantizers`
        the parameters that do not train further.
    assumes : str
        Assumptions of the counts of channels and MACs: ``borders``, ``streams``, ``multiple_of``.
    proof : Proof
        Comparison of both models on the example input.
    """

    model: nn.Module
    kept: dict[str, Channels]
    removed: dict[str, Channels]
    layers: dict[str, tuple[str, np.ndarray]]
    unknown: list[str]
    notes: tuple[str, ...]
    assumes: str
    proof: Proof


@cpu_by_default()
@torch.inference_mode(False)  # its tensors could never be trained
def compact(
    model: nn.Module,
    example_input: Tensor,
    borders: Padding = "map",
    streams: Streams = "scatter",
    multiple_of: int = 1,
    keep_quantizers: bool = False,
) -> CompactionReport:
    """Build a smaller dense model with the outputs of `model`.

    Channels that do not depend on the input are removed and their effect is kept as biases; channels that the result
    does not depend on are removed. All outputs of the network are kept. The result computes in the precision of the
    parameters, to which it converts its input; conversions of activations in the forward of `model`, such as
    ``x.float()``, are left out, and types that its calls name, such as ``softmax(x, dtype=torch.float32)``, become that
    precision.

    Parameters made from frozen ones are frozen, all others train. Costs of the result are compared with those of the
    dense 32-bit version of `model`, or of what `model` was compacted from.

    Parameters
    ----------
    model : Module
        With or without quantizers; not changed. All parameters, but those of quantizers, of one floating-point type.
    example_input : Tensor
        `[N, C, H, W]`, real inputs: the proof runs on them.
    borders : {"map", "live", "absorb"}
        Treatment of a constant channel in front of a zero-padded convolution, which contributes less at the borders: a
        fixed bias map; a channel that the convolution reads as if it were live; or a bias, which is wrong at the
        borders by the error that the proof of the report states.
    streams, multiple_of
        Treatment of a dead filter whose channel of the residual stream is alive, and the number that channel counts are
        rounded up to, see `codeq.flow.channel_flow`.
    keep_quantizers : bool
        Whether the layers keep their latent weights and quantizers, to be trained further. Each quantizer holds the
        scale `R` that it has in `model`. In evaluation mode the gradients of what is left are those in `model`;
        constants of removed channels are biases, which train, or fixed maps. Parameters that are used outside of layers
        become constants, and are named in the notes; dropout and stochastic depth are left out.

    Raises
    ------
    CodeqError
        If the model cannot be traced, if its parameters have several floating-point types, if the outputs of the
        compacted model differ by more than `TOLERANCE` (codeq then misinterprets an operation of the model), or if a
        quantizer cannot be kept (a layer that is called twice, levels that depend on removed weights) or the result
        could not be trained as `model` (several parts of it are made from one module with parameters, a forward that
        switches gradients off behind parameters that train, parametrizations that are no quantizers).

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight[1].zero_(), net[2].weight[:, 3].zero_()
    >>> report = compact(net, torch.rand(2, 3, 8, 8))
    >>> [outputs.tolist() for inputs, outputs in report.kept.values()], report.proof.compacted_macs
    ([[0, 2], [0, 1]], 3240)
    """
    if not isinstance(example_input, Tensor):
        raise CodeqError(f"example_input={quote(example_input)}: must be a tensor, a batch of inputs [N, C, H, W]")
    if example_input.ndim < 2 or not len(example_input):
        raise CodeqError(f"example_input of shape {tuple(example_input.shape)}: must be a batch of inputs [N, C, H, W]")
    check_flag("keep_quantizers", keep_quantizers)
    followed = followed_borders(borders)
    if len(types := weight_types(model)) > 1:
        names = " and ".join(sorted(map(str, types)))
        raise CodeqError(
            f"{type(model).__name__} has parameters of {names}, but a compacted network has one type; convert the "
            "model first, e.g. by model.float()"
        )
    absorb = borders == "absorb"
    flow = channel_flow(model, tuple(example_input.shape[1:]), followed, streams, multiple_of)
    with torch.no_grad():
        smaller, sources, calls = rebuild(flow, absorb, trains=keep_quantizers)
    proof = prove(model, smaller, [example_input])
    if not absorb:
        check_proof(proof, model, flow.unknown)
    reference = next(model.parameters(), example_input)
    kept: dict[str, Channels] = {}
    removed: dict[str, Channels] = {}
    for call in flow.layers:
        uses = sum(name.partition("@")[0] == call.name for name in kept)
        name = f"{call.name}@{uses + 1}" if uses else call.name
        kept[name] = np.flatnonzero(call.kept_in), np.flatnonzero(call.kept_out)
        removed[name] = np.flatnonzero(~call.kept_in), np.flatnonzero(~call.kept_out)
    sourced = {name: source_of(name, sources) for name, _ in named_layers(smaller)}
    channels = output_channels(smaller, calls)
    layers = {name: (flow.calls.layers.get(of, of), channels[name]) for name, of in sourced.items()}
    assumes = f"borders={borders}, streams={streams}, multiple_of={multiple_of}"
    notes = trace(model, tuple(example_input.shape[1:])).problems
    if flow.ungrouped:
        notes = (*notes, f"streams=whole keeps dead filters in no coupled group: {listed(flow.ungrouped, MAX_NAMES)}")
    set_precision(smaller, weight_type(model, example_input.dtype), model, sources)
    smaller = smaller.to(reference.device)  # in the end: Apple's GPU has no float64
    freeze_alike(smaller, model, flow.calls, lambda name: source_of(name, sources))
    set_reference(smaller, model, example_input.shape[1:])
    if keep_quantizers:
        attach_kept_quantizers(smaller, model, flow, sources)
        if constants := constant_parameters(model, flow.calls):
            used = "used outside of layers or without the input, constants of the compacted network"
            notes = (*notes, f"not trained further: {listed(constants, MAX_NAMES)} ({used})")
    return CompactionReport(smaller, kept, removed, layers, flow.unknown, notes, assumes, proof)


def followed_borders(borders: Padding) -> Borders:
    """Return how the channels of a network are followed that `compact` compacts with `borders`.

    Raises
    ------
    CodeqError
        For another value.

    Examples
    --------
    >>> followed_borders("absorb")
    'map'
    """
    check_choice("borders", borders, Padding)
    return "live" if borders == "live" else "map"


def check_proof(proof: Proof, model: nn.Module, unknown: Sequence[str], tolerance: float = TOLERANCE) -> None:
    """Raise a `CodeqError` if the outputs of a compacted network are not those of the `model` it is made from.

    `unknown` are the operations of `model` that are not followed, `tolerance` is a relative difference.
    """
    if not proof.relative_error <= tolerance:
        raise CodeqError(
            f"the compacted {type(model).__name__} differs by {proof.relative_error:.1e} (relative), more than "
            f"{tolerance:.0e}; operations that codeq does not follow: {', '.join(unknown) or 'none'}"
        )
