"""Float ONNX graphs of networks, and the weights of the layers in them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.export.extras import require
from codeq.export.program import exported_program
from codeq.export.structure import layer_of

OPSET = 25  # the newest that torch.onnx writes and both ONNX Runtime and OpenVINO execute


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as a float ONNX graph for any batch size.

    BatchNorm behind a convolution is folded into its weights by PyTorch's exporter. What the exporter adds for
    debugging, lines of source code with their paths, is left out.

    Parameters
    ----------
    model : Module
        In evaluation mode, with plain weights, on the CPU.
    example : Tensor
        `[N, …]`, a batch of inputs.
    path : Path
        File to write.

    Raises
    ------
    CodeqError
        If onnx or onnxscript is not installed, or the network cannot be expressed.
    """
    onnx = require("onnx")
    require("onnxscript")
    program = exported_program(model, example)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
        assert converted is not None
        graph = converted.model_proto
    except Exception as error:  # the exporter raises anything
        reason = f"{type(error).__name__}: {error}"
        place = layer_of(program, reason)
        raise CodeqError(f"{place} cannot be expressed in ONNX: {reason:.500}") from error
    _strip(graph)
    onnx.save(graph, path)


def _strip(model: Any) -> None:
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@dataclass(frozen=True, eq=False)
class WeightNode:
    """A layer of an ONNX graph.

    Parameters
    ----------
    node : NodeProto
        ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``; its second input is the weight.
    weight : array
        float32.
    axis : int
        Dimension of the output channels.
    """

    node: Any
    weight: np.ndarray
    axis: int

    @property
    def name(self) -> str:
        """Name of the weight."""
        return str(self.node.input[1])


def weight_nodes(model: Any) -> Iterator[WeightNode]:
    """Iterate over the layers of an ONNX model whose weights are stored numbers."""
    numpy_helper = require("onnx.numpy_helper")
    stored = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[1] not in stored:
            continue
        weight = numpy_helper.to_array(stored[node.input[1]])
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        by_rows = node.op_type == "Conv" or (node.op_type == "Gemm" and flags.get("transB"))
        axis = 0 if by_rows else weight.ndim - 1 if node.op_type == "MatMul" else 1
        yield WeightNode(node, weight, axis)
