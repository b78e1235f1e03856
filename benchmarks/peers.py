"""Networks whose weights codeq, other packages and a transcription of the paper quantize, for `bench_peers.py`.

Each builder changes the network in place where its package does, and returns it with what a training step needs beside
forward, backward and optimizer. Packages are imported by the builders, so a missing one affects its own rows only.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from paper_equations import attach_paper_quantizers
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codeq import attach_weight_quantizers, fused_quantization, split_param_groups

BITS = 4
LAMBDA = 0.01  # of the squared logits in the loss, the paper's for ResNet-20


@dataclass(frozen=True)
class Prepared:
    """A network that is ready to train.

    Parameters
    ----------
    model : Module
        With quantizers.
    reading : callable
        Context in which a step reads the weights.
    penalty : callable
        Term of the loss that belongs to the method, ``[]``.
    """

    model: nn.Module
    reading: Callable[[], AbstractContextManager[None]] = nullcontext
    penalty: Callable[[], Tensor | float] = lambda: 0.0


def plain(model: nn.Module) -> Prepared:
    return Prepared(model)


def layer_by_layer(model: nn.Module) -> Prepared:
    attach_weight_quantizers(model, [], "deadzone", {})
    return Prepared(model, parametrize.cached, _logit_penalty(model))


def fused(model: nn.Module) -> Prepared:
    attach_weight_quantizers(model, [], "deadzone", {})
    return Prepared(model, lambda: fused_quantization(model), _logit_penalty(model))


def paper(model: nn.Module) -> Prepared:
    attach_paper_quantizers(model)
    return Prepared(model, penalty=_logit_penalty(model))


def _logit_penalty(model: nn.Module) -> Callable[[], Tensor]:
    _, dz, bit = split_param_groups(model)
    return lambda: LAMBDA * torch.stack(dz + bit).square().sum()


def brevitas_fixed(model: nn.Module) -> Prepared:
    from brevitas.quant import Int8WeightPerTensorFloat

    return _brevitas(model, Int8WeightPerTensorFloat, BITS)


def brevitas_learned(model: nn.Module) -> Prepared:
    from brevitas.quant import Int8WeightPerTensorFloat

    class LearnedBits(Int8WeightPerTensorFloat):
        bit_width_impl_type = "parameter"

    return _brevitas(model, LearnedBits, 8)


def _brevitas(model: nn.Module, weight_quant: type, bits: int) -> Prepared:
    import brevitas.nn as qnn
    from brevitas.graph.quantize import layerwise_quantize

    settings = {"weight_quant": weight_quant, "weight_bit_width": bits, "return_quant_tensor": False}
    layers = {nn.Conv2d: (qnn.QuantConv2d, settings), nn.Linear: (qnn.QuantLinear, settings)}
    return Prepared(layerwise_quantize(model, compute_layer_map=layers))


def torchao(model: nn.Module) -> Prepared:
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    class FakeQuantizer(nn.Module):
        """Quantizer of torchao's linear layers, which takes matrices, for the weights of any layer."""

        def __init__(self) -> None:
            super().__init__()
            self.matrix = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, "per_channel"))

        def forward(self, w: Tensor) -> Tensor:
            return self.matrix(w.flatten(1)).view_as(w)

    for layer in list(model.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(layer, "weight", FakeQuantizer())
    return Prepared(model)


def pquant(model: nn.Module) -> Prepared:
    from pquant import add_compression_layers, get_model_losses, pdp_config
    from pquant.core.torch.layers import post_pretrain_functions, pre_epoch_functions

    config = pdp_config()
    config.quantization_parameters.quantize_input = False
    config.quantization_parameters.default_weight_fractional_bits = BITS - 1.0  # the other bit is the sign
    model = add_compression_layers(model, config, (1, 3, 32, 32))
    post_pretrain_functions(model, config)  # from here on it prunes
    pre_epoch_functions(model, 0, config.training_parameters.epochs)
    return Prepared(model, penalty=lambda: get_model_losses(model, torch.tensor(0.0)))


@dataclass(frozen=True)
class Peer:
    """One row of the table: the builder, and for another package its name and the module to import."""

    build: Callable[[nn.Module], Prepared]
    package: str | None = None
    module: str | None = None

    @property
    def version(self) -> str:
        """Version of the installed package."""
        try:
            return importlib.metadata.version(self.package) if self.package else ""
        except importlib.metadata.PackageNotFoundError:
            return "not installed"


def why(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


FLOAT = "float"
PEERS = {
    FLOAT: Peer(plain),
    "float again (noise)": Peer(plain),
    "codeq, layer by layer": Peer(layer_by_layer),
    "codeq, `fused_quantization`": Peer(fused),
    "the paper's equations, eager": Peer(paper),
    "Brevitas, 4 bit": Peer(brevitas_fixed, "brevitas", "brevitas.nn"),
    "Brevitas, learned bits": Peer(brevitas_learned, "brevitas", "brevitas.nn"),
    "torchao, 4 bit": Peer(torchao, "torchao", "torchao.quantization.qat"),
    "PQuantML, 4 bit and PDP": Peer(pquant, "pquant-ml", "pquant"),
}
