"""Creation of the folder of a new run: its place, and what may lie there already."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from codeq.common.errors import CodeqError
from codeq.common.imports import source_files
from codeq.common.paths import make_new_folder, project_home, resolve, write_numbered_file
from codeq.runs.checkpoints import CHECKPOINTS
from codeq.runs.status import FILE

if TYPE_CHECKING:
    from codeq.config import ExperimentConfig

BESIDE = {".log", ".out", ".err"}  # what schedulers write next to a run's own files


def copy_sources(imports: list[str], folder: Path) -> None:
    """Copy imported files into ``imports/``, for people to read; nothing executes the copies."""
    for path in source_files(imports):
        write_numbered_file(folder / "imports", path.stem, path.suffix, path.read_text("utf-8", errors="replace"))


def refuse_used_folder(folder: Path) -> None:
    """Raise a `CodeqError` if a new run cannot go into `folder`: it holds one or other files, or is a file."""
    if folder.exists() and not folder.is_dir():
        raise CodeqError(f"run_dir={str(folder)!r} is a file; choose a folder")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there & {FILE, "metrics.csv", CHECKPOINTS}:
        raise CodeqError(f"run_dir={str(folder)!r} already holds a run; choose another folder or remove it")
    foreign = sorted(name for name in there if name[0] != "." and Path(name).suffix not in BESIDE)
    if foreign and not any(Path(name).suffix == ".ipynb" for name in there):  # a notebook may write more than the run
        raise CodeqError(f"run_dir={str(folder)!r} holds other files ({', '.join(foreign)[:200]}); choose a new folder")


def new_run_folder(config: ExperimentConfig) -> Path:
    """Make an empty folder, named by the time and the name of `config`, in its `save_dir` or in the outputs."""
    name = re.sub(r"[^\w.+-]+", "-", config.name)
    parent = resolve(config.save_dir) if config.save_dir else project_home() / "outputs" / name
    return make_new_folder(parent, f"{datetime.now():%Y%m%d-%H%M%S}_{name}")
