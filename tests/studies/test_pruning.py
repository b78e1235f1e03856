"""The rule by which members of a search are stopped, on courses whose medians are known."""

import math

import pytest

from codeq.studies.pruning import Pruning, read_course

# Accuracy and relative BOPs after two epochs; the medians after the second are 65 % and 15 %.
FINISHED = [[(0.3, 0.25), (accuracy, bops)] for accuracy, bops in ((0.5, 0.1), (0.6, 0.1), (0.7, 0.2), (0.9, 0.3))]
FEW_BOPS, ACCURATE = {"relative_bops": 0.12}, {"accuracy": 0.8}


@pytest.mark.parametrize(
    ("constraint", "figures", "hopeless"),
    [
        ({}, (0.64, 0.16), True),
        ({}, (0.66, 0.9), False),  # better in one of the two objectives
        ({}, (0.1, 0.14), False),
        ({}, (0.65, 0.16), False),  # as good as the median
        ({}, (math.nan, 0.16), False),  # a training that diverges is stopped by itself
        # The median violates the constraint by 0.04 (scores -1.18, -1.08, 0.5 and 0.6 for 12 %): -0.29.
        (FEW_BOPS, (0.99, 0.13), True),
        (FEW_BOPS, (0.1, 0.11), False),
        # Scores: 30 %, 20 %, 10 % short of the accuracy, and -0.3 for the one that reaches it: median -1.15.
        (ACCURATE, (0.64, 0.01), True),
        (ACCURATE, (0.66, 0.99), False),
    ],
)
def test_a_member_is_hopeless_if_all_objectives_are_worse_than_the_medians(constraint, figures, hopeless):
    assert bool(Pruning(2, constraint).reason([(0.1, 0.3), figures], FINISHED)) == hopeless


def test_it_is_compared_at_its_own_epoch_with_enough_members_and_not_too_early():
    bad = [(0.1, 0.3), (0.2, 0.5)]
    assert "after epoch 2 at 20.00 % and 50.00 %" in Pruning(1, {}).reason(bad, FINISHED)
    assert "65.00 % and 15.00 %" in Pruning(2, {}).reason(bad, FINISHED)
    assert Pruning(3, {}).reason(bad, FINISHED) == ""
    assert Pruning(1, {}).reason([(0.31, 0.3)], FINISHED) == ""
    assert Pruning(1, {}).reason(bad, FINISHED[:3]) == ""
    assert Pruning(1, {}).reason(bad, [*FINISHED[:3], FINISHED[3][:1]]) == ""  # the fourth has no second epoch
    assert Pruning(1, {}).reason(bad, [*FINISHED[:3], [(0.3, 0.3), (math.nan, 0.1)]]) == ""
    assert Pruning(1, {}).reason([], FINISHED) == ""


@pytest.mark.parametrize("text", ["", "epoch\n0\n", "eval/accuracy,compression/unstructured_bops_ratio\n0.5\n0.6,4\n"])
def test_a_damaged_table_prunes_nobody(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    assert read_course(tmp_path) == []


def test_a_row_that_is_being_written_does_not_count(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text("epoch,eval/accuracy,compression/unstructured_bops_ratio\n0,0.5,4\n1,0.6,in")
    assert read_course(tmp_path) == [(0.5, 0.25)]
    table.write_text("epoch,eval/accuracy,compression/unstructured_bops_ratio\n0,0.5,inf\n")
    assert read_course(tmp_path) == [(0.5, 0.0)]
