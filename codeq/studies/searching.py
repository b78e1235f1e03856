"""One start of a search: ask Optuna for trials, run them as members of the study, record their results, repeat."""

from __future__ import annotations

from codeq.common.console import show
from codeq.common.errors import CodeqError
from codeq.common.paths import short_path
from codeq.common.progress import announced
from codeq.studies.checks import Mistakes, Plan, check, check_disk, configurations
from codeq.studies.expand import Member, make_trial
from codeq.studies.progress import Row, counts, make_console, make_table, survey
from codeq.studies.rounds import Options, Places, advise, describe_places, describe_time, find_places, run_round
from codeq.studies.states import FAILURES, STARTABLE
from codeq.studies.study import Study
from codeq.studies.tasks import write_index
from codeq.studies.trials import HOPELESS, Trials, begin_trials, recorded_trials
from codeq.training.seen_images import images_seen


def run_search(study: Study, command: str, options: Options) -> bool:
    """Start or continue the search of a study, and return whether all of its trials have ended, done or pruned.

    Parameters
    ----------
    study : Study
        A study with a search, with the changes of `options`.
    command : str
        Command that continues it, for the last lines.
    options : Options
        Options of this start.

    Raises
    ------
    CodeqError
        If Optuna is missing, for mistakes at the bounds of the ranges and for members without validation images, before
        the first one starts.
    """
    assert study.search is not None
    console = make_console()
    trials = recorded_trials(study)
    rows = survey(study.folder, [member.name for member in trials.members()] if trials is not None else [])
    _check_workers(study, options.workers)
    plan, probe = _check_bounds(study)
    places = find_places(study, options.workers, 1, plan)
    if trials is not None:
        _configurations(study, trials.members())  # what is recorded must still mean the same
    wanted = STARTABLE | (FAILURES - HOPELESS if options.retry else frozenset())
    begun = [row for row in rows if row.found.state in wanted]
    announcement = _announce(study, trials, rows, begun, plan, probe, places)
    if options.dry_run:
        show(announcement)
        return True
    console.print(announcement, markup=False)
    trials = begin_trials(study)
    problems, stopped = _run_rounds(study, trials, places, wanted)
    rows = survey(study.folder, [member.name for member in trials.members()])
    console.print(make_table(rows))
    for problem in problems:
        console.print(f"problem: {problem}", markup=False)
    for line in _describe_best(trials, rows):
        console.print(line, markup=False)
    remaining = {member.name for member in trials.members(only_open=True)}
    more = trials.count < study.search.trials
    open_rows = [row for row in rows if row.member in remaining]
    advise(lambda line: console.print(line, markup=False), study, open_rows, command, stopped=stopped, more=more)
    return not more and not remaining


def _check_workers(study: Study, workers: int | None) -> None:
    if study.executor.name == "slurm" and not (workers or study.executor.workers):
        raise CodeqError("executor.workers: a search on Slurm needs it, as that many trials are asked at a time")


def _check_bounds(study: Study) -> tuple[Plan, Member]:
    """Check the members at the lower and at the upper bounds, and return their plan and the lower one."""
    assert study.search is not None
    ranges = study.search.ranges
    low = make_trial(study, {key: bounds.low for key, bounds in ranges.items()})
    high = make_trial(study, {key: bounds.high for key, bounds in ranges.items()})
    configs = _configurations(study, [low, high])
    if configs.configs[low.name].validation is None:
        raise CodeqError(
            f"study {study.name}: a search chooses by validation images, never by the test images. "
            "Hold some out of the training images, for example by set: {validation: 0.1}"
        )
    if reason := images_seen(configs.configs[low.name]):
        raise CodeqError(f"study {study.name}: a search chooses by validation images, but {reason}")
    for member in (low, high):
        epochs, prune_after = configs.configs[member.name].epochs, study.search.prune_after
        if prune_after is not None and prune_after >= epochs:
            raise CodeqError(
                f"study {study.name}: search.prune_after={prune_after}: must be below epochs={epochs}, or no trial is "
                "stopped"
            )
    with announced("checking the members at the lower and at the upper bounds ..."):
        return check(study, [low, high], {low.name, high.name}, lambda *_: {}), low


