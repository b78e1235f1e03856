"""Settings of a run as its configuration file states them, without checking them."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.runs.defaults import with_defaults

# Keys that decide where, how and under which name a training runs, not what it computes: a resumed run may change them.
FREE_KEYS = frozenset(
    {"name", "imports", "device", "workers", "save_dir", "run_dir", "data_dir", "viz_interval", "checkpoint_interval"}
    | {"use_compile", "cuda_graph", "wandb_mode", "wandb_project", "tensorboard"}
    | {"stop_degenerate", "degenerate_patience"}
)
# Those of them in which runs of one group may differ. Another folder may hold other images, another import a model
# of the same name; a resumed run, which may change these too, is checked for that.
NEUTRAL_KEYS = FREE_KEYS - {"data_dir", "imports"}
# Those of them that differ between all runs.
INCIDENTAL = ("name", "run_dir", "save_dir")
SEED = "seed"
MAX_CHOICES = 64  # texts with the own seed are a few paths; those of more are replaced or left together


def read_settings(path: Path, incidental: bool = False) -> dict[str, Any]:
    """Return the content of a run's ``config.yaml`` without checking it; empty if there is none.

    Runs of a study differ in a few lines. The file is therefore read in parts, one for each key at its left margin, and
    a part that another run has, too, is read once. The keys in `INCIDENTAL` are left out unless `incidental` is true.

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

    unread = () if incidental else INCIDENTAL
    try:
        parts = re.split(r"^(?=[^\s#\-])", text, flags=re.MULTILINE)
        parts = [part for part in parts if part.partition(":")[0] not in unread]
        settings = {key: value for part in parts for key, value in _part(part).items()}
    except (CodeqError, AttributeError):  # something that is no mapping, or an alias of another part's anchor
        content = parse_yaml(text, str(path))
        settings = {key: content[key] for key in content if key not in unread} if isinstance(content, dict) else {}
    if not settings:
        raise CodeqError(f"{path} is damaged: it holds no settings")
    return settings


def data_folder(data_dir: str | None) -> Path:
    """Return the folder that the setting `data_dir` means.

    Examples
    --------
    >>> data_folder(None) == data_folder("data")
    True
    """
    return resolve(data_dir or "data")


def without_seeds(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings of runs with ``seed={seed}``, as files of studies have it, in texts with the run's own seed.

    `data_dir` is the folder that it means, so that it differs only between runs on images of different folders, and
    arguments of parts are those in force, see `codeq.runs.defaults.with_defaults`.

    Runs of one group start from networks of their own seed (``init_from: outputs/float/seed=0``). They differ in the
    seed alone, and this is how it shows. But they can also share one network, which is that of the own seed for one of
    them. So a text is replaced if that leaves the run in the group with the most seeds, or in one as large;
    `NEUTRAL_KEYS` divide no groups. The key `seed` itself stays.

    Examples
    --------
    >>> own = [{"seed": k, "init_from": f"outputs/float/seed={k}", "teachers": ["seed=1"]} for k in (1, 2, 10)]
    >>> without_seeds(own) == [{**run, "init_from": "outputs/float/seed={seed}"} for run in own]
    True
    """
    runs = [_comparable(settings) for settings in with_defaults(runs)]
    choices = [_choices(settings) for settings in runs]
    keys = [[group_key(choice) for choice in several] for several in choices]
    seeds = defaultdict(set)
    for settings, several in zip(runs, keys, strict=True):
        for key in several:
            seeds[key].add(str(settings.get(SEED)))
    sizes = [[len(seeds[key]) for key in several] for several in keys]
    return [several[counts.index(max(counts))] for several, counts in zip(choices, sizes, strict=True)]


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the folder that `data_dir` means and sorted imports; a damaged value stays as it is."""
    made: dict[str, Any] = dict(settings)
    with suppress(CodeqError, TypeError, KeyError):
        made["data_dir"] = str(data_folder(made["data_dir"]))
    with suppress(TypeError, KeyError):
        made["imports"] = sorted(made["imports"])
    return made


def group_key(settings: Mapping[str, Any]) -> str:
    """Return the settings that runs of one group share, as text: what decides the training, except the seed.

    The settings are as `without_seeds` returns them.

    Examples
    --------
    >>> group_key({"seed": 0, "device": "cpu", "lr": 0.1}) == group_key({"seed": 1, "device": "cuda", "lr": 0.1})
    True
    """
    shared = {key: value for key, value in settings.items() if key != SEED and key not in NEUTRAL_KEYS}
    return json.dumps(shared, sort_keys=True, default=str)


def _choices(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return settings with the own seed replaced in all texts, then in some of them, and at last as they are."""
    if SEED not in settings:
        return [dict(settings)]
    own = re.compile(rf"\bseed={re.escape(str(settings[SEED]))}(?!\w)")

    def choices(value: Any) -> list[Any]:
        if isinstance(value, str):
            return list(dict.fromkeys([own.sub("seed={seed}", value), value]))
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        if parts is None:
            return [value]
        combined = [list(found) for found in islice(product(*map(choices, parts)), MAX_CHOICES)]
        return [dict(zip(value, found, strict=True)) for found in combined] if isinstance(value, dict) else combined

    return [*choices(dict(settings)), dict(settings)]


def last_parts(keys: Sequence[str]) -> list[str]:
    """Return the last part of each dotted key, but the whole key where several have the same.

    Examples
    --------
    >>> last_parts(["quantizer.kwargs.max_bits", "optimizer.param_groups.dz.lr", "optimizer.param_groups.bit.lr"])
    ['max_bits', 'optimizer.param_groups.dz.lr', 'optimizer.param_groups.bit.lr']
    """
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


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
