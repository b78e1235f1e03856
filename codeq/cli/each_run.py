"""The loop of commands over several runs: one that is refused does not keep the others from their turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from codeq.common.errors import CodeqError
from codeq.runs.references import find_runs

if TYPE_CHECKING:
    from codeq.runs import Run


def for_each_run(names: Sequence[str], act: Callable[[Run], None]) -> None:
    """Call `act` with each run that `names` name.

    Raises
    ------
    CodeqError
        Before the first call if a name names no run; after the last one with the reason for each run that was refused.
        Runs that are refused for the same reason, such as a wrong option, share a line.
    """
    refusals: dict[str, list[str]] = {}
    for run in find_runs(names):
        try:
            act(run)
        except CodeqError as error:
            refusals.setdefault(str(error), []).append(run.folder.name)
    if refusals:
        raise CodeqError("\n".join(f"{', '.join(runs)}: {reason}" for reason, runs in refusals.items()))
