"""Packages of the extra ``codeq[export]``, imported when an exporter needs them."""

from __future__ import annotations

import importlib
from typing import Any

from codeq.common.errors import CodeqError


class MissingPackage(CodeqError):
    """A package of the extra is not installed."""


def require(module: str) -> Any:
    """Import a module of the extra ``codeq[export]``.

    Raises
    ------
    MissingPackage
        If its package is not installed.

    Examples
    --------
    >>> require("no_such_runtime")
    Traceback (most recent call last):
    ...
    codeq.export.extras.MissingPackage: this needs the package no_such_runtime, install it by: pip ...
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingPackage(f"this needs the package {package}, install it by: pip install 'codeq[export]'") from error
