"""Time of a CoDeQ training step on an NVIDIA GPU, eager, compiled and captured in a CUDA graph, relative to float.

    python benchmarks/bench_gpu.py [--batch 512] [--rounds 30] [--amp] [--compile]

All steps run in one process, in turn; the figures are medians. ResNet-20, AdamW, every layer quantized.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
import torch.nn.functional as F
from _common import describe_machine, once_ms
from torch import nn
from torch.nn.utils import parametrize

from codeq import attach_weight_quantizers, split_param_groups
from codeq.models import resnet20
from codeq.quantizer.fused import fused_quantization

Step = Callable[[], None]


def separate_quantization(_: nn.Module) -> AbstractContextManager[None]:
    """Quantize each layer for itself."""
    return parametrize.cached()


def training_step(
    x: torch.Tensor,
    y: torch.Tensor,
    amp: bool,
    quantization: Callable[[nn.Module], AbstractContextManager[None]] | None,
    wrap: Callable[[nn.Module], Callable[[torch.Tensor], torch.Tensor]] = lambda model: model,
) -> Step:
    """Return forward, backward and AdamW; `quantization` is the context in which the weights are read, if any."""
    torch.manual_seed(0)
    model = resnet20().cuda().to(memory_format=torch.channels_last)
    if quantization:
        attach_weight_quantizers(model, [], "deadzone", {})
        model.cuda()
    base, dz, bit = split_param_groups(model)
    groups = [{"params": group} for group in (base, dz, bit) if group]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True, capturable=True)
    forward = wrap(model)

    def step() -> None:
        optimizer.zero_grad()
        with (quantization or separate_quantization)(model):
            with torch.autocast("cuda", torch.bfloat16, enabled=amp):
                logits = forward(x)
            loss = F.cross_entropy(logits.float(), y)
        for group in (dz, bit):
            if group:
                loss = loss + 0.01 * torch.stack(group).square().sum()
        loss.backward()
        optimizer.step()

    return step


def captured(step: Step) -> Step:
    """Record the step as a CUDA graph after a warm-up and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def replay(_: Step = step) -> None:  # the default keeps the model and the optimizer alive, which the graph does not
        graph.replay()

    return replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: needs an NVIDIA GPU")
        return
    x = torch.randn(options.batch, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    y = torch.randint(10, (options.batch,), device="cuda")
    build = partial(training_step, x, y, options.amp)
    steps = {
        "float, eager": build(None),
        "layer by layer, eager": build(separate_quantization),
        "fused, eager": build(fused_quantization),
        "float, captured": captured(build(None)),
        "layer by layer, captured": captured(build(separate_quantization)),
        "fused, captured": captured(build(fused_quantization)),
    }
    if options.compile:
        compiled = partial(torch.compile, dynamic=False)
        steps |= {
            "float, compiled and captured": captured(build(None, compiled)),
            "fused, compiled and captured": captured(build(fused_quantization, compiled)),
        }
    for step in steps.values():
        for _ in range(5):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(once_ms(step))
    print(describe_machine())
    print(f"ResNet-20, batch {options.batch}, {'bfloat16' if options.amp else 'float32'}; medians of {options.rounds}")
    print("| step | ms | ratio to float in the same mode |\n|---|---|---|")
    for name, found in times.items():
        plain = statistics.median(times[f"float, {name.rpartition(', ')[2]}"])
        print(f"| {name} | {statistics.median(found):.2f} | {statistics.median(found) / plain:.3f} |")


if __name__ == "__main__":
    main()