def _configurations(study: Study, members: list[Member]) -> Plan:
    mistakes = Mistakes()
    configs = configurations(study, members, mistakes)
    if mistakes:
        raise mistakes.report(f"study {study.name}", len(members))
    return Plan(configs)


def _announce(
    study: Study, trials: Trials | None, rows: list[Row], begun: list[Row], plan: Plan, probe: Member, places: Places
) -> str:
    """Return a summary of the checks: trials so far and to run, workers, disk space and estimated time."""
    assert study.search is not None
    new = max(0, study.search.trials - (trials.count if trials is not None else 0))
    count = new + len(begun)
    lines = [f"search {study.name} in {short_path(study.folder)}: {study.search.trials} trials"]
    lines += [counts(rows)] if rows else []
    lines.append(describe_places(study, places, count))
    disk = check_disk(study.folder, [plan.disk / len(plan.configs)] * new)
    lines.append(f"disk: about {disk / 1e6:,.0f} MB")
    if count and study.executor.name != "slurm":
        config = plan.configs[probe.name]
        epochs = count * config.epochs - sum(row.epoch for row in begun)
        lines.append(describe_time(config, probe.name, epochs, count, places))
    return "\n".join(lines)


def _run_rounds(study: Study, trials: Trials, places: Places, wanted: frozenset[str]) -> tuple[list[str], bool]:
    """Run rounds of trials, of recorded ones those in the states `wanted`, each member at most once.

    Returns
    -------
    tuple of list of str and bool
        Problems, and whether a signal stopped the rounds.
    """
    assert study.search is not None
    problems: list[str] = []
    begun: set[str] = set()
    rows = survey(study.folder, [member.name for member in trials.members()])
    removed = [row for row in rows if row.found.state == "pending" and row.found.attempt]
    stopped = False
    while not stopped:
        todo = _startable(study, trials, removed, wanted, begun)
        while len(todo) < places.workers and trials.count < study.search.trials:
            trials.ask()
            todo = _startable(study, trials, removed, wanted, begun)
        if not todo:
            break
        every, named = trials.members(), {row.member: row for row in todo}
        write_index(study, every)
        begun |= named.keys()
        chosen = [member for member in every if member.name in named]
        found, stopped = run_round(
            study, chosen, named, _configurations(study, chosen), places, [member.name for member in every]
        )
        problems += found
    _record_results(study, trials)
    return problems, stopped


def _record_results(study: Study, trials: Trials) -> list[Row]:
    """Record the results of the members that have one, and return the rows of all that had none before."""
    rows = survey(study.folder, [member.name for member in trials.members(only_open=True)])
    trials.tell(rows)
    return rows


def _startable(study: Study, trials: Trials, removed: list[Row], wanted: frozenset[str], begun: set[str]) -> list[Row]:
    """Return the members to begin: those without a result, and those whose run was removed after it had one."""
    # The values of a new trial can be those of an earlier one, whose result then counts for both.
    rows = {row.member: row for row in (*removed, *_record_results(study, trials))}
    return [row for row in rows.values() if row.member not in begun and row.found.state in wanted]


def _describe_best(trials: Trials, rows: list[Row]) -> list[str]:
    found, best = {row.member: row for row in rows}, trials.best()
    if not best:
        return ["no trial satisfies the constraint" if trials.search.constraint else "no trial is done"]
    title = "best trial" if trials.search.constraint else "trials that no other one beats in accuracy and relative BOPs"
    figures = [f"  {name}: accuracy {found[name].accuracy:.2%}, relative BOPs {found[name].bops:.2%}" for name in best]
    return [f"{title}, on the validation images:", *figures]
