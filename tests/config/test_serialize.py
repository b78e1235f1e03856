"""Parts of a configuration as plain values, and values put at dotted paths."""

import functools
from pathlib import Path

import numpy as np
import pytest
from cases import each

from codeq.common.errors import CodeqError
from codeq.config.optimizer import OptimizerConfig, ParamGroup, ParamGroups
from codeq.config.parts import LossTerm, QuantizerConfig
from codeq.config.serialize import keys, put, serialize


def test_keys_are_those_of_the_file():
    assert list(keys(LossTerm)) == ["name", "lambda", "kwargs", "schedule", "step", "detach_quantizer"]
    assert keys(LossTerm)["lambda"] == "lambda_"


def test_parts_become_mappings():
    sgd = OptimizerConfig(type="sgd", param_groups=ParamGroups(base=ParamGroup(lr=0.1, momentum=0.9)))
    theta = {"lr": 0.001, "weight_decay": 0.01}
    base = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "decay_norms_and_biases": True}
    assert serialize(sgd) == {
        "type": "sgd",
        "kwargs": {},
        "theta": None,
        "param_groups": {"base": base, "dz": theta, "bit": theta},
    }


def test_own_callables_are_kept_or_left_out():
    term = LossTerm(name="own:f", function=len)
    assert serialize(term)["function"] is len
    assert "function" not in serialize(term, functions=False)


def test_containers_are_copied_and_made_plain():
    patterns = ["bn"]
    part = QuantizerConfig(name="deadzone", exclude_layers=patterns)
    plain = serialize({"a": part, "b": ("x", Path("p")), "c": functools})
    assert plain["a"]["exclude_layers"] == patterns
    assert plain["a"]["exclude_layers"] is not patterns
    assert plain["b"] == ["x", "p"]
    assert plain["c"] is functools  # no container: left as it is


@pytest.mark.parametrize(("value", "kind"), [(np.float64(0.5), float), (np.int32(3), int), (np.True_, bool)])
def test_numpy_scalars_become_pythons_own(value, kind):
    assert type(serialize(value)) is kind
    assert serialize(value) == value


@each(
    ("path", "expected"),
    [
        ("a", {"a": 9, "terms": [{"x": 1}], "none": None}),
        ("new.deep", {"a": 1, "terms": [{"x": 1}], "none": None, "new": {"deep": 9}}),
        ("terms.0.x", {"a": 1, "terms": [{"x": 9}], "none": None}),
        ("terms.0", {"a": 1, "terms": [9], "none": None}),
        ("none.b", {"a": 1, "terms": [{"x": 1}], "none": {"b": 9}}),
    ],
)
def test_put_replaces(path, expected):
    content = {"a": 1, "terms": [{"x": 1}], "none": None}
    put(content, path, 9, replace=True)
    assert content == expected


@each(
    ("path", "message"),
    [
        ("a.b", "a is 1, so nothing in it can be set"),
        ("terms.1.x", "terms has 1 entries, counted from 0: '1' is none of them"),
        ("terms.-1", "terms has 1 entries, counted from 0: '-1' is none of them"),
        ("terms.lambda", "terms has 1 entries, counted from 0: 'lambda' is none of them"),
    ],
)
def test_put_where_nothing_is(path, message):
    with pytest.raises(CodeqError, match=message):
        put({"a": 1, "terms": [{"x": 1}]}, path, 9, replace=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [("a.b", "a.b is given too: give only one of them"), ("none.b", "none is None, so nothing in it can be set")],
)
def test_put_without_replacing(path, message):
    with pytest.raises(CodeqError, match=message):
        put({"a": {"b": 1}, "none": None}, path, 9, replace=False)
