"""Distance of a training step on the CPU from what the processor could do, in float32 and under bfloat16.

    python benchmarks/bench_floor.py [--batch 128] [--rounds 4] [--compile]

The steps take turns in one process: float, the same with all layers quantized, and with `--compile` both through
torch.compile, which fuses BatchNorm, ReLU and the addition. Two rates of the processor bound them from below:

- arithmetic: multiplications and additions as PyTorch counts them, at the rate of a large matrix product or
  convolution;
- memory: each tensor that the backward pass keeps is written and read once, and a gradient as large as it as well, at
  the rate of a copy.

Quantization alone, all weights of a ResNet-20 forward and back, is timed beside one copy of the weights.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _common import describe_machine, in_turns, median_ms
from bench_peers import Step, training_step
from peers import fused, plain
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from codeq import fused_quantization
from codeq.compaction.gains import peak_bytes
from codeq.models import resnet20
from codeq.quantizer.layers import distinct_layers, latent_weight
from codeq.training.memory import keep_freed_memory

SIDE = 2048  # rows and columns of the matrices whose product is timed
COPIED = 64 * 2**20  # bytes of the copied tensor, beyond all caches


def arithmetic_rate(dtype: torch.dtype) -> float:
    """Return the multiplications and additions per second of a large matrix product or convolution, the faster one."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    images = torch.randn(32, 256, 32, 32).to(dtype, memory_format=torch.channels_last)
    filters = torch.randn(256, 256, 3, 3).to(dtype, memory_format=torch.channels_last)
    calls = (lambda: a @ b, lambda: F.conv2d(images, filters, padding=1))
    rates = []
    with torch.no_grad():
        for call in calls:
            with FlopCounterMode(display=False) as counter:
                call()
            rates.append(counter.get_total_flops() / (median_ms(call, repeats=7, warmup=2) / 1e3))
    return max(rates)


def copy_rate() -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.empty(COPIED // 4)
    target = torch.empty_like(source)
    return 2 * COPIED / (median_ms(lambda: target.copy_(source), repeats=20) / 1e3)


def step_operations(x: Tensor, y: Tensor) -> float:
    """Return the multiplications and additions of the convolutions and the linear layer, forward and back."""
    model = resnet20().train()
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    return counter.get_total_flops()


def kept_bytes(x: Tensor, y: Tensor, bfloat16: bool) -> int:
    """Return the bytes of the tensors that the backward pass of the float network needs, each counted once."""
    model = resnet20().to(memory_format=torch.channels_last).train()
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(x)
        F.cross_entropy(logits.float(), y).backward()
    return sum(sizes.values())


def quantization_alone() -> dict[str, Callable[[], object]]:
    """Return fused quantization with its way back, and one copy of the weights, as calls."""
    model = fused(resnet20()).model
    layers = [layer for _, layer in distinct_layers(model)]
    latent = torch.cat([latent_weight(layer).detach().flatten() for layer in layers])

    def forward_and_backward() -> None:
        model.zero_grad()
        with fused_quantization(model):
            weights = [layer.weight for layer in layers]
        torch.autograd.backward(weights, [weight.detach() for weight in weights])

    def layer_by_layer() -> None:
        model.zero_grad()
        weights = [layer.weight for layer in layers]
        torch.autograd.backward(weights, [weight.detach() for weight in weights])

    return {"copy of the weights": latent.clone, "fused": forward_and_backward, "layer by layer": layer_by_layer}


def steps(x: Tensor, y: Tensor, bfloat16: bool, compiled: bool) -> dict[str, Step]:
    """Return the steps of one format by name."""
    build = partial(training_step, network=resnet20, x=x, y=y, bfloat16=bfloat16)
    quantized = {"plain": plain, "quantized": fused}
    found = {f"{name}, eager": build(peer) for name, peer in quantized.items()}
    if compiled:
        wrap = partial(torch.compile, dynamic=False)
        found |= {f"{name}, compiled": build(peer, wrap=wrap) for name, peer in quantized.items()}
    return found


def print_steps(x: Tensor, y: Tensor, rounds: int, compiled: bool) -> None:
    """Print the floor and the steps of both formats."""
    bandwidth, operations = copy_rate(), step_operations(x, y)
    print(f"a copy moves {bandwidth / 1e9:.1f} GB/s; a step is {operations / 1e9:.1f} GFLOP")
    print("| step | ms | ratio to plain in the same mode (quartiles) | × the floor | peak MB |")
    print("|---|---|---|---|---|")
    for bfloat16 in (False, True):
        dtype, kept = (torch.bfloat16 if bfloat16 else torch.float32), kept_bytes(x, y, bfloat16)
        rate = arithmetic_rate(dtype)
        floor = operations / rate + 4 * kept / bandwidth
        name = str(dtype).removeprefix("torch.")
        print(
            f"| {name}: floor, {operations / rate * 1e3:.0f} ms at {rate / 1e9:.0f} GFLOP/s and "
            f"{4 * kept / bandwidth * 1e3:.0f} ms for {4 * kept / 1e6:.0f} MB | {floor * 1e3:.0f} | | 1 | |"
        )
        calls = steps(x, y, bfloat16, compiled)
        memory = {step: peak_bytes(call) for step, call in calls.items() if step.endswith("eager")}
        times = in_turns(calls, rounds)
        for step, found in times.items():
            mode = step.rpartition(", ")[2]
            low, ratio, high = statistics.quantiles(times[f"plain, {mode}"].ratios(found), n=4, method="inclusive")
            peak = f"{memory[step] / 1e6:.0f}" if step in memory else ""
            print(
                f"| {name}: {step} | {found.median * 1e3:.0f} | {ratio:.3f} ({low:.3f} – {high:.3f}) | "
                f"{found.median / floor:.1f} | {peak} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4, help="of at least three turns each")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes")
    options = parser.parse_args()
    print(describe_machine())
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(10, (options.batch,))
    with keep_freed_memory():  # as the trainer does
        calls = quantization_alone()
        for call in calls.values():
            call()
        for name, found in in_turns(calls, options.rounds).items():
            print(f"{name}: {found.median * 1e3:.2f} ms")
        print_steps(x, y, options.rounds, options.compile)


if __name__ == "__main__":
    main()
