import pandas as pd
import pytest

from codeq.common.errors import CodeqError
from codeq.studies.groups import group_labels, varied_keys


def table(**columns):
    count = len(next(iter(columns.values())))
    return pd.DataFrame({"run": range(count), "status": "done", "reason": "", **columns, "epoch": 1, "lr": 0.1})


def test_the_seed_and_the_metrics_are_no_keys():
    assert varied_keys(table(model=["a", "b"], seed=[0, 1])) == ["model"]
    assert varied_keys(table(seed=[0, 1])) == []


def test_a_key_that_others_determine_is_left_out():
    variants = table(variant=["x", "x", "y", "y"], theta=[1, 1, 2, 2], wd=[0.1, 0.2, 0.1, 0.2], seed=[0, 0, 0, 0])
    assert varied_keys(variants) == ["variant", "wd"]


def test_missing_values_are_values():
    assert varied_keys(table(wd=[None, 0.1])) == ["wd"]
    assert varied_keys(table(wd=[None, None])) == []


def test_without_metrics_the_folder_ends_the_keys():
    bare = pd.DataFrame({"run": ["a", "b"], "status": "died", "reason": "", "wd": [1, 2], "folder": ["x", "y"]})
    assert varied_keys(bare) == ["wd"]


def test_labels_are_short_and_distinguish_keys_with_the_same_end():
    runs = table(**{"a.lr": [0.1, 0.2], "b.lr": [1.0, 2.0], "variant": ["x", "y"], "model": ["mlp", None]})
    assert group_labels(runs, ["variant", "a.lr"]) == ["x, lr=0.1", "y, lr=0.2"]
    assert group_labels(runs, ["a.lr", "b.lr", "model"]) == [
        "a.lr=0.1, b.lr=1, model=mlp", "a.lr=0.2, b.lr=2, model=none",
    ]  # fmt: skip
    assert group_labels(runs, []) == ["all", "all"]


def test_numbers_that_differ_have_labels_that_differ():
    close = [0.1, 0.1 + 1e-9, 1e-5, 1.0000001e-5]
    assert len(set(group_labels(table(x=close), ["x"]))) == 4


def test_an_unknown_key_is_named():
    with pytest.raises(CodeqError, match=r"column 'modle' is unknown\. Did you mean 'model'"):
        group_labels(table(model=["a"]), ["modle"])
