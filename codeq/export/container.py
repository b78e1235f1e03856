"""Layout of a packed file: a header with version, sizes and checksum, and four sections of bytes.

| bytes | |
|---|---|
| 8 | ``codeqpk`` and a newline |
| 4 | version, unsigned, little-endian like all numbers |
| 4 × 8 | stored sizes of the sections |
| 32 | SHA-256 of everything else: the bytes before and after it |
| … | the sections: ``description`` (JSON), ``tables``, ``floats``, all three deflated, and ``codes`` |

Nothing in it is code or a path, and every size is checked before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from codeq.common.errors import CodeqError, plain_reason

MAGIC = b"codeqpk\n"
VERSION = 1
_START = struct.Struct("<8sI4Q")
_CHECKSUM = 32
DESCRIPTION_LIMIT = 1 << 26  # bytes of JSON: far more than any network needs


@dataclass(frozen=True)
class Sections:
    """The sections of a packed file, the first three inflated by `inflate` only.

    Parameters
    ----------
    description, tables, floats, codes : bytes
        As stored.
    """

    description: bytes
    tables: bytes
    floats: bytes
    codes: bytes

    @property
    def parts(self) -> tuple[bytes, bytes, bytes, bytes]:
        """The sections in the order of the file."""
        return self.description, self.tables, self.floats, self.codes


def deflate(data: bytes) -> bytes:
    """Compress a section.

    Examples
    --------
    >>> inflate(deflate(b"1234"), 4, "floats")
    b'1234'
    """
    return zlib.compress(data, 9)


def inflate(data: bytes, limit: int, name: str) -> bytes:
    """Decompress a section of at most `limit` bytes.

    Raises
    ------
    CodeqError
        If it is damaged or larger.
    """
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise CodeqError(f"section {name} is damaged: {error}") from error
    if len(found) > limit:
        raise CodeqError(f"section {name} is larger than {limit:,} bytes")
    if not inflater.eof or inflater.unused_data:
        raise CodeqError(f"section {name} is damaged: it does not end where it should")
    return found


def join(sections: Sections) -> bytes:
    """Return the bytes of a packed file."""
    start = _START.pack(MAGIC, VERSION, *map(len, sections.parts))
    rest = b"".join(sections.parts)
    return start + hashlib.sha256(start + rest).digest() + rest


def read(path: Path) -> Sections:
    """Read a packed file and check its header and checksum.

    Raises
    ------
    CodeqError
        If it cannot be read, is no packed file, has another version, or is damaged or truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CodeqError(f"{path} cannot be read: {plain_reason(error)}") from error
    begin = _START.size + _CHECKSUM
    if not data.startswith(MAGIC):
        raise CodeqError(f"{path} is not a packed network of codeq")
    if len(data) < begin:
        raise CodeqError(f"{path} is truncated: {len(data)} bytes are less than a header")
    _, version, *sizes = _START.unpack_from(data)
    if version != VERSION:
        raise CodeqError(f"{path} has version {version} of the format, this codeq reads version {VERSION}")
    if sum(sizes) != len(data) - begin:
        raise CodeqError(f"{path} is damaged: its header announces {begin + sum(sizes):,} bytes, it has {len(data):,}")
    if hashlib.sha256(data[: _START.size] + data[begin:]).digest() != data[_START.size : begin]:
        raise CodeqError(f"{path} is damaged: its checksum does not fit")
    parts, at = [], begin
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    return Sections(*parts)
