"""Pretrained weights: kept where `torch.hub` keeps them, and downloaded there when missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import hub

from codeq.common.downloading import download
from codeq.common.errors import CodeqError


def checkpoint_path(url: str, file_name: str | None = None) -> Path:
    """Return where `torch.hub` keeps the weights at `url`: ``<torch.hub.get_dir()>/checkpoints/<file_name>``.

    The environment variable ``TORCH_HOME`` moves the folder; `file_name` is by default the last part of `url`.
    """
    return Path(hub.get_dir(), "checkpoints", file_name or os.path.basename(url))


@contextmanager
def loading_weights(url: str, path: Path, elsewhere: str = "") -> Iterator[None]:
    """Download the weights of `url` to `path` if need be; turn errors of that and of the block into a `CodeqError`.

    By convention, the name of the file may end with a dash and the first digits of its sha256, which a download must
    have. `torch.hub` would wait for a silent server without limit, and finds no certificates on some systems.

    Parameters
    ----------
    url : str
        Source of the weights.
    path : Path
        Their file, which exists inside the `with` block.
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
            digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
            download(url, path, "sha256", digits[1] if digits else "")
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
