"""Data, evaluation and start-up of codeq beside torchvision, a plain loop and other packages, for `bench_peers.py`."""

from __future__ import annotations

import importlib
import statistics
import tempfile
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

import torch
from _common import in_turns
from bench_data import random_dataset
from bench_import import HERE as CHECKOUT
from bench_import import seconds
from peers import PEERS, why
from torch import Tensor

from codeq import Evaluator
from codeq.data import Dataset
from codeq.models import resnet20

BATCH, IMAGES = 128, 10_000


def torchvision_batches(dataset: Dataset) -> Iterator[Tensor]:
    """Return endless batches of the same images by torchvision's transforms, as its CIFAR example has them."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.transforms.functional import to_pil_image

    mean, std = (values.flatten().tolist() for values in (dataset.mean, dataset.std))
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(mean, std)])
    pictures = [
        to_pil_image(image) for image in dataset.train.images.cpu()
    ]  # as `torchvision.datasets.CIFAR10` gives them

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, k: int) -> tuple[Tensor, int]:
            return transform(pictures[k]), int(dataset.train.labels[k])

    loader = DataLoader(Pictures(), BATCH, shuffle=True, drop_last=True)
    return chain.from_iterable(loader for _ in count())


def print_data_and_evaluation(repeats: int) -> None:
    """Print images per second of both data pipelines, and of an evaluation beside a plain loop."""
    dataset = random_dataset(IMAGES)
    own = chain.from_iterable(dataset.train_batches(BATCH, seed=0, epoch=k) for k in count())
    other = torchvision_batches(dataset)
    model = PEERS["codeq, layer by layer"].build(resnet20()).model.eval()
    batches = [(torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))) for _ in range(4)]
    evaluator = Evaluator(model)

    @torch.no_grad()
    def plain_loop() -> None:
        sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)

    groups = {
        BATCH: {"batches: torchvision's transforms and `DataLoader`": lambda: next(other),
                "batches: codeq": lambda: next(own)},
        4 * BATCH: {"evaluation: plain loop, accuracy alone": plain_loop,
                    "evaluation: `Evaluator`, also both accountings": lambda: evaluator.evaluate(model, batches)},
    }  # fmt: skip
    print("\n| what | ms | images/s | time relative to the other side (quartiles) |\n|---|---|---|---|")
    for images, calls in groups.items():
        for call in calls.values():
            call()
        times = in_turns(calls, repeats)
        first = next(iter(times.values()))
        for name, found in times.items():
            ratios = first.ratios(found)
            low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
            spread = f"{ratio:.3f} ({low:.3f} – {high:.3f})"
            print(f"| {name} | {1e3 * found.median:.1f} | {images / found.median:,.0f} | {spread} |")


def print_start_up(rounds: int) -> None:
    """Print the seconds of fresh processes that import each package, in turn."""
    imports = {"torch": "import torch", "codeq": "from codeq import attach_weight_quantizers, fused_quantization"}
    reasons = {}
    for peer in PEERS.values():
        if peer.package and peer.module:
            try:
                importlib.import_module(peer.module)
                imports[peer.package] = f"import {peer.module}"
            except Exception as error:  # another package may raise anything
                reasons[peer.package] = why(error)
    found: dict[str, list[float]] = {name: [] for name in imports}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(rounds + 1):
            for name, statement in imports.items():
                duration = seconds(CHECKOUT, ["-W", "ignore", "-c", statement], Path(folder))
                if k:  # the first time reads the files from the disk
                    found[name].append(duration)
    print("\n| import of | s | beyond torch |\n|---|---|---|")
    for name, durations in found.items():
        beyond = statistics.median(own - torch for own, torch in zip(durations, found["torch"], strict=True))
        print(f"| `{imports[name]}` | {statistics.median(durations):.2f} | {beyond:.2f} |")
    for package, reason in reasons.items():
        print(f"| {package} | not measured: {reason} | |")
