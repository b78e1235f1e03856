"""Types of single values in a configuration, with the ranges that are legal."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, Strict
from pydantic_core import PydanticCustomError

from codeq.common.errors import CodeqError


def _without_nul(value: str) -> str:
    """Refuse the one character that no path may contain."""
    if "\0" in value:
        raise CodeqError("must not contain a NUL character")
    return value


def _one_or_several(value: Any) -> Any:
    """Refuse what is neither text nor a list of it, in one message; a union has one for each alternative."""
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, str) and part and "\0" not in part for part in parts):
        raise PydanticCustomError(
            "texts", "must be text or a list of texts, none of them empty or with a NUL character"
        )
    return value


Text = Annotated[str, Strict(), Field(min_length=1), AfterValidator(_without_nul)]
Texts = Annotated[str | list[str], PlainValidator(_one_or_several)]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**64 - 1)]  # the seeds of torch.manual_seed
Rate = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Factor = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Strict(), Field(gt=0, lt=1)]
# A boolean that may be written as 0 or 1.
ZeroOrOne = Annotated[
    Flag, BeforeValidator(lambda value: bool(value) if type(value) is int and value in (0, 1) else value)
]
