"""Data sets that are read from image files in every epoch, by worker processes.

Order, windows and mirroring are functions of (seed, epoch, position in the epoch) alone: every number of workers gives
the same batches, and a run resumed in the middle of an epoch gets the same ones as without the interruption.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from codeq.common.checks import at_least
from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError
from codeq.common.main_script import check_not_repeated
from codeq.data.base import BaseDataset, Batch, Batches, epoch_generator, mixed
from codeq.data.images import normalize, on_device
from codeq.data.views import decode, evaluation_view, training_view

# ImageNet's statistics, which pretrained networks expect; computing others would take a pass over all files.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Task = tuple[int, np.ndarray]  # position of a batch in the epoch, indices of its images


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files and their labels.

    Parameters
    ----------
    paths : array of bytes
        `[N]`. One array rather than a million strings: counting references to those would copy their memory pages in
        every worker.
    labels : Tensor
        int64 `[N]`, indices of classes.

    Raises
    ------
    CodeqError
        If there are no files, or labels of another number or dtype.
    """

    paths: np.ndarray
    labels: Tensor

    def __post_init__(self) -> None:
        if not len(self.paths):
            raise CodeqError("a split of a data set has no image files")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.paths.shape:
            found = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise CodeqError(f"labels of {len(self.paths)} files are {found}: must be torch.int64 [{len(self.paths)}]")

    @classmethod
    def of(cls, paths: Sequence[str], labels: Tensor) -> FileSplit:
        """Return the split of the files `paths`.

        Examples
        --------
        >>> len(FileSplit.of(["cat/0.png", "dog/0.png"], torch.tensor([0, 1])))
        2
        """
        return cls(np.array([os.fsencode(path) for path in paths]), labels)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, index: Tensor) -> FileSplit:
        """Return the files at the positions `index`, int64 `[n]`."""
        return FileSplit(self.paths[index.numpy()], self.labels[index])


@dataclass(frozen=True, eq=False)
class StreamedDataset(BaseDataset):
    """Classification data set that is read from image files, batch by batch.

    A training image is a random window of 8 to 100 % of its area, resized to `img_size` and mirrored with probability
    1/2; a test image is resized so that its shorter side has `img_size` · 256 / 224 pixels, and its centre is taken.

    Parameters
    ----------
    name : str
        Name in figures and error messages.
    classes : tuple of str
        Names; a label is an index into them.
    train, test : FileSplit
        Image files and their labels.
    mean, std : Tensor
        float32 `[3]`, of pixel values in 0 … 1, for normalization. Batches come from their device.
    img_size : int
        Height and width of every image, in pixels.
    workers : int
        Number of worker processes, which start and end with every iteration over batches; 0 decodes in this process.

    Raises
    ------
    CodeqError
        If the parts do not fit together; while iterating, for a file that is not an image.

    Examples
    --------
    >>> files = FileSplit.of(["cat/0.png", "dog/0.png"], torch.tensor([0, 1]))
    >>> dataset = StreamedDataset.from_files("pets", ("cat", "dog"), files, files, img_size=224)
    >>> dataset.input_size, dataset.num_train_batches(2)
    ((3, 224, 224), 1)
    """

    train: FileSplit
    test: FileSplit
    img_size: int
    workers: int = 2

    evaluation_batch: ClassVar[int] = 256  # a batch is one worker's task: smaller ones keep all of them busy

    def __post_init__(self) -> None:
        for name, smallest in (("img_size", 1), ("workers", 0)):
            object.__setattr__(self, name, at_least(name, getattr(self, name), smallest))
        for label in (int(f) for split in (self.train, self.test) for f in split.labels.aminmax()):
            if not 0 <= label < len(self.classes):
                raise CodeqError(f"dataset {self.name!r}: label {label} is none of its {len(self.classes)} classes")

    @classmethod
    def from_files(
        cls, name: str, classes: tuple[str, ...], train: FileSplit, test: FileSplit, img_size: int
    ) -> StreamedDataset:
        """Return a data set normalized by ImageNet's statistics."""
        return cls(name, classes, train, test, torch.tensor(MEAN), torch.tensor(STD), img_size)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return 3, self.img_size, self.img_size

    def to(self, device: torch.device | str) -> StreamedDataset:
        """Return the data set with its batches on `device`, to where they are copied as uint8 and then normalized."""
        return dataclasses.replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def _train(self, parts: list[slice], seed: int, epoch: int) -> Batches:
        order = torch.randperm(len(self.train), generator=epoch_generator(seed, epoch), device="cpu").numpy()
        return self._read(_Reader(self.train, self.img_size, (seed, epoch)), [(p.start, order[p]) for p in parts])

    def _test(self, parts: list[slice]) -> Batches:
        order = np.arange(len(self.test))
        return self._read(_Reader(self.test, self.img_size, None), [(p.start, order[p]) for p in parts])

    def _read(self, reader: _Reader, tasks: list[Task]) -> Batches:
        check_not_repeated("read images")
        loader = torch.utils.data.DataLoader(
            reader,
            sampler=tasks,
            batch_size=None,  # a task is a batch already
            num_workers=min(self.workers, len(tasks)),
            worker_init_fn=_leave_signals_to_parent,
            pin_memory=self.mean.device.type == "cuda",
            generator=torch.Generator(),  # otherwise the loader draws from the global one
        )
        with _running(loader) as batches:
            for batch in batches:
                if isinstance(batch, CodeqError):
                    raise batch
                images, labels = (on_device(part, self.mean.device) for part in batch)
                yield normalize(images, self.mean, self.std), labels


