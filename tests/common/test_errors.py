"""Messages about mistakes: the name, the value, what is allowed, and the nearest legal name."""

import pytest

from codeq.common.errors import CodeqError, nearest, unknown_name

NAMES = ["cifar10", "cifar100", "digits", "imagefolder", "synthetic"]


@pytest.mark.parametrize(
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


def test_an_unknown_name_is_told_with_all_the_legal_ones_in_order():
    error = unknown_name("dataset", "digit", reversed(NAMES))
    assert str(error) == (
        "dataset 'digit' is unknown. Did you mean 'digits'? Allowed: cifar10, cifar100, digits, imagefolder, synthetic"
    )


def test_names_that_are_no_text_and_empty_sets_are_told_too():
    assert str(unknown_name("dataset", 3, NAMES)).startswith("dataset 3 is unknown. Allowed: cifar10")
    assert str(unknown_name("dataset", "a", [])) == "dataset 'a' is unknown. Allowed: nothing"


def test_one_except_clause_catches_them_as_value_errors_too():
    with pytest.raises(ValueError, match="unknown"):
        raise unknown_name("dataset", "a", NAMES)
    assert issubclass(CodeqError, ValueError)
