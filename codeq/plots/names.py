"""Names of runs, layers and settings, and shares, as text of a figure, which shows it as it is and has little room."""

from __future__ import annotations

from collections.abc import Sequence


def literal(name: str) -> str:
    r"""Return `name` as text that matplotlib shows: ``$`` would start a formula, and legends leave out ``_names``.

    Examples
    --------
    >>> literal("run $1"), literal("_run")
    ('run \\$1', ' _run')
    """
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def whole_percent(share: float) -> str:
    """Return a fraction in whole percent, where ``0 %`` means nothing at all and ``100 %`` everything.

    Examples
    --------
    >>> [whole_percent(share) for share in (0.0, 0.001, 0.254, 511 / 512, 1.0)]
    ['0 %', '< 1 %', '25 %', '> 99 %', '100 %']
    """
    shown = f"{100 * share:.0f} %"
    if 0 < share < 1:
        return {"0 %": "< 1 %", "100 %": "> 99 %"}.get(shown, shown)
    return shown


def shortened(text: str, length: int) -> str:
    """Return `text` with at most `length` characters, the last of which says that some are missing.

    Examples
    --------
    >>> shortened("layer1.0.conv1", 8), shortened("conv1", 8)
    ('layer1.…', 'conv1')
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def distinct_labels(names: Sequence[str], length: int, longest: int | None = None) -> list[str]:
    """Return a label for each of `names`; those of different names are different.

    A long name loses its middle: names made of settings or paths often differ at their ends.

    Parameters
    ----------
    names : sequence of str
        Equal ones get equal labels.
    length : int
        Characters of a label.
    longest : int, optional
        Characters up to which labels are longer where they would be equal otherwise; default: `length`. Beyond it they
        are numbered.

    Examples
    --------
    >>> distinct_labels(["outputs/float/seed=0", "outputs/float/seed=1"], 13)
    ['output…seed=0', 'output…seed=1']
    >>> distinct_labels(["lr=0.1, bits=4, seed=0", "lr=0.1, bits=8, seed=0"], 13, longest=16)
    ['lr=0.1, … seed=0', 'lr=0.1, … seed=0 (2)']
    """
    labels: list[str] = []
    for room in range(length, max(length, longest or 0) + 1):
        labels = [_without_middle(name, room) for name in names]
        if len(set(labels)) == len(set(names)):
            break
    found: dict[str, str] = {}
    for name, label in zip(names, labels, strict=True):
        if name not in found:
            same = sum(_without_middle(other, len(label)) == label for other in found)
            found[name] = f"{label} ({same + 1})" if same else label
    return [literal(found[name]) for name in names]


def _without_middle(name: str, length: int) -> str:
    tail = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - tail]}…{name[-tail:]}"
