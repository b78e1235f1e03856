"""Import of users' own parts: Python files and modules that register models, losses and the like.

Nothing but a request of the user (``--import``, ``imports:`` in a file of theirs, the variable ``CODEQ_IMPORTS``) runs
code here. A run folder records its imports and holds copies of the files, but opening it executes neither.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from codeq.common.errors import CodeqError, quote
from codeq.common.paths import path_text, project_home, resolve, short_path

VARIABLE = "CODEQ_IMPORTS"  # what processes started from this one import, too: kernels, members of a study

_imported: dict[str, ModuleType] = {}
_inheriting = threading.Lock()  # held meanwhile: parts that look names up find what the parts before them registered


def import_parts(source: str | os.PathLike[str]) -> ModuleType:
    """Import a user's file or module, once in this process, and pass it on to processes that are started from it.

    Parameters
    ----------
    source : str or path
        Path of a ``.py`` file, relative to the working directory or else to the project, which becomes the module that
        is called like it; or the dotted name of a module.

    Raises
    ------
    CodeqError
        If it does not exist, another module has its name, or an exception is raised inside it.
    """
    source = path_text(source)
    import_inherited()  # in the order of the process that started this one
    try:
        module = _import_file(_find(source)) if source.endswith(".py") else _import_module(source)
    except CodeqError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise CodeqError(f"import {quote(source)} failed: {type(error).__name__}: {str(error)[:200]}") from error
    _imported[module.__name__] = module
    lasting = str(_find(source)) if source.endswith(".py") else source
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*requested_imports(), lasting]))
    return module


def requested_imports() -> list[str]:
    """Return what was imported at the user's request in this process, or in one that started it, perhaps not here yet.

    The environment variable ``CODEQ_IMPORTS`` lists it, separated as in ``PATH``.
    """
    return [source for source in os.environ.get(VARIABLE, "").split(os.pathsep) if source]


def inheriting(sources: Iterable[str]) -> dict[str, str]:
    """Return the environment in which a process started from this one imports `sources`, and nothing else.

    Examples
    --------
    >>> inheriting(["my_package.losses", "json"]) == {"CODEQ_IMPORTS": os.pathsep.join(["my_package.losses", "json"])}
    True
    """
    return {VARIABLE: os.pathsep.join(str(_find(source)) if source.endswith(".py") else source for source in sources)}


@contextmanager
def requested_elsewhere() -> Iterator[None]:
    """Make imports inside that are not passed on: they are those of other processes, made here for a check."""
    before = os.environ.get(VARIABLE, "")
    try:
        yield
    finally:
        os.environ[VARIABLE] = before


def import_inherited() -> None:
    """Import what `requested_imports` returns and this process has not imported.

    Raises
    ------
    CodeqError
        As in `import_parts`.
    """
    if not _inheriting.acquire(blocking=False):
        return
    try:
        for source in requested_imports():
            if not is_imported(source):
                import_parts(source)
    except CodeqError as error:
        raise CodeqError(f"{VARIABLE}: {error}") from error
    finally:
        _inheriting.release()


def _find(source: str) -> Path:
    return Path(source).absolute() if Path(source).is_file() else resolve(source)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise CodeqError(f"import {quote(str(path))}: there is no such file")
    if os.pathsep in str(path):
        raise CodeqError(
            f"import {quote(str(path))}: the path must not contain {os.pathsep!r}, which separates those in {VARIABLE}"
        )
    name, path = path.stem, path.resolve()
    if not name.isidentifier():
        raise CodeqError(f"import {quote(str(path))}: the name of the file must be an identifier of Python")
    existing = sys.modules.get(name)
    if existing is not None and Path(getattr(existing, "__file__", None) or "").resolve() == path:
        return existing
    # The file itself may be on the path: `python -m`, torchrun and Jupyter search the working directory.
    found = None if existing is not None else importlib.util.find_spec(name)
    if existing is not None or (found is not None and Path(found.origin or "").resolve() != path):
        raise CodeqError(f"import {quote(str(path))}: there is another module {name!r}; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise CodeqError(f"import {quote(name)}: must be a file ending in .py, or the name of a module")
    for folder in (str(Path.cwd()), str(project_home())):  # a console script does not search them
        if folder not in sys.path:
            sys.path.append(folder)
    return importlib.import_module(name)


def module_name(source: str) -> str:
    """Return the name of the module that an import becomes.

    Examples
    --------
    >>> module_name("parts/nets.py"), module_name("my_package.losses")
    ('nets', 'my_package.losses')
    """
    return Path(source).stem if source.endswith(".py") else source


def is_imported(source: str) -> bool:
    """Return whether a recorded import has been made in this process, from any folder."""
    return module_name(source) in _imported


def import_options(sources: Iterable[str]) -> list[str]:
    """Return the words of a command line that make imports.

    Examples
    --------
    >>> import_options(["nets.py", "losses"])
    ['--import', 'nets.py', '--import', 'losses']
    """
    return [word for source in sources for word in ("--import", source)]


def recorded_name(source: str) -> str:
    """Return the form of an import for a configuration: a file in the project relative to it, another one absolute."""
    if not source.endswith(".py"):
        return source
    return short_path(Path(os.path.normpath(_find(source))))


def source_files(sources: Iterable[str]) -> list[Path]:
    """Return the files of imports that have been made."""
    files = [getattr(_imported.get(module_name(source)), "__file__", None) for source in sources]
    return [Path(file) for file in files if file and file.endswith(".py")]


def imported_factory(reference: str) -> Any:
    """Return the callable that ``module:name`` refers to; its module must have been imported at the user's request.

    A configuration can come from a stranger: it may name no callable but those that the module itself defines.

    Raises
    ------
    CodeqError
        If the module has not been imported, or defines no such callable.
    """
    source, _, name = reference.partition(":")
    module = _imported.get(source)
    if module is None:
        raise CodeqError(f"model {quote(reference)}: {source} has not been imported; add --import {source}")
    factory = getattr(module, name, None)
    defined_in = str(getattr(factory, "__module__", "")).partition(".")[0]
    if not name.isidentifier() or not callable(factory) or defined_in != source.partition(".")[0]:
        raise CodeqError(f"model {quote(reference)}: {source} defines no function or class {quote(name)}")
    return factory
