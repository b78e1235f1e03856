"""Path resolution, and creation of files and folders that no other process can claim at the same time."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO

from codeq.common.errors import CodeqError, nearest, plain_reason, quote

_PACKAGE = Path(__file__).resolve().parents[1]
# Only the folder directly above the package counts: an environment inside another project is not that project.
CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
# Notebooks, example configurations and Slurm scripts; a wheel contains copies of them.
WORKBENCH = CHECKOUT or _PACKAGE / "workbench"
MARKER = ".codeq"  # a file in the folder that `codeq init` has laid out
LONGEST_NAME = 255  # bytes of one component, on all common file systems


def project_home() -> Path:
    """Return the folder that data, outputs and all relative paths of a user start from.

    It is the environment variable ``CODEQ_HOME`` if set, else the folder of ``codeq init`` that contains the working
    directory (kernels of JupyterLab start in the folder of their notebook), else the checkout that contains this
    package (its parent folder has a ``pyproject.toml``), else, for an installed package, the working directory.
    """
    if home := os.environ.get("CODEQ_HOME"):
        return expanded(home, "CODEQ_HOME").absolute()
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed; a checkout does not depend on it
        if CHECKOUT:
            return CHECKOUT
        raise
    above = (here, *here.parents)  # the nearest project counts: a checkout may lie in a folder of `codeq init`
    return next((folder for folder in above if folder == CHECKOUT or (folder / MARKER).is_file()), CHECKOUT or here)


def expanded(text: str, name: str) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by the home folder.

    Parameters
    ----------
    text : str
        The path.
    name : str
        What it is, for the message.

    Raises
    ------
    CodeqError
        If nobody knows the user.

    Examples
    --------
    >>> expanded("~alcie/work", "DIR")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: DIR '~alcie/work': no such user
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise CodeqError(f"{name} {quote(text)}: no such user") from error


def path_text(path: object) -> str:
    """Return a path as text, or raise a `CodeqError` if it is none, such as a run in place of its folder.

    Examples
    --------
    >>> path_text(Path("outputs", "demo")) == os.path.join("outputs", "demo")
    True
    >>> path_text(3)
    Traceback (most recent call last):
    ...
    codeq.CodeqError: path=3: must be text or a pathlib.Path
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise CodeqError(f"path={quote(path)}: must be text or a pathlib.Path")
    return text


def similar_file(path: Path) -> str:
    """Return the end of a message about a missing file: the YAML file with the nearest name.

    It is one of the same folder, or of the project's configurations and studies.
    """
    if path.exists():
        return ""
    examples = project_home() / "configs"
    folders = {examples / "studies": Path("configs/studies"), examples: Path("configs"), path.parent: path.parent}
    found = {other.name: shown / other.name for folder, shown in folders.items() for other in folder.glob("*.y*ml")}
    guess = nearest(path.name, found)
    return f". Did you mean {quote(str(found[guess]))}?" if guess else ""


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return `path` as an absolute path; a relative one starts at `project_home`, and ``~`` is expanded.

    Raises
    ------
    CodeqError
        For what is no path, and a path that no file system accepts: a null character, a component of more than 255
        bytes, or the home folder of an unknown user.

    Examples
    --------
    >>> resolve("/srv/images").as_posix()
    '/srv/images'
    >>> resolve("outputs") == project_home() / "outputs"
    True
    """
    text = path_text(path)
    shown = repr(text if len(text) <= 200 else f"{text[:200]}…")
    if "\0" in text:
        raise CodeqError(f"path {shown} contains a null character")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(text).parts):
        raise CodeqError(f"path {shown} has a component of more than {LONGEST_NAME} bytes")
    return project_home() / expanded(text, "path")


def look_up(path: str | os.PathLike[str]) -> Path:
    """Return the file `path` of the working directory, or else the one of the project, see `resolve`.

    Raises
    ------
    CodeqError
        If there is none in both, with both places; also as `resolve`.
    """
    found, here = resolve(path), Path(path)
    if here.exists():
        return here
    if found.exists() or here.absolute() == found:
        return found
    raise CodeqError(
        f"{found} cannot be read: No such file or directory, nor is there {here.absolute()}"
        f"{similar_file(here) or similar_file(found)}"
    )


def short_path(path: Path) -> str:
    """Return `path` as a user of the project writes it: relative to `project_home` where it is below that.

    Examples
    --------
    >>> short_path(resolve("outputs/debug_run")), short_path(Path("/srv/images"))
    ('outputs/debug_run', '/srv/images')
    """
    home = project_home()
    return str(path.relative_to(home) if path.is_relative_to(home) else path)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise a `CodeqError` that names `path` for any `OSError` in the context: permissions, a full disk, a long name.

    Examples
    --------
    >>> with writing("/nowhere/run"):
    ...     os.mkdir("/nowhere/run")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: /nowhere/run cannot be written: No such file or directory
    """
    try:
        yield
    except OSError as error:
        text = os.fspath(path)
        shown = text if len(text) <= 200 else f"…{text[-200:]}"
        raise CodeqError(f"{shown} cannot be written: {plain_reason(error)}") from error


