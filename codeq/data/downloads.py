"""Download of one file of a data set from the first of its sources that has it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from codeq.common.downloading import download
from codeq.common.errors import CodeqError


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
            download(url, file, "md5", md5)
            return
        except (OSError, HTTPException) as error:
            problems.append(str(error))
    for folder in missing:  # made above, the innermost first
        with suppress(OSError):
            folder.rmdir()
    raise CodeqError(
        f"dataset {name!r} is not in {file.parent} and could not be downloaded ({'; '.join(dict.fromkeys(problems))}). "
        f"Download {' or '.join(urls)} and put it there as {file}"
    )
