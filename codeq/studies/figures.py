"""All figures of the results of a study."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from codeq import plots
from codeq.analysis.drawings import Drawing
from codeq.analysis.published import published_for
from codeq.common.errors import CodeqError
from codeq.studies.analysis import StudyResults, unknown_settings
from codeq.studies.statistics import usable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def _runs(results: StudyResults) -> pd.DataFrame:
    runs = usable(results.table, results.metric)
    if not len(runs):
        raise CodeqError(f"no done run has a value of {results.metric!r}")
    return runs


def _with_known_settings(results: StudyResults) -> pd.DataFrame:
    runs = _runs(results)
    return runs[[not alone for alone in unknown_settings(runs, results.keys)]]


FIGURES: dict[str, tuple[str, Callable[[StudyResults], Figure]]] = {
    "group_means": (
        "Mean of each group over its done runs with the 95 % interval of Student's t; each run is a dot.",
        lambda results: plots.group_means(results.summary, _runs(results), results.metric),
    ),
    "group_differences": (
        "Mean difference of each group to the baseline, between runs of the same seed.",
        lambda results: plots.group_differences(results.differences, results.metric, results.baseline),
    ),
    "parameter_effects": (
        "Metric against each parameter that varies, over all values of the others; mean ± standard deviation.",
        lambda results: plots.parameter_effects(_with_known_settings(results), results.keys, results.metric),
    ),
    "accuracy_against_bops": (
        "Test accuracy against relative BOPs, means ± standard deviations of groups, with Pareto fronts and comparable "
        "published results.",
        lambda results: plots.accuracy_against_bops(results.tradeoff, published_for(results.tradeoff)),
    ),
    "learning_curves": (
        "Mean ± standard deviation of each group over epochs.",
        lambda results: plots.learning_bands(results.curves, results.metric.removeprefix("best/")),
    ),
    "layer_bits": (
        "Mean bits of each layer in each group after the last epoch.",
        lambda results: plots.bits_over_groups(results.bits),
    ),
}

OF_THE_METRIC = {"group_means", "group_differences", "parameter_effects", "learning_curves"}


def draw_study(results: StudyResults) -> dict[str, Drawing]:
    """Draw all figures of the results of a study; a figure that cannot be drawn is returned with the reason.

    Returns
    -------
    dict of str to Drawing
        By name.
    """
    drawings = {}
    for name, (what, draw) in FIGURES.items():
        on = f" Measured on {results.images} images." if name in OF_THE_METRIC and results.images else ""
        if name != "learning_curves" and name in OF_THE_METRIC and results.chosen_on:
            on += f" The epoch was chosen on {results.chosen_on} images."
        caption = what + on
        try:
            drawings[name] = Drawing(name, caption, draw(results))
        except CodeqError as error:
            drawings[name] = Drawing(name, caption, None, str(error))
        except Exception as error:  # an unexpected value in a table loses one figure, not the others
            drawings[name] = Drawing(name, caption, None, f"{type(error).__name__}: {error}")
    return drawings
