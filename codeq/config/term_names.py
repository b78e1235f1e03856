"""Names of the sparsity terms in the logs: ``train/<name>`` and ``train/<name>_coeff``."""

from __future__ import annotations

from collections.abc import Sequence

from codeq.common.errors import CodeqError, quote

# The parts of the objective and the other figures that `codeq.training.reporting` logs as ``train/…``.
RESERVED = frozenset(
    {
        "accuracy", "ce_loss", "cross-entropy", "distillation", "distillation_loss", "sparsity_coeff", "sparsity_loss",
        "theta regularizer", "theta_coeff", "theta_loss",
    }
)  # fmt: skip


def term_names(losses: Sequence[str]) -> list[str]:
    """Return a unique log name for each sparsity term.

    Parameters
    ----------
    losses : sequence of str
        The name of each term's loss; later terms of the same loss get a number.

    Raises
    ------
    CodeqError
        For a loss whose values would overwrite another figure of the logs.

    Examples
    --------
    >>> term_names(["group_lasso", "l1_kernel_sparsity", "group_lasso"])
    ['group_lasso', 'l1_kernel_sparsity', 'group_lasso_2']
    >>> term_names(["accuracy"])
    Traceback (most recent call last):
    ...
    codeq.CodeqError: loss 'accuracy' would overwrite train/accuracy in the logs: register it under another name
    """
    names: list[str] = []
    taken = set(RESERVED)
    for k, loss in enumerate(losses):
        twins = losses[:k].count(loss)
        name = f"{loss}_{twins + 1}" if twins else loss
        for key in (name, f"{name}_coeff"):
            if key in taken:
                raise CodeqError(
                    f"loss {quote(loss)} would overwrite train/{key[:100]} in the logs: register it under another name"
                )
        taken |= {name, f"{name}_coeff"}
        names.append(name)
    return names
