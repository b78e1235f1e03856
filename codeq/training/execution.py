"""Deterministic algorithms for the duration of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from codeq.common.errors import CodeqError

# In the messages of torch about an operation without a deterministic kernel, and about cuBLAS.
_SIGN = "use_deterministic_algorithms"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Restrict torch to deterministic algorithms, if wanted, as long as the context lasts.

    Afterwards the setting is the one from before, `warn_only` included; not wanted, it is not touched.

    Raises
    ------
    CodeqError
        For an operation that torch cannot compute deterministically.

    Examples
    --------
    >>> with deterministic(True):
    ...     torch.are_deterministic_algorithms_enabled()
    True
    """
    if not wanted:
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except (RuntimeError, CodeqError) as error:  # trials before a training turn those of a model into the latter
        if _SIGN not in str(error):
            raise
        raise CodeqError(
            "deterministic=True: this training uses an operation that cannot be deterministic here; set "
            f"deterministic: false. {str(error)[:300]}"
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
