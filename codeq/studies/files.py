"""Paths of the files of a study, and atomic writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codeq.common.atomic import write_atomically
from codeq.common.paths import make_folder, writing

HIDDEN = ".study"  # beside the members' run folders: finished ones stay as their training left them


def attempts_folder(study: Path, member: str) -> Path:
    """Return the folder of the records of a member's attempts."""
    return study / HIDDEN / "attempts" / member


def log_file(study: Path, member: str) -> Path:
    """Return the file with everything that a member printed."""
    return study / HIDDEN / "logs" / f"{member}.log"


def config_file(study: Path, member: str) -> Path:
    """Return the file with a member's configuration."""
    return study / HIDDEN / "configs" / f"{member}.yaml"


def index_file(study: Path) -> Path:
    """Return the file with the members that the study ever had and what varies between them."""
    return study / HIDDEN / "members.json"


def journal_file(study: Path) -> Path:
    """Return the file in which Optuna records the trials of a search."""
    return study / HIDDEN / "search.journal"


def stop_file(study: Path, sweep: str) -> Path:
    """Return the file whose existence asks the watchers of one sweep to stop their members."""
    return study / HIDDEN / "stops" / sweep


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the mapping in a JSON file; `None` if there is none, or not all of it yet."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_index(study: Path) -> dict[str, dict[str, Any]]:
    """Return `variant` and `varied` of each member that a study ever had; empty if there is no index that says so."""
    members = (read_json(index_file(study)) or {}).get("members")
    found = {}
    for name, entry in members.items() if isinstance(members, dict) else ():
        variant, varied = (entry.get(key) for key in ("variant", "varied")) if isinstance(entry, dict) else (None, None)
        found[name] = {
            "variant": variant if isinstance(variant, str) else None,
            "varied": varied if isinstance(varied, dict) else {},
        }
    return found


def replace(path: Path, text: str) -> None:
    """Write `text` as `write_atomically` does; folders are made as needed.

    Raises
    ------
    CodeqError
        If it cannot be written.
    """
    make_folder(path.parent)
    with writing(path):
        write_atomically(path, text.encode())
