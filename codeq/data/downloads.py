"""Download of one file of a data set, with a time limit and a checksum."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from codeq.common.console import counter
from codeq.common.errors import CodeqError

TIMEOUT = 10.0  # seconds without an answer after which the download fails
CHUNK = 2**16  # bytes


def fetch(name: str, file: Path, urls: Sequence[str], md5: str) -> None:
    """Download `file` of the data set `name` unless it is there, and check it.

    Parameters
    ----------
    name : str
        Data set, for error messages.
    file : Path
        Target; its folder is created.
    urls : sequence of str
        Sources, tried in turn.
    md5 : str
        Of the content, 32 hexadecimal digits.

    Raises
    ------
    CodeqError
        If the file is there with another content, or cannot be downloaded.
    """
    from torchvision.datasets.utils import check_integrity  # takes longer to import than the rest of codeq

    if file.exists():
        if not check_integrity(file, md5):
            raise CodeqError(
                f"dataset {name!r}: {file} is incomplete or damaged (its md5 is not {md5}). "
                "Delete it to download it again"
            )
        return
    problems = []
    missing = [parent for parent in (file.parent, *file.parent.parents) if not parent.exists()]
    for url in urls:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # In a temporary folder until it is complete, so that an interrupted download leaves nothing behind.
            with tempfile.TemporaryDirectory(dir=file.parent, prefix=".download-") as scratch:
                part = Path(scratch) / file.name
                _download(url, part)
                if not check_integrity(part, md5):
                    raise OSError(f"what {url} sent has another md5 than {md5}")
                part.replace(file)
            return
        except (OSError, HTTPException) as error:
            problems.append(str(error))
    for folder in missing:  # made above, the innermost first
        with suppress(OSError):
            folder.rmdir()
    raise CodeqError(
        f"dataset {name!r} is not in {file.parent} and could not be downloaded ({'; '.join(problems)}). "
        f"Download {' or '.join(urls)} and put it there as {file}"
    )


def _download(url: str, file: Path) -> None:
    # torchvision's own download has no timeout, and would wait minutes for a silent server.
    with urlopen(url, timeout=TIMEOUT) as response, file.open("wb") as target:
        bar = counter(int(response.headers.get("Content-Length") or 0), file.name, "B")
        while chunk := response.read(CHUNK):
            target.write(chunk)
            bar.update(len(chunk))
        bar.close()
