"""Finds the files of pretrained weights: in torch's folder of checkpoints, or once from the network."""

from __future__ import annotations

import logging
import os
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from torch import hub

from codeq.common.errors import CodeqError

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds to wait for a server; a machine without network says so at once


def weights_file(url: str, file_name: str | None = None, sha256: str | None = None, elsewhere: str = "") -> Path:
    """Return the file of the weights at `url`, downloaded into torch's folder of checkpoints if it is not there yet.

    The folder is ``<torch.hub.get_dir()>/checkpoints``; the environment variable ``TORCH_HOME`` moves it.

    Parameters
    ----------
    url : str
        Where to get the weights.
    file_name : str, optional
        Name of the file in the folder; default: the last part of `url`.
    sha256 : str, optional
        The first digits that the checksum of a downloaded file must have.
    elsewhere : str
        Another place where the caller looks, for the message: ``", or …"``.

    Raises
    ------
    CodeqError
        If the file is not there and cannot be downloaded: where to put which file.

    Examples
    --------
    >>> weights_file("file:///nowhere/net.pth")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: pretrained weights cannot be downloaded (...): put file:///nowhere/net.pth on this machine
    as .../checkpoints/net.pth, or leave out pretrained
    """
    path = Path(hub.get_dir(), "checkpoints", file_name or os.path.basename(url))
    if path.is_file():
        return path
    try:
        # torch's download waits for a silent server as long as the system does, which can be minutes.
        urlopen(url, timeout=PATIENCE).close()
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("Downloading %s to %s", url, path)
        hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except (OSError, HTTPException, RuntimeError) as error:  # no network or a full disk; a cut answer; another checksum
        raise CodeqError(
            f"pretrained weights cannot be downloaded ({error}): put {url} on this machine as {path}{elsewhere}, "
            "or leave out pretrained"
        ) from error
    return path
