"""Dead-zones and bit-widths per layer for a budget of BOPs, chosen by sensitivity, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isnan, nan
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from codeq.analysis.layer_options import Choice, layer_options
from codeq.analysis.network import input_size_of
from codeq.analysis.requantize import Requantizer, Setting
from codeq.analysis.scan import Progress, scan_network
from codeq.analysis.subset import evaluation_images, evaluation_subset
from codeq.common.checks import is_number
from codeq.common.errors import CodeqError, quote
from codeq.quantizer import MIN_BITS
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointName, checkpoint_entry
from codeq.runs.references import require_run

if TYPE_CHECKING:
    import pandas as pd

CLOSE = 0.95  # of the budget: settings that use less are taken only if there is no other


@dataclass(frozen=True, eq=False)
class BudgetSolution:
    """Settings per layer that keep a budget, see `solve_budget`.

    Parameters
    ----------
    dead_zone : dict of str to float
        ``d / (2 R)`` in force, in 0 … 1, by layer.
    bits : dict of str to int
        Bit-widths, by layer.
    relative_bops : float
        Unstructured BOPs of the network / those of the dense 32-bit network, a fraction.
    accuracy, uniform_accuracy : float
        Fraction of correct predictions with these settings, and with the best single setting for all layers that
        keeps the same budget; where these settings use 95 % of it, of those that use as much (NaN if there is none).
    images : str
        Images of both accuracies and of the choice, ``validation`` or ``test``.
    trained : dict of str to Setting
        Trained settings, by layer.
    """

    dead_zone: dict[str, float]
    bits: dict[str, int]
    relative_bops: float
    accuracy: float
    uniform_accuracy: float
    images: str
    trained: dict[str, Setting]

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer: `layer`, `bits`, `trained_bits`, `dead_zone`, `trained_dead_zone`."""
        import pandas as pd

        columns = ["layer", "bits", "trained_bits", "dead_zone", "trained_dead_zone"]
        rows = [
            (name, self.bits[name], setting.bits, self.dead_zone[name], setting.dead_zone)
            for name, setting in self.trained.items()
        ]
        return pd.DataFrame(rows, columns=columns)


