"""QONNX graphs, in which ``Quant`` nodes state bits and scales: the input of FINN and hls4ml."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from codeq.export.activation_scales import BYTE, ActivationScale, Scales
from codeq.export.extras import require
from codeq.export.integer_grid import grid_error, integer_codes, integer_grid
from codeq.export.onnx_float import weight_nodes

DOMAIN = "qonnx.custom_op.general"


def export_qonnx(
    source: Path, batches: Iterable[Tensor], path: Path, scales: Scales = MappingProxyType({})
) -> dict[str, float]:
    """Add ``Quant`` nodes to a float ONNX graph, on the weights and the inputs of its layers.

    Those of weights have the bits that the weights need, see `integer_grid`; those of inputs have the
    bits of their known scale, else 8.

    Parameters
    ----------
    source : Path
        File of `export_onnx`.
    batches : iterable of Tensor
        `[N, …]`, calibration images: the ranges of the inputs of layers are their smallest and largest values.
    path : Path
        File to write.
    scales : mapping of str to ActivationScale
        Scales of tensors that are known already.

    Returns
    -------
    dict of str to float
        As `codeq.export.qdq.export_qdq`.

    Raises
    ------
    CodeqError
        If onnx or onnxruntime is not installed.
    """
    onnx = require("onnx")
    model = onnx.load(source)
    layers = list(weight_nodes(model))
    inputs = {layer.node.input[0] for layer in layers}
    known_scales = {**scales, **_calibrated(model, inputs - scales.keys(), batches)}
    errors, added = {}, []
    quantized: dict[str, str] = {}  # results by weight: a layer that is called twice is two nodes
    for layer in layers:
        if layer.name in quantized:
            layer.node.input[1] = quantized[layer.name]
            continue
        steps, _ = integer_grid(layer.weight, layer.axis)
        shape = [1] * layer.weight.ndim
        shape[layer.axis] = -1
        codes = integer_codes(layer.weight, steps, layer.axis)
        bits = max(2, int(np.abs(codes).max(initial=0)).bit_length() + 1)
        errors[layer.name] = float(grid_error(layer.weight, codes * steps.reshape(shape)))
        added.append(_quant(model, layer.name, steps.reshape(shape), 0.0, bits, signed=True))
        quantized[layer.name] = layer.node.input[1] = added[-1].output[0]
    of_layers = {layer.node.name for layer in layers}
    for name in sorted(name for name, known in known_scales.items() if name in inputs or known.readers):
        known = known_scales[name]
        added.append(_quant(model, name, known.scale, known.zero, known.bits, signed=False))
        for node in model.graph.node:
            if node.name in of_layers | known.readers:
                node.input[:] = [added[-1].output[0] if read == name else read for read in node.input]
    nodes = [*model.graph.node]
    for quant in added:  # behind what computes its input
        place = next((i for i, node in enumerate(nodes) if quant.input[0] in node.output), -1)
        nodes.insert(place + 1, quant)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    onnx.save(model, path)
    return errors


def _quant(model: Any, name: str, scale: Any, zero: float, bits: int, signed: bool) -> Any:
    onnx = require("onnx")
    inputs = [name]
    for part, value in (("scale", scale), ("zero", zero), ("bits", float(bits))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), f"{name}_{part}"))
        inputs.append(f"{name}_{part}")
    return onnx.helper.make_node(
        "Quant", inputs, [f"{name}_quant"], f"{name}_quant", domain=DOMAIN, signed=int(signed), narrow=int(signed),
        rounding_mode="ROUND",
    )  # fmt: skip


def _calibrated(model: Any, names: set[str], batches: Iterable[Tensor]) -> dict[str, ActivationScale]:
    """Return 8-bit scales of tensors of a graph that cover their smallest and largest values, 0 included."""
    if not names:
        return {}
    onnx, runtime = require("onnx"), require("onnxruntime")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = watched.graph.input[0].name
    outputs = sorted(names - {given})
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
    session = runtime.InferenceSession(watched.SerializeToString())
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for batch in batches:
        found = dict(zip(outputs, session.run(outputs, {given: batch.numpy()}), strict=True)) if outputs else {}
        for name in names:
            values = found.get(name, batch.numpy())
            low[name], high[name] = min(low[name], float(values.min())), max(high[name], float(values.max()))
    steps = {name: max((high[name] - low[name]) / (2**BYTE - 1), 1e-8) for name in names}
    return {name: ActivationScale(steps[name], round(-low[name] / steps[name])) for name in sorted(names)}
