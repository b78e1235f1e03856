"""The one error that users of codeq meet: it names the thing, its value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CodeqError(ValueError):
    """A mistake in what codeq was given: a config key, a name, a pattern, a path, an array.

    Everything that a user can cause derives from this one class, so that one `except` catches it and the command
    line prints its message without a traceback. Broken invariants of codeq itself are `assert`s instead.

    Examples
    --------
    >>> raise CodeqError("batch_size=0: must be at least 1")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: batch_size=0: must be at least 1
    """


CodeqError.__module__ = "codeq"  # the name by which users import it stands in their tracebacks


def nearest(name: str, legal: Iterable[str]) -> str | None:
    """Return the legal name most like `name`, or `None` when nothing is similar.

    Examples
    --------
    >>> nearest("cifar1O", ["cifar10", "digits"])
    'cifar10'
    """
    by_lower = {candidate.lower(): candidate for candidate in legal}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def unknown_name(what: str, name: object, legal: Iterable[str]) -> CodeqError:
    """Build the error for a name that is not in a fixed set, with the nearest legal one.

    Examples
    --------
    >>> print(unknown_name("dataset", "cifar1O", ["cifar10", "digits"]))
    dataset 'cifar1O' is unknown. Did you mean 'cifar10'? Allowed: cifar10, digits
    """
    legal = sorted(legal)
    guess = nearest(name, legal) if isinstance(name, str) else None
    hint = f" Did you mean {guess!r}?" if guess else ""
    return CodeqError(f"{what} {name!r} is unknown.{hint} Allowed: {', '.join(legal) or 'nothing'}")
