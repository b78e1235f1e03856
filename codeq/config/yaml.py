"""YAML as people read it: the scalars of YAML 1.2, no key twice, and errors that name the file and the line."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from codeq.common.errors import CodeqError

# PyYAML follows YAML 1.1, where 1e-3 is a string, no is false, 010 is eight and 1:30 is ninety. These are the patterns
# of the core schema of YAML 1.2 (§10.3.2); what matches none of them is a string.
# With each come the characters that it can begin with, by which PyYAML looks it up.
SCALARS = {
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
}


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with the scalars of YAML 1.2, that refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's class attribute)

    def construct_object(self, node: yaml.Node, deep: bool = True) -> Any:
        # Going deep at once is what makes PyYAML refuse an anchor that contains itself.
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", loader.construct_scalar(node).lower()))


class _Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper` that quotes a string which either version of YAML would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (PyYAML's signature)
        return True


for _tag, (_pattern, _first) in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def _parse(text: bytes | str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CodeqError(f"{source}{where}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a value its tag does not allow (`!!int x`), bytes that are no text
        raise CodeqError(f"{source}: not valid YAML: {error}") from error


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises
    ------
    CodeqError
        For a file that cannot be read, that is not YAML (with the line), in which a key stands twice, or which holds
        something other than a mapping.
    """
    try:
        content = _parse(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise CodeqError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise CodeqError(f"{path} {found}: must be a mapping (lines of `key: value`)")
    return content


def parse_scalar(text: str) -> Any:
    """Return the value that `text` would have in a YAML file, as after ``--set key=``.

    Raises
    ------
    CodeqError
        For text that is not YAML.

    Examples
    --------
    >>> [parse_scalar(text) for text in ("1e-3", "8", "no", "true", "null", "[bn, conv1]")]
    [0.001, 8, 'no', True, None, ['bn', 'conv1']]
    """
    return _parse(text, f"value {text!r}")


def parse_overrides(changes: Iterable[str]) -> dict[str, Any]:
    """Return what ``KEY=VALUE`` texts set, for `ExperimentConfig.override`.

    Raises
    ------
    CodeqError
        For a text without ``=`` or a key, and for a value that is not YAML.

    Examples
    --------
    >>> parse_overrides(["epochs=20", "optimizer.param_groups.dz.lr=1e-2"])
    {'epochs': 20, 'optimizer.param_groups.dz.lr': 0.01}
    """
    parsed = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not key or not equals:
            raise CodeqError(f"override {change!r}: must be KEY=VALUE, e.g. epochs=20")
        parsed[key] = parse_scalar(value)
    return parsed


def dump_yaml(content: dict[str, Any]) -> str:
    """Return `content` as YAML, keys in their order; `read_yaml` gives it back unchanged.

    Examples
    --------
    >>> print(dump_yaml({"name": "1e-3", "lr": 1e-05, "device": None}), end="")
    name: '1e-3'
    lr: 1.0e-05
    device: null
    """
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
