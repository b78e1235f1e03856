"""Statistics of a metric over seeds: mean, standard deviation, interval of Student's t, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from codeq.common.errors import CodeqError, listed, unknown_name
from codeq.runs.settings import SEED

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
ROUNDING = 1e-9  # values that differ by less, relative to their magnitude, count as equal


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    """Return mean, sample standard deviation and the 95 % interval of the mean.

    The interval is ``mean ± t · std / √n``, where t is the 97.5 % quantile of Student's t distribution with n - 1
    degrees of freedom. It assumes independent values of a normal distribution.

    Parameters
    ----------
    values : sequence of float
        `[N]`, finite.

    Returns
    -------
    tuple of float
        Mean, standard deviation (divisor n - 1), lower and upper end; NaN where there are too few values.

    Examples
    --------
    >>> [round(figure, 4) for figure in interval([1.0, 2.0, 3.0])]
    [2.0, 1.0, -0.4841, 4.4841]
    >>> interval([1.0])
    (1.0, nan, nan, nan)
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return float(values[0]) if n else math.nan, math.nan, math.nan, math.nan
    mean, std = float(values.mean()), float(values.std(ddof=1))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * std / math.sqrt(n)
    return mean, std, mean - half, mean + half


def usable(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the runs of `table` that are done and have a finite `metric`: others did not reach their result."""
    return table[(table["status"] == "done") & np.isfinite(table[metric].astype(float))]


def summarize(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return mean, standard deviation and 95 % interval of `metric` for each group of runs.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it, with a column `group`.
    metric : str
        Column.

    Returns
    -------
    DataFrame
        In order of appearance: `group`, `members` (runs in any state), `n` (those in the statistics, see `usable`),
        `mean`, `std`, `low`, `high` (see `interval`).

    Examples
    --------
    >>> import pandas as pd
    >>> runs = pd.DataFrame({"group": ["a", "a"], "status": ["done", "diverged"], "eval/accuracy": [0.5, 0.1]})
    >>> summarize(runs, "eval/accuracy")[["group", "members", "n", "mean", "std"]].values.tolist()
    [['a', 2, 1, 0.5, nan]]
    """
    import pandas as pd

    good = usable(table, metric)
    rows = []
    for group in table["group"].unique():
        values = good.loc[good["group"] == group, metric].to_numpy(dtype=float)
        row = (group, int((table["group"] == group).sum()), len(values), *interval(values))
        rows.append(row)
    return pd.DataFrame(rows, columns=["group", "members", "n", "mean", "std", "low", "high"])


def paired_differences(table: pd.DataFrame, metric: str, baseline: str) -> pd.DataFrame:
    """Return the differences of each group to a baseline, between runs of the same seed.

    Runs with the same seed share initial weights and order of images, which the difference cancels.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it, with a column `group`. Without a column `seed` all runs have the same.
    metric : str
        Column.
    baseline : str
        Group that is subtracted.

    Returns
    -------
    DataFrame
        For each other group: `group`, `pairs` (seeds that both have), `mean`, `std`, `low`, `high` of the differences
        (see `interval`) and `p` of the two-sided paired t test; NaN where there are too few pairs.

    Raises
    ------
    CodeqError
        For an unknown baseline, and for several runs of a group with the same seed.

    Examples
    --------
    >>> import pandas as pd
    >>> runs = pd.DataFrame({"group": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "status": "done", "x": [1, 2, 3, 6]})
    >>> paired_differences(runs, "x", "a")[["group", "pairs", "mean"]].values.tolist()
    [['b', 2, 3.0]]
    """
    import pandas as pd

    groups = list(table["group"].unique())
    if baseline not in groups:
        raise unknown_name("baseline", baseline, groups)
    good = usable(table, metric)
    values = {group: _by_seed(good[good["group"] == group], metric, group) for group in groups}
    rows = []
    for group in groups:
        if group != baseline:
            seeds = [seed for seed in values[baseline] if seed in values[group]]
            found = np.array([values[group][seed] - values[baseline][seed] for seed in seeds])
            rows.append((group, len(seeds), *interval(found), p_value(found)))
    return pd.DataFrame(rows, columns=["group", "pairs", "mean", "std", "low", "high", "p"])


def _by_seed(runs: pd.DataFrame, metric: str, group: str) -> dict[int, float]:
    seeds = runs[SEED].tolist() if SEED in runs else [0] * len(runs)
    for seed in seeds:
        if seeds.count(seed) > 1:
            names = runs.get("run", runs.index)
            same = listed([str(name) for name, other in zip(names, seeds, strict=True) if other == seed], 3)
            raise CodeqError(
                f"group {group!r} has several runs with seed {seed} ({same}): differences are paired by seed, so "
                "add the key in which these runs differ to the groups"
            )
    return dict(zip(seeds, runs[metric].astype(float).tolist(), strict=True))


def p_value(differences: np.ndarray) -> float:
    """Return p of the two-sided t test that the mean of paired differences is 0; NaN below two or if all are equal.

    Equal differences, such as those of accuracies on a few hundred images, have no measurable spread to test against.

    Examples
    --------
    >>> round(p_value(np.array([1.0, 2.0, 3.0])), 4)
    0.0742
    """
    from scipy.stats import ttest_1samp

    if len(differences) < 2 or np.ptp(differences) <= ROUNDING * np.abs(differences).max():
        return math.nan
    return float(ttest_1samp(differences, 0.0).pvalue)
