"""The loop of commands over several runs: one that is refused does not keep the others from their turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from codeq.common.console import say
from codeq.common.errors import CodeqError, system_reason
from codeq.runs.references import find_runs

if TYPE_CHECKING:
    from codeq.runs import Run


def for_each_run(names: Sequence[str], act: Callable[[Run], None]) -> None:
    """Call `act` with each run that `names` name; one whose files cannot be read or written is refused, too.

    Raises
    ------
    CodeqError
        Before the first call if a name names no run; after the last one with the reason for each run that was refused.
        Runs that are refused for the same reason, such as a wrong option, share a line.
    """
    refusals: dict[str, list[str]] = {}
    try:
        for run in find_runs(names):
            try:
                act(run)
            except (CodeqError, OSError) as error:
                reason = system_reason(error) if isinstance(error, OSError) else str(error)
                refusals.setdefault(reason, []).append(run.folder.name)
    except BaseException:  # Ctrl-C, or a fault: the reasons so far are not lost
        if refusals:
            say(_lines(refusals), sys.stderr)
        raise
    if refusals:
        raise CodeqError(_lines(refusals))


def _lines(refusals: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"{', '.join(runs)}: {reason}" for reason, runs in refusals.items())
