"""Steering of a training to a cost target: measures the cost every few batches and sets λ as the controller says."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from codeq.common.errors import CodeqError
from codeq.common.modes import evaluation_mode
from codeq.config import ExperimentConfig
from codeq.config.target import TargetConfig
from codeq.evaluator import Evaluator
from codeq.metrics import QuantizationComparison
from codeq.metrics.budget import cost_figure, smallest_figure
from codeq.training.controller import TargetController
from codeq.training.distributed import Ranks
from codeq.training.rates import ThetaFactors
from codeq.training.reach import lowest_figure

logger = logging.getLogger(__name__)

# Updates of λ in a training: enough for its course, and more of them where θ could cross the target between two. AdamW
# moves a logit by about its learning rate in a step.
UPDATES = 200
STRIDE = 0.06  # largest way of a logit between two updates
# Batches between two updates at least: a measurement takes as long as some steps of a small network on a GPU, and an
# update makes a recorded step outdated.
LEAST, LEAST_RECORDED = 10, 50
LARGE_LOGIT = 3.0  # from which on 1 - tanh is less than 0.5 %
TOLERANCE = 0.05  # largest relative deviation from the target without a warning
# The regularizers that lower each figure: of dead-zones, of bit-widths, and the sparsity terms.
LEVERS = {
    "relative_bops": {"dz", "bit"},
    "structured_macs": {"dz", "terms"},
    "bytes": {"bit"},
    "mean_bits": {"bit"},
}


def update_interval(batches: int, rate: float, *, recorded: bool) -> int:
    """Return the batches between two updates of λ.

    Parameters
    ----------
    batches : int
        Of the whole training.
    rate : float
        About how far a step moves a logit.
    recorded : bool
        Whether steps are replayed from a CUDA graph.

    Examples
    --------
    >>> [update_interval(batches, rate=0.003, recorded=False) for batches in (400, 20_000)]
    [2, 20]
    >>> update_interval(20_000, rate=0.0003, recorded=False), update_interval(20_000, rate=0.003, recorded=True)
    (100, 50)
    """
    return max(min(batches // UPDATES, max(round(STRIDE / rate), LEAST_RECORDED if recorded else LEAST)), 1)


class Steering:
    """Multiplies the λ that lower a cost figure by a common factor, which the controller updates during the training.

    Parameters
    ----------
    target : TargetConfig
        Figure, value, course and gains.
    model : Module
        The model that is evaluated; the cost is measured on it.
    comparison : QuantizationComparison
        With the baseline.
    theta : ThetaFactors
        λ of the regularizer on θ.
    terms : bool
        Whether the loss has sparsity terms with a λ above 0.
    frozen : set of str
        Those of ``dz`` and ``bit`` that are frozen during the whole training.
    interval : int
        Batches between two updates, of a training that is not resumed.
    batches : int
        Of an epoch.
    epochs : int
        Of the training.

    Raises
    ------
    CodeqError
        If no λ is above 0 that lowers the figure.
    """

    def __init__(
        self,
        target: TargetConfig,
        model: nn.Module,
        comparison: QuantizationComparison,
        theta: ThetaFactors,
        *,
        terms: bool,
        frozen: set[str],
        interval: int,
        batches: int,
        epochs: int,
    ) -> None:
        self.target = target
        self.controller = TargetController(target.value, target.reach, target.proportional, target.integral)
        self._model = model
        self._comparison = comparison
        self._theta = theta
        self._levers = LEVERS[target.figure] & ((theta.kinds - frozen) | ({"terms"} if terms else set()))
        self._batches = batches
        self._total = batches * epochs
        self._interval = interval
        self._pruning = terms
        if not self._levers:
            name = target.figure
            needed = ["the weight decay of dz or bit and train these"] if name == "relative_bops" else []
            needed += ["the weight decay of dz and train it, or a loss term"] if name == "structured_macs" else []
            needed = needed or ["the weight decay of bit and train it"]
            raise CodeqError(f"target.{name}={target.value}: no λ lowers this figure, set {needed[0]} (above 0)")

    def check_start(self) -> None:
        """Raise a `CodeqError` unless the initial network is above the target, and can fall to it."""
        name, value = self.target.figure, self.target.value
        least = smallest_figure(name, self._model, self._comparison, pruning=self._pruning)
        if value <= least:
            raise CodeqError(
                f"target.{name}={value}: must be above {least:.4g}, what remains when all dead-zones and bit-widths "
                "that train are at their limit; exclude fewer layers, or train both"
            )
        start = self.measure()
        if value >= start:
            raise CodeqError(f"target.{name}={value}: must be below {start:.4g}, the figure of the initial network")

    @property
    def terms_factor(self) -> float:
        """Factor of the sparsity terms.

        They lower BOPs, too, so they are weakened with the rest below the course, but never made stronger than
        configured: channels that a larger λ kills do not come back.
        """
        factor = self.controller.factor
        if "terms" in self._levers:
            return factor
        return min(factor, 1.0) if self.target.figure == "relative_bops" else 1.0

    def measure(self) -> float:
        """Return the figure of the current weights."""
        with evaluation_mode(self._model), parametrize.cached():
            return cost_figure(self.target.figure, self._model, self._comparison)

    def is_due(self, epoch: int, batch: int) -> bool:
        """Return whether λ is updated before a batch of an epoch, both 0-based."""
        return (epoch * self._batches + batch) % self._interval == 0

    def update(self, epoch: int, batch: int, ranks: Ranks) -> dict[str, float]:
        """Measure, set λ from a batch of an epoch on, and return what was seen and done, for the log."""
        # Weights of several processes can differ in their last bits; λ must not.
        figure = ranks.from_first(self.measure())
        time = (epoch * self._batches + batch) / self._total
        factor = self.controller.update(time, figure)
        self._apply()
        return {
            "epoch": epoch,
            "batch": batch,
            "batches": self._batches,
            "figure": figure,
            "plan": self.controller.plan(time),
            "factor": factor,
            "integral": self.controller.accumulated,
        }

    def _apply(self) -> None:
        factor = self.controller.factor
        self._theta.apply(**{kind: factor if kind in self._levers else 1.0 for kind in ("dz", "bit")})

    def metrics(self, epoch: int) -> dict[str, float]:
        """Return the metrics at the end of a 0-based epoch."""
        plan = self.controller.plan((epoch + 1) * self._batches / self._total)
        return {"target/figure": self.measure(), "target/plan": plan, "target/factor": self.controller.factor}

    def summary(self) -> dict[str, Any]:
        """Return the figure reached and its relative deviation from the target; warn if that is more than 5 %."""
        name, value, reached = self.target.figure, self.target.value, self.measure()
        deviation = reached / value - 1
        if abs(deviation) > TOLERANCE:
            logger.warning(
                "target.%s=%s was missed: the training ended at %.4g (%+.1f %%); give it more epochs, higher learning "
                "rates of dz and bit, or a weight decay nearer to the last target/factor in metrics.csv",
                name, value, reached, 100 * deviation,
            )  # fmt: skip
        return {"target": name, "target_value": value, "target_reached": reached, "target_deviation": deviation}

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state and the interval, for `load_state_dict`."""
        return self.controller.state_dict() | {"interval": self._interval}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the controller's state and the λ that follow from it.

        The interval is the one of the start: on another device, or with `cuda_graph` changed, it would be another one.
        """
        state = dict(state)
        self._interval = state.pop("interval", self._interval)  # earlier versions stored none
        self.controller.load_state_dict(state)
        self._apply()


def build_steering(
    config: ExperimentConfig, evaluated: nn.Module, evaluator: Evaluator, factors: ThetaFactors, batches: int
) -> Steering:
    """Build what steers a training of `config` to its target, by `factors` of λ; see `Steering` for the errors."""
    assert config.target is not None
    terms = any(term.lambda_ for term in config.loss_terms)
    frozen = {kind for kind in ("dz", "bit") if getattr(config.freeze_last, kind) >= config.epochs}
    recorded = config.cuda_graph and next(evaluated.parameters()).is_cuda
    return Steering(
        config.target,
        evaluated,
        evaluator.comparison,
        factors,
        terms=terms,
        frozen=frozen,
        interval=update_interval(batches * config.epochs, _rate_of_theta(config), recorded=recorded),
        batches=batches,
        epochs=config.epochs,
    )


def warn_of_distance(config: ExperimentConfig, evaluated: nn.Module, evaluator: Evaluator, batches: int) -> None:
    """Warn before a training of `config` if θ cannot come to the target in its steps."""
    assert config.target is not None
    lowest = lowest_figure(config, evaluated, evaluator.comparison, batches)
    if lowest is not None and lowest > config.target.value * (1 + TOLERANCE):
        logger.warning(
            "target.%s=%s is out of reach: in %d steps the logits of dz and bit can bring the figure of the initial "
            "weights down to %.4g; give it more epochs, or higher learning rates of dz and bit",
            config.target.figure, config.target.value, config.epochs * batches, lowest,
        )  # fmt: skip


def _rate_of_theta(config: ExperimentConfig) -> float:
    """Return about how far a step of AdamW moves a logit, decoupled weight decay of a large logit included."""
    groups = config.optimizer.param_groups.dz, config.optimizer.param_groups.bit
    decay = LARGE_LOGIT if config.theta_regularizer == "decoupled" else 0.0
    return max(group.lr * (1 + group.weight_decay * decay) for group in groups)
