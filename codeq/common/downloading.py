"""Download of one file: with a time limit, trusted certificates and a checksum; a failed one leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import ssl
import tempfile
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import certifi

from codeq.common.progress import NOTICEABLE, counter

TIMEOUT = 10.0  # seconds without an answer after which the download fails
CHUNK = 2**16  # bytes
CHOICES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # variables of OpenSSL by which users choose what to trust


def download(url: str, path: Path, algorithm: str, digits: str) -> None:
    """Download `url` to `path`, which appears when it is complete and has the checksum; its folder is created.

    Parameters
    ----------
    url : str
        Source.
    path : Path
        Target.
    algorithm : str
        Name of a checksum in `hashlib`.
    digits : str
        First hexadecimal digits of the checksum; all of them, some or none.

    Raises
    ------
    OSError, http.client.HTTPException
        If it cannot be downloaded, or has another checksum.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = Path(folder, "source.txt")
    ...     _ = source.write_text("content")
    ...     download(source.as_uri(), Path(folder, "new", "target.txt"), "md5", "9a0364b9")
    ...     Path(folder, "new", "target.txt").read_text()
    'content'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a temporary folder until it is complete, so that an interrupted download leaves nothing behind.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as scratch:
        part = Path(scratch, path.name)
        _receive(url, part)
        with part.open("rb") as content:
            found = hashlib.file_digest(content, partial(hashlib.new, algorithm, usedforsecurity=False))
        if not found.hexdigest().startswith(digits):
            raise OSError(f"what {url} sent has another {algorithm} than {digits}")
        part.replace(path)


def _receive(url: str, path: Path) -> None:
    try:
        response = urlopen(url, timeout=TIMEOUT, context=_trusted())
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLCertVerificationError):
            raise
        chosen = "".join(f"; {name} is {os.environ[name]}" for name in CHOICES if os.environ.get(name))
        raise OSError(
            f"the certificate of the server is not trusted: {error.reason.verify_message}{chosen}. If a proxy replaces "
            "certificates by its own, set SSL_CERT_FILE to a file that holds the proxy's"
        ) from error
    size = int(response.headers.get("Content-Length") or 0)
    with response, path.open("wb") as target, counter(size, f"downloading {path.name}", "B", NOTICEABLE) as bar:
        while chunk := response.read(CHUNK):
            target.write(chunk)
            bar.update(len(chunk))


def _trusted() -> ssl.SSLContext:
    """Return the system's certificates and those of certifi; if the user has chosen some, only these."""
    context = ssl.create_default_context()  # knows the user's choice
    if not any(os.environ.get(name) for name in CHOICES):
        # Python from python.org comes to a Mac without certificates, as do slim containers.
        context.load_verify_locations(certifi.where())
    return context
