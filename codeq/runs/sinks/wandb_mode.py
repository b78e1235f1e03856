"""Mode and key of W&B, determined before training starts, because a failed login cannot be repeated later."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from codeq.common.errors import unknown_name
from codeq.common.paths import project_home

logger = logging.getLogger(__name__)

WandbMode = Literal["disabled", "offline", "online"]

UNNAMED = "codeq"  # default of the setting `wandb_project`, with which nobody has named a project

_OLD_NAMES = {"dryrun": "offline", "run": "online"}  # values of WANDB_MODE that W&B still accepts


def resolve_wandb_mode(wanted: WandbMode | None, project: str = UNNAMED) -> WandbMode:
    """Return the W&B mode of a run; variables of the project's ``.env`` file count as environment variables.

    Parameters
    ----------
    wanted : {"disabled", "offline", "online"} or None
        Mode of the configuration. `None` means the environment variable ``WANDB_MODE``; where that is not set either,
        a run with a named project is ``"online"`` if a key is configured, else ``"offline"``, and any other run is
        ``"disabled"``.
    project : str
        Project of the configuration; any other than the default of the configuration is one that the user named.

    Returns
    -------
    {"disabled", "offline", "online"}
        `wanted`; without a key, ``"online"`` becomes ``"offline"`` with a warning.

    Raises
    ------
    CodeqError
        If the mode of the configuration or the environment is unknown.

    Examples
    --------
    >>> resolve_wandb_mode("offline")
    'offline'
    """
    load_dotenv()
    mode = wanted if wanted is not None else os.environ.get("WANDB_MODE") or _unasked_mode(project)
    mode = _OLD_NAMES.get(mode, mode)
    if mode not in get_args(WandbMode):
        raise unknown_name("wandb_mode" if wanted is not None else "WANDB_MODE", mode, get_args(WandbMode))
    if mode == "online" and not _has_key():
        logger.warning(
            "W&B has no key, so the run is recorded offline and can be uploaded later with `wandb sync`. To give a "
            "key, run `wandb login`, or put WANDB_API_KEY=... into the environment or %s",
            project_home() / ".env",
        )
        mode = "offline"
    return cast(WandbMode, mode)


def _unasked_mode(project: str) -> WandbMode:
    if project == UNNAMED:
        return "disabled"
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    return bool(wandb_api_key() or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))


def load_dotenv() -> None:
    """Add the ``WANDB_*`` variables of the project's ``.env`` file to the environment, except those already set."""
    from dotenv import dotenv_values

    path = project_home() / ".env"
    if not path.is_file():
        return
    try:
        values = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s cannot be read, so it is ignored: %s", path, error)
        return
    for key, value in values.items():
        if key.startswith("WANDB_") and value:
            os.environ.setdefault(key, value)


def wandb_api_key() -> str | None:
    """Return the key for the W&B server from ``WANDB_API_KEY`` or the netrc file that ``wandb login`` writes.

    W&B reads them as well, but asks on the terminal if it finds none, and a run must not wait for an answer.
    """
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    named = os.environ.get("NETRC")
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            found = netrc.netrc(Path(path).expanduser()).authenticators(host)
        # RuntimeError: nobody knows the user, or the one that `~` names
        except (OSError, RuntimeError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if found and found[2]:
            return found[2]
    return None
