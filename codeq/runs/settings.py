"""Settings of a run as its configuration file states them, without checking them."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.common.texts import Place, map_texts, texts

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


def without_seeds(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings of runs with ``seed={seed}``, as in files of studies, where texts name the run's own seed.

    Runs of one group start from networks of their own seed (``init_from: outputs/float/seed=0``). They differ in the
    seed alone, and this is how it shows. A text stays where more seeds have it than would have the one with ``{seed}``:
    the same two teachers of all runs are nobody's own. The key `seed` itself stays.

    Examples
    --------
    >>> teachers = ["seed=0", "seed=1"]
    >>> first, second = without_seeds([{"seed": k, "init_from": f"a/seed={k}", "teachers": teachers} for k in (0, 1)])
    >>> first
    {'seed': 0, 'init_from': 'a/seed={seed}', 'teachers': ['seed=0', 'seed=1']}
    >>> second == first | {"seed": 1}
    True
    """
    places = [dict(texts(one)) for one in settings]
    named = [
        {place: _with_placeholder(text, one.get("seed")) for place, text in found.items()}
        for one, found in zip(settings, places, strict=True)
    ]
    seeds: dict[tuple[Place, str], set[str]] = defaultdict(set)
    for one, *forms in zip(settings, places, named, strict=True):
        for entry in {entry for form in forms for entry in form.items()}:
            seeds[entry].add(str(one.get("seed")))

    def chosen(forms: Mapping[Place, str], place: Place, text: str) -> str:
        return max(forms[place], text, key=lambda form: len(seeds[place, form]))

    return [map_texts(dict(one), functools.partial(chosen, forms)) for one, forms in zip(settings, named, strict=True)]


def _with_placeholder(text: str, seed: Any) -> str:
    return re.sub(rf"\bseed={re.escape(str(seed))}(?!\w)", "seed={seed}", text)


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
