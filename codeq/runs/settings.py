"""Settings of a run as its configuration file states them, without checking them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve

# Keys that differ between runs for other reasons than that somebody varied them.
INCIDENTAL = ("name", "run_dir", "save_dir")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the content of a run's ``config.yaml`` without checking it; empty if there is none.

    Runs of a study differ in a few lines. The file is therefore read in parts, one for each key at its left margin, and
    a part that another run has, too, is read once. Those of the keys in `INCIDENTAL` are left out.

    Raises
    ------
    CodeqError
        If it cannot be read, is not valid YAML or holds no settings.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise CodeqError(f"{path} cannot be read: {error}") from error
    from codeq.config.yaml import parse_yaml  # takes a quarter of a second to import

    try:
        parts = re.split(r"^(?=[^\s#\-])", text, flags=re.MULTILINE)
        parts = [part for part in parts if part.partition(":")[0] not in INCIDENTAL]
        settings = {key: value for part in parts for key, value in _part(part).items()}
    except (CodeqError, AttributeError):  # something that is no mapping, or an alias of another part's anchor
        content = parse_yaml(text, str(path))
        settings = {key: content[key] for key in content if key not in INCIDENTAL} if isinstance(content, dict) else {}
    if not settings:
        raise CodeqError(f"{path} is damaged: it holds no settings")
    return settings


def without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose texts hold ``seed={seed}``, as files of studies do, where they name the run's own seed.

    Runs of one group start from networks of their own seed (``init_from: outputs/float/seed=0``). They differ in the
    seed alone, and this is how it shows. The key `seed` itself stays.

    Examples
    --------
    >>> without_seed({"seed": 1, "init_from": "outputs/float/seed=1", "teachers": ["seed=10"]})
    {'seed': 1, 'init_from': 'outputs/float/seed={seed}', 'teachers': ['seed=10']}
    """
    if "seed" not in settings:
        return dict(settings)
    own = re.compile(rf"\bseed={re.escape(str(settings['seed']))}(?!\w)")

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return own.sub("seed={seed}", value)
        if isinstance(value, dict):
            return {key: replaced(entry) for key, entry in value.items()}
        return [replaced(entry) for entry in value] if isinstance(value, list) else value

    return {key: replaced(value) for key, value in settings.items()}


def starting_points(settings: Mapping[str, Any]) -> Iterator[tuple[str, Path | None, dict[str, Any]]]:
    """Yield where a run starts from, where that run started from, and so on.

    Parameters
    ----------
    settings : mapping
        Of a run; its `init_from` names a run or a file of weights.

    Yields
    ------
    tuple
        `init_from`; the folder of the run that it names or lies in, `None` if there is none; and that run's settings.

    Raises
    ------
    CodeqError
        If the settings of one of the runs cannot be read.

    Examples
    --------
    >>> list(starting_points({"init_from": "weights.pt"}))
    [('weights.pt', None, {})]
    """
    visited: set[Path | None] = set()
    while source := settings.get("init_from"):
        path = resolve(source)
        folder = next((place for place in (path, *path.parents[:2]) if (place / "config.yaml").is_file()), None)
        if folder in visited:
            return
        visited.add(folder)
        settings = read_settings(folder / "config.yaml") if folder else {}
        yield source, folder, dict(settings)


@functools.lru_cache(maxsize=4096)
def _part(text: str) -> dict[str, Any]:
    from codeq.config.yaml import parse_yaml

    return parse_yaml(text, "part of a configuration") or {}
