import math

import numpy as np
import pandas as pd
import pytest
from cases import each
from scipy import stats

from codeq.common.errors import CodeqError
from codeq.studies.statistics import interval, p_value, paired_differences, summarize


def runs(**columns):
    return pd.DataFrame({"status": "done", **columns})


def test_the_interval_is_the_one_of_a_table_of_students_t():
    # t(0.975, 4) = 2.7764 (any table); the standard error of 1 … 5 is √2.5 / √5 = 0.70711.
    mean, std, low, high = interval([1, 2, 3, 4, 5])
    assert (mean, std) == (3, pytest.approx(math.sqrt(2.5)))
    assert high - mean == pytest.approx(2.7764 * 0.70711, rel=1e-4)
    assert mean - low == pytest.approx(high - mean)


@each("n", [2, 3, 10, 200])
def test_interval_and_p_are_those_of_scipys_tests(n):
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    expected = stats.ttest_1samp(values, 0.0)
    assert interval(values)[2:] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert p_value(values) == pytest.approx(expected.pvalue)


def test_equal_values_have_an_interval_without_width():
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.0, 0.5, 0.5)
    for same in (np.array([0.5, 0.5]), np.array([0.92 - 0.90, 0.93 - 0.91])):  # which differ by rounding
        assert math.isnan(p_value(same))  # p of 0 would be the strongest result there is
    assert math.isnan(p_value(np.zeros(3)))


def test_too_few_values_have_no_interval():
    assert all(map(math.isnan, interval([])))
    assert interval([2.0])[0] == 2.0
    assert all(map(math.isnan, interval([2.0])[1:]))
    assert math.isnan(p_value(np.array([1.0])))


def test_only_done_runs_with_a_finite_value_count():
    table = pd.DataFrame(
        {
            "group": ["a"] * 6 + ["b"], "status": ["done"] * 4 + ["diverged", "running", "failed"],
            "x": [1.0, 3.0, math.nan, math.inf, 100.0, 100.0, 1.0],
        }
    )  # fmt: skip
    first, second = summarize(table, "x").to_dict("records")
    assert (first["members"], first["n"], first["mean"], first["std"]) == (6, 2, 2.0, pytest.approx(math.sqrt(2)))
    assert (second["members"], second["n"]) == (1, 0)
    assert math.isnan(second["mean"])


def test_groups_stand_in_order_of_appearance():
    assert summarize(runs(group=["b", "a", "b"], x=[1, 2, 3]), "x")["group"].tolist() == ["b", "a"]


def test_differences_are_paired_by_seed_and_equal_scipys_paired_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.9, 0.1, 5), rng.normal(0.8, 0.1, 5)
    order = [3, 0, 4, 1, 2]  # the seeds of b stand in another order
    table = runs(group=["a"] * 5 + ["b"] * 5, seed=[*range(5), *order], x=[*a, *b[order]])
    (row,) = paired_differences(table, "x", "a").to_dict("records")
    expected = stats.ttest_rel(b, a)
    assert (row["group"], row["pairs"]) == ("b", 5)
    assert row["mean"] == pytest.approx(np.mean(b) - np.mean(a))
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_seed_that_one_of_both_lacks_or_did_not_finish_makes_no_pair():
    table = pd.DataFrame(
        {
            "group": ["a", "a", "a", "b", "b", "c"], "seed": [0, 1, 2, 1, 2, 7],
            "status": ["done"] * 4 + ["diverged", "done"], "x": [1.0, 2.0, 3.0, 5.0, 0.0, 1.0],
        }
    )  # fmt: skip
    b, c = paired_differences(table, "x", "a").to_dict("records")
    assert (b["pairs"], b["mean"]) == (1, 3.0)
    assert math.isnan(b["low"])
    assert c["pairs"] == 0
    assert math.isnan(c["mean"])


def test_without_a_seed_column_all_runs_have_the_same():
    (row,) = paired_differences(runs(group=["a", "b"], x=[1.0, 3.0]), "x", "a").to_dict("records")
    assert (row["pairs"], row["mean"]) == (1, 2.0)


def test_of_an_ambiguous_pair_the_runs_of_that_seed_are_named():
    table = runs(run=list("pqrst"), group=["a"] * 5, seed=[0, 1, 2, 3, 3], x=[1, 2, 3, 4, 5])
    with pytest.raises(CodeqError, match=r"with seed 3 \(s, t\)"):
        paired_differences(table, "x", "a")


def test_an_ambiguous_pair_and_an_unknown_baseline_are_errors():
    table = runs(run=["r", "s", "t"], group=["a", "a", "b"], seed=[0, 0, 0], x=[1, 2, 3])
    with pytest.raises(CodeqError, match=r"group 'a' has several runs with seed 0 \(r, s\)"):
        paired_differences(table, "x", "a")
    with pytest.raises(CodeqError, match=r"baseline 'aa' is unknown\. Did you mean 'a'"):
        paired_differences(table, "x", "aa")
