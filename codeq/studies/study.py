"""Study file: a base, changes of all members, keys that vary, and the executor."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Strict, ValidationInfo

from codeq.common.errors import CodeqError
from codeq.common.paths import look_up, project_home
from codeq.config.messages import validate
from codeq.config.serialize import Part
from codeq.config.values import Natural, Text
from codeq.config.yaml import read_yaml
from codeq.studies.files import HIDDEN
from codeq.studies.parts import Executor, Keys, Name, Sample, Search, check_keys

# Parts of a study file that no configuration has a key for.
SECTIONS = ("grid", "variants", "seeds", "sample", "search", "executor")


def _once(what: str, keys: Iterable[str], info: ValidationInfo) -> None:
    """Refuse a key that another part of the study sets, too, or replaces: one of the two would have no effect."""
    places = {"set": info.data.get("set") or {}, "grid": info.data.get("grid") or {}}
    places["variants"] = {key for changes in (info.data.get("variants") or {}).values() for key in changes or {}}
    places["seeds"] = {"seed"} if info.data.get("seeds") else ()
    for key in keys:
        for place, taken in places.items():
            if place != what and key in taken:
                raise CodeqError(f"{key!r} stands in {place}, too: give it in one of them")
            for other in taken if place != what else ():
                # What varies is set after `set`, and the grid after the variants.
                earlier, later = (key, other) if (what, place) == ("variants", "grid") else (other, key)
                if earlier.startswith(f"{later}."):
                    raise CodeqError(f"{later!r} replaces all of its keys, {earlier!r} among them: give one of them")


def _check_distinct(values: list[Any]) -> None:
    for i, value in enumerate(values):
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[:i]):
            raise CodeqError(f"{value!r} is given twice")


def _check_grid(grid: dict[str, list[Any]], info: ValidationInfo) -> dict[str, list[Any]]:
    _once("grid", grid, info)
    for key, values in grid.items():
        if not values:
            raise CodeqError(f"{key!r} has no values")
        try:
            _check_distinct(values)
        except CodeqError as error:
            raise CodeqError(f"{key!r}: {error}") from error
    return grid


def _check_variants(variants: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
    _once("variants", (key for changes in variants.values() for key in changes), info)
    folded = [name.casefold() for name in variants]
    for name in variants:
        if folded.count(name.casefold()) > 1:
            raise CodeqError(f"{name!r} differs from another variant in upper and lower case only")
    return variants


def _check_seeds(seeds: list[int], info: ValidationInfo) -> list[int]:
    if seeds:
        _once("seeds", ["seed"], info)
    _check_distinct(seeds)
    return seeds


def _check_sample(sample: Sample | None, info: ValidationInfo) -> Sample | None:
    if sample is not None:
        _once("sample", sample.ranges, info)
    return sample


def _check_search(search: Search | None, info: ValidationInfo) -> Search | None:
    if search is not None:
        if info.data.get("notebook"):
            raise CodeqError("needs a base (a configuration), not a notebook")
        for place in ("grid", "variants", "seeds", "sample"):
            if info.data.get(place):
                raise CodeqError(f"cannot be combined with {place}")
        _once("search", search.ranges, info)
    return search


def _one_base(notebook: str | None, info: ValidationInfo) -> str | None:
    if "base" in info.data and (notebook is None) == (info.data["base"] is None):
        raise CodeqError("a study has either a base (a configuration) or a notebook")
    return notebook


def _runs_notebooks(executor: Executor, info: ValidationInfo) -> Executor:
    if executor.via == "direct" and info.data.get("notebook"):
        raise CodeqError("via='direct': a notebook is executed via papermill")
    return executor


NullIsEmpty = BeforeValidator(lambda value: {} if value is None else value)


@dataclass(frozen=True, kw_only=True)
class Study(Part):
    """Description of many runs.

    Parameters
    ----------
    name : str
        Also of its folder, ``outputs/<name>``.
    base : str, optional
        Configuration file that every member changes.
    notebook : str, optional
        Notebook to execute instead; the keys below are then its parameters.
    set : dict
        What all members change, by dotted key.
    grid : dict of str to list
        Values by dotted key; every combination is a member.
    variants : dict of str to dict
        Named sets of changes, combined with the grid.
    seeds : list of int
        Values of the key ``seed``, combined with all of that.
    sample : Sample, optional
        Random draws, combined with all of that.
    search : Search, optional
        Ranges that Optuna searches, instead of `grid`, `variants`, `seeds` and `sample`.
    executor : Executor
        Default: local, one member at a time.
    """

    name: Name
    base: Text | None = None
    notebook: Annotated[Text | None, AfterValidator(_one_base)] = None
    set: Annotated[Keys, NullIsEmpty] = field(default_factory=dict)
    grid: Annotated[
        dict[Text, Annotated[list[Any], Strict()]], Strict(), NullIsEmpty,
        AfterValidator(check_keys), AfterValidator(_check_grid),
    ] = field(default_factory=dict)  # fmt: skip
    variants: Annotated[
        dict[Name, Annotated[Keys, NullIsEmpty]], Strict(), NullIsEmpty, AfterValidator(_check_variants)
    ] = field(default_factory=dict)
    seeds: Annotated[list[Natural], Strict(), AfterValidator(_check_seeds)] = field(default_factory=list)
    sample: Annotated[Sample | None, AfterValidator(_check_sample)] = None
    search: Annotated[Search | None, AfterValidator(_check_search)] = None
    executor: Annotated[Executor, NullIsEmpty, AfterValidator(_runs_notebooks)] = field(default_factory=Executor)

    @property
    def via(self) -> str:
        """Execution of members: ``direct`` or ``papermill``."""
        return self.executor.via or ("papermill" if self.notebook else "direct")

    @property
    def folder(self) -> Path:
        """Folder of the study; a member's run folder is named after the member inside it."""
        return project_home() / "outputs" / self.name


