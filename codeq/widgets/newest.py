"""Which run a notebook looks at when nobody named one."""

from __future__ import annotations

import os

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.runs import Run


def newest_run(path: str | os.PathLike[str] | None = None) -> Run:
    """Open the run in the folder `path`, or without one the newest run in ``outputs``.

    Raises
    ------
    CodeqError
        If there is no run there.

    Examples
    --------
    >>> newest_run()
    Traceback (most recent call last):
    ...
    codeq.CodeqError: there is no run in ...outputs yet: `make debug` makes one in some minutes, ...
    """
    if path is not None:
        return Run.open(path)
    runs = Run.list()
    if not runs:
        raise CodeqError(
            f"there is no run in {resolve('outputs')} yet: `make debug` makes one in some minutes, or name the "
            "folder of a run that lies elsewhere by the notebook's parameter `run`"
        )
    return runs[-1]
