"""``codeq init``: lay out notebooks, example configurations and Slurm scripts in a folder to work in."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from codeq.common.console import say
from codeq.common.errors import CodeqError
from codeq.common.paths import MARKER, WORKBENCH, expanded, make_folder, write_new_file

MARKER_TEXT = "Commands and notebooks of codeq in this folder and below it keep data/ and outputs/ here.\n"
PARTS = {"notebooks": "*.ipynb", "configs": "**/*.yaml", "slurm": "*.sh"}


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("init", help="lay out notebooks, configurations and Slurm scripts in a folder")
    parser.add_argument("folder", metavar="DIR", help="folder to work in, created if missing")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Lay out the workbench and print how to start."""
    if not options.folder:  # as of an unset variable of the shell, not the working directory
        raise CodeqError("DIR is empty: must be a folder; the working directory is .")
    folder = lay_out(expanded(options.folder, "DIR").absolute())
    say(f"{', '.join(PARTS)} are in {folder}; data and outputs go there as well. To start:")
    say(f"  cd {shlex.quote(str(folder))}")
    say("  codeq notebook debug_run    # or: jupyter lab notebooks")


def lay_out(folder: Path) -> Path:
    """Copy the files of the workbench into `folder` and return it.

    Raises
    ------
    CodeqError
        If files of these names are there already, or the folder cannot be written; then nothing is copied.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     (lay_out(Path(home, "work")) / "notebooks" / "debug_run.ipynb").is_file()
    True
    """
    sources = [path for part, pattern in PARTS.items() for path in sorted((WORKBENCH / part).glob(pattern))]
    names = [path.relative_to(WORKBENCH) for path in sources]
    if existing := [str(name) for name in names if (folder / name).exists()]:
        raise CodeqError(f"{folder} already has {', '.join(existing)}; choose another folder or remove them")
    for source, name in zip(sources, names, strict=True):
        write_new_file(folder / name, source.read_text("utf-8"))
    if not (folder / MARKER).exists():
        write_new_file(folder / MARKER, MARKER_TEXT)
    make_folder(folder / "outputs")  # Slurm's logs go there, and a job that cannot open its log fails without a message
    return folder
