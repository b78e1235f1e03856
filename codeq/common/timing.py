"""Times of several calls that take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_ROUNDS, MAX_ROUNDS = 3, 7
BUDGET = 0.75  # s; no round after the third begins later
TURN_SECONDS = 0.02  # of each call in each round, at least one execution


@dataclass(frozen=True)
class Times:
    """Durations of one call, s.

    Parameters
    ----------
    rounds : list of list of float
        Durations of each round.
    """

    rounds: list[list[float]]

    @property
    def median(self) -> float:
        """Median duration."""
        return statistics.median(seconds for turn in self.rounds for seconds in turn)

    @property
    def iqr(self) -> float:
        """Interquartile range of the durations."""
        first, _, third = statistics.quantiles((s for turn in self.rounds for s in turn), n=4, method="inclusive")
        return third - first

    def ratios(self, other: Times) -> list[float]:
        """Return in each round the median duration of `other` divided by that of this call."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return [statistics.median(theirs) / statistics.median(own) for own, theirs in pairs]


def time_in_turns(calls: Mapping[str, Callable[[], Any]]) -> dict[str, Times]:
    """Execute calls in turn, in seven rounds or as many, at least three, as begin within `BUDGET`.

    Parameters
    ----------
    calls : mapping of str to callable
        By name. They have been executed once, so that nothing is compiled or loaded any more, and return when their
        work is complete.

    Examples
    --------
    >>> times = time_in_turns({"short": lambda: time.sleep(0.02), "long": lambda: time.sleep(0.06)})
    >>> statistics.median(times["short"].ratios(times["long"])) > 1
    True
    """
    rounds: dict[str, list[list[float]]] = {name: [] for name in calls}
    began, complete = time.perf_counter(), 0
    while complete < MIN_ROUNDS or (complete < MAX_ROUNDS and time.perf_counter() - began < BUDGET):
        for name, call in calls.items():
            rounds[name].append(_turn(call))
        complete += 1
    return {name: Times(found) for name, found in rounds.items()}


def _turn(call: Callable[[], Any]) -> list[float]:
    durations: list[float] = []
    while sum(durations) < TURN_SECONDS:
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return durations
