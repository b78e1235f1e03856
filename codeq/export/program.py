"""Programs of `torch.export`, and files of them."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from codeq.common.errors import CodeqError
from codeq.common.paths import write_by

EXAMPLES = 8  # test images that networks are compacted and traced with


def exported_program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Return the program of `torch.export` for any batch size.

    Raises
    ------
    CodeqError
        If the network cannot be exported.
    """
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    if len(example) == 1:  # a size of 1 would hold for all batches
        example = torch.cat([example, example])
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (example,), dynamic_shapes=shapes)
    except Exception as error:  # PyTorch raises anything here
        reason = f"{type(error).__name__}: {error}"
        raise CodeqError(f"{type(model).__name__} cannot be exported by torch.export: {reason:.500}") from error


def save_program(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as a program of `torch.export` for any batch size.

    `torch.export` would store `example`, which may be images that nobody wants to pass on, and for debugging the lines
    of source code of the model with their paths; both are left out.

    Parameters
    ----------
    model : Module
        In evaluation mode, with plain weights.
    example : Tensor
        `[N, …]`, a batch of inputs.
    path : Path
        File to write, for ``torch.export.load(path).module()``.

    Raises
    ------
    CodeqError
        If the network cannot be exported.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> net = nn.Linear(3, 2).eval()
    >>> with TemporaryDirectory() as folder:
    ...     save_program(net, torch.rand(8, 3), Path(folder, "net.pt2"))
    ...     program = torch.export.load(Path(folder, "net.pt2"))
    >>> program.example_inputs, program.module()(torch.rand(5, 3)).shape
    (None, torch.Size([5, 2]))
    """
    program = exported_program(model, example)
    program.example_inputs = None
    for graph in program.graph_module.modules():  # branches are graphs of their own
        for node in graph.graph.nodes if isinstance(graph, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    write_by(partial(torch.export.save, program), path)
