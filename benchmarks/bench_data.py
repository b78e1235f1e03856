"""Time of a training batch of CIFAR-10's size: selection, crop, flip and normalization. Target: 10 ms on 2 cores.

Run: ``python benchmarks/bench_data.py``
"""

from __future__ import annotations

from itertools import chain, count

import torch
from _common import describe_machine, device, median_ms

from codeq.data import Dataset, Split
from codeq.data.augmentation import draw_epoch
from codeq.data.images import crop_and_flip, normalize

IMAGES, BATCH, TARGET_MS = 50_000, 512, 10.0


def random_dataset(number: int) -> Dataset:
    """Return `number` random images of CIFAR-10's size as training and as test set."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(number) % 10)
    return Dataset.from_splits("random", tuple("0123456789"), split, split).to(device())


def main() -> None:
    dataset = random_dataset(IMAGES)
    order, top, left, flip = draw_epoch(BATCH, dataset.augment, (32, 32), seed=0, epoch=0).to(device())
    batch = dataset.train.images[order]
    epochs = count()

    def new_epoch():
        return dataset.train_batches(BATCH, seed=0, epoch=next(epochs))

    batches = chain.from_iterable(new_epoch() for _ in count())

    rows = {
        f"training batch, {BATCH}×3×32×32": median_ms(lambda: next(batches), repeats=300, warmup=20),
        "- of it crop and flip": median_ms(lambda: crop_and_flip(batch, top, left, flip.bool(), 4), repeats=100),
        "- of it normalize": median_ms(lambda: normalize(batch, dataset.mean, dataset.std), repeats=100),
        f"random numbers of an epoch of {IMAGES:,} (once an epoch)": median_ms(new_epoch, repeats=20),
    }
    machine = describe_machine()
    print("| what | median ms | device | CPU | threads / cores | torch | date | commit |")
    print("|---|---|---|---|---|---|---|---|")
    for what, ms in rows.items():
        where = f"{machine['device']} | {machine['cpu']} | {machine['threads']} / {machine['cores']}"
        print(f"| {what} | {ms:.2f} | {where} | {machine['torch']} | {machine['date']} | {machine['commit']} |")
    first = next(iter(rows.values()))
    print(f"\nTarget: at most {TARGET_MS:g} ms a batch: {'met' if first <= TARGET_MS else 'MISSED'}")


if __name__ == "__main__":
    main()
