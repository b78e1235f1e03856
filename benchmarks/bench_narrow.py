"""Narrow networks beyond eager mode: training steps through torch.compile, predictions in ONNX Runtime.

    python benchmarks/bench_narrow.py [--batch 128] [--rounds 5] [--multiples 4 8 16]

ResNet-20 with random weights, each cut to half of its MACs in multiples of channels, is timed in turn with
the dense network:

- a training step, plain (forward, backward, AdamW), in eager mode and through torch.compile;
- a prediction, in eager mode, with BatchNorms folded into the convolutions as teachers are, and in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _common import describe_machine, in_turns
from bench_peers import training_step
from peers import plain
from torch import Tensor, nn

from codeq import compact
from codeq.common.timing import Times
from codeq.compaction.cutting import cut_channels
from codeq.export.onnx_float import export_onnx
from codeq.export.runtimes import run_onnx
from codeq.metrics.bops import dense_stats
from codeq.metrics.records import measure
from codeq.models import resnet20
from codeq.training.folding import folded
from codeq.training.memory import keep_freed_memory

SIZE = (3, 32, 32)


def cut(multiple_of: int) -> nn.Module:
    """Return a smaller network, cut and compacted as `codeq compact --macs 0.5 --streams whole --multiple-of …`."""
    torch.manual_seed(0)
    model = resnet20().eval()
    batches = [(torch.randn(64, *SIZE), torch.randint(10, (64,))) for _ in range(4)]
    cut_channels(model, batches, 0.5, SIZE, multiple_of)
    return compact(model, torch.randn(2, *SIZE), streams="whole", multiple_of=multiple_of).model


def row(name: str, found: Times, dense: Times) -> None:
    """Print the time of one call beside that of the dense network in eager mode."""
    first, median, third = statistics.quantiles(dense.ratios(found), n=4, method="inclusive")
    print(f"| {name} | {1e3 * found.median:.1f} | {median:.2f} ({first:.2f} – {third:.2f}) |")


def compare(title: str, calls: dict[str, Callable[[], object]], repeats: int) -> None:
    """Time the calls in turns and print a table, the first one as the reference."""
    times = in_turns(calls, repeats)
    reference = times[next(iter(calls))]
    print(f"\n| {title} | ms | time relative to the first row (quartiles) |\n|---|---|---|")
    for name, found in times.items():
        row(name, found, reference)


def training(networks: dict[str, nn.Module], x: Tensor, y: Tensor, bfloat16: bool, repeats: int) -> None:
    calls: dict[str, Callable[[], object]] = {}
    for name, network in networks.items():
        calls[f"{name}, eager"] = training_step(plain, lambda n=network: n, x, y, bfloat16)
        compiled = torch.compile
        calls[f"{name}, torch.compile"] = training_step(plain, lambda n=network: n, x, y, bfloat16, compiled)
    compare(f"training step, {'bfloat16' if bfloat16 else 'float32'}", calls, repeats)


def predictions(networks: dict[str, nn.Module], x: Tensor, repeats: int, folder: Path) -> None:
    calls: dict[str, Callable[[], object]] = {}

    def predict(network: nn.Module, bfloat16: bool) -> Callable[[], object]:
        def call() -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                return network(x)

        return call

    for name, network in networks.items():
        network.eval()
        merged = folded(network, SIZE)
        for bfloat16 in (False, True):
            kind = "bfloat16" if bfloat16 else "float32"
            calls[f"{name}, eager, {kind}"] = predict(network, bfloat16)
            calls[f"{name}, folded, {kind}"] = predict(merged, bfloat16)
        path = folder / f"{len(calls)}.onnx"
        export_onnx(network, x[:2], path)
        runner, array = run_onnx(path), x.contiguous().numpy()
        calls[f"{name}, ONNX Runtime"] = lambda runner=runner, array=array: runner(array)
    compare("prediction", calls, repeats)


def named(multiples: Iterable[int]) -> dict[str, nn.Module]:
    networks = {"dense": resnet20()} | {f"cut in multiples of {n}": cut(n) for n in multiples}
    macs = {name: dense_stats(measure(network, SIZE)).total_macs for name, network in networks.items()}
    return {f"{name} (÷ {macs['dense'] / macs[name]:.2f})": network for name, network in networks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--multiples", type=int, nargs="+", default=[4, 8, 16])
    options = parser.parse_args()
    print(describe_machine())
    networks = named(options.multiples)
    for network in networks.values():
        network.to(memory_format=torch.channels_last)
    x = torch.randn(options.batch, *SIZE).to(memory_format=torch.channels_last)
    y = torch.randint(10, (options.batch,))
    with keep_freed_memory(), TemporaryDirectory() as folder:  # as the trainer does
        predictions(networks, x, options.rounds, Path(folder))
        for bfloat16 in (True, False):
            training(networks, x, y, bfloat16, options.rounds)


if __name__ == "__main__":
    main()
