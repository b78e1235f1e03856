"""The exception for every mistake in the input of codeq, and helpers to phrase its message."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence

MAX_QUOTED = 200  # characters


class CodeqError(ValueError):
    """An error in the input of codeq: a configuration key, a name, a pattern, a path, an array.

    Every error that a user can cause derives from this class, so that one `except` clause catches it and the command
    line prints its message without a traceback. Violated invariants of codeq itself are `assert` statements.

    Examples
    --------
    >>> raise CodeqError("batch_size=0: must be at least 1")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: batch_size=0: must be at least 1
    """


CodeqError.__module__ = "codeq"  # the import path that users see in tracebacks

# Visits a bounded number of entries: the repr of nested lists that share their entries can exceed any memory.
_repr = reprlib.Repr()
_repr.maxlevel = 4
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = _repr.maxfrozenset = _repr.maxdeque = 20
_repr.maxstring = _repr.maxlong = _repr.maxother = MAX_QUOTED


def quote(value: object) -> str:
    """Return the `repr` of `value` for a message, at most 200 characters long.

    Time and memory are bounded, too, however large or deeply nested the containers in `value` are.

    Examples
    --------
    >>> quote("cifar1O"), len(quote([["x" * 1000] * 1000] * 1000))
    ("'cifar1O'", 200)
    """
    try:
        text = _repr.repr(value)
    except Exception:  # the __repr__ of a user's class, or an integer of more digits than Python prints
        text = f"<{type(value).__name__}>"
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def system_reason(error: OSError) -> str:
    """Return what an error of the operating system says, for a message of one line.

    Examples
    --------
    >>> system_reason(FileNotFoundError(2, "No such file or directory", "base.yaml"))
    'base.yaml: No such file or directory'
    >>> system_reason(OSError(28, "No space left on device")), system_reason(OSError("no room"))
    ('No space left on device', 'no room')
    """
    reason = plain_reason(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def plain_reason(error: OSError) -> str:
    """Return what an error of the operating system says, without the file that it names.

    Examples
    --------
    >>> plain_reason(FileNotFoundError(2, "No such file or directory", "base.yaml")), plain_reason(TimeoutError())
    ('No such file or directory', 'TimeoutError')
    """
    return error.strerror or str(error) or type(error).__name__


def listed(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return the first `most` names, and the number of the others.

    Examples
    --------
    >>> listed(["conv1", "conv2", "fc"], 3), listed(["conv1", "conv2", "fc"], 1)
    ('conv1, conv2, fc', 'conv1 and 2 more')
    """
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def nearest(name: str, legal: Iterable[str]) -> str | None:
    """Return the legal name most similar to `name`, or `None` if none is similar.

    Examples
    --------
    >>> nearest("cifar1O", ["cifar10", "digits"])
    'cifar10'
    """
    by_lower = {candidate.lower(): candidate for candidate in legal}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def unknown_name(kind: str, name: object, legal: Iterable[str]) -> CodeqError:
    """Return the error for a name outside a fixed set, with the nearest legal name.

    Examples
    --------
    >>> print(unknown_name("dataset", "cifar1O", ["cifar10", "digits"]))
    dataset 'cifar1O' is unknown. Did you mean 'cifar10'? Allowed: cifar10, digits
    """
    legal = sorted(legal)
    guess = nearest(name, legal) if isinstance(name, str) else None
    hint = f" Did you mean {guess!r}?" if guess else ""
    return CodeqError(f"{kind} {quote(name)} is unknown.{hint} Allowed: {', '.join(legal) or 'nothing'}")
