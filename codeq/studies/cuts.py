"""Networks of a study whose channels are cut, from which the members of later studies start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from codeq.analysis.compact_run import TRAINABLE, compact_run
from codeq.common.console import say
from codeq.common.errors import CodeqError
from codeq.common.paths import resolve, short_path
from codeq.runs import Run
from codeq.runs.checkpoints import CHECKPOINTS, checkpoint_entry, read_manifest
from codeq.runs.settings import read_settings, starting_points
from codeq.runs.tables import read_json
from codeq.studies.expand import expand
from codeq.studies.study import Study

CUT_DEFAULTS = {"borders": "map", "streams": "scatter", "multiple_of": 1}  # of `compact_run`


class OtherNetwork(CodeqError):
    """A network that was cut otherwise than later studies need; some of their runs may have started from it."""


def uncut_networks(study: Study, seeds: Sequence[int]) -> dict[int, Path]:
    """Return the runs of these seeds whose channels are not cut yet, by seed."""
    return {seed: run for seed, run in _runs(study, seeds).items() if not _is_cut(run)}


def check_cuts(study: Study, seeds: Sequence[int], options: Mapping[str, Any], later: Sequence[Path]) -> None:
    """Refuse compacted networks that are not those of the last checkpoints of their runs and of these options.

    Parameters
    ----------
    study : Study
        Study whose networks are cut.
    seeds : sequence of int
        Seeds of the networks that are wanted.
    options : mapping
        Options of `codeq.analysis.compact_run.compact_run`.
    later : sequence of Path
        Folders of the studies whose members start from the networks.

    Raises
    ------
    OtherNetwork
        With the runs of later studies that started from such a network.
    """
    for run in _runs(study, seeds).values():
        if _is_cut(run):
            _check_cut(run, options, later)


def cut_networks(runs: Mapping[int, Path], options: Mapping[str, Any]) -> set[int]:
    """Cut the channels of the networks of runs, for the members of the next study that start from them.

    Returns the seeds for which that is impossible.
    """
    uncut = set()
    for seed, run in runs.items():
        say(f"cutting channels of {short_path(run)}")
        try:
            say(str(compact_run(Run.open(run), trainable=True, **options).cut))
        except CodeqError as error:  # it costs that seed alone
            say(f"seed={seed} is left out: {error}")
            uncut.add(seed)
    return uncut


def _runs(study: Study, seeds: Sequence[int]) -> dict[int, Path]:
    runs = {member.varied["seed"]: study.folder / member.name for member in expand(study)}
    return {seed: runs[seed] for seed in seeds}


def _is_cut(run: Path) -> bool:
    return (run / "compacted" / TRAINABLE).is_file()


def _check_cut(run: Path, options: Mapping[str, Any], later: Sequence[Path]) -> None:
    folder, checkpoints = run / "compacted", run / CHECKPOINTS
    proof, wanted = read_json(folder / "proof.json"), {**CUT_DEFAULTS, **options}
    # Earlier versions recorded that channels were cut, but not by which options,
    found = proof.get("options", {key: wanted[key] for key in (wanted if "cut" in proof else CUT_DEFAULTS)})
    if "checkpoint" in proof and read_manifest(checkpoints):  # nor of which checkpoint
        found = {**found, "checkpoint": proof["checkpoint"]}
        wanted["checkpoint"] = checkpoint_entry(checkpoints).file
    if changed := [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]:
        differences = ", ".join(f"{key}={found.get(key)} and not {wanted.get(key)}" for key in changed)
        begun = ", ".join(short_path(started) for started in _started_from(folder, later))
        advice = f". Remove the runs that started from it, too, or move them elsewhere: {begun}" if begun else ""
        raise OtherNetwork(
            f"{short_path(folder)} holds another network than the table needs: {differences}. Rename the folder "
            f"to keep it, or remove it{advice}"
        )


def _started_from(compacted: Path, studies: Sequence[Path]) -> Iterator[Path]:
    """Yield the runs of studies that started from a network in the folder `compacted`, or from a run that did."""
    for run in sorted(path.parent for study in studies for path in study.glob("*/config.yaml")):
        with suppress(CodeqError):  # damaged: whoever reads it says so
            sources = [source for source, *_ in starting_points(read_settings(run / "config.yaml"))]
            if any(resolve(source).is_relative_to(compacted) for source in sources):
                yield run
