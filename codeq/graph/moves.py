"""Calls whose result contains the elements of one tensor, moved, and zeros besides."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from codeq.graph.calls import Calls, argument, function_of

MODULES = (
    nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d,
    nn.ZeroPad3d,
)  # fmt: skip
FUNCTIONS = {
    operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.movedim, torch.squeeze,
    torch.unsqueeze, torch.narrow, torch.flip, torch.roll, torch.clone,
    "flatten", "unflatten", "reshape", "view", "permute", "transpose", "movedim", "squeeze", "unsqueeze", "narrow",
    "flip", "roll", "clone", "contiguous", "expand", "expand_as", "index_select",
}  # fmt: skip


def moved_from(calls: Calls, node: fx.Node) -> fx.Node | None:
    """Return the tensor whose elements a call moves, pads with zeros or returns unchanged; `None` for other calls.

    Examples
    --------
    >>> from codeq.graph.call_recording import record_calls
    >>> calls = record_calls(nn.Sequential(nn.ReLU(), nn.Identity(), nn.Flatten()), (2, 3))
    >>> [str(moved_from(calls, node)) for node in calls.graph.nodes if node.op == "call_module"]
    ['None', '_0', '_1']
    """
    if node.op not in ("call_module", "call_function", "call_method"):
        return None
    moves = node.meta.get("unchanged") or isinstance(calls.module(node), MODULES) or function_of(node) in FUNCTIONS
    if node.target is F.pad:
        moves = argument(node, 2, "mode", "constant") == "constant" and not argument(node, 3, "value")
    source = node.args[0] if moves and node.args else None
    return source if isinstance(source, fx.Node) and isinstance(source.meta.get("result"), torch.Size) else None
