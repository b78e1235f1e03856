"""Cases within one test, those that are left to the exhaustive tests, and those that need something of the machine."""

import functools
import inspect
import os
import resource
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

# What torch.compile calls for a CPU, and what it includes.
needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")) or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="needs a C++ compiler and Python's headers",
)


def each(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call the test once for each case, as `pytest.mark.parametrize` would, but as a single test.

    For tests without fixtures that change in a test (`tmp_path`, `monkeypatch`): all cases get the same. An error
    ends with a note that names its case.
    """
    keys = (names,) if isinstance(names, str) else names
    cases = [(case,) if isinstance(names, str) else case for case in cases]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            assert cases
            for case in cases:
                torch.manual_seed(0)
                arguments = dict(zip(keys, case, strict=True))
                try:
                    test(**fixtures, **arguments)
                except BaseException as error:
                    error.add_note(f"case: {arguments}")
                    raise

        signature = inspect.signature(test)
        parameters = [parameter for name, parameter in signature.parameters.items() if name not in keys]
        run.__signature__ = signature.replace(parameters=parameters)  # pytest reads the fixtures from it
        return run

    return decorate


def few(cases: Iterable[Any], number: int = 1) -> list[Any]:
    """Return the cases for `pytest.mark.parametrize`, of which all but the first `number` are exhaustive."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    rest = [pytest.param(*value, marks=pytest.mark.exhaustive) for value in values[number:]]
    return [pytest.param(*value) for value in values[:number]] + rest


@contextmanager
def small_files(size: int = 3000) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, which programs meet as they do a full disk: ``File too large``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        # Python cuts the compiled file of a module that is imported meanwhile, and every later import of it fails.
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
