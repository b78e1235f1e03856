"""Selection of rows and columns of a table of runs by expressions that name columns as they stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codeq.common.checks import check_collection
from codeq.common.errors import CodeqError, nearest, quote

if TYPE_CHECKING:
    import pandas as pd

MAX_LISTED = 80  # names of columns in a message
QUOTED = """'[^']*'|"[^"]*\""""


def where(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    """Return the rows of `table` for which `expression` is true.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it.
    expression : str
        As for ``DataFrame.eval``: comparisons, ``and``, ``or``, ``not``, ``in``, arithmetic and methods of columns.
        Columns such as ``eval/accuracy`` and ``optimizer.name`` are written as they stand, without backticks; a
        division by one needs no spaces.

    Raises
    ------
    CodeqError
        For an unknown column, and for an expression that is wrong or is not true or false for each row.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"run": ["a", "b"], "eval/accuracy": [0.5, 0.75]})
    >>> where(table, "eval/accuracy > 0.6 and run in ['a', 'b']")["run"].tolist()
    ['b']
    """
    odd = {name: f"column_{k}" for k, name in enumerate(map(str, table.columns)) if not name.isidentifier()}
    given = f"where {quote(expression)}"
    try:
        found: Any = table.rename(columns=odd).eval(_with_identifiers(expression, odd), engine="python")
    except Exception as error:  # pandas raises errors of about ten types for wrong expressions
        indexed = re.search(r"(?<![\w./])[^\W\d]\w*(?:\.\w+)*\.\d[\w.]*", re.sub(QUOTED, "", expression))
        if isinstance(error, SyntaxError) and indexed and indexed[0] not in table:  # Python has no such names
            raise unknown_column(indexed[0], table) from error
        attribute = re.fullmatch(r"'Series' object has no attribute '(\w+)'", str(error))
        if attribute and (found := re.search(rf"[\w./]+\.{attribute[1]}\b", re.sub(QUOTED, "", expression))):
            raise unknown_column(found[0], table) from error
        missing = re.fullmatch(r"(?:local variable|name) '(\w+)' is not defined", str(error))
        if missing:
            raise unknown_column(_as_written(missing[1], expression, table), table) from error
        original = {identifier: name for name, identifier in odd.items()}
        text = re.sub(r"column_\d+", lambda match: original.get(match[0], match[0]), str(error).splitlines()[0])
        raise CodeqError(f"{given} cannot be evaluated: {text}") from error
    if str(getattr(found, "dtype", "")) != "bool" or found.shape != (len(table),):
        raise CodeqError(f"{given} is not true or false for each run; an example: status == 'done'")
    return table.loc[found]


def _with_identifiers(expression: str, names: dict[str, str]) -> str:
    """Replace each name of a column outside quoted strings by its identifier."""
    if not names:
        return expression
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = rf"""({QUOTED})|`?(?<![\w.])({either})(?!\w)`?"""
    return re.sub(pattern, lambda match: match[1] or names[match[2]], expression)


def _as_written(first: str, expression: str, table: pd.DataFrame) -> str:
    """Return the name in `expression` that begins with the unknown word `first`, if it is nearly a column."""
    written = re.search(rf"(?<![\w./]){re.escape(first)}[\w./]*", expression)
    return written[0] if written and nearest(written[0], map(str, table.columns)) else first


def select(table: pd.DataFrame, sort: str | None = None, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return `table` in ascending order of the column `sort` (missing values first), reduced to `columns` if given.

    Raises
    ------
    CodeqError
        For an unknown column, `columns` that are no list, and a column whose values have no order.

    Examples
    --------
    >>> import pandas as pd
    >>> select(pd.DataFrame({"run": ["a", "b"], "seed": [1, 0]}), "seed", ["run"])["run"].tolist()
    ['b', 'a']
    """
    check_collection("columns", columns)
    for name in [*([sort] if sort is not None else []), *columns]:
        if name not in table:
            raise unknown_column(name, table)
    if sort is not None:
        try:
            table = table.sort_values(sort, na_position="first", kind="stable")
        except TypeError as error:
            raise CodeqError(f"column {quote(sort)} cannot be sorted: {error}") from error
    return table[list(columns)] if columns else table


def unknown_column(name: str, table: pd.DataFrame) -> CodeqError:
    """Return the error for a column that `table` does not have, with the nearest name."""
    legal = [str(column) for column in table.columns]
    guess = nearest(name, legal)
    hint = f" Did you mean {guess!r}?" if guess else ""
    listed = [column for column in legal if not column.startswith("layers/")][:MAX_LISTED]
    more = f" and {len(legal) - len(listed)} more" if len(listed) < len(legal) else ""
    return CodeqError(f"column {quote(name)} is unknown.{hint} Allowed: {', '.join(listed)}{more}")
