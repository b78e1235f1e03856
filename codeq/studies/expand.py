"""Members of a study and their names, which depend only on the keys and values that vary.

One exception: of names that a file system may take for each other, the one that was recorded first stays as it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codeq.common.errors import CodeqError
from codeq.common.paths import LONGEST_NAME
from codeq.studies.files import read_index
from codeq.studies.parts import Range, Sample
from codeq.studies.study import Study

DIGITS = 4  # significant ones of a drawn number, so that a name shows its value exactly
LONGEST_VALUE = 24
MOST_CHARACTERS = 120  # of a name
MOST_BYTES = LONGEST_NAME - 15  # of a name: there is room for a hash that tells it apart, and for `.yaml`
ENCLOSING = {"kwargs", "param_groups"}  # keys that no name needs


@dataclass(frozen=True)
class Member:
    """One run of a study.

    Parameters
    ----------
    name : str
        Of its folder in that of the study.
    variant : str or None
        Name of its variant.
    varied : dict
        Values of the keys in which members differ.
    changes : dict
        All changes of the base by dotted key, in the order in which they apply.
    """

    name: str
    variant: str | None
    varied: dict[str, Any]
    changes: dict[str, Any]


def expand(study: Study) -> list[Member]:
    """Return the members of `study` in order: variants, then grid, samples and seeds, the last varying fastest.

    Raises
    ------
    CodeqError
        If a range has fewer values than are to be drawn.

    Examples
    --------
    >>> from codeq.studies.study import make_study
    >>> study = make_study({"name": "s", "base": "b.yaml", "grid": {"quantizer.kwargs.max_bits": [4, 8]}, "seeds": [0]})
    >>> [member.name for member in expand(study)]
    ['quantizer.max_bits=4,seed=0', 'quantizer.max_bits=8,seed=0']
    """
    axes = [[{key: value} for value in values] for key, values in study.grid.items()]
    axes += [draw(study.sample)] if study.sample else []
    axes += [[{"seed": seed} for seed in study.seeds]] if study.seeds else []
    short = _short_keys([key for axis in axes for key in axis[0]])
    members = []
    for variant, changes in study.variants.items() or [(None, {})]:
        for combination in itertools.product(*axes):
            varied = {key: value for part in combination for key, value in part.items()}
            pieces = [*([variant] if variant else []), *_name_parts(varied, short)]
            name = _cut(",".join(pieces) or "base")
            every = {**study.set, **changes, **varied}
            members.append(Member(name, variant, {**changes, **varied}, with_seed(every, every.get("seed"))))
    return _told_apart(members, read_index(study.folder))


def make_trial(study: Study, values: dict[str, Any]) -> Member:
    """Return the member of a search that has these values of the searched keys.

    Numbers are rounded as those of random samples, so that equal values have one name and one run.

    Examples
    --------
    >>> from codeq.studies.study import make_study
    >>> search = {"ranges": {"epochs": {"low": 1, "high": 9}, "lr": {"low": 0.001, "high": 0.1}}, "trials": 2}
    >>> make_trial(make_study({"name": "s", "base": "b.yaml", "search": search}), {"epochs": 3, "lr": 0.0123456}).name
    'epochs=3,lr=0.01235'
    """
    assert study.search is not None
    varied = {key: _rounded(values[key], bounds) for key, bounds in study.search.ranges.items()}
    name = _cut(",".join(_name_parts(varied, _short_keys(list(varied)))))
    every = {**study.set, **varied}
    return Member(name, None, varied, with_seed(every, every.get("seed")))


def _name_parts(varied: dict[str, Any], short: dict[str, str]) -> list[str]:
    return [f"{short[key]}={_text(value)}" for key, value in varied.items()]


def with_seed(value: Any, seed: int | None) -> Any:
    """Replace ``{seed}`` in the texts of `value`, for example in a path, by the member's seed."""
    if isinstance(value, str) and seed is not None:
        return value.replace("{seed}", str(seed))
    if isinstance(value, dict):
        return {key: with_seed(entry, seed) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_seed(entry, seed) for entry in value]
    return value


