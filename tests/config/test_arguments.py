"""Types of keyword arguments: what an annotation or a default says is what a file may hold."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
import torch
from cases import each
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.config.arguments import check_call, check_types


def annotated(
    flag: bool = True,
    count: int = 3,
    rate: float = 0.1,
    maybe: float | None = None,
    pair: tuple[float, float] = (0.9, 0.999),
    mode: Literal["all", "nonzero"] = "all",
    weights: Mapping[str, float] | None = None,
    text: str = "",
    anything: Any = None,
    tensor: Tensor | None = None,
    function: Callable[[float], float] | None = None,
    scale: float | Tensor = 1.0,
    **more: int,
): ...


class Bare(nn.Module):
    def __init__(self, flag=False, count=2, rate=0.5, other=None):  # noqa: ARG002
        super().__init__()


def unresolved(rate: "NotImported" = 1.0): ...  # noqa: F821


@each(
    ("kwargs", "message"),
    [
        ({"flag": "no"}, "flag='no': must be true or false"),
        ({"flag": 1}, "flag=1: must be true or false"),
        ({"count": True}, "count=True: must be an integer"),
        ({"count": 2.0}, "count=2.0: must be an integer"),
        ({"count": "2"}, "count='2': must be an integer"),
        ({"rate": "0.1"}, "rate='0.1': must be a number"),
        ({"rate": False}, "rate=False: must be a number"),
        ({"rate": math.nan}, "rate=nan: must be finite"),
        ({"rate": math.inf}, "rate=inf: must be finite"),
        ({"rate": None}, "rate=None: must be a number"),
        ({"maybe": "x"}, "maybe='x': must be a number"),
        ({"pair": [0.9, "x"]}, "pair.1='x': must be a number"),
        ({"mode": "al"}, "mode='al': must be one of all, nonzero. Did you mean 'all'?"),
        ({"weights": [1, 2]}, "weights=[1, 2]: must be a mapping"),
        ({"weights": {"fc1": "high"}}, "weights.fc1='high': must be a number"),
        ({"weights": {"fc1": None}}, "weights.fc1=None: must be a number"),
        ({"weights": {"fc1": math.inf}}, "weights.fc1=inf: must be finite"),
        ({"text": 3}, "text=3: must be text (quotes make text of it in YAML)"),
        ({"scale": "1"}, "scale='1': must be a number"),
        ({"rate": "x", "flag": 0}, "flag=0: must be true or false; rate='x': must be a number"),
    ],
)
def test_a_wrong_type_is_an_error(kwargs, message):
    with pytest.raises(CodeqError, match=f"^{re.escape(message)}$"):
        check_types(annotated, kwargs)


def test_a_tuple_has_its_length():
    with pytest.raises(CodeqError, match=r"^pair"):
        check_types(annotated, {"pair": [0.9]})


def test_right_types_pass():
    check_types(annotated, {"flag": False, "count": 4, "rate": 1, "maybe": None, "pair": [0.5, 1], "mode": "nonzero"})
    check_types(annotated, {"weights": {"fc*": 2}, "text": "x", "anything": [{"a": [1]}], "scale": 3, "unknown": "x"})
    check_types(annotated, {"weights": None, "maybe": 0.1})


def test_types_that_a_file_cannot_hold_are_left_to_the_function():
    check_types(annotated, {"tensor": [1, 2]})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"flag": 0}, "flag=0: must be true or false"),
        ({"count": "2"}, "count='2': must be a number"),
        ({"rate": True}, "rate=True: must be a number"),
    ],
)
def test_the_default_counts_without_annotation(kwargs, message):
    with pytest.raises(CodeqError, match=message):
        check_types(Bare, kwargs)
    check_types(Bare, {"flag": True, "count": 2.5, "rate": 1, "other": "x"})


def test_an_annotation_that_cannot_be_resolved_falls_back_to_the_default():
    check_types(unresolved, {"rate": 2.0})
    with pytest.raises(CodeqError, match="rate='x': must be a number"):
        check_types(unresolved, {"rate": "x"})


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_the_annotations_of_torch_are_understood(cls):
    check_types(cls, {"fused": None, "foreach": True, "maximize": False, "weight_decay": 0})
    with pytest.raises(CodeqError, match="fused='no': must be true or false"):
        check_types(cls, {"fused": "no"})


def test_any_failure_of_a_call_is_reported():
    def fails(text):
        raise KeyError(text)

    with pytest.raises(CodeqError, match=r"^thing 'x' cannot be made: KeyError: 'yyy"):
        check_call("thing 'x'", fails, {"text": "y" * 10_000})
    with pytest.raises(CodeqError, match=r"^mine$"):
        check_call("thing 'x'", lambda: (_ for _ in ()).throw(CodeqError("mine")), {})
    assert check_call("thing 'x'", lambda a: 2 * a, {"a": 3}) == 6
