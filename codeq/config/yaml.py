"""Reading and writing YAML 1.2 with ruamel.yaml, and the values of overrides on the command line."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver, implicit_resolvers

from codeq.common.errors import CodeqError, quote
from codeq.common.paths import path_text, similar_file
from codeq.config.serialize import serialize


class _AnyVersion(VersionedResolver):
    """The scalars of YAML 1.1 and 1.2: text that looks like one is quoted, so that parsers of both read text."""

    versioned_resolver: ClassVar[dict[str, list[Any]]] = {
        first: [(tag, pattern) for _, tag, pattern, characters in implicit_resolvers if first in characters]
        for first in {character for *_, characters in implicit_resolvers for character in characters}
    }


class _Constructor(SafeConstructor):
    def check_mapping_key(self, node: Node, key_node: Node, mapping: Any, key: Any, value: Any) -> bool:  # noqa: ARG002
        if key in mapping:  # the message of ruamel.yaml contains both values, whose expanded aliases have any size
            raise ConstructorError(None, None, f"key {quote(key)} twice", key_node.start_mark)
        return True


class _Representer(SafeRepresenter):
    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")  # YAML 1.1 reads 1e-05 as text
        return node


_Representer.add_representer(float, _Representer.represent_float)


def _yaml() -> Any:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Representer = _Constructor, _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 120
    yaml.max_depth = 100  # far above any configuration; thousands of levels take seconds
    return yaml


@lru_cache(maxsize=64)
def _load(text: bytes | str) -> Any:
    """Parse `text` once: the configuration of a run is read again and again, at 50 ms each."""
    return _yaml().load(text)


def parse_yaml(text: bytes | str, source: str) -> Any:
    """Return the value of YAML `text`; error messages call it `source`.

    Raises
    ------
    CodeqError
        If it is not valid YAML, with line and column.
    """
    try:
        return serialize(_load(text))  # a copy, which the caller may change
    except CodeqError as error:
        raise CodeqError(f"{source}: {error}") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or error.context or "").partition(", if necessary")[0]  # a hint about ruamel.yaml
        raise CodeqError(f"{source}{where}: not valid YAML: {problem}") from error
    except Exception as error:  # a value that its tag does not allow (`!!int x`) raises errors of many types
        raise CodeqError(f"{source}: not valid YAML: {error}") from error


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises
    ------
    CodeqError
        If the file cannot be read, is not valid YAML (with line and column), contains a key twice, or contains
        something other than a mapping.
    """
    try:
        content = parse_yaml(Path(path_text(path)).read_bytes(), str(path))
    except OSError as error:
        raise CodeqError(f"{path} cannot be read: {error.strerror}{similar_file(Path(path))}") from error
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"contains a {type(content).__name__}"
        raise CodeqError(f"{path} {found}: must be a mapping (lines of `key: value`)")
    return content


def parse_scalar(text: str) -> Any:
    """Return the value of `text` on the command line: a YAML scalar, list or mapping, else the text unchanged.

    Text in quotes, ``[…]`` and ``{…}`` are YAML. Other text is a number, a boolean or null if YAML 1.2
    says so, else it is kept character by character, even where ``#``, ``:``, ``*`` or ``@`` have a meaning in YAML.

    Raises
    ------
    CodeqError
        For quotes or brackets that are not closed or are followed by other text.

    Examples
    --------
    >>> [parse_scalar(text) for text in ("1e-3", "8", "no", "true", "null", "[bn, conv1]", "/data/set #2")]
    [0.001, 8, 'no', True, None, ['bn', 'conv1'], '/data/set #2']
    """
    stripped = text.strip()
    source = f"value {quote(text)}"
    if stripped[:1] in ("'", '"', "[", "{"):
        values = parse_yaml(f"[{stripped}]", source)  # in a list, a comment swallows the closing bracket
        if len(values) != 1:
            raise CodeqError(f"{source}: must be a single value, e.g. {quote(values)}")
        return values[0]
    tag = str(VersionedResolver().resolve(ScalarNode, stripped, (True, False)))
    return parse_yaml(stripped, source) if tag.endswith((":null", ":bool", ":int", ":float")) else text


def parse_overrides(changes: str | Iterable[str]) -> dict[str, Any]:
    """Return the settings in ``KEY=VALUE`` texts, for `ExperimentConfig.override`; see `parse_scalar` for the values.

    Parameters
    ----------
    changes : str or iterable of str
        One text holds several settings, separated by spaces; the values may have spaces, too.

    Raises
    ------
    CodeqError
        For a text without ``=`` or without a key, and for a value that is not valid.

    Examples
    --------
    >>> parse_overrides(["epochs=20", "optimizer.param_groups.dz.lr=1e-2", "data_dir=/data/set #2"])
    {'epochs': 20, 'optimizer.param_groups.dz.lr': 0.01, 'data_dir': '/data/set #2'}
    >>> parse_overrides("quantizer.exclude_layers=[conv1, bn] data_dir=/data/set #2 epochs=20")
    {'quantizer.exclude_layers': ['conv1', 'bn'], 'data_dir': '/data/set #2', 'epochs': 20}
    """
    if isinstance(changes, str):
        changes = filter(None, re.split(r"\s+(?=[\w.]+=)", changes.strip()))
    parsed = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not key or not equals:
            raise CodeqError(f"override {quote(change)}: must be KEY=VALUE, e.g. epochs=20")
        parsed[key] = parse_scalar(value)
    return parsed


def override_options(changes: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that make changes, as `parse_overrides` reads them.

    Examples
    --------
    >>> override_options({"epochs": 2, "data_dir": "/data/set #2", "name": "8", "device": None})
    ['--set', 'epochs=2', 'data_dir=/data/set #2', 'name="8"', 'device=null']
    """
    words = [f"{key}={_written(value)}" for key, value in changes.items()]
    return ["--set", *words] if words else []


def _written(value: Any) -> str:
    """Return a value as text of which the command line makes the same value."""
    plain = isinstance(value, str) and value[:1] not in ("", "'", '"', "[", "{") and parse_scalar(value) == value
    return str(value) if plain else json.dumps(value)


def dump_yaml(content: dict[str, Any]) -> str:
    """Return `content` as YAML, keys in their order; parsers of YAML 1.1 and 1.2 read it back unchanged.

    Examples
    --------
    >>> print(dump_yaml({"name": "1e-3", "lr": 1e-05, "device": None}), end="")
    name: '1e-3'
    lr: 1.0e-05
    device: null
    """
    yaml, stream = _yaml(), io.StringIO()
    yaml.Resolver = _AnyVersion
    yaml.dump(serialize(content), stream)  # without shared containers, which would become anchors
    return stream.getvalue()
