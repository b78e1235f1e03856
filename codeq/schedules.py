"""Schedules ``(epoch, total_epochs) -> coefficient`` of the terms of the loss; epochs count from 0."""

from __future__ import annotations

import math
from collections.abc import Callable

from codeq.common.checks import check_at_least_zero
from codeq.common.errors import CodeqError, quote
from codeq.common.registry import Named, Registry

SCHEDULES: Registry[Callable[..., Named]] = Registry("schedule")

EPOCHS = " (epochs)"  # the unit in messages


def coefficients(schedule: Callable[[float, int], float], epochs: int, owner: str) -> list[float]:
    """Return the coefficients of a schedule in all epochs, which finds the mistakes of a user's one beforehand.

    Parameters
    ----------
    schedule : callable
        ``(epoch, total_epochs) -> coefficient``.
    epochs : int
        Number of epochs.
    owner : str
        What has this schedule, for the message.

    Raises
    ------
    CodeqError
        If it fails, or returns anything but a finite number of at least 0, with the epoch (1-based).

    Examples
    --------
    >>> coefficients(linear_warmup(delay=0, ramp=2), 3, "the term")
    [0.0, 0.5, 1.0]
    """
    found = []
    for epoch in range(epochs):
        try:
            value = schedule(epoch, epochs)
            number = float(value)
        except Exception as error:  # whatever a user's function raises
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise CodeqError(f"the schedule of {owner} fails in epoch {epoch + 1} of {epochs}: {reason}") from error
        if not 0 <= number < math.inf:  # also true of NaN
            raise CodeqError(
                f"the schedule of {owner} is {quote(value)} in epoch {epoch + 1} of {epochs}: must be a finite number "
                "of at least 0"
            )
        found.append(number)
    return found


@SCHEDULES.register("constant")
def constant(value: float = 1.0) -> Named:
    """Return a schedule that is always `value`.

    Parameters
    ----------
    value : float
        At least 0, finite.

    Raises
    ------
    CodeqError
        For a `value` that is no finite number of at least 0.

    Examples
    --------
    >>> constant(0.5)(3, 10)
    0.5
    """
    check_at_least_zero(value=value)
    if math.isinf(value):
        raise CodeqError(f"value={quote(value)}: must be finite")
    return Named("constant", {"value": value}, lambda _epoch, _total_epochs: float(value))


@SCHEDULES.register("linear_warmup")
def linear_warmup(delay: float, ramp: float) -> Named:
    """Return a schedule that is 0 up to and including epoch `delay`, rises to 1 over `ramp` epochs and stays there.

    Parameters
    ----------
    delay, ramp : float
        Epochs, at least 0. ``ramp=0`` steps to 1 right after `delay`.

    Raises
    ------
    CodeqError
        For a negative `delay` or `ramp`.

    Examples
    --------
    >>> schedule = linear_warmup(delay=50, ramp=20)
    >>> [schedule(epoch, 300) for epoch in (50, 60, 70, 299)]
    [0.0, 0.5, 1.0, 1.0]
    """
    check_at_least_zero(EPOCHS, delay=delay, ramp=ramp)

    def coefficient(epoch: float, total_epochs: int) -> float:  # noqa: ARG001  (one signature for all schedules)
        if epoch <= delay:
            return 0.0
        return min(1.0, (epoch - delay) / ramp) if ramp else 1.0

    return Named("linear_warmup", {"delay": delay, "ramp": ramp}, coefficient)


@SCHEDULES.register("cosine_anneal")
def cosine_anneal(delay: float = 0) -> Named:
    """Return a schedule that is 0 up to epoch `delay` and then rises along half a cosine, to 1 after the last epoch.

    Parameters
    ----------
    delay : float
        Epochs, at least 0.

    Raises
    ------
    CodeqError
        For a negative `delay`.

    Examples
    --------
    >>> cosine_anneal()(50, 100), cosine_anneal(delay=50)(75, 100)
    (0.5, 0.5)
    """
    check_at_least_zero(EPOCHS, delay=delay)

    def coefficient(epoch: float, total_epochs: int) -> float:
        if epoch <= delay:
            return 0.0
        progress = (epoch - delay) / (total_epochs - delay) if epoch < total_epochs else 1.0
        return 0.5 + 0.5 * math.sin(math.pi * (progress - 0.5))  # (1 - cos πp) / 2, exact at 0, 1/2 and 1

    return Named("cosine_anneal", {"delay": delay}, coefficient)


@SCHEDULES.register("window")
def window(start: float, stop: float) -> Named:
    """Return a schedule that is 1 from epoch `start` up to, but not including, epoch `stop`, and 0 otherwise.

    Channels are pruned inside the window. The remaining epochs recover the accuracy where quantizers hold what is zero;
    in a float network the window lasts until the end.

    Parameters
    ----------
    start, stop : float
        Epochs, at least 0; `stop` after `start`.

    Raises
    ------
    CodeqError
        For a negative `start`, and for a `stop` that is no number or not after it.

    Examples
    --------
    >>> [window(start=1, stop=3)(epoch, 5) for epoch in range(5)]
    [0.0, 1.0, 1.0, 0.0, 0.0]
    """
    check_at_least_zero(EPOCHS, start=start, stop=stop)
    if not stop > start:
        raise CodeqError(f"stop={quote(stop)}: must be after start={quote(start)} (epochs)")
    return Named("window", {"start": start, "stop": stop}, lambda epoch, _total: float(start <= epoch < stop))