def write_by(write: Callable[[BinaryIO], object], path: Path) -> None:
    """Write the file `path` by a function that writes into a buffer.

    PyTorch's own writers of files are C++ and answer a full disk with a `RuntimeError`, or end the process; here it is
    an `OSError`.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_by(lambda file: file.write(b"abc"), Path(folder, "model.pt"))
    ...     Path(folder, "model.pt").read_bytes()
    b'abc'
    """
    buffer = io.BytesIO()
    write(buffer)
    path.write_bytes(buffer.getbuffer())


def make_folder(folder: Path) -> Path:
    """Create `folder` with its parents unless it exists, and return it.

    Raises
    ------
    CodeqError
        If it, or a parent, is a file or cannot be created.
    """
    blocking = next((path for path in (folder, *folder.parents) if os.path.lexists(path) and not path.is_dir()), None)
    if blocking:
        raise CodeqError(f"{folder} cannot be a folder, because {blocking} is a file")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_new_folder(parent: Path, name: str) -> Path:
    """Create the folder `name`, or `name`-2, `name`-3 and so on, in `parent` and return it.

    The folder is new: of several processes that ask at once, also on a shared disk, each gets another one.

    Raises
    ------
    CodeqError
        If it cannot be created.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     print([make_new_folder(Path(home), "run").name for _ in range(3)])
    ['run', 'run-2', 'run-3']
    """
    make_folder(parent)
    for k in count(1):
        folder = parent / (name if k == 1 else f"{name}-{k}")
        with writing(folder):
            try:
                folder.mkdir()
            except FileExistsError:
                continue
        return folder
    raise AssertionError("unreachable")


def write_new_file(path: Path, text: str) -> None:
    """Write `text` to the file `path`, which must not exist; of several processes that try at once, one succeeds.

    Raises
    ------
    CodeqError
        If `path` exists or cannot be written.
    """
    make_folder(path.parent)
    with writing(path):
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise CodeqError(f"{path} exists; choose another name or remove it") from error


def write_numbered_file(folder: Path, stem: str, suffix: str, text: str) -> Path:
    """Write `text` to a new file of `folder`, `stem` + `suffix` or `stem`-2 + `suffix` and so on, and return its path.

    Raises
    ------
    CodeqError
        If it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     print([write_numbered_file(Path(home), "mlp", ".yaml", "model: mlp").name for _ in range(2)])
    ['mlp.yaml', 'mlp-2.yaml']
    """
    make_folder(folder)
    for k in count(1):
        path = folder / (f"{stem}{suffix}" if k == 1 else f"{stem}-{k}{suffix}")
        with writing(path):
            try:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                continue
        return path
    raise AssertionError("unreachable")
