"""Scales of the quantized activations of a network, by the names of the tensors in its float ONNX graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.export.extras import require
from codeq.export.onnx_float import export_onnx
from codeq.quantizer.activations import ActivationQuantizer, named_activation_quantizers

BYTE = 8  # bits of the integers in QDQ form
_FACTOR = "codeq_mark"  # buffer that stands for a quantizer in an ONNX graph
# Operators that move elements, with the positions of the inputs that these come from.
_MOVES = {
    "Concat": slice(None), "Where": slice(1, None),
    **dict.fromkeys(("Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Transpose",
                     "Unsqueeze"), slice(1)),
}  # fmt: skip
_FIRST = 9_000_001  # exporters merge equal constants: factors that no network has


@dataclass(frozen=True)
class ActivationScale:
    """Levels ``scale × (q - zero)`` for the integers `q` from 0 to ``2^bits - 1``.

    Parameters
    ----------
    scale : float
        Distance of two levels.
    zero : int
        Integer of 0.
    bits : int
        Bits of `q`.
    readers : frozenset of str
        Names of the nodes of the graph that read the quantized tensor; others read it as it was before. Empty if all
        of its values are levels.
    """

    scale: float
    zero: int
    bits: int = BYTE
    readers: frozenset[str] = frozenset()

    def read_by(self, node: str) -> bool:
        """Return whether a node reads the quantized tensor, given that it reads the tensor at all."""
        return not self.readers or node in self.readers


Scales = Mapping[str, ActivationScale]


class _Mark(nn.Module):
    """Multiplication by a stored number, which stays in the ONNX graph at the place of a quantizer."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.register_buffer(_FACTOR, torch.tensor(float(factor)))

    def forward(self, x: Tensor) -> Tensor:
        return x * getattr(self, _FACTOR)


def describe_ranges(formats: Sequence[str], calibrated: nn.Module, folder: Path) -> str:
    """Return which integer formats take the calibrated ranges of activations, as text.

    Those of ``qdq`` are of 8 bits, those of ``qonnx`` of up to 8.

    Parameters
    ----------
    formats : sequence of {"qdq", "qonnx"}
        Formats that are exported.
    calibrated : Module
        With calibrated quantizers of activations, all of the same bits.
    folder : Path
        Folder of the calibration.

    Examples
    --------
    >>> from codeq.graph.activations import attach_activation_quantizers
    >>> net = nn.Sequential(nn.Linear(3, 2))
    >>> _ = attach_activation_quantizers(net, torch.zeros(1, 3), 4, "minmax")
    >>> describe_ranges(["qdq", "qonnx"], net, "calibrated")
    'qonnx: ranges of activations from calibrated; qdq: ranges of 8 bits, measured anew, as those in calibrated have 4'
    """
    bits = next(quantizer.bits for _, quantizer in named_activation_quantizers(calibrated))
    taking = [name for name in formats if bits == BYTE or (name == "qonnx" and bits < BYTE)]
    others = [name for name in formats if name not in taking]
    parts = [f"{' and '.join(taking)}: ranges of activations from {folder}"] if taking else []
    if others:
        parts.append(f"{' and '.join(others)}: ranges of {BYTE} bits, measured anew, as those in {folder} have {bits}")
    return "; ".join(parts)


def export_with_scales(network: nn.Module, example: Tensor, path: Path) -> dict[str, ActivationScale]:
    """Write a network without its quantizers of activations as a float ONNX graph, and return their scales.

    Parameters
    ----------
    network, example, path
        See `export_onnx`.

    Returns
    -------
    dict of str to ActivationScale
        For each tensor of the graph that an enabled quantizer of at most 8 bits quantizes, and for those that contain
        its elements. Compaction may have put constants between them, which are levels as well.

    Raises
    ------
    CodeqError
        See `export_onnx`; and if two quantizers with different levels have become quantizers of one tensor, because
        the graph leaves out what is between them.
    """
    marked = copy.deepcopy(network)
    scales: dict[str, ActivationScale] = {}
    marks: dict[nn.Module, nn.Module] = {}
    for name, module in list(marked.named_modules(remove_duplicate=False)):
        if isinstance(module, ActivationQuantizer) and module.enabled:
            step, zero = module.positive_step().item(), -int(module.low)
            scales[f"{name}.{_FACTOR}"] = ActivationScale(step, zero, module.bits)
            owner, _, child = name.rpartition(".")
            setattr(marked.get_submodule(owner), child, marks.setdefault(module, _Mark(_FIRST + len(marks))))
    export_onnx(marked, example, path)
    return _without_marks(path, scales) if scales else {}


def _without_marks(path: Path, scales: Scales) -> dict[str, ActivationScale]:
    """Remove the marks from an ONNX file, and return the scales by the names of the tensors that they multiply."""
    onnx = require("onnx")
    model = onnx.load(path)
    graph = model.graph
    outputs, kept = {output.name for output in graph.output}, []
    found: dict[str, ActivationScale] = {}
    names: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for node in graph.node:  # in the order of execution
        inputs = [renamed.get(name, name) for name in node.input]
        mark = next((name for name in inputs if name in scales), None)
        if mark is None:
            del node.input[:]
            node.input.extend(inputs)
            kept.append(node)
            continue
        tensor = next(name for name in inputs if name != mark)
        known = scales[mark]
        if known.bits <= BYTE:
            quantizer, earlier = mark.removesuffix(f".{_FACTOR}"), found.get(tensor, known)
            first = names.setdefault(tensor, quantizer)
            if replace(earlier, readers=known.readers) != known:
                raise CodeqError(
                    f"{first} and {quantizer} quantize one tensor with different levels, of which integer formats hold "
                    "one: export the network to onnx, openvino, pt2 or packed"
                )
            found[tensor] = replace(known, readers=earlier.readers | _readers(graph, node, node.output[0] in outputs))
        if node.output[0] in outputs:
            kept.append(onnx.helper.make_node("Identity", [tensor], [node.output[0]], node.name))
        else:
            renamed[node.output[0]] = tensor
    _replace(graph.node, kept)
    _replace(graph.initializer, [stored for stored in graph.initializer if stored.name not in scales])
    _replace(graph.value_info, [info for info in graph.value_info if info.name not in renamed])
    onnx.save(model, path)
    return _moved(graph, found)


def _readers(graph: Any, mark: Any, is_output: bool) -> frozenset[str]:
    """Return the names of the nodes that read the result of a mark; of itself, where it is left as an identity."""
    readers = frozenset(node.name for node in graph.node if mark.output[0] in node.input)
    return readers | {mark.name} if is_output else readers


def _moved(graph: Any, scales: Scales) -> dict[str, ActivationScale]:
    """Add the tensors that contain elements of the quantized ones, and constants besides."""
    found, constants = dict(scales), {stored.name for stored in graph.initializer}
    for node in graph.node:
        sources = list(node.input[_MOVES.get(node.op_type, slice(0))])
        varying = [name for name in sources if name not in constants]
        levels = [found[name] for name in varying if name in found and found[name].read_by(node.name)]
        known = {replace(scale, readers=frozenset()) for scale in levels}
        if node.op_type == "Constant" or (sources and not varying):
            constants.update(node.output)
        elif len(known) == 1 and len(levels) == len(varying):
            found.setdefault(node.output[0], *known)
    return found


def _replace(field: Any, items: list[Any]) -> None:
    copies = [copy.deepcopy(item) for item in items]
    del field[:]
    field.extend(copies)
