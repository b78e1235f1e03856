"""Table 2 of the paper, trained here, and records of its runs."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from codeq.analysis.compact_run import TRAINABLE
from codeq.common.console import say
from codeq.common.errors import CodeqError
from codeq.common.imports import import_options
from codeq.common.paths import resolve, short_path
from codeq.metrics.budget import Figure
from codeq.runs.checkpoints import CHECKPOINTS, peek_checkpoint
from codeq.runs.networks import is_compacted
from codeq.runs.provenance import environments
from codeq.runs.settings import read_settings, starting_points
from codeq.runs.status import current_status, read_status
from codeq.runs.tables import read_json
from codeq.studies.cuts import OtherNetwork, check_cuts, cut_networks, uncut_networks
from codeq.studies.expand import expand
from codeq.studies.files import replace
from codeq.studies.progress import survey
from codeq.studies.reproduction_budgets import BUDGETS, FLOAT, RECOVERED, Budget, Cell
from codeq.studies.reproduction_page import render_cells
from codeq.studies.rounds import Options
from codeq.studies.states import FAILURES
from codeq.studies.study import Study, read_study
from codeq.studies.sweep import run_study


def reproduce(budget: str, seeds: int, options: Options) -> bool:
    """Train what the table needs and is not done, then print and store the table; return whether all runs are done.

    Parameters
    ----------
    budget : {"smoke", "laptop", "paper"}
        Length of the trainings.
    seeds : int
        Runs of each cell, with the seeds 0, 1, …; float networks also for the teachers of the budget.
    options : Options
        As of `codeq.studies.sweep.sweep`.

    Raises
    ------
    CodeqError
        For missing or wrong study files, before the first member starts; for networks of the first study that were cut
        otherwise than the table needs, without a table, whose rows may be theirs; and for mistakes in a later study,
        after the table of the runs so far.
    """
    files = [f"configs/studies/{name}.yaml" for name in BUDGETS[budget].studies]
    if missing := [str(resolve(file)) for file in files if not (Path(file).is_file() or resolve(file).is_file())]:
        raise CodeqError(f"{', '.join(missing)} not found: `codeq init DIR` lays out configs/ in a folder to work in")
    studies = [read_study(file, options.changes) for file in files]
    shown = not options.dry_run
    try:
        return _train(BUDGETS[budget], studies, seeds, _command(budget, seeds, options), options)
    except OtherNetwork:
        shown = False
        raise
    finally:
        if shown:
            _show(budget, [study.folder for study in studies])


def _train(budget: Budget, studies: Sequence[Study], seeds: int, command: str, options: Options) -> bool:
    """Run the studies one after the other, each with the seeds that the one before has left, and cut in between."""
    wanted, done, later = list(range(seeds)), True, [study.folder for study in studies[1:]]
    if budget.cut:  # before the first study trains for hours
        check_cuts(dataclasses.replace(studies[0], seeds=wanted), wanted, budget.cut, later)
    for described in studies:
        first = described is studies[0]
        study = dataclasses.replace(described, seeds=list(range(max(seeds, budget.teachers))) if first else wanted)
        done &= run_study(study, command, options, lambda *_: {})
        states = _states(study)
        if any(state not in ("done", *FAILURES) for _, state in states):  # stopped, at work elsewhere, or not started
            if options.dry_run and (rest := [each.name for each in studies[studies.index(described) + 1 :]]):
                say(f"neither checked nor counted before the runs of {study.name} are done: {', '.join(rest)}")
            break
        failed = {seed for seed, state in states if state != "done"}
        if first and (lost := sorted(failed.intersection(range(budget.teachers)))):
            names = ", ".join(f"seed={seed}" for seed in lost)
            say(f"{names} of {study.name} failed: later networks of every seed are distilled from it, and wait")
            break
        wanted = [seed for seed in wanted if seed not in failed]
        whole = {}
        if budget.cut and first:
            check_cuts(study, wanted, budget.cut, later)  # a run that was trained on has another network now
            whole = uncut_networks(study, wanted)
        if whole and options.dry_run:
            runs = ", ".join(map(short_path, whole.values()))
            say(f"the next study can be checked once the channels of {runs} are cut")
            break
        if uncut := cut_networks(whole, budget.cut):
            done, wanted = False, [seed for seed in wanted if seed not in uncut]
        if not wanted:
            break
    return done


def _command(budget: str, seeds: int, options: Options) -> str:
    """Return the shell command that starts this again.

    Examples
    --------
    >>> _command("smoke", 3, Options(workers=2, changes={"data_dir": "my data"}, imports=["images.py"]))
    "codeq reproduce table2 --budget smoke --seeds 3 --data-dir 'my data' --workers 2 --import images.py"
    """
    words = ["codeq", "reproduce", "table2", "--budget", budget, "--seeds", str(seeds)]
    words += ["--data-dir", data_dir] if (data_dir := (options.changes or {}).get("data_dir")) else []
    words += ["--workers", str(options.workers)] if options.workers is not None else []
    return shlex.join([*words, *import_options(options.imports)])


def _states(study: Study) -> list[tuple[int, str]]:
    """Return seed and state of each member."""
    members = expand(study)
    rows = survey(study.folder, [member.name for member in members])
    return [(member.varied["seed"], row.found.state) for member, row in zip(members, rows, strict=True)]


def _show(budget: str, folders: Sequence[Path]) -> None:
    """Print the table of all runs so far, and store it with their records in the last of `folders`."""
    runs: list[dict[str, Any]] = []
    for folder in folders:
        for run in sorted(path.parent for path in folder.glob("*/config.yaml")):
            try:
                runs.append(read_record(run))
            except CodeqError as error:  # it costs that run alone
                say(f"left out: {error}")
    if not runs:
        return
    store = {"table": "table2", "budget": budget, "runs": runs}
    table = "\n".join(render_cells(store, BUDGETS[budget].cells))
    replace(folders[-1] / "table2.json", json.dumps(store, indent=1) + "\n")
    replace(folders[-1] / "table2.md", f"{table}\n")
    say(f"{table}\n\nstored in {short_path(folders[-1])}: table2.json, table2.md")


def read_record(run: Path) -> dict[str, Any]:
    """Return what the table and the page show of a run, as plain values.

    Returns
    -------
    dict
        `run`, `method` and `theta_regularizer` (see `Cell`), `status`, `started`, `seed`, `epochs`, `dataset`,
        `batch_size`, `init_from`, `teachers`, `target`, `precision`, `hardware` and `commit` (several, where it was
        resumed with others); for a run that is done `accuracy` (fraction, last epoch, test images), `relative_bops` and
        `structured_relative_bops` (fractions of the dense 32-bit network), `structured_macs` (fraction of the dense
        network), `mean_bits`, `seconds` of its training, and `seconds_before`: those of the trainings that it started
        from, `None` if not all are known.

    Raises
    ------
    CodeqError
        If a file of the run cannot be read or lacks one of these.
    """
    try:
        return _record(run)
    except (KeyError, TypeError) as error:
        raise CodeqError(f"{run} is damaged, or of another version of codeq: {error!r}") from error


def _record(run: Path) -> dict[str, Any]:
    settings, environment = read_settings(run / "config.yaml"), read_json(run / "environment.json")
    state = peek_checkpoint(run / CHECKPOINTS)
    cell, status = classify(settings, is_compacted(state) if state else None), read_status(run)
    record: dict[str, Any] = {"run": run.name, "method": cell.method, "theta_regularizer": cell.reading}
    record |= {"status": current_status(run, status), "started": status.started[:10]}
    record |= {key: settings[key] for key in ("seed", "epochs", "dataset", "batch_size")}
    record["init_from"] = settings.get("init_from")
    teacher = (settings.get("distillation") or {}).get("teacher", [])
    record["teachers"] = [teacher] if isinstance(teacher, str) else teacher
    target = settings.get("target") or {}
    record["target"] = {key: target[key] for key in (*get_args(Figure), "reach") if target.get(key) is not None}
    record["precision"] = environment.get("precision") or settings.get("amp") or "float32"
    places = environments(environment)  # several if it was resumed in another one
    hardware = (place["gpu"] or f"{place['cpu']}, threads: {place['cpu_threads']}" for place in places)
    record["hardware"] = "; then ".join(dict.fromkeys(hardware))
    commits = dict.fromkeys(place["git_commit"] for place in places)
    record["commit"] = ", ".join(commit or "unknown" for commit in commits) if any(commits) else None
    if record["status"] != "done":
        return record
    return record | _figures(read_json(run / "summary.json")) | {"seconds_before": _seconds_before(settings)}


def _seconds_before(settings: Mapping[str, Any]) -> float | None:
    """Return the seconds of the trainings that a run builds on, each on its hardware; `None` if one is not known."""
    seconds = 0.0
    try:
        for _, folder, _ in starting_points(settings):
            if folder is None:
                return None
            seconds += read_json(folder / "summary.json")["seconds"]
    except (CodeqError, KeyError):  # whoever needs that run itself says so
        return None
    return round(seconds, 1)


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    dense = summary["baseline_bops"]
    return {
        # With a validation split `accuracy_last` is that of other images.
        "accuracy": summary.get("test_accuracy_last", summary["accuracy_last"]),
        "relative_bops": summary["unstructured_bops"] / dense,
        "structured_relative_bops": summary["structured_bops"] / dense,
        "structured_macs": summary["structured_macs"] / summary["baseline_macs"],
        "mean_bits": summary["mean_bits"],
        "seconds": summary["seconds"],
    }


def classify(settings: Mapping[str, Any], compacted: bool | None = None) -> Cell:
    """Return the cell of a run with the content `settings` of ``config.yaml``.

    Parameters
    ----------
    settings : mapping
        Content of the file.
    compacted : bool, optional
        Whether the checkpoints of the run hold a compacted network; without any, the runs that it started from say so.

    Examples
    --------
    >>> classify({"quantizer": None, "theta_regularizer": "l2", "loss_terms": []})
    Cell(method='float', reading=None)
    >>> quantizer = {"name": "deadzone", "kwargs": {"learnable_bit": False, "fixed_bit_val": 4}}
    >>> classify({"quantizer": quantizer, "theta_regularizer": "l2", "loss_terms": []})
    Cell(method='4 bit', reading='l2')
    """
    if compacted is None:
        compacted = any(Path(source).name == TRAINABLE for source, *_ in starting_points(settings))
    pruned = settings["loss_terms"] or compacted
    if not settings["quantizer"]:
        return RECOVERED if pruned else FLOAT
    name, kwargs = settings["quantizer"]["name"], settings["quantizer"]["kwargs"]
    if name != "deadzone":
        return Cell(name, settings["theta_regularizer"])
    bits = "mixed" if kwargs.get("learnable_bit", True) else f"{kwargs.get('fixed_bit_val', 4)} bit"
    return Cell("channels" if pruned else bits, settings["theta_regularizer"])