def solve_budget(
    run: Run,
    relative_bops: float,
    dead_zones: bool = True,
    max_images: int = 1000,
    checkpoint: CheckpointName | str = "last",
    progress: Progress | None = None,
) -> BudgetSolution:
    """Find dead-zones and bits of each layer that keep a budget of BOPs, without training.

    The costs of a layer are exact; its loss is interpolated in the scan of `scan_run`, and losses of layers are added.
    Of the settings with the smallest sum that use the budget (95 to 100 % of it, where they can), of the trained ones
    with fewer bits, and of those with one bit-width and dead-zone for all layers, the one with the highest measured
    accuracy is returned.

    Parameters
    ----------
    run : Run
        With a checkpoint and dead-zone quantizers.
    relative_bops : float
        Largest unstructured BOPs / BOPs of the dense 32-bit network, a fraction.
    dead_zones : bool
        Whether dead-zones may change; otherwise only bit-widths do, and the budget is met less closely.
    max_images : int
        Largest number of images for the accuracies, see `evaluation_subset`.
    checkpoint : {"last", "best"} or str
        As of `Run.load_model`.
    progress : callable, optional
        Of the scan, see `scan_run`.

    Raises
    ------
    CodeqError
        If a quantizer has no dead-zone, or no setting keeps the budget (the smallest possible BOPs are named).

    Examples
    --------
    >>> import tempfile
    >>> from codeq import ExperimentConfig, run_experiment
    >>> settings = {"model": "mlp", "dataset": "synthetic", "epochs": 1, "device": "cpu"}
    >>> with tempfile.TemporaryDirectory() as home:
    ...     run = run_experiment(ExperimentConfig("demo", run_dir=f"{home}/demo", **settings))
    ...     solution = solve_budget(run, relative_bops=0.03)
    demo: mlp on synthetic ...
    >>> solution.relative_bops <= 0.03, solution.table["layer"].tolist()
    (True, ['fc1', 'fc2', 'fc3'])
    """
    if not is_number(relative_bops) or not 0 < float(relative_bops) <= 1:
        shown = quote(relative_bops)
        raise CodeqError(f"relative_bops={shown}: must lie in (0, 1], a fraction of the dense 32-bit BOPs")
    entry = checkpoint_entry(require_run(run).checkpoints, checkpoint)
    model = run.load_model(entry.file)
    requantizer = Requantizer(model, input_size_of(run, model))
    for name, setting in requantizer.trained.items():
        if setting.dead_zone is None:
            raise CodeqError(
                f"layer {name!r} has a uniform quantizer; a budget is solved for dead-zone quantizers only"
            )
    trained = requantizer.evaluate().result
    dense = trained.unstructured_stats.total_bops * trained.unstructured_bops_ratio
    options = layer_options(model, requantizer.trained, trained, dead_zones)
    widest = np.array([zones[-1] for zones in options.zones])
    least = options.cost(widest, np.full(len(options.names), MIN_BITS)) / dense
    if least > relative_bops:
        how = "the fewest bits and the widest dead-zones" if dead_zones else "the fewest bits"
        raise CodeqError(f"relative_bops={relative_bops!r} cannot be kept: with {how} {100 * least:.2f} % remain")
    scan = scan_network(run, model, entry, progress=progress)
    scan = scan[scan["grid"]].assign(increase=scan["loss"] - scan["baseline_loss"])
    budget, batches, images = (
        relative_bops * dense,
        evaluation_subset(run.config, max_images),
        evaluation_images(run.config),
    )

    def within_budget(choices: Sequence[Choice]) -> list[_Candidate]:
        measured = [_measure(requantizer, options.names, choice, batches, images) for choice in choices]
        return [candidate for candidate in measured if candidate.solution.relative_bops <= relative_bops]

    def rank(candidate: _Candidate) -> tuple[bool, float, float]:
        found = candidate.solution
        return found.relative_bops >= CLOSE * relative_bops, found.accuracy, -candidate.loss

    uniform = within_budget(options.uniform(budget))
    # Of the trained dead-zones, too: between the cells of the scan, losses are only estimates.
    searched = [options, options.with_trained_zones()] if dead_zones else [options]
    chosen = within_budget(
        [each.cheapest(each.losses(scan, column), budget) for each in searched for column in ("increase", "drop")]
    )
    chosen += within_budget(options.lowered(budget))
    best = max([*chosen, *uniform], key=rank, default=None)
    if best is None:
        raise CodeqError(f"relative_bops={relative_bops!r} cannot be kept by the settings that were tried")
    alike = [candidate.solution.accuracy for candidate in uniform if rank(candidate)[0] == rank(best)[0]]
    return replace(best.solution, uniform_accuracy=max(alike, default=nan))


class _Candidate(NamedTuple):
    """Measured settings and their loss; infinite where it is no number."""

    solution: BudgetSolution
    loss: float


def _measure(
    requantizer: Requantizer,
    names: Sequence[str],
    choice: Choice,
    batches: Sequence[tuple[Tensor, Tensor]],
    images: str,
) -> _Candidate:
    zones, widths = choice
    dead_zone = dict(zip(names, zones.tolist(), strict=True))
    bits = {name: int(width) for name, width in zip(names, widths, strict=True)}
    result = requantizer.evaluate(dead_zone, bits, batches).result
    assert result.test_accuracy is not None
    assert result.test_loss is not None
    bops, loss = 1 / result.unstructured_bops_ratio, result.test_loss
    solution = BudgetSolution(dead_zone, bits, bops, result.test_accuracy, nan, images, requantizer.trained)
    return _Candidate(solution, inf if isnan(loss) else loss)
