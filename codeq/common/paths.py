"""Where files go: relative paths mean the project's folder, never the working directory."""

from __future__ import annotations

import os
from pathlib import Path

_ABOVE = Path(__file__).resolve().parents[2]
# Only the folder right above the package: an environment inside some other project is not that project.
CHECKOUT = _ABOVE if (_ABOVE / "pyproject.toml").is_file() else None


def project_home() -> Path:
    """Return the folder that data, outputs and every relative path of a user belong to.

    It is the environment variable ``CODEQ_HOME`` if set, else the checkout that this package lies in (the folder beside
    it has a ``pyproject.toml``), else, for an installed package, the working directory.
    """
    if home := os.environ.get("CODEQ_HOME"):
        return Path(home).expanduser().absolute()
    return CHECKOUT or Path.cwd()


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return `path` as an absolute path; a relative one starts at `project_home`, and ``~`` is expanded.

    Examples
    --------
    >>> resolve("/srv/images").as_posix()
    '/srv/images'
    >>> resolve("outputs") == project_home() / "outputs"
    True
    """
    return project_home() / Path(path).expanduser()
