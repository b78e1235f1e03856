"""Display of a study while its engine runs, and forwarding of Ctrl-C and SIGTERM to the members."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from codeq.common.console import say
from codeq.common.signals import handled
from codeq.studies.engines import Engine
from codeq.studies.progress import make_console, make_table, survey

REFRESH_EVERY = 1.0  # seconds between two pictures of the table


def follow(engine: Engine, study: Path, members: Sequence[str]) -> bool:
    """Run the engine, show the table meanwhile, and return whether a signal stopped it."""
    work = threading.Thread(target=engine.run, daemon=True)
    with _stopping(engine) as received:
        work.start()
        show = _live if make_console().is_terminal else _lines
        show(work, study, members)
    return bool(received)


def _live(work: threading.Thread, study: Path, members: Sequence[str]) -> None:
    from rich.live import Live

    console = make_console()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while work.is_alive():
            live.update(make_table(survey(study, members), console.height - 6), refresh=True)
            work.join(REFRESH_EVERY)


def _lines(work: threading.Thread, study: Path, members: Sequence[str]) -> None:
    """Print a line for each change of a state, where no table can be redrawn."""
    before = {row.member: row.found.state for row in survey(study, members)}
    while True:
        over = not work.is_alive()
        for row in survey(study, members):
            if row.found.state != before[row.member]:
                before[row.member] = row.found.state
                reason = f" ({row.found.reason})" if row.found.reason else ""
                say(f"{time.strftime('%H:%M:%S')} {row.member}: {row.found.state}{reason}")
        if over:
            return
        work.join(REFRESH_EVERY)


@contextmanager
def _stopping(engine: Engine) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM ask all members to save their state; a second signal leaves at once."""
    received: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        engine.stop()
        say("stopping: the members save their state (once more to leave without waiting)")

    with handled((signal.SIGINT, signal.SIGTERM), ask):
        yield received
