"""Trials of a search, asked of Optuna and recorded by it in a journal, with the members and results that they have."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.common.errors import CodeqError
from codeq.common.paths import make_folder
from codeq.studies.expand import Member, make_trial
from codeq.studies.files import journal_file
from codeq.studies.parts import Range, Search
from codeq.studies.progress import Row
from codeq.studies.study import Study

if TYPE_CHECKING:
    import optuna

ATTRIBUTE = "search"  # of the recorded search: what must not change
HOPELESS = frozenset({"pruned", "diverged", "degenerate"})  # states of members whose trials count as pruned


def check_optuna() -> None:
    """Raise a `CodeqError` if Optuna is not installed.

    Examples
    --------
    >>> check_optuna()
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise CodeqError("search needs the package Optuna: pip install 'codeq[search]'") from error


def recorded_trials(study: Study) -> Trials | None:
    """Return the trials of a search that has begun, or `None`; nothing is written.

    Raises
    ------
    CodeqError
        If Optuna is not installed or the record is damaged, and as `Trials`.
    """
    check_optuna()
    from codeq.studies.journal import open_journal

    journal = journal_file(study.folder)
    recorded = _load(study, open_journal(journal)) if journal.exists() else None
    return None if recorded is None else Trials(study, recorded)


def begin_trials(study: Study) -> Trials:
    """Return the trials of a search, after recording its beginning if it has not begun.

    Raises
    ------
    CodeqError
        If the record cannot be written, and as `recorded_trials`.
    """
    check_optuna()
    import optuna

    from codeq.studies.journal import open_journal

    assert study.search is not None
    journal = journal_file(study.folder)
    make_folder(journal.parent)
    storage = open_journal(journal)
    begun = _load(study, storage)
    if begun is None:
        begun = optuna.create_study(
            storage=storage,
            study_name=study.name,
            directions=["maximize"] if study.search.constraint else ["maximize", "minimize"],
            load_if_exists=True,  # another process may begin it at the same time
        )
    if ATTRIBUTE not in begun.user_attrs:
        begun.set_user_attr(ATTRIBUTE, _fixed(study.search))
    return Trials(study, begun)


def _load(study: Study, storage: optuna.storages.BaseStorage) -> optuna.Study | None:
    import optuna

    names = optuna.get_all_study_names(storage)  # a renamed or copied study keeps its trials, under the old name
    name = study.name if study.name in names else next(reversed(names), "")
    return optuna.load_study(storage=storage, study_name=name) if name else None


def _fixed(search: Search) -> dict[str, Any]:
    """Return what cannot change while the search goes on."""
    return {key: value for key, value in dataclasses.asdict(search).items() if key not in ("trials", "prune_after")}


def score(accuracy: float, bops: float, constraint: Mapping[Any, float]) -> list[float]:
    """Return the values of a trial for Optuna.

    Without a constraint these are accuracy (maximized) and relative BOPs (minimized). With one it is a single figure to
    maximize by the rule of Deb (2000, "An efficient constraint handling method for genetic algorithms"): trials that
    satisfy it are ordered by their objective, from -1 to 1, and those that do not come below all of them, at
    ``-1 - violation``.

    Parameters
    ----------
    accuracy, bops : float
        Fractions.
    constraint : mapping
        As in `codeq.studies.parts.Search`.

    Examples
    --------
    >>> score(0.9, 0.05, {}), score(0.9, 0.05, {"relative_bops": 0.06}), score(0.9, 0.05, {"accuracy": 0.85})
    ([0.9, 0.05], [0.9], [-0.05])
    >>> score(0.9, 0.5, {"relative_bops": 0.25})
    [-1.25]
    """
    if not constraint:
        return [accuracy, bops]
    if "relative_bops" in constraint:
        violation, objective = bops - constraint["relative_bops"], accuracy
    else:
        violation, objective = constraint["accuracy"] - accuracy, -bops
    return [objective] if violation <= 0 else [-1 - violation]


class Trials:
    """Trials of the search of a study.

    Parameters
    ----------
    study : Study
        A study with a search.
    recorded : optuna.Study
        Record of the search.

    Raises
    ------
    CodeqError
        If the recorded search has other ranges, another constraint or another seed.
    """

    def __init__(self, study: Study, recorded: optuna.Study) -> None:
        assert study.search is not None
        self.study, self.search = study, study.search
        self._optuna = recorded
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        stored, wanted = self._optuna.user_attrs.get(ATTRIBUTE), _fixed(self.search)
        if stored is None:  # the process that began it was killed
            return
        if changed := [key for key in wanted if _as_text(stored.get(key)) != _as_text(wanted[key])]:
            raise CodeqError(
                f"study {self.study.name}: search.{changed[0]} is not that of the recorded trials, "
                f"{_as_text(stored.get(changed[0]))[:200]}. Give the study another name, or remove its folder"
            )

    def _asked(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials, without any whose process was killed between its number and its values."""
        from optuna.trial import TrialState

        found = self._optuna.get_trials(deepcopy=False)
        ranges = self.search.ranges.keys()
        return [trial for trial in found if trial.params.keys() == ranges and trial.state != TrialState.FAIL]

    @property
    def count(self) -> int:
        """Number of trials, with and without a result."""
        return len(self._asked())

    def members(self, *, only_open: bool = False) -> list[Member]:
        """Return the members of all trials in order, each once; with `only_open` of those without a result."""
        trials = [trial for trial in self._asked() if not (only_open and trial.state.is_finished())]
        members = [make_trial(self.study, trial.params) for trial in trials]
        return list({member.name: member for member in members}.values())

    def ask(self) -> None:
        """Add a trial, with values that depend on the seed, its number and the results so far."""
        import optuna

        seed = int(np.random.SeedSequence([self.search.seed, self.count]).generate_state(1)[0])
        with warnings.catch_warnings():  # earlier versions of Optuna call the constant liar experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._optuna.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        trial = self._optuna.ask({key: _distribution(bounds) for key, bounds in self.search.ranges.items()})
        if sum(other.number < trial.number for other in self._asked()) >= self.search.trials:
            self._optuna.tell(trial, state=optuna.trial.TrialState.FAIL)  # another process asked for the last one

    def tell(self, rows: Sequence[Row]) -> None:
        """Record the results of the members that have one; hopeless members count as pruned."""
        from optuna.trial import TrialState

        found = {row.member: row for row in rows}
        for trial in self._asked():
            row = found.get(make_trial(self.study, trial.params).name)
            if row is None or trial.state.is_finished():
                continue
            finite = math.isfinite(row.accuracy) and math.isfinite(row.bops)
            if row.found.state == "done" and finite:
                values = score(row.accuracy, row.bops, self.search.constraint)
                self._optuna.tell(trial.number, values, skip_if_finished=True)
            elif row.found.state in HOPELESS:
                self._optuna.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)

    def best(self) -> list[str]:
        """Return the names of the members that no other one beats, and that satisfy the constraint."""
        best = self._optuna.best_trials
        if self.search.constraint:
            best = [trial for trial in best if trial.values[0] >= -1]
        return list(dict.fromkeys(make_trial(self.study, trial.params).name for trial in best))


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)  # 1 and 1.0 are bounds of different kinds


def _distribution(bounds: Range) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    kind = IntDistribution if bounds.whole else FloatDistribution
    return kind(bounds.low, bounds.high, log=bounds.log)
