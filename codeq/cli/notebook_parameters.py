"""Parameters of a notebook: the assignments in its cell tagged ``parameters``, with their types."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError, nearest

TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook.

    Parameters
    ----------
    type : str
        Annotation in the source, or without one ``bool`` or ``str`` where the default is one: ``int``, ``float``,
        ``str`` or ``bool`` are checked, any other allows every value.
    default : str
        Source of the default.
    optional : bool
        Whether `None` is legal.
    """

    type: str
    default: str
    optional: bool

    def parse(self, text: str) -> Any:
        """Return the value that `text` of the command line means; what does not fit the type stays text.

        Examples
        --------
        >>> Parameter("float", "1e-3", optional=False).parse("2e-3")
        0.002
        >>> Parameter("str", "None", optional=True).parse("epochs=2 dataset=digits")
        'epochs=2 dataset=digits'
        """
        if self.optional and text in ("None", "null", "~", ""):
            return None
        try:
            match self.type:
                case "str":
                    return text
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text)
                case "float":
                    return float(text)
                case _:
                    return _parse_literal(text)
        except (KeyError, ValueError):
            return text

    def text(self, value: Any) -> str:
        """Return the text from which `parse` makes `value`, which the parameter accepts.

        Examples
        --------
        >>> name, anything = Parameter("str", "''", optional=False), Parameter("", "None", optional=True)
        >>> name.text("12"), anything.text("12"), anything.text(12), anything.text([True, None])
        ('12', '"12"', '12', '[true, null]')
        """
        # Of what begins with a dash argparse makes an option, and in Python 3.11 also of -1e-05.
        if isinstance(value, str) and (self.type == "str" or (self.parse(value) == value and value[:1] != "-")):
            return value
        text = json.dumps(value, ensure_ascii=False)
        return f" {text}" if text.startswith("-") else text

    def accepts(self, value: Any) -> bool:
        """Return whether `value` has the type of the parameter; an int is a float, but a bool is no int."""
        legal = TYPES.get(self.type, (object,))
        right = isinstance(value, legal) and (not isinstance(value, bool) or bool in legal or object in legal)
        return right or (value is None and self.optional)


def _parse_literal(text: str) -> Any:
    """Return the value of a literal of JSON or of Python; any other text stays one."""
    parsers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for parse in parsers:
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError):  # TypeError: a list as the key of a dictionary
            pass
    return text


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Return the parameters of `notebook`, in their order.

    They are read as Python code. papermill's own reader works line by line and drops those with a second ``=``.

    Raises
    ------
    CodeqError
        For a file that is not a Python notebook, or one without a cell tagged ``parameters``.
    """
    try:
        content = json.loads(notebook.read_text("utf-8"))
        language = content["metadata"].get("kernelspec", {}).get("language", "python")
        tagged = [cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", [])]
        source = "".join(tagged[0]["source"]) if tagged else ""
        lines = ["" if line.startswith(("%", "!")) else line for line in source.splitlines()]  # IPython's magics
        statements = _parse("\n".join(lines)).body
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise CodeqError(f"{notebook} is not a notebook of Python: {str(error).splitlines()[0]}") from error
    if language != "python":
        raise CodeqError(f"{notebook} is a notebook of {language}, not of Python")
    found = {}
    for node in statements:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = _parameter(ast.unparse(node.annotation), node.value)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = _parameter(node.type_comment or "", node.value)
    if not found:
        raise CodeqError(f"{notebook.name} has no cell tagged 'parameters', so it takes none")
    return found


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source, type_comments=True)
    except SyntaxError:  # also for a comment beside an annotation that happens to begin with "type:"
        return ast.parse(source)


def _parameter(annotation: str, default: ast.expr) -> Parameter:
    annotation = annotation.strip("\"'")  # a quoted one means the same
    kind = annotation.removesuffix(" | None")
    optional = kind != annotation or ast.unparse(default) == "None"
    if not kind and isinstance(default, ast.Constant) and isinstance(default.value, bool | str):
        kind = type(default.value).__name__
    return Parameter(kind, ast.unparse(default), optional)


def parse_parameters(notebook: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the values of ``-p NAME VALUE`` pairs according to the types of the notebook's parameters."""
    known = read_parameters(notebook)
    return {name: known[name].parse(text) if name in known else text for name, text in pairs}


def takes_path(name: str, known: Mapping[str, Parameter]) -> bool:
    """Return whether a notebook with the parameters `known` can mean a path by the one called `name`."""
    return name in known and known[name].accepts("")


def path_parameter(name: str, parameters: Mapping[str, Any], known: Mapping[str, Parameter]) -> str | None:
    """Return the path that is given for a parameter; `None` without one, or if the notebook means no path by it.

    Examples
    --------
    >>> known = {"resume": Parameter("str", "None", optional=True), "run_dir": Parameter("bool", "False", False)}
    >>> path_parameter("resume", {"resume": "latest"}, known), path_parameter("run_dir", {"run_dir": True}, known)
    ('latest', None)
    """
    value = parameters.get(name)
    return str(value) if value and takes_path(name, known) else None  # without an annotation, digits are a number


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    """Check the names and types of `parameters`, for which papermill only warns, and return all of the notebook's.

    Raises
    ------
    CodeqError
        For a file that is not a notebook, a parameter that the notebook does not have, with the nearest one, and a
        value of another type.

    Examples
    --------
    >>> from codeq.cli.notebooks import find_notebook
    >>> check_parameters(find_notebook("debug_run"), {"epochs": 2})["epochs"].default
    '20'
    """
    known = read_parameters(notebook)
    for name, value in parameters.items():
        if name not in known:
            guess = nearest(name, known)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise CodeqError(f"{notebook.name} has no parameter {name!r}.{hint} Allowed: {', '.join(known)}")
        if not known[name].accepts(value):
            shown = repr(value) if len(repr(value)) <= 200 else f"{value!r:.200}…"
            raise CodeqError(f"{notebook.name}: parameter {name}={shown} must be of type {known[name].type}")
    return known
