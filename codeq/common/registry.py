"""Registries that users can extend: models, quantizers, losses, schedules, data sets."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

from codeq.common.errors import CodeqError, nearest, quote, unknown_name
from codeq.common.imports import import_inherited, module_name

T = TypeVar("T")


class Registry(dict[str, T]):
    """Dictionary whose error for an unknown name suggests the nearest registered one.

    Parameters
    ----------
    kind : str
        Kind of the entries, for messages (``"model"``).

    Raises
    ------
    CodeqError
        At the assignment of an entry that cannot be called, or under a name that is no text or empty.

    Examples
    --------
    >>> shapes = Registry("shape")
    >>> @shapes.register("square")
    ... def square(side):
    ...     return side * side
    >>> shapes["double"] = lambda side: 2 * side
    >>> sorted(shapes)
    ['double', 'square']
    >>> shapes["sqare"]
    Traceback (most recent call last):
    ...
    codeq.CodeqError: shape 'sqare' is unknown. Did you mean 'square'? Allowed: double, square
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._built_in: dict[str, T] = {}
        self._origins: dict[str, tuple[str, ...]] = {}

    def __setitem__(self, name: str, entry: T) -> None:
        self._check_name(name)
        if not callable(entry):
            raise CodeqError(f"{self.kind} {quote(name)} = {quote(entry)}: must be a function or a class")
        super().__setitem__(name, entry)
        origin = self._origins[name] = tuple(_modules_in_execution(sys._getframe(1)))
        if any(module.startswith("codeq.") for module in origin[:1]):
            self._built_in[name] = entry

    def __getitem__(self, name: str) -> T:
        import_inherited()  # parts of the user, which may also replace an entry of codeq
        return super().__getitem__(name)

    def __missing__(self, name: str) -> T:
        raise unknown_name(self.kind, name, self)

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a function or class under `name`."""
        self._check_name(name)  # the function itself, if the decorator is written without a name

        def store(entry: T) -> T:
            self[name] = entry
            return entry

        return store

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not name:
            raise CodeqError(f"{quote(name)} is no name of a {self.kind}: must be text that is not empty")

    def is_known_elsewhere(self, name: str, imports: Iterable[str]) -> bool:
        """Return whether a new process that makes `imports` has the same entry.

        It does where codeq or one of the imported modules registered it. A cell, a script or a module that was imported
        by other means did so in this process alone.
        """
        if name not in self:  # one that is found by its name: timm:NAME, module:factory
            return True
        if self.get(name) is self._built_in.get(name, self):  # also after it was replaced and put back
            return True
        return not {module_name(source) for source in imports}.isdisjoint(self._origins.get(name, ()))


def _modules_in_execution(frame: FrameType | None) -> Iterator[str]:
    """Yield the names of the modules whose bodies are being executed, the innermost first.

    The module of an entry itself would not say who registered it: it can be an array, or a class of PyTorch.
    """
    while frame:
        if frame.f_code.co_name == "<module>":
            yield str(frame.f_globals.get("__name__"))
        frame = frame.f_back


@dataclass(frozen=True)
class Named:
    """Callable with the registered name and the arguments of the factory that created it.

    Built-in losses and schedules are of this type, so that a configuration can write them to YAML and another process
    can build them again.

    Parameters
    ----------
    name : str
        Name in its registry.
    kwargs : dict
        Arguments of the registered factory.
    function : callable
        The function that a call executes.

    Examples
    --------
    >>> triple = Named("scale", {"factor": 3}, lambda x: 3 * x)
    >>> triple(2), triple
    (6, scale(factor=3))
    """

    name: str
    kwargs: dict[str, Any]
    function: Callable[..., Any] = field(compare=False)

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self.function(*args)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.kwargs.items())})"


def check_kwargs(what: str, function: Callable[..., Any], kwargs: Mapping[str, Any], *, given: int = 0) -> None:
    """Raise a `CodeqError` if `function` cannot take the keyword arguments `kwargs`.

    Parameters
    ----------
    what : str
        Name of the function in the message (``"quantizer 'deadzone'"``).
    function : callable
        A function or class.
    kwargs : mapping
        Keyword arguments as a user wrote them.
    given : int
        Number of leading positional arguments that codeq passes itself; users may not name them.

    Raises
    ------
    CodeqError
        For unknown arguments, each with the nearest legal one, for a missing argument, and for a function that does not
        take the `given` ones.

    Examples
    --------
    >>> def ramp(delay, steps=1): ...
    >>> check_kwargs("schedule 'ramp'", ramp, {"delay": 3})
    >>> check_kwargs("schedule 'ramp'", ramp, {"delai": 3})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: schedule 'ramp' has no argument 'delai'. Did you mean 'delay'? Allowed: delay, steps
    """
    signature = list(inspect.signature(function).parameters.values())
    parameters = signature[given:]
    by_position = [p for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(by_position) < given and not any(p.kind is p.VAR_POSITIONAL for p in signature):
        raise CodeqError(f"{what} takes {len(by_position)} arguments by position, but is called with {given}")
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    legal = [p.name for p in named]
    problems = []
    for name in kwargs:
        if name not in legal and not takes_any:
            guess = nearest(name, legal)
            hint = f" Did you mean {guess!r}?" if guess else ""
            problems.append(f"{what} has no argument {quote(name)}.{hint}")
    if problems:
        raise CodeqError(f"{' '.join(problems)} Allowed: {', '.join(legal) or 'none'}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in kwargs]
    if missing:
        raise CodeqError(f"{what} needs the argument {missing[0]!r}. Allowed: {', '.join(legal)}")
