"""Imports that a configuration lists: made for files of the user, named for those of a run folder."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError
from codeq.common.imports import import_inherited, import_options, import_parts, is_imported, module_name, recorded_name
from codeq.config.serialize import serialize

logger = logging.getLogger(__name__)

LIBRARIES = ("timm", "torchvision")  # prefixes of models that need no import


def import_own_parts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Import what the serialized configuration `content` of the user needs, and return it with all of that recorded.

    The module of a model ``module:factory`` is one of them. Values of a wrong type are left to the validation.

    Raises
    ------
    CodeqError
        If an import fails.
    """
    listed, model = content.get("imports") or [], content.get("model")
    if not isinstance(listed, list) or not all(isinstance(source, str) for source in listed):
        return dict(content)
    import_inherited()  # a model's module may be among them, as a file
    sources = [recorded_name(source) for source in listed]
    for source in listed:
        import_parts(source)
    if isinstance(model, str) and ":" in model:
        module = model.partition(":")[0]
        if module not in LIBRARIES and not is_imported(module):
            import_parts(module)
            sources.append(module)
    return {**content, "imports": list(dict.fromkeys(sources))} if sources else dict(content)


def import_changed_parts(changes: Mapping[str, Any], recorded: Iterable[str]) -> dict[str, Any]:
    """Import what changes of a configuration at dotted keys need, and return those of ``imports`` and ``model``.

    New ``imports`` replace the `recorded` ones, which the module of a new ``model`` joins.

    Raises
    ------
    CodeqError
        If an import fails.
    """
    made = import_own_parts(serialize({key: changes[key] for key in ("imports", "model") if key in changes}))
    if "imports" in made and "imports" not in changes:
        made["imports"] = with_imports(recorded, made["imports"])
    for key, value in changes.items():
        if key.startswith("imports."):
            (made[key],) = import_own_parts(serialize({"imports": [value]}))["imports"]
    return made


def with_imports(recorded: Iterable[str], sources: Iterable[str]) -> list[str]:
    """Return recorded imports and those that come to them; a file that was moved takes the place of its former path.

    Examples
    --------
    >>> with_imports(["nets.py", "losses"], ["moved/nets.py", "schedules"])
    ['moved/nets.py', 'losses', 'schedules']
    """
    return list({module_name(source): source for source in (*recorded, *sources)}.values())


def is_of_a_run(path: Path) -> bool:
    """Return whether `path` is the configuration that a run has stored in its folder."""
    beside = (path.with_name(name) for name in ("status.json", "environment.json"))
    return path.name == "config.yaml" and any(file.exists() for file in beside)


@contextmanager
def naming_missing_imports(content: Mapping[str, Any]) -> Iterator[None]:
    """Name the imports of `content` that are missing in this process, in a `CodeqError` raised inside or by a warning.

    What is missing may have replaced a part of codeq, whose name is known without it.
    """
    try:
        yield
    except CodeqError as error:
        if options := _missing_imports(content):
            raise CodeqError(f"{error}\nThis run uses parts that are not imported: add {options}") from error
        raise
    if options := _missing_imports(content):
        _warn_of_missing(options)


def _missing_imports(content: Mapping[str, Any]) -> str:
    """Return the options that would make the missing imports; an empty text if none is missing."""
    listed = content.get("imports")
    missing = [str(source) for source in listed if not is_imported(str(source))] if isinstance(listed, list) else []
    return shlex.join(import_options(source[:200] for source in missing[:8]))


@cache  # once in a process: tables and figures read the configuration of a run many times
def _warn_of_missing(options: str) -> None:
    logger.warning("a run was made with parts that are not imported, and may differ without them: add %s", options)