@dataclass(frozen=True, eq=False)
class _Reader(torch.utils.data.Dataset["Batch | CodeqError"]):
    """Images of a task as one batch, with training views if `seed_and_epoch` are given."""

    split: FileSplit
    img_size: int
    seed_and_epoch: tuple[int, int] | None

    def __getitem__(self, task: Task) -> Batch | CodeqError:
        first, indices = task
        images = np.empty((len(indices), 3, self.img_size, self.img_size), np.uint8)
        try:
            for position, index in enumerate(indices):
                image = decode(os.fsdecode(self.split.paths[index]))
                images[position] = np.asarray(self._view(image, first + position)).transpose(2, 0, 1)
        except CodeqError as error:
            return error  # if it were raised, its message would be a traceback in the other process
        return torch.from_numpy(images), self.split.labels[indices]

    def _view(self, image: Any, position: int) -> Any:
        if self.seed_and_epoch is None:
            return evaluation_view(image, self.img_size)
        random = np.random.Generator(np.random.PCG64(mixed(*self.seed_and_epoch, position)))
        return training_view(image, self.img_size, random)


@contextmanager
def _running(loader: torch.utils.data.DataLoader[Any]) -> Iterator[Any]:
    """Iterate over `loader`, and end its workers also after an exception."""
    with cpu_by_default():  # it draws a seed with the generator of the loader
        batches: Any = iter(loader)
    if not loader.num_workers:
        yield batches
        return
    # Without this, multiprocessing kills the workers of unclosed batches at exit, and torch prints errors.
    atexit.register(batches._shutdown_workers)
    try:
        yield batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error  # the cause says why
        raise CodeqError(
            f"a worker process that reads images has ended ({reason}); its own message, if there is one, is above"
        ) from error
    finally:
        # Now, rather than when the last traceback that holds the iterator is freed: Jupyter keeps one.
        batches._shutdown_workers()
        atexit.unregister(batches._shutdown_workers)


def _leave_signals_to_parent(_: int) -> None:
    """Make a worker ignore signals that are meant for its parent, which ends it.

    Terminals (Ctrl-C) and batch systems (SIGTERM, SIGUSR1) send theirs to every process of a job. If workers died of
    them, torch would raise an error while the training process saves its state.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
