"""Selection of conv and linear layers by patterns on their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from codeq.common.errors import CodeqError, nearest, quote
from codeq.quantizer.layers import named_layers

NORMALIZATION_WORDS = frozenset({"bn", "norm", "ln", "gn", "batchnorm", "layernorm", "groupnorm"})


def match_factors(
    model: nn.Module, weights: Mapping[str, float] | None, what: str = "weights", default: float = 1
) -> dict[str, float]:
    """Return a number for every conv and linear layer: that of the first pattern that matches its name, or `default`.

    Parameters
    ----------
    model : Module
        Any model.
    weights : mapping of str to float, or None
        Globs on the full dotted name, see `select_layers`.
    what : str
        Name of the patterns in error messages.
    default : float
        Number of the layers that no pattern matches.

    Raises
    ------
    CodeqError
        For a pattern that is no text or matches no conv or linear layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> match_factors(net, {"2": 0.5})
    {'0': 1, '2': 0.5}
    """
    names = [name for name, _ in named_layers(model)]
    weights = weights or {}
    _check_patterns(what, weights, names)
    return {name: next((f for p, f in weights.items() if matches(name, p)), default) for name in names}


def select_layers(model: nn.Module, exclude_layers: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Return the conv and linear layers that no pattern excludes.

    Parameters
    ----------
    model : Module
        Any model.
    exclude_layers : sequence of str
        Globs on the full dotted name; a plain name matches exactly and ``*`` crosses dots. The words bn, norm, ln, gn,
        batchnorm, layernorm and groupnorm are accepted although normalization is never quantized; where a conv or
        linear layer, or a module around one, is called so, they are patterns like any other.

    Raises
    ------
    CodeqError
        If `exclude_layers` is not a sequence of strings, and for a pattern that matches no conv or linear layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> [name for name, _ in select_layers(net, ["2", "bn"])]
    ['0']
    """
    if isinstance(exclude_layers, str):
        raise CodeqError(
            f"exclude_layers={quote(exclude_layers)}: must be a list of patterns, e.g. [{quote(exclude_layers)}]"
        )
    if not isinstance(exclude_layers, Sequence) or not all(isinstance(pattern, str) for pattern in exclude_layers):
        raise CodeqError(f"exclude_layers={quote(exclude_layers)}: must be a list of patterns (str)")
    layers = list(named_layers(model))
    names = [name for name, _ in layers]
    redundant = NORMALIZATION_WORDS.difference(part for name in names for part in name.split("."))
    patterns = [pattern for pattern in exclude_layers if pattern not in redundant]
    _check_patterns("exclude_layers", patterns, names)
    return [(name, layer) for name, layer in layers if not any(matches(name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
    """Return whether the name of a layer is `pattern`, or is one of those that this glob selects.

    Examples
    --------
    >>> matches("layer1.0.conv1", "layer1.*"), matches("conv[0]", "conv[0]")
    (True, True)
    """
    return name == pattern or fnmatchcase(name, pattern)  # a name may contain brackets, which globs read as choices


def _matches_any(names: Iterable[str], pattern: str) -> bool:
    return any(matches(name, pattern) for name in names)


def _check_patterns(what: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise CodeqError(f"{what}: pattern {quote(pattern)} must be text, the name of a layer or a glob on it")
        if not _matches_any(names, pattern):
            inside, anywhere = f"{pattern}.*", f"*.{pattern}"
            guess = next((p for p in (inside, nearest(pattern, names), anywhere) if p and _matches_any(names, p)), None)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise CodeqError(
                f"{what}: pattern {quote(pattern)} matches no conv or linear layer.{hint} Layers: {', '.join(names)}"
            )
