"""QONNX graphs, in which ``Quant`` nodes state bits and scales: the input of FINN and hls4ml."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from codeq.export.activation_scales import BYTE, ActivationScale, Scales
from codeq.export.extras import require
from codeq.export.integer_grid import grid_error, integer_codes, integer_grid
from codeq.export.onnx_float import WeightNode, weight_nodes

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
    quantizers = _input_scales(model, layers, scales, batches)
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
    for name, known, label in quantizers:
        added.append(_quant(model, name, known.scale, known.zero, known.bits, signed=False, label=label))
        for node in model.graph.node:
            if node.name in known.readers:
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


def _input_scales(
    model: Any, layers: Sequence[WeightNode], scales: Scales, batches: Iterable[Tensor]
) -> list[tuple[str, ActivationScale, str]]:
    """Return tensor, scale with its readers, and name of the ``Quant`` nodes on activations.

    A layer that reads a tensor before its quantizer has a calibrated one of its own.
    """
    of_layers = [layer.node for layer in layers]

    def with_readers(name: str, known: ActivationScale, nodes: Iterable[Any]) -> ActivationScale:
        return replace(known, readers=frozenset(node.name for node in nodes if name in node.input))

    given = {name: known if known.readers else with_readers(name, known, of_layers) for name, known in scales.items()}
    others = [node for node in of_layers if node.input[0] not in given or not given[node.input[0]].read_by(node.name)]
    calibrated = _calibrated(model, {node.input[0] for node in others}, batches)
    found = [(name, known, name) for name, known in sorted(given.items()) if known.readers]
    for name, known in calibrated.items():
        label = f"{name}_calibrated" if name in given else name
        found.append((name, with_readers(name, known, others), label))
    return found


def _quant(model: Any, name: str, scale: Any, zero: float, bits: int, signed: bool, label: str = "") -> Any:
    onnx = require("onnx")
    inputs, label = [name], label or name
    for part, value in (("scale", scale), ("zero", zero), ("bits", float(bits))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), f"{label}_{part}"))
        inputs.append(f"{label}_{part}")
    return onnx.helper.make_node(
        "Quant", inputs, [f"{label}_quant"], f"{label}_quant", domain=DOMAIN, signed=int(signed), narrow=int(signed),
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
