"""Error messages: the name, the value, the legal names and the nearest one, all of bounded length."""

import time
import tracemalloc

import numpy as np
import pytest
from cases import each

from codeq import QuantizationComparison, UniformSymmetric, group_lasso_blocks, ledger
from codeq.common.errors import CodeqError, nearest, quote, unknown_name
from codeq.models import CifarMLP

NAMES = ["cifar10", "cifar100", "digits", "imagefolder", "synthetic"]


@each(
    ("typed", "meant"),
    [("cifar1O", "cifar10"), ("CIFAR100", "cifar100"), ("digit", "digits"), ("sintetic", "synthetic")],
)
def test_the_nearest_name_ignores_case_and_small_slips(typed, meant):
    assert nearest(typed, NAMES) == meant


def test_the_nearest_name_keeps_the_case_of_the_legal_one():
    assert nearest("adamw", ["AdamW", "SGD"]) == "AdamW"


def test_nothing_is_suggested_when_nothing_is_similar():
    assert nearest("xyzzy", NAMES) is None
    assert nearest("digits", []) is None


def test_an_unknown_name_is_reported_with_the_legal_names_in_order():
    error = unknown_name("dataset", "digit", reversed(NAMES))
    assert str(error) == (
        "dataset 'digit' is unknown. Did you mean 'digits'? Allowed: cifar10, cifar100, digits, imagefolder, synthetic"
    )


def test_names_that_are_not_text_and_empty_sets_are_reported():
    assert str(unknown_name("dataset", 3, NAMES)).startswith("dataset 3 is unknown. Allowed: cifar10")
    assert str(unknown_name("dataset", "a", [])) == "dataset 'a' is unknown. Allowed: nothing"


def test_an_error_is_a_value_error():
    with pytest.raises(ValueError, match="unknown"):
        raise unknown_name("dataset", "a", NAMES)
    assert issubclass(CodeqError, ValueError)


@each("value", ["a", 3, None, True, 1.5, [1, "b"], {"a": {"b": [1.0]}}, ("x",), {"y"}, 10**100])
def test_a_short_value_is_quoted_as_python_writes_it(value):
    assert quote(value) == repr(value)


class Talkative:
    def __repr__(self):
        return "x" * 1_000_000


class Broken:
    def __repr__(self):
        raise RuntimeError


def test_a_value_that_cannot_be_printed_is_quoted_by_its_type():
    assert quote(Broken()).startswith("<Broken")
    assert quote(10**5000) == "<int>"


def nested(entry, container, levels=9):
    """A list or mapping of 10 ** levels values in a few kilobytes, as YAML aliases make it."""
    for _ in range(levels):
        entry = container(entry)
    return entry


@each(
    "value",
    [
        nested("x", lambda entry: [entry] * 10),
        nested("x", lambda entry: {str(i): entry for i in range(10)}),
        nested("x", lambda entry: (entry,) * 10),
        ["x" * 1_000_000] * 1000,
        "x" * 10_000_000,
        Talkative(),
    ],
)
def test_a_long_value_is_cut_in_bounded_time_and_memory(value):
    tracemalloc.start()
    started = time.process_time()
    text = quote(value)
    assert time.process_time() - started < 1
    assert len(text) == 200
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_container_that_contains_itself_can_be_quoted():
    endless = []
    endless.append(endless)
    assert quote(endless).startswith("[[[[")


def test_integers_of_numpy_are_integers():
    assert group_lasso_blocks(block_size=np.int64(4)).kwargs == {"block_size": 4}
    assert UniformSymmetric(np.int64(5)).get_bitwidth() == 5
    assert ledger(CifarMLP(), activation_bits={"*": np.int32(8)}).equals(ledger(CifarMLP(), activation_bits=8))
    assert QuantizationComparison(b_a=np.uint8(200)).b_a * 200 == 40_000
