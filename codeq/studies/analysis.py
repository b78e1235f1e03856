"""Results of a study in groups: statistics, series and failures, as `notebooks/study_analysis.ipynb` shows them."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codeq.analysis.published import published_network
from codeq.common.errors import CodeqError, unknown_name
from codeq.common.paths import make_folder, project_home, short_path, writing
from codeq.plots.groups import metric_axis
from codeq.runs.settings import read_settings
from codeq.studies.files import index_file
from codeq.studies.groups import group_labels, mixed_formats, repetitions, setting_columns, varied_keys
from codeq.studies.query import unknown_column
from codeq.studies.results import CHOSEN_BY, REPEATED, collect, try_read
from codeq.studies.series import layer_bits, learning_curves
from codeq.studies.statistics import paired_differences, summarize

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StudyResults:
    """Runs of a study in groups.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it, with a column `group`.
    keys : list of str
        Columns that define the groups.
    metric : str
        Column that is analysed.
    baseline : str
        Group that others are compared with.
    """

    table: pd.DataFrame
    keys: list[str]
    metric: str
    baseline: str

    def __repr__(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in Counter(self.table["status"]).items())
        groups = ", ".join(self.keys) or "nothing but the seed varies"
        metric = f"{self.metric}{self._measured()}"
        return f"{len(self.table)} runs: {states}; groups by {groups}; {metric}; baseline {self.baseline!r}"

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Statistics of each group, see `codeq.studies.statistics.summarize`."""
        return summarize(self.table, self.metric)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Differences to the baseline, see `codeq.studies.statistics.paired_differences`."""
        return paired_differences(self.table, self.metric, self.baseline)

    def _differences_or_reason(self) -> pd.DataFrame:
        """Return `differences`, or one cell with the reason why runs cannot be paired: it costs no other table."""
        import pandas as pd

        try:
            return self.differences
        except CodeqError as error:
            return pd.DataFrame({"not computed": [str(error)]})

    @property
    def failed(self) -> pd.DataFrame:
        """Runs that are not done, or whose files cannot be read or lack epochs, with their state and the reason."""
        listed = (self.table["status"] != "done") | (self.table["reason"] != "")
        return self.table.loc[listed, ["run", "status", "reason"]].reset_index(drop=True)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Learning curves, see `codeq.studies.series.learning_curves`."""
        return learning_curves(self.table, self.metric.removeprefix("best/"))

    @cached_property
    def bits(self) -> pd.DataFrame:
        """Bits of each layer, see `codeq.studies.series.layer_bits`."""
        return layer_bits(self.table)

    @cached_property
    def tradeoff(self) -> pd.DataFrame:
        """Means and standard deviations over the done runs of each group for `codeq.plots.accuracy_against_bops`.

        The accuracy is that on the test images, also of runs with a validation split.

        Raises
        ------
        CodeqError
            If no run has recorded accuracy and BOPs.
        """
        import pandas as pd

        ratios = {kind: f"compression/{kind}_bops_ratio" for kind in ("unstructured", "structured")}
        needed = ["eval/accuracy", *ratios.values()]
        if missing := [name for name in needed if name not in self.table]:
            raise CodeqError(f"no run has recorded {', '.join(missing)}")
        done = self.table[self.table["status"] == "done"].dropna(subset=needed)
        if not len(done):
            raise CodeqError("no done run has recorded accuracy and BOPs")
        accuracy = done["test/accuracy" if "test/accuracy" in done else "eval/accuracy"].astype(float)
        rows = pd.DataFrame({"run": done["group"], "accuracy": accuracy})
        for kind, name in ratios.items():
            rows[f"{kind}_bops"] = 1 / done[name].astype(float)
        settings = [try_read(read_settings, Path(folder) / "config.yaml")[0] for folder in done["folder"]]
        for key in ("model", "dataset"):
            rows[key] = [str(one.get(key, "?")) for one in settings]
        rows["network"] = [published_network(one) for one in settings]
        groups = rows.groupby(["run", "model", "dataset", "network"], sort=False)
        return groups.mean().join(groups.std().add_suffix("_std")).reset_index()

    def readable_tables(self) -> dict[str, pd.DataFrame]:
        """Return summary, differences and failures as text, by name, with accuracies and sparsities in percent."""
        scale, label = metric_axis(self.metric)
        label += self._measured()

        def spread(row: pd.Series) -> str:
            return f"{_number(scale * row['mean'])} ± {_number(scale * row['std'])}"

        def ends(row: pd.Series) -> str:
            return f"{_number(scale * row['low'])} … {_number(scale * row['high'])}"

        tables = {"summary": self.summary, "differences": self._differences_or_reason()}
        readable = {}
        for name, table in tables.items():
            if "mean" not in table:  # a reason
                readable[name] = table
                continue
            shown = table.drop(columns=["mean", "std", "low", "high"])
            what = f"difference of {label.replace('(%)', '(points)')}" if name == "differences" else label
            shown[f"{what}, mean ± std"] = [spread(row) for _, row in table.iterrows()]
            shown["95 % interval"] = [ends(row) for _, row in table.iterrows()]
            if "p" in shown:
                shown["p"] = shown.pop("p").map(_number)
            readable[name] = shown
        return readable | {"failed": self.failed}

    @property
    def images(self) -> str:
        """Images on which an ``eval/…`` metric was measured, ``validation`` or ``test``; empty for other metrics."""
        evaluated = self.metric.removeprefix("best/").startswith("eval/")
        return " or ".join(_chosen_by(self.table)) if evaluated else ""

    @property
    def chosen_on(self) -> str:
        """Images that chose the epoch of a ``best/…`` metric, ``validation`` or ``test``; empty for other metrics."""
        return " or ".join(_chosen_by(self.table)) if self.metric.startswith("best/") else ""

    def _measured(self) -> str:
        """Return on which images an ``eval/…`` metric was measured, and which of them chose the epoch."""
        if self.images:
            return f" on {self.images} images{', which chose the epoch' if self.chosen_on else ''}"
        return f", chosen on {self.chosen_on} images" if self.chosen_on else ""

    def write_tables(self, folder: Path) -> list[Path]:
        """Write each table into `folder`, as CSV with raw numbers and as LaTeX (booktabs), and return the paths.

        Raises
        ------
        CodeqError
            If `folder` cannot be written.
        """
        raw = {"summary": self.summary, "differences": self._differences_or_reason()}
        raw |= {"failed": self.failed, "runs": self.table}
        texts = {f"{name}.csv": str(table.to_csv(index=False)) for name, table in raw.items()}
        for name, table in self.readable_tables().items():
            texts[f"{name}.tex"] = _latex(table)
        make_folder(folder)
        for name, text in texts.items():
            with writing(folder / name):
                (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in texts]


