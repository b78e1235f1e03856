"""Pretrained weights: kept in torch's folder of checkpoints, and downloaded there by `torch.hub` when missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from torch import hub

from codeq.common.errors import CodeqError

TIMEOUT = 10.0  # seconds to wait for a server before the download


def checkpoint_path(url: str, file_name: str | None = None) -> Path:
    """Return where `torch.hub` keeps the weights at `url`: ``<torch.hub.get_dir()>/checkpoints/<file_name>``.

    The environment variable ``TORCH_HOME`` moves the folder; `file_name` is by default the last part of `url`.
    """
    return Path(hub.get_dir(), "checkpoints", file_name or os.path.basename(url))


@contextmanager
def loading_weights(url: str, path: Path, elsewhere: str = "") -> Iterator[None]:
    """Turn errors while the weights of `url` are loaded from `path`, or downloaded to it, into a `CodeqError`.

    Parameters
    ----------
    url : str
        Source of the weights.
    path : Path
        Their file, which is downloaded inside the `with` block if it does not exist.
    elsewhere : str
        Another place for the file, for the message: ``", or …"``.

    Raises
    ------
    CodeqError
        If the file is missing and cannot be downloaded (the message says where to put it), or does not hold weights.

    Examples
    --------
    >>> url = "file:///nowhere/net.pth"
    >>> with loading_weights(url, checkpoint_path(url)):
    ...     hub.load_state_dict_from_url(url)
    Traceback (most recent call last):
    ...
    codeq.CodeqError: pretrained weights cannot be downloaded (...): put file:///nowhere/net.pth on this machine
    as .../checkpoints/net.pth, or leave out pretrained
    """
    try:
        if not path.is_file():
            # torch.hub waits for a silent server without limit.
            urlopen(url, timeout=TIMEOUT).close()
        yield
    except Exception as error:  # the network, a full disk, another checksum; anything that a damaged file causes
        if path.is_file():
            raise CodeqError(
                f"{path} does not hold the weights of {url} ({type(error).__name__}); delete it"
            ) from error
        raise CodeqError(
            f"pretrained weights cannot be downloaded ({error}): put {url} on this machine as {path}{elsewhere}, "
            "or leave out pretrained"
        ) from error
