import io

import numpy as np
import pandas as pd
import pytest
from plot_tables import HISTORY, UPDATES, rendered, words

from codeq import plots


def test_accuracy_is_drawn_in_percent_over_epochs_counted_from_one():
    training, evaluation = plots.accuracy_curve(HISTORY).axes[0].get_lines()
    assert training.get_xdata().tolist() == [1, 2, 3]
    assert training.get_ydata().tolist() == pytest.approx([50, 70, 90])
    assert evaluation.get_ydata().tolist() == pytest.approx([40, 80, 75])


def test_accuracy_says_last_and_best_apart():
    assert "last 75.00 %, best 80.00 % (epoch 2)" in words(plots.accuracy_curve(HISTORY))


def test_sparsities_have_their_own_axis_and_the_coefficient_another():
    first, second = plots.sparsity_curves(HISTORY).axes
    unstructured, structured = first.get_lines()
    assert unstructured.get_ydata().tolist() == [0, 25, 50]
    assert structured.get_ydata().tolist() == [0, 0, 12.5]
    (coefficient,) = second.get_lines()
    assert coefficient.get_ydata().tolist() == [0, 5, 10]
    assert coefficient.get_linestyle() == "--"


def test_one_epoch_and_missing_values_are_drawn():
    rendered(plots.accuracy_curve(HISTORY.head(1)))
    rendered(plots.sparsity_curves(HISTORY.head(1)))
    unknown = HISTORY.assign(**{"eval/accuracy": np.nan})
    assert "best" not in words(plots.accuracy_curve(unknown))


def test_of_one_epoch_every_line_is_a_visible_point_at_an_integer():
    history = HISTORY.head(1).assign(**{"test/accuracy": 0.4, "test/loss": 1.0})
    for draw in (plots.accuracy_curve, plots.sparsity_curves, plots.training_curves):
        figure = draw(history)
        figure.draw_without_rendering()
        assert all(line.get_marker() != "None" for axes in figure.axes for line in axes.get_lines())
        assert {tick for axes in figure.axes for tick in axes.get_xticks() if 0.5 <= tick <= 1.5} == {1}


def test_training_curves_are_the_history():
    loss, accuracy, bits, sparsity, cost, schedule, coefficients = plots.training_curves(HISTORY).axes
    drawn = [line.get_ydata().tolist() for axes in (loss, accuracy, bits, sparsity) for line in axes.get_lines()]
    assert drawn == [
        [2, 1, 0.5], [1.5, 1, 0.75], [50, 70, 90], [40, 80, 75], [8, 6, 4.5], [0, 25, 50], [0, 0, 12.5],
    ]  # fmt: skip
    assert [line.get_ydata().tolist() for line in cost.get_lines()] == [[25, 12.5, 5], [25, 20, 10]]
    assert cost.get_yscale() == "log"
    assert schedule.get_lines()[0].get_ydata().tolist() == HISTORY["lr"].tolist()
    assert [line.get_ydata().tolist() for line in coefficients.get_lines()] == [[0, 2, 4], [0, 3, 6]]
    assert {tuple(line.get_xdata()) for line in [*loss.get_lines(), *coefficients.get_lines()]} == {(1, 2, 3)}


def test_the_training_loss_of_a_distillation_is_the_whole_one():
    loss = plots.training_curves(HISTORY.assign(**{"train/distillation_loss": [1, 1, 0.25]})).axes[0]
    training, evaluation = loss.get_lines()
    assert (training.get_ydata().tolist(), training.get_label()) == ([3, 2, 0.75], "training (with distillation)")
    assert evaluation.get_ydata().tolist() == [1.5, 1, 0.75]
    assert loss.get_ylabel() == "loss"


def test_without_terms_of_its_own_the_sum_of_the_coefficients_is_drawn():
    plain = HISTORY.drop(columns=["train/lasso_coeff", "train/l1_coeff"])
    (line,) = plots.training_curves(plain).axes[-1].get_lines()
    assert line.get_ydata().tolist() == [0, 5, 10]


@pytest.mark.parametrize("history", [HISTORY.head(1), HISTORY.assign(**{"eval/accuracy": np.nan, "eval/loss": np.inf})])
def test_a_history_that_has_only_begun_or_went_wrong_is_drawn(history):
    plots.training_curves(history).savefig(io.BytesIO())


def test_no_axis_is_logarithmic_without_a_value_above_0():
    unknown = {f"compression/{kind}_bops_ratio": np.nan for kind in ("structured", "unstructured")}
    figure = plots.training_curves(HISTORY.assign(**unknown))
    assert figure.axes[4].get_yscale() == "linear"
    rendered(figure)


@pytest.mark.parametrize(
    ("ratios", "label"),
    [
        ([np.inf] * 3, "structured (0 %, off the log axis)"),
        ([4, np.inf, np.inf], "structured (0 % in 2 of 3 epochs, off the log axis)"),
        ([4, 5, 10], "structured"),
    ],
)
def test_the_legend_says_where_a_dead_network_is_not_on_the_log_axis(ratios, label):
    cost = plots.training_curves(HISTORY.assign(**{"compression/structured_bops_ratio": ratios})).axes[4]
    assert [text.get_text() for text in cost.get_legend().get_texts()] == ["unstructured", label]


def test_no_legend_of_a_panel_covers_its_title():
    names = {"train/lasso_coeff": "train/coupled_group_lasso_coeff", "train/l1_coeff": "train/group_lasso_coeff"}
    dead = {"compression/structured_bops_ratio": [4, np.inf, np.inf], "train/learned_bits_coeff": 1e5}
    figure = plots.training_curves(HISTORY.rename(columns=names).assign(**dead))
    figure.draw_without_rendering()
    for axes in figure.axes[:-1]:  # the last one is the right axis of the schedules
        title = axes._left_title.get_window_extent()
        assert not axes.get_legend().get_window_extent().overlaps(title), axes.get_title("left")


def flat(**settings) -> pd.DataFrame:
    """The history of a network that nothing compresses."""
    plain = HISTORY.drop(columns=["train/lasso_coeff", "train/l1_coeff"]).assign(**{"train/sparsity_coeff": 0.0})
    kinds = ("structured", "unstructured")
    plain = plain.assign(**{f"sparsity/{k}": 0.0 for k in kinds} | {f"compression/{k}_bops_ratio": 1.0 for k in kinds})
    return plain.assign(**settings)


def test_what_does_not_move_is_not_magnified():
    _, _, bits, sparsity, cost, _, coefficient = plots.training_curves(flat(**{"quantizer/mean_bits": 32.0})).axes
    assert bits.get_ylim()[0] == 0
    assert sparsity.get_ylim() == (0, 1)
    assert cost.get_ylim() == (50, 200)
    assert not coefficient.axison
    assert [axes.get_ylim() for axes in plots.sparsity_curves(flat()).axes] == [(0, 1), (0, 1)]
    assert plots.training_curves(HISTORY).axes[-1].axison


def test_the_course_to_a_target_lies_at_the_epochs_that_are_done():
    cost, factor = plots.target_course(UPDATES, "relative_bops", 0.05).axes
    plan, measured = cost.get_lines()
    assert plan.get_ydata().tolist() == [0.25, 0.15, 0.06, 0.05]
    assert measured.get_xdata().tolist() == pytest.approx([0, 0.5, 1, 1.5])
    assert factor.get_lines()[0].get_ydata().tolist() == [1.0, 4.0, 8.0, 0.5]
    band = cost.patches[0].get_extents().transformed(cost.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((0.0475, 0.0525))