def draw(sample: Sample) -> list[dict[str, Any]]:
    """Return the values of `sample.n` random members, all different.

    Each value follows from the seed, its key and its number alone: a larger `n` or another range keeps the others.

    Raises
    ------
    CodeqError
        If the ranges have fewer different values.
    """
    found: dict[str, dict[str, Any]] = {}
    for number in range(100 * sample.n):
        values = {key: _draw(bounds, sample.seed, key, number) for key, bounds in sample.ranges.items()}
        found.setdefault(json.dumps(values), values)
        if len(found) == sample.n:
            return list(found.values())
    raise CodeqError(f"sample.n={sample.n}: the ranges have too few different values; {len(found)} were found")


def _draw(bounds: Range, seed: int, key: str, number: int) -> int | float:
    words = np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype=np.uint32).tolist()
    share = np.random.default_rng([seed, number, *words]).random()
    low, high = bounds.low, bounds.high
    if bounds.whole:  # each integer has a separate interval
        low, high = low - (0.0 if bounds.log else 0.5), high + (0.0 if bounds.log else 0.5)
    value = (
        math.exp(math.log(low) + share * (math.log(high) - math.log(low))) if bounds.log else low + share * (high - low)
    )
    return _rounded(value, bounds)


def _rounded(value: float, bounds: Range) -> int | float:
    value = round(value) if bounds.whole else float(f"{value:.{DIGITS}g}")
    return min(max(value, bounds.low), bounds.high)


def _short_keys(keys: list[str]) -> dict[str, str]:
    """Return each key's last two parts that say something, or all of them where those name two keys of this study."""
    short = {}
    for key in keys:
        parts = [part for part in key.split(".") if part not in ENCLOSING]
        short[key] = re.sub(r"[^\w.+-]+", "-", ".".join(parts[-2:]))
    counts = Counter(short.values())
    return {key: name if counts[name] == 1 else re.sub(r"[^\w.+-]+", "-", key) for key, name in short.items()}


def _text(value: Any) -> str:
    """Write `value` for a file name; whatever cannot be written in full gets a hash of it."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        readable = value
    else:
        entry = value[0] if isinstance(value, list) and value else value
        readable = str(entry.get("name", "")) if isinstance(entry, dict) else str(entry)
    cleaned = re.sub(r"[^\w.+-]+", "-", readable)[:LONGEST_VALUE]
    return cleaned if cleaned == value else f"{cleaned}-{_hash(value)}".lstrip("-")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _cut(name: str) -> str:
    """Return `name`, or its beginning with a hash of it where it is too long; a letter can be several bytes."""
    if len(name) <= MOST_CHARACTERS and len(name.encode()) <= MOST_BYTES:
        return name
    kept = name[: MOST_CHARACTERS - 9].encode()[: MOST_BYTES - 9].decode(errors="ignore")
    return f"{kept}-{_hash(name)}"


def _told_apart(members: list[Member], recorded: Mapping[str, Mapping[str, Any]]) -> list[Member]:
    """Add a hash to names that a file system without upper and lower case would take for others of the study.

    Of several, the member that is `recorded` under such a name keeps it, else the first one: a value that is added,
    wherever, leaves the members with a run as they are.
    """

    def rank(member: Member) -> int:
        entry = recorded.get(member.name)
        return 2 if entry is None else int(_hash([entry["variant"], entry["varied"]]) != _own_hash(member))

    folded: dict[str, list[str]] = {}
    for name in recorded:
        folded.setdefault(name.casefold(), []).append(name)
    taken: set[str] = set()
    names = [member.name for member in members]
    for place in sorted(range(len(members)), key=lambda place: rank(members[place])):
        name = names[place]
        if name.casefold() in taken or name not in folded.get(name.casefold(), [name]):
            names[place] = f"{name}-{_own_hash(members[place])}"
        taken.add(names[place].casefold())
    return [replace(member, name=name) for member, name in zip(members, names, strict=True)]


def _own_hash(member: Member) -> str:
    return _hash([member.variant, member.varied])