def read_results(
    study: str | None = None, metric: str = "eval/accuracy", groups: str | None = None, baseline: str | None = None
) -> StudyResults:
    """Read the runs of a study and divide them into groups.

    Of done runs with the same settings and seed the last one counts; the others get the status ``repeated``. A run
    whose settings cannot be read is a group of its own. A warning names groups of runs in several number formats.

    Parameters
    ----------
    study : str, optional
        Folder of a study, or a glob that matches run folders; default the newest study in ``outputs``.
    metric : str
        Column of `codeq.studies.collect` with numbers.
    groups : str, optional
        Columns that define the groups, separated by spaces; default all keys that vary, except the seed.
    baseline : str, optional
        Name of a group; default the first one whose settings are known.

    Raises
    ------
    CodeqError
        If there are no runs, or none has recorded an epoch, for an unknown column or group, and for a metric that was
        measured, or whose epoch was chosen, on validation images in some runs and on test images in others.
    """
    table = collect(study if study is not None else _newest_study())
    if "epoch" not in table:
        reason = next(filter(None, table["reason"]), "")
        raise CodeqError(f"none of {len(table)} runs has recorded an epoch{f': {reason}' if reason else ''}")
    if metric not in table:
        raise unknown_column(metric, table)
    if table[metric].dtype.kind not in "iuf":
        raise CodeqError(f"metric={metric!r} is not a number in each run; an example: eval/accuracy")
    try:
        keys = varied_keys(table) if groups is None else shlex.split(groups)
    except ValueError as error:  # an unclosed quote
        raise CodeqError(f"groups={groups!r}: {error}") from error
    labels = group_labels(table, keys)
    alone = unknown_settings(table, keys)
    labels = [own or label for own, label in zip(alone, labels, strict=True)]
    table = _without_repetitions(table.assign(group=labels))
    if metric.startswith(("eval/", "best/")) and len(_chosen_by(table)) > 1:
        what = "was measured" if metric.startswith("eval/") else "is of an epoch that was chosen"
        other = metric.removeprefix("best/").replace("eval/", "test/")
        raise CodeqError(
            f"metric={metric!r} {what} on validation images in some runs and on test images in others; "
            f"{other!r}, of the last epoch, is that of the test images in all of them"
        )
    for group, formats in mixed_formats(table).items():
        logger.warning("the runs of %r were not trained in one number format: %s", group, ", ".join(formats))
    known = list(dict.fromkeys(sorted(labels, key=set(alone).__contains__)))  # those of unknown settings at the end
    if baseline is not None and baseline not in known:
        raise unknown_name("baseline", baseline, known)
    return StudyResults(table, keys, metric, known[0] if baseline is None else baseline)


def unknown_settings(table: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return for each run with unknown values of `keys` a group of its own; empty for the others.

    These are runs whose ``config.yaml`` cannot be read. They may differ in anything, and are no group together.
    """
    columns = list(keys) or setting_columns(table)
    complete = table[columns].notna().all(axis="columns") & bool(columns)
    return [
        f"{short_path(Path(folder))} (settings unknown)"
        if not is_complete and try_read(read_settings, Path(folder) / "config.yaml")[1]
        else ""
        for folder, is_complete in zip(table["folder"], complete, strict=True)
    ]


def _without_repetitions(table: pd.DataFrame) -> pd.DataFrame:
    """Give runs that a later one repeats the status ``repeated``: twice the same seed is no second sample."""
    status, reason = table["status"].tolist(), table["reason"].tolist()
    for row, later in enumerate(repetitions(table)):
        if later:
            status[row], reason[row] = REPEATED, f"same settings and seed as {later}, which is counted"
    return table.assign(status=status, reason=reason)


def _chosen_by(table: pd.DataFrame) -> list[str]:
    """Return the kinds of images on which ``eval/…`` of the done runs was measured, and which chose the best epoch."""
    return sorted(table.loc[table["status"] == "done", CHOSEN_BY].dropna().unique()) if CHOSEN_BY in table else []


def _newest_study() -> Path:
    outputs = project_home() / "outputs"
    found = [folder for folder in outputs.glob("*") if index_file(folder).is_file()]
    if not found:
        raise CodeqError(f"no study in {outputs} yet: `codeq sweep configs/studies/quick.yaml` runs one in minutes")
    return max(found, key=lambda folder: index_file(folder).stat().st_mtime)


def _number(value: float) -> str:
    """Return a number with two decimals, or three digits if that would be 0; a dash where it is unknown."""
    if np.isnan(value):
        return "–"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def _latex(table: pd.DataFrame) -> str:
    text = str(table.to_latex(index=False, escape=True))
    for sign, command in {"±": r"$\pm$", "…": r"\dots{}", "–": "--"}.items():
        text = text.replace(sign, command)
    return text
