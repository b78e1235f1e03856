"""The settings that a resumed run may not change are named by their innermost keys."""

import pytest

from codeq import ExperimentConfig
from codeq.common.errors import CodeqError
from codeq.training.same_config import check_same_config, decisive

TERM = {"name": "group_lasso_channels", "lambda": 0.5}


def message(stored: ExperimentConfig, wanted: ExperimentConfig) -> str:
    with pytest.raises(CodeqError) as raised:
        check_same_config(decisive(stored), decisive(wanted), "run was trained with")
    return str(raised.value)


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ({"lr_bit": 0.25}, {"lr_bit": 0.5}, "optimizer.param_groups.bit.lr=0.25 instead of 0.5"),
        ({"loss_terms": [TERM, TERM]}, {"loss_terms": [TERM, TERM | {"lambda": 2.0}]},
         "loss_terms.1.lambda=0.5 instead of 2.0"),
        ({"quantizer": {"name": "deadzone", "kwargs": {"max_bits": 4}}}, {"quantizer": "deadzone"},
         "quantizer.kwargs={'max_bits': 4} instead of {}"),
        ({"ema": 0.9}, {}, "ema=0.9 instead of None"),
    ],
)  # fmt: skip
def test_the_innermost_key_is_named(before, after, difference):
    found = message(ExperimentConfig("x", **before), ExperimentConfig("x", **after))
    assert found == f"run was trained with {difference}: a resumed run keeps its configuration"


def test_a_setting_that_is_nan_is_the_same_as_before():
    check_same_config({"pad": float("nan")}, {"pad": float("nan")}, "run was trained with")
    with pytest.raises(CodeqError, match=r"pad=nan instead of 0\.0"):
        check_same_config({"pad": float("nan")}, {"pad": 0.0}, "run was trained with")


def test_lists_of_other_lengths_are_one_difference():
    found = message(ExperimentConfig("x", loss_terms=[TERM]), ExperimentConfig("x"))
    assert "loss_terms=[{" in found
    assert found.endswith("instead of []: a resumed run keeps its configuration")


def test_of_many_differences_the_first_are_shown():
    wanted = {"epochs": 2, "seed": 1, "img_size": 8, "batch_size": 4, "ema": 0.5, "label_smoothing": 0.5}
    assert " and 2 more: a resumed run" in message(ExperimentConfig("x"), ExperimentConfig("x", **wanted))


def test_where_and_how_a_training_runs_may_change():
    given = decisive(ExperimentConfig("x")), decisive(ExperimentConfig("y", device="cuda:3", workers=7, data_dir="/z"))
    check_same_config(*given, "run was trained with")
