"""Rank of this process and the world size, where a launcher like ``torchrun`` has started it, and what follows."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from codeq.common.errors import CodeqError


def environment_ranks() -> tuple[int, int]:
    """Return the rank and the world size that the environment gives this process; 0 and 1 for a process alone.

    Raises
    ------
    CodeqError
        For values that make no sense.
    """
    texts = [os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "1")]
    if texts[1] == "1":
        return 0, 1
    if not all(text.isdecimal() for text in texts) or not int(texts[0]) < int(texts[1]):
        found = f"RANK={texts[0][:200]!r} and WORLD_SIZE={texts[1][:200]!r}"
        raise CodeqError(f"environment variables {found}: must be integers, the first one smaller; torchrun sets both")
    return int(texts[0]), int(texts[1])


def refuse_several_processes(command: str) -> None:
    """Raise a `CodeqError` if a launcher has started several processes of a command that starts trainings itself.

    Each of them would start the same ones, and these, as they inherit the environment, would wait for each other.
    """
    _, world = environment_ranks()
    if world > 1:
        raise CodeqError(
            f"codeq {command} starts trainings, and {world} processes (WORLD_SIZE={world}) would start the same ones: "
            "start it once, without torchrun; in several processes only `codeq train` trains, one model in all of them"
        )


@contextmanager
def warnings_of_first(rank: int) -> Iterator[None]:
    """Log no warnings of codeq in another process than the first: all of them find the same."""
    logger = logging.getLogger("codeq")
    level = logger.level
    if rank:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
