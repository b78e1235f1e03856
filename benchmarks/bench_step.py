"""Time of one CoDeQ training step relative to the plain float step of the same model and batch.

    python benchmarks/bench_step.py [--batch 512] [--rounds 7]

Both steps alternate in one process, so that other load affects them equally; the result is the ratio.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _common import describe_machine, once_ms, paired
from torch.nn.utils import parametrize

from codeq import attach_weight_quantizers, coupled_group_lasso, split_param_groups
from codeq.models import resnet20
from codeq.training.memory import keep_freed_memory
from codeq.training.objective import Objective
from codeq.training.terms import SparsityTerm


def float_step(device: torch.device, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Return the plain step: forward, backward, AdamW."""
    model = resnet20().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def codeq_step(device: torch.device, x: torch.Tensor, y: torch.Tensor, step_kind: str) -> Callable[[], None]:
    """Return the step with quantizers on every layer and the coupled group lasso, as the trainer takes it."""
    model = resnet20().to(device, memory_format=torch.channels_last)
    attach_weight_quantizers(model, [], "deadzone", {})
    model.to(device)
    base, dz, bit = split_param_groups(model)
    optimizer = torch.optim.AdamW([{"params": group, "lr": 1e-3} for group in (base, dz, bit)], fused=True)
    term = SparsityTerm("coupled", coupled_group_lasso(model), 1e-3, lambda _epoch, _total: 1.0, step_kind, False)
    objective = Objective(model, [term], [(dz, 0.01), (bit, 0.01)])

    def step() -> None:
        optimizer.zero_grad()
        objective.backward(model, x, y, [1e-3])
        optimizer.step()
        objective.proximal_steps([1e-3], 1e-3)

    return step


def quantizer_calls(device: torch.device, x: torch.Tensor, y: torch.Tensor) -> dict[str, int]:
    """Count how often each quantizer runs in one step."""
    model = resnet20().to(device)
    names = attach_weight_quantizers(model, [], "deadzone", {})
    loss = coupled_group_lasso(model)
    counts = dict.fromkeys(names, 0)
    for name in names:
        quantizer = model.get_submodule(name).parametrizations.weight[0].quantizer

        def count(*_: object, name: str = name) -> None:
            counts[name] += 1

        quantizer.register_forward_hook(count)
    with parametrize.cached():
        (F.cross_entropy(model(x), y) + 1e-3 * loss(model)).backward()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(10, (options.batch,), device=device)
    print(describe_machine())
    plain = float_step(device, x, y)
    default_ms = statistics.median(once_ms(plain) for _ in range(options.rounds))
    with keep_freed_memory(device.type == "cpu") as kept:  # as the trainer does
        if kept:
            once_ms(plain)
            ms = statistics.median(once_ms(plain) for _ in range(options.rounds))
            print(f"float step by default {default_ms:.1f} ms, with freed memory kept {ms:.1f} ms, as from here on")
        compare(device, x, y, plain, options.rounds)


def compare(device: torch.device, x: torch.Tensor, y: torch.Tensor, plain: Callable[[], None], rounds: int) -> None:
    """Print the duration of each step beside that of the plain one."""
    print(f"ResNet-20 on {device}, batch {len(x)}, {rounds} rounds, the two steps in turn; medians")
    print("| step | float ms | its ms | ratio |\n|---|---|---|---|")
    steps = {
        "float again (noise)": float_step(device, x, y),
        "CoDeQ, group lasso by gradient": codeq_step(device, x, y, "gradient"),
        "CoDeQ, group lasso by proximal step": codeq_step(device, x, y, "proximal"),
    }
    for name, step in steps.items():
        found = paired(plain, step, rounds)
        print(f"| {name} | {found['a_ms']:.1f} | {found['b_ms']:.1f} | {found['ratio']:.3f} |")
    calls = set(quantizer_calls(device, x[:8], y[:8]).values())
    print(f"runs of each quantizer in one step: {calls}")


if __name__ == "__main__":
    main()
