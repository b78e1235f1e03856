"""Integer ONNX graphs in QDQ form: 8-bit weights and activations, for the integer kernels of runtimes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from codeq.common.errors import CodeqError
from codeq.export.activation_scales import BYTE, Scales
from codeq.export.extras import require
from codeq.export.integer_grid import grid_error, integer_grid
from codeq.export.onnx_float import WeightNode, weight_nodes

# Between these, values are passed on as integers; everything else (softmax, normalization, …) computes in float.
_OPERATIONS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "Clip", "Concat", "MaxPool", "AveragePool",
    "GlobalAveragePool",
)  # fmt: skip


def export_qdq(
    source: Path, batches: Iterable[Tensor], path: Path, scales: Scales = MappingProxyType({})
) -> dict[str, float]:
    """Quantize a float ONNX graph to 8 bits with the static quantization of ONNX Runtime.

    Weights keep their grid where 8 bits can hold it, see `integer_grid`, one scale per output channel. The ranges of
    activations are the smallest and largest values on calibration images.

    Parameters
    ----------
    source : Path
        File of `export_onnx`.
    batches : iterable of Tensor
        `[N, …]`, calibration images.
    path : Path
        File to write.
    scales : mapping of str to ActivationScale
        Scales of tensors that are known already; those of 8 bits are used.

    Returns
    -------
    dict of str to float
        For each weight the largest difference from its float value, relative to the largest weight; 0 where exact.

    Raises
    ------
    CodeqError
        If onnx or onnxruntime is not installed.
    """
    onnx = require("onnx")
    quantization = require("onnxruntime.quantization")
    model = onnx.load(source)
    layers = list(weight_nodes(model))
    _check_transposed(layers)
    overrides: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        steps, _ = integer_grid(layer.weight, layer.axis)
        fixed = {"quant_type": quantization.QuantType.QInt8, "zero_point": np.array(0, np.int8), "axis": layer.axis}
        overrides[layer.name] = [{**fixed, "scale": np.array(scale)} for scale in steps]
    exact = {tensor: known for tensor, known in scales.items() if known.bits == BYTE}
    for tensor, known in exact.items():
        fixed = {"quant_type": quantization.QuantType.QUInt8, "zero_point": np.array(known.zero, np.uint8)}
        overrides[tensor] = [{**fixed, "scale": np.array(known.scale, np.float32)}]
    by_weights = {id(layer.node) for layer in layers}
    floats = [
        node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and id(node) not in by_weights
    ]
    # Otherwise the quantizer takes the place of the activation, as if its range began and ended where that of the
    # activation does.
    floats += [
        node.name for node in model.graph.node if node.op_type in ("Relu", "Clip") and node.output[0] in exact
        and (node.op_type == "Clip" or exact[node.output[0]].zero)
    ]  # fmt: skip
    with _quiet():
        quantization.quantize_static(
            str(source), str(path), _reader(quantization, model.graph.input[0].name, batches),
            quant_format=quantization.QuantFormat.QDQ, per_channel=True, op_types_to_quantize=list(_OPERATIONS),
            activation_type=quantization.QuantType.QUInt8, nodes_to_exclude=floats,
            extra_options={"TensorQuantOverrides": overrides},
        )  # fmt: skip
    return _errors(layers, onnx.load(path))


def _reader(quantization: Any, name: str, batches: Iterable[Tensor]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        """The calibration images as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    return Reader()


def _check_transposed(layers: Sequence[WeightNode]) -> None:
    """Refuse what ONNX Runtime's quantizer fails on: it takes the scales of one group for those of all channels."""
    for layer in layers:
        groups = next((a.i for a in layer.node.attribute if a.name == "group"), 1)
        if layer.node.op_type == "ConvTranspose" and groups > 1 and len(layer.node.input) > 2:
            raise CodeqError(
                f"{layer.name}: ONNX Runtime cannot quantize a transposed convolution with {groups} groups and a bias; "
                "export it to onnx, qonnx or packed"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice to preprocess the graph, which PyTorch's exporter has optimized already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _errors(layers: list[Any], quantized: Any) -> dict[str, float]:
    """Compare the weights of the file with the float ones."""
    numpy_helper = require("onnx.numpy_helper")
    stored = {initializer.name: initializer for initializer in quantized.graph.initializer}
    decoders = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    targets = {node.name: node for node in quantized.graph.node}
    errors = {}
    for layer in layers:
        decoder = decoders[targets[layer.node.name].input[1]]
        codes, scale = (numpy_helper.to_array(stored[name]) for name in decoder.input[:2])
        shape = [1] * codes.ndim
        shape[layer.axis] = -1
        errors[layer.name] = float(grid_error(layer.weight, codes * (scale.reshape(shape) if scale.ndim else scale)))
    return errors
