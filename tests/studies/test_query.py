import pandas as pd
import pytest
from cases import each

from codeq.common.errors import CodeqError
from codeq.studies.query import select, where

TABLE = pd.DataFrame(
    {
        "run": ["a", "b", "c"],
        "dataset": ["cifar10", "digits", "cifar10"],
        "seed": [0, 1, 2],
        "optimizer.name": ["adam", "sgd", None],
        "eval/accuracy": [0.5, 0.75, float("nan")],
        "best/eval/accuracy": [0.875, 0.75, float("nan")],
        "layers/fc/bits": [1.0, 2.0, 3.0],
    }
)


@each(
    ("expression", "runs"),
    [
        ("dataset == 'cifar10'", "ac"),
        ("eval/accuracy > 0.6", "b"),
        ("best/eval/accuracy > 0.8", "a"),
        ("best/eval/accuracy > eval/accuracy", "a"),
        ("`eval/accuracy` <= 0.5", "a"),
        ("eval/accuracy.isna()", "c"),
        ("optimizer.name == 'sgd' or seed == 0", "ab"),
        ("optimizer.name.str.startswith('ad', na=False)", "a"),
        ("not (dataset in ['digits'])", "ac"),
        ("1/eval/accuracy < 1.5", "b"),
        ("best/eval/accuracy/eval/accuracy > 1.5", "a"),
        ("run == 'eval/accuracy'", ""),
        ('seed in [0, 2] and dataset != "digits"', "ac"),
    ],
)
def test_columns_are_named_as_they_stand(expression, runs):
    assert "".join(where(TABLE, expression)["run"]) == runs


@each(
    ("expression", "message"),
    [
        (
            "datset == 'cifar10'",
            r"^column 'datset' is unknown\. Did you mean 'dataset'\? Allowed: run, dataset, seed, ",
        ),
        ("eval/acuracy > 1", r"^column 'eval/acuracy' is unknown\. Did you mean 'eval/accuracy'\?"),
        ("optimizer.nme == 'sgd'", r"^column 'optimizer.nme' is unknown\. Did you mean 'optimizer.name'\?"),
        ("@seed > 1", r"^column 'seed' is unknown"),
        ("loss.0.lambda == 1 and run == 'x.1'", r"^column 'loss.0.lambda' is unknown"),
        ("seed >", "^where 'seed >' cannot be evaluated: invalid syntax"),
        ("", "^where '' cannot be evaluated: expr cannot be an empty string"),
        ("eval/accuracy > 'high'", "^where .* cannot be evaluated: "),
        ("optimizer.name.nothing == 1 and seed == 0", r"^column 'optimizer.name.nothing' is unknown"),
        ("seed", "is not true or false for each run; an example: status == 'done'"),
        ("1", "is not true or false for each run"),
        ("True", "is not true or false for each run"),
        ("seed = 1", "is not true or false for each run"),
        ("x" * 300, r"^column 'x+\.\.\.x+' is unknown"),
    ],
)
def test_a_wrong_expression_is_one_line(expression, message):
    with pytest.raises(CodeqError, match=message) as raised:
        where(TABLE, expression)
    assert "\n" not in str(raised.value)
    assert "column_" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_the_table_is_left_as_it_was():
    before = TABLE.copy()
    where(TABLE, "seed == 1")
    select(TABLE, "eval/accuracy", ["run"])
    assert TABLE.equals(before)


def test_sorting_is_ascending_and_stable_with_missing_values_first():
    assert "".join(select(TABLE, "eval/accuracy")["run"]) == "cab"
    assert "".join(select(TABLE, "dataset")["run"]) == "acb"
    assert select(TABLE, "seed", ["seed", "run"]).columns.tolist() == ["seed", "run"]


def test_an_unknown_column_is_named_without_those_of_single_layers():
    with pytest.raises(CodeqError, match=r"column 'accuracy' is unknown\. Did you mean 'eval/accuracy'") as raised:
        select(TABLE, columns=["run", "accuracy"])
    assert str(raised.value).endswith("eval/accuracy, best/eval/accuracy and 1 more")
    with pytest.raises(CodeqError, match="'sed' is unknown"):
        select(TABLE, sort="sed")


def test_values_without_an_order_are_an_error():
    with pytest.raises(CodeqError, match="column 'x' cannot be sorted"):
        select(pd.DataFrame({"x": ["a", 1]}), "x")
