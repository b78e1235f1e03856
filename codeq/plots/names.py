"""Names of runs, layers and settings, and shares, as text of a figure, which shows it as it is and has little room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MAX_LAYER = 32  # characters of the name of a layer on an axis or in a title
LONGEST_LAYER = 40  # of those that would be equal otherwise


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


def without_middle(name: str, length: int) -> str:
    """Return `name` with at most `length` characters, from its beginning and its end."""
    tail = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - tail]}…{name[-tail:]}"


def without_beginning(name: str, length: int = MAX_LAYER) -> str:
    """Return `name` with at most `length` characters from its end, where names of layers differ.

    Examples
    --------
    >>> without_beginning("model.encoder.layers.0.fc", 12), without_beginning("conv1", 12)
    ('…layers.0.fc', 'conv1')
    """
    return name if len(name) <= length else f"…{name[1 - length :]}"


def distinct_labels(
    names: Sequence[object],
    length: int,
    longest: int | None = None,
    shorten: Callable[[str, int], str] = without_middle,
) -> list[str]:
    """Return a label for each of `names`; those of different names are different.

    By default a long name loses its middle: names made of settings or paths often differ at their ends.

    Parameters
    ----------
    names : sequence
        Texts, or numbers that name something. Equal ones get equal labels.
    length : int
        Characters of a label.
    longest : int, optional
        Characters up to which labels are longer where they would be equal otherwise; default: `length`. Beyond it they
        are numbered.
    shorten : callable
        Shortens a name to a number of characters.

    Examples
    --------
    >>> distinct_labels(["outputs/float/seed=0", "outputs/float/seed=1"], 13)
    ['output…seed=0', 'output…seed=1']
    >>> distinct_labels(["lr=0.1, bits=4, seed=0", "lr=0.1, bits=8, seed=0"], 13, longest=16)
    ['lr=0.1, … seed=0', 'lr=0.1, … seed=0 (2)']
    """
    texts, labels = [str(name) for name in names], list[str]()
    for room in range(length, max(length, longest or 0) + 1):
        labels = [shorten(text, room) for text in texts]
        if len(set(labels)) == len(set(texts)):
            break
    found: dict[str, str] = {}
    for name, label in zip(texts, labels, strict=True):
        if name not in found:
            same = sum(shorten(other, len(label)) == label for other in found)
            found[name] = f"{label} ({same + 1})" if same else label
    return [literal(found[text]) for text in texts]


def layer_labels(names: Sequence[str], length: int = MAX_LAYER, longest: int = LONGEST_LAYER) -> list[str]:
    """Return a label for each of the `names` of layers; a long one loses its beginning, see `distinct_labels`.

    Examples
    --------
    >>> layer_labels(["stem", "model.encoder.layers.0.fc", "model.encoder.layers.1.fc"], 12)
    ['stem', '…layers.0.fc', '…layers.1.fc']
    """
    return distinct_labels(names, length, longest, without_beginning)
