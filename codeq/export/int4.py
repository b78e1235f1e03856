"""Weights of four bits in QDQ graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from codeq.common.errors import CodeqError
from codeq.export.extras import require

LOWEST, HIGHEST = -8, 7


def store_as_int4(source: Path, path: Path) -> dict[str, int]:
    """Write a QDQ graph again with two integers per byte for each layer whose integers lie in -8 … 7.

    The file holds the same values, and fewer bytes. Kernels for integers of 8 bits take no such weights, so runtimes
    convert them to float at each call.

    Parameters
    ----------
    source : Path
        File of `codeq.export.qdq.export_qdq`.
    path : Path
        File to write.

    Returns
    -------
    dict of str to int
        Bits of the weights in the file, 4 or 8, by their names.

    Raises
    ------
    CodeqError
        If the integers of no layer fit.
    """
    onnx, int4 = require("onnx"), require("ml_dtypes").int4
    model = onnx.load(source)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in stored.items()}
    largest: dict[str, int] = {}
    bits: dict[str, int] = {}
    for node in model.graph.node:
        codes = values.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is None or codes.dtype != np.int8:  # a bias has 32 bits
            continue
        name = node.input[0].removesuffix("_quantized")
        centered = not any(values[zero].any() for zero in node.input[2:])
        fits = centered and codes.min(initial=0) >= LOWEST and codes.max(initial=0) <= HIGHEST
        bits[name], largest[name] = 4 if fits else 8, int(np.abs(codes.astype(int)).max(initial=0))
        if fits:
            stored[node.input[0]].CopyFrom(onnx.numpy_helper.from_array(codes.astype(int4), node.input[0]))
            del node.input[2:]  # a zero point has the type of the integers, and is 0 by default
    if 4 not in bits.values():
        nearest = min(largest, key=lambda name: largest[name], default="")
        raise CodeqError(
            f"int4: the integers of no layer lie in {LOWEST} … {HIGHEST}; the smallest are those of {nearest!r:.200}, "
            f"up to {largest.get(nearest, 0)}. Layers of at most 4 bits have such integers with uniform quantizers, "
            "and with grid: affine where the dead-zone is narrow"
        )
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in stored.values() if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, path)
    return bits
