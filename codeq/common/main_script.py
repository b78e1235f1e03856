"""Scripts whose worker processes execute them again: on a Mac, on Windows, and wherever processes are not copied."""

from __future__ import annotations

import multiprocessing

from codeq.common.errors import CodeqError


def check_not_repeated(what: str) -> None:
    """Raise a `CodeqError` in a worker process that executes the script of its parent again before its own work.

    Parameters
    ----------
    what : str
        What the script was about to do again, for the message.
    """
    # What multiprocessing looks at before it refuses to start a process inside of such a one.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise CodeqError(
            f"a worker process, which executes this script again before its own work, is not to {what}: put everything "
            'that the script does below `if __name__ == "__main__":`'
        )
