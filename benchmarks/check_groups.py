"""Comparison of codeq's coupled groups with Torch-Pruning's dependency graph (``pip install torch-pruning``).

For channels of every convolution: the filters and input slices that Torch-Pruning would remove together with it, and
the members of codeq's group. Layers that codeq does not prune (their channels reach the output of the network or an
operation that it does not follow) are counted separately.
"""

from __future__ import annotations

import argparse
import warnings

import torch
import torch_pruning
from torch import nn
from torchvision import models

from codeq.graph.channels import coupled_groups
from codeq.graph.tracing import trace

NAMES = [
    "resnet18", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v2", "squeezenet1_1", "googlenet", "regnet_x_400mf",
    "regnet_y_400mf", "shufflenet_v2_x0_5", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny",
]  # fmt: skip
SIZE = (3, 64, 64)


def theirs(graph: torch_pruning.DependencyGraph, names: dict[nn.Module, str], layer: nn.Module, channel: int):
    """Return the filters and the input slices that Torch-Pruning removes with one filter."""
    group = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=[channel])
    found: tuple[set[tuple[str, int]], set[tuple[str, int]]] = set(), set()
    for dependency, indices in group:
        module = dependency.target.module
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            depthwise = isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1
            sides = [0, 1] if depthwise else [0 if graph.is_out_channel_pruning_fn(dependency.handler) else 1]
            for side in sides:
                found[side].update((names[module], int(i)) for i in indices)
    return found


def compare(name: str) -> str:
    """Return a line of the table for one model."""
    kwargs = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = getattr(models, name)(num_classes=10, **kwargs).eval()
    groups = coupled_groups(trace(model, SIZE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(model, torch.rand(1, *SIZE))
        except Exception as error:  # an unsupported model is a result of the comparison, too
            return f"| {name} | Torch-Pruning: {type(error).__name__} | | |"
    names = {module: name for name, module in model.named_modules()}
    same = different = kept = 0
    first = ""
    for layer, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        of = groups.writers.get(layer, [])
        for channel in {0, len(of) // 3, len(of) - 1} if len(of) else ():
            if of[channel] < 0:
                kept += 1
                continue
            ours = tuple(set(side) for side in groups.members(int(of[channel])))
            if ours == theirs(graph, names, module, channel):
                same += 1
            else:
                different += 1
                first = first or f"{layer}[{channel}]"
    return f"| {name} | {same} | {different} {first} | {kept} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=NAMES)
    options = parser.parse_args()
    print(f"torch-pruning {torch_pruning.__version__}")
    print("| model | same | different (the first) | not prunable in codeq |\n|---|---|---|---|")
    for name in options.models:
        print(compare(name), flush=True)