def make_study(content: Mapping[str, Any], source: str = "study") -> Study:
    """Create a study from the content of a YAML file.

    Raises
    ------
    CodeqError
        With a line for each mistake.

    Examples
    --------
    >>> make_study({"name": "lr", "base": "configs/deadzone_mlp.yaml", "sedes": [0], "grid": {"epochs": []}})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: study has 2 problems:
      grid: 'epochs' has no values
      sedes=[0]: unknown key. Did you mean 'seeds'? Allowed: name, base, notebook, ...
    """
    return validate(Study, dict(content), source, {})


def read_study(path: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> Study:
    """Read a study file; a relative `path` that is not here is looked for in the project.

    Parameters
    ----------
    path : path
        YAML file.
    changes : mapping, optional
        Added to what the file has under ``set``; they replace the same keys, and all inside of them. A key of a section
        of the file, as ``search.trials``, ``executor.workers`` or ``seeds``, changes that section instead.

    Raises
    ------
    CodeqError
        For a file that cannot be read, and as `make_study`.
    """
    found = look_up(path)
    if (found / HIDDEN).is_dir():
        raise CodeqError(f"{found} is the folder of a study: this takes the YAML file that the study was started with")
    content = read_yaml(found)
    if not {"base", "notebook", "set"} & content.keys() and {"model", "dataset", "optimizer"} & content.keys():
        raise CodeqError(
            f"{path} is a configuration, not a study: `codeq train --config {shlex.quote(os.fspath(path))}` trains it, "
            "and a study names it as its base"
        )
    _change(content, changes or {})
    return make_study(content, str(path))


def _change(content: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Apply changes to the content of a study file: to its sections, all others to ``set``."""
    shared = {}
    for key, value in changes.items():
        section, _, inside = key.partition(".")
        if section not in SECTIONS:
            shared[key] = value
        elif not inside:
            content[section] = value
        elif isinstance(given := content.get(section) or {}, dict):
            content[section] = {**given, inside: value}  # the grid has dotted keys of its own
        else:
            raise CodeqError(f"{key}={value!r:.200}: {section} is not a section with keys, give it as a whole")
    if shared and isinstance(given := content.get("set") or {}, dict):
        kept = {key: value for key, value in given.items() if not str(key).startswith(tuple(f"{k}." for k in shared))}
        content["set"] = {**kept, **shared}
