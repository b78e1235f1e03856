"""Control of a cost figure during training: a planned course to the target, and a PI controller of λ on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SMALLEST = 1e-12  # in place of a figure of 0, which has no logarithm
LIMIT = math.log(100.0)  # largest |log factor|: beyond it λ either dominates the gradient of θ or has no effect


@dataclass
class TargetController:
    """Steers a figure that falls as λ grows to a target, by a factor of λ.

    With the logarithmic error ``e = log(figure / plan)`` and the fraction `t` of the training,

        ``log factor = proportional · e + integral · ∫ e dt``,

    limited to ``[1/100, 100]``. The integral stops growing while the factor is at its limit (anti-windup). The plan
    leads from the first figure to the target along half a cosine on a logarithmic scale, which begins slowly, because
    the quantizer's parameters must move some way before a bit-width changes, and arrives slowly, because little can
    be won back after falling below the target.

    Parameters
    ----------
    target : float
        Figure at the end of the training, above 0.
    reach : float
        Fraction of the training after which the plan is at the target, in (0, 1).
    proportional, integral : float
        Gains, per unit of `e`, and per unit of `e` and of the length of the training.
    start : float, optional
        First figure, set by the first update.

    Examples
    --------
    >>> controller = TargetController(target=0.01, reach=0.5, proportional=2.0, integral=0.0)
    >>> controller.update(0.0, figure=1.0)
    1.0
    >>> [round(controller.plan(t), 3) for t in (0, 0.25, 0.5, 1)]
    [1.0, 0.1, 0.01, 0.01]
    >>> controller.update(0.25, figure=0.2)  # twice the plan: λ times 2²
    4.0
    """

    target: float
    reach: float
    proportional: float
    integral: float
    start: float | None = None
    factor: float = field(default=1.0, init=False)
    accumulated: float = field(default=0.0, init=False)
    time: float = field(default=0.0, init=False)

    def plan(self, time: float) -> float:
        """Return the planned figure at a fraction `time` of the training; before the first update, the target."""
        if self.start is None or time >= self.reach:
            return self.target
        left = (1 + math.cos(math.pi * time / self.reach)) / 2
        return self.target * (self.start / self.target) ** left

    def update(self, time: float, figure: float) -> float:
        """Return the factor of λ from a fraction `time` of the training on, where `figure` is measured."""
        figure = max(figure, SMALLEST)
        if self.start is None:
            self.start = figure
        error = math.log(figure / self.plan(time))
        accumulated = self.accumulated + error * (time - self.time)
        log_factor = self.proportional * error + self.integral * accumulated
        # At the limit, only an error that leads away from it is accumulated.
        if abs(log_factor) < LIMIT or log_factor * error < 0:
            self.accumulated = accumulated
        self.time = time
        self.factor = math.exp(min(max(log_factor, -LIMIT), LIMIT))
        return self.factor

    def state_dict(self) -> dict[str, float | None]:
        """Return the state, for `load_state_dict`."""
        return {"start": self.start, "factor": self.factor, "accumulated": self.accumulated, "time": self.time}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Restore a state."""
        for name, value in state.items():
            setattr(self, name, value)
