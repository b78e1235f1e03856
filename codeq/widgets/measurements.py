"""Accuracy of the settings that were tried in `WhatIf`, also measured in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from codeq.analysis.requantize import Requantizer
from codeq.analysis.subset import evaluation_images, evaluation_subset
from codeq.common.modes import evaluation_mode
from codeq.config import ExperimentConfig
from codeq.graph.baking import baked_copy
from codeq.metrics.accuracy import measure_accuracy
from codeq.widgets.background import WEIGHTS
from codeq.widgets.settings import TRAINED, Key
from codeq.widgets.trail import TriedPoint


class Measurements:
    """Accuracy and cost of settings of one network; only one is measured at a time.

    Parameters
    ----------
    requantizer : Requantizer
        Of the trained network. It is used only while `WEIGHTS` is locked.
    config : ExperimentConfig
        Of the run, which names the images.
    max_images : int
        Largest number of images, see `evaluation_subset`.

    Attributes
    ----------
    points : dict
        Measured settings, in their order.
    """

    def __init__(self, requantizer: Requantizer, config: ExperimentConfig, max_images: int) -> None:
        self.points: dict[Key, TriedPoint] = {}
        self._requantizer = requantizer
        self._config = config
        self._max_images = max_images
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._measuring = threading.Lock()

    @property
    def images(self) -> str:
        """Number and kind of the images, once they are read."""
        return f"{sum(len(y) for _, y in self._batches)} {evaluation_images(self._config)} images"

    def describe(self, key: Key) -> str:
        """Return the accuracies with these and with the trained settings as text; empty until both are measured."""
        if not {key, TRAINED} <= self.points.keys():
            return ""
        now, trained = self.points[key].accuracy, self.points[TRAINED].accuracy
        return f"{now:.2%} (trained {trained:.2%}) on {self.images}, no retraining"

    def measure(
        self, tried: Mapping[Key, tuple[str, float]], cancelled: threading.Event, progress: Callable[[int, int], object]
    ) -> None:
        """Measure the accuracy with those settings with which it is not measured yet.

        Parameters
        ----------
        tried : mapping of Key to (str, float)
            Short description and relative BOPs of the settings.
        cancelled : Event
            Ends the measurement after the current batch.
        progress : callable
            Called with the number of finished and of all batches.

        Raises
        ------
        CodeqError
            If the data set is missing.
        """
        with self._measuring:
            self._batches = self._batches or evaluation_subset(self._config, self._max_images)
            todo = [key for key in tried if key not in self.points]
            for position, key in enumerate(todo):
                if cancelled.is_set():
                    return
                with WEIGHTS:
                    network = baked_copy(self._requantizer.apply(dict(key[0]), dict(key[1])))

                def watched(start: int = position * len(self._batches)) -> Iterator[tuple[Tensor, Tensor]]:
                    for done, batch in enumerate(self._batches):
                        yield batch
                        progress(start + done + 1, len(todo) * len(self._batches))
                        if cancelled.is_set():
                            return

                with evaluation_mode(network):
                    accuracy, _ = measure_accuracy(network, watched())
                if not cancelled.is_set():  # otherwise of a part of the images
                    self.points[key] = TriedPoint(*tried[key], accuracy)
