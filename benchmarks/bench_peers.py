"""Time and memory of codeq's training step, data, start-up and evaluation beside those of other packages.

    make bench-peers ARGS="--picture benchmarks/figures/peers.png"

All steps of a network take turns in one process. Packages that cannot be imported are listed with the reason.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
import torch.nn.functional as F
from _common import describe_machine, device, in_turns
from around_the_step import print_data_and_evaluation, print_start_up
from peers import FLOAT, PEERS, Peer, Prepared, why
from torch import Tensor, nn

from codeq.compaction.gains import peak_bytes
from codeq.models import resnet20, resnet56, vit
from codeq.plots.style import heading, new_grid, styled
from codeq.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and the images of a batch
    "ResNet-20": (resnet20, 128),
    "ResNet-56": (resnet56, 128),
    "ViT-Tiny": (lambda: vit(num_classes=10, img_size=32, patch_size=4), 32),
}
IMAGE = (3, 32, 32)

Step = Callable[[], None]


def training_step(
    build: Callable[[nn.Module], Prepared],
    network: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    bfloat16: bool = False,
    wrap: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda model: model,
) -> Step:
    """Return forward, backward and AdamW of `network` as `build` quantizes it, after two steps."""
    torch.manual_seed(0)
    prepared = build(network().to(x.device, memory_format=torch.channels_last))
    model = prepared.model.to(x.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward = wrap(model)

    def step() -> None:
        optimizer.zero_grad()
        with prepared.reading():
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
                logits = forward(x)
            loss = F.cross_entropy(logits.float(), y) + prepared.penalty()
        loss.backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    for _ in range(2):
        step()
    return step


def working_steps(
    peers: Mapping[str, Peer], network: Callable[[], nn.Module], x: Tensor, y: Tensor
) -> tuple[dict[str, Step], dict[str, str]]:
    """Return the steps of the peers that work here, and for each other one the reason why it does not."""
    steps, reasons = {}, {}
    for name, peer in peers.items():
        try:
            steps[name] = training_step(peer.build, network, x, y)
        except Exception as error:  # another package may raise anything
            if peer.package is None:
                raise
            reasons[name] = why(error)
    return steps, reasons


def step_table(names: list[str], repeats: int, batch_size: int | None = None) -> pd.DataFrame:
    """Return a row for each network and peer, with not-a-number and the reason for a peer that does not work."""
    rows = []
    for network in names:
        factory, batch = NETWORKS[network]
        batch = batch_size or batch
        x = torch.randn(batch, *IMAGE, device=device()).to(memory_format=torch.channels_last)
        y = torch.randint(10, (batch,), device=device())
        steps, reasons = working_steps(PEERS, factory, x, y)
        memory = {name: peak_bytes(step) for name, step in steps.items()}
        times = in_turns(steps, repeats)
        for name in PEERS:
            row: dict[str, object] = {"network": f"{network}, batch {batch}", "step": name}
            row["note"] = reasons.get(name, "")
            if name in steps:
                ratios = times[FLOAT].ratios(times[name])
                row |= {"ms": 1e3 * times[name].median, "images": batch / times[name].median}
                low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
                row |= {"ratio": ratio, "low": low, "high": high}
                row |= {"peak": memory[name] / 1e6, "peak_ratio": memory[name] / memory[FLOAT]}
            rows.append(row)
    return pd.DataFrame(rows)


def print_steps(table: pd.DataFrame) -> None:
    print("\n| network | step | ms | ratio to float (quartiles) | images/s | peak MB | ratio to float |")
    print("|---|---|---|---|---|---|---|")
    for row in table.itertuples():
        ratio = f"{row.ratio:.2f} ({row.low:.2f} – {row.high:.2f})"
        figures = f"{row.ms:.0f} | {ratio} | {row.images:.0f} | {row.peak:.1f} | {row.peak_ratio:.2f}"
        print(f"| {row.network} | {row.step} | {f'not measured: {row.note} | | | |' if row.note else figures} |")


@styled
def draw(table: pd.DataFrame, note: str) -> Figure:
    """Return a figure with the time and the memory of every step relative to float."""
    networks = list(dict.fromkeys(table["network"]))
    columns = {"ratio": "time of a step", "peak_ratio": "peak memory of a step"}
    figure, grid = new_grid(len(columns), len(networks), width=11, height=6.2, sharey=True)
    heading(figure, "Training step relative to the plain float step", note)
    for axes_of_row, (column, label) in zip(grid, columns.items(), strict=True):
        for axes, network in zip(axes_of_row, networks, strict=True):
            rows = table[(table["network"] == network) & (table["step"] != FLOAT)]
            labels = [name.replace("`", "") for name in rows["step"]]
            colors = ["#0072B2" if name.startswith("codeq") else "#B8B8B8" for name in rows["step"]]
            axes.barh(labels, rows[column].fillna(0), color=colors)
            if column == "ratio":
                axes.hlines(labels, rows["low"], rows["high"], color="black", linewidth=1)
            ends = (rows[["ratio", "high"]].max(axis=1) if column == "ratio" else rows[column]).fillna(0)
            for k, (end, value) in enumerate(zip(ends, rows[column], strict=True)):
                text = "not measured" if pd.isna(value) else f"{value:.2f}"
                axes.annotate(text, (end, k), (3, 0), textcoords="offset points", va="center", fontsize=8)
            axes.axvline(1, color="black", linewidth=0.8)
            axes.set_xlim(0, 1.25 * max(ends.max(), 1))
            axes.set_title(network, fontsize=10, loc="left")
            axes.set_xlabel(f"{label}, × float{'; lines: quartiles' if column == 'ratio' else ''}", fontsize=9)
    grid[0, 0].invert_yaxis()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch", type=int, help="images of a batch, for every network")
    parser.add_argument("--repeats", type=int, default=3, help="of at least three rounds each")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "torch")  # PQuantML's layers are those of TensorFlow otherwise
    print(describe_machine())
    print("Load of the machine:", *(f"{load:.1f}" for load in os.getloadavg()))
    versions = {peer.package: peer.version for peer in PEERS.values() if peer.package}
    print(", ".join(f"{package} {version}" for package, version in versions.items()))
    with keep_freed_memory(device().type == "cpu"):  # as the trainer does
        table = step_table(options.networks, options.repeats, options.batch)
        print_steps(table)
        print_data_and_evaluation(options.repeats)
    print_start_up(options.repeats)
    if options.picture:
        machine = describe_machine()
        note = f"{machine['cpu']}, {machine['threads']} thread(s), torch {machine['torch']}"
        draw(table, note).savefig(options.picture)


if __name__ == "__main__":
    main()
