import numpy as np
import pandas as pd
import pytest
from plot_tables import BITS, CURVES, GROUP_RUNS, GROUPS, rendered, words

from codeq import plots
from codeq.common.errors import CodeqError
from codeq.plots.groups import metric_axis
from codeq.studies.statistics import summarize


def test_means_intervals_and_runs_are_drawn_in_percent():
    (axes,) = plots.group_means(GROUPS, GROUP_RUNS, "eval/accuracy").axes
    dots = axes.collections[0].get_offsets()
    assert dots[:, 0].tolist() == pytest.approx([90, 92, 90])
    (container,) = axes.containers
    assert container.lines[0].get_xdata()[:2].tolist() == pytest.approx([91, 90])
    first, second, _ = container.lines[2][0].get_segments()
    assert first[:, 0].tolist() == pytest.approx([88, 94])
    assert second[:, 0].tolist() == pytest.approx([90, 90])  # one run has no interval
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first group is at the top


def test_a_wide_interval_does_not_squeeze_the_runs():
    wide = GROUPS.assign(low=[-5.0, np.nan, np.nan], high=[7.0, np.nan, np.nan])
    (axes,) = plots.group_means(wide, GROUP_RUNS, "eval/accuracy").axes
    assert axes.get_xlim() == pytest.approx((88, 94))
    assert axes.get_title("right") == "intervals continue beyond the axis"
    alone = GROUPS.head(1).assign(mean=0.9, low=np.nan, high=np.nan)
    (axes,) = plots.group_means(alone, GROUP_RUNS.head(1), "eval/accuracy").axes
    assert axes.get_title("right") == ""  # one run has no interval


def test_without_values_the_reason_is_told():
    empty = GROUPS.assign(n=0, pairs=0)
    with pytest.raises(CodeqError, match="no done run has a value of 'eval/accuracy'"):
        plots.group_means(empty, GROUP_RUNS.head(0), "eval/accuracy")
    for table in (empty, empty.head(0)):
        with pytest.raises(CodeqError, match="no group has a done run with a seed in common with the baseline 'a'"):
            plots.group_differences(table, "eval/accuracy", "a")
    with pytest.raises(CodeqError, match="no parameter varies"):
        plots.parameter_effects(GROUP_RUNS, [], "eval/accuracy")


def test_tables_without_what_is_drawn_are_refused_by_name():
    with pytest.raises(CodeqError, match=r"differences has no column 'pairs'; required: group, pairs"):
        plots.group_differences(GROUPS.drop(columns="pairs"), "eval/accuracy", "a")
    with pytest.raises(CodeqError, match=r"runs has no column 'loss'; required: group, loss"):
        plots.group_means(GROUPS, GROUP_RUNS, "loss")
    with pytest.raises(CodeqError, match="runs has the group 'l2', which summary lacks: \\['l1', 'none'\\]"):
        plots.group_means(GROUPS.tail(2), GROUP_RUNS, "eval/accuracy")


def test_groups_may_be_named_by_numbers():
    names = {"l2": 2, "l1": 1, "none": 0}
    groups, runs, curves, bits = (
        table.assign(group=table["group"].map(names)) for table in (GROUPS, GROUP_RUNS, CURVES, BITS)
    )
    (axes,) = plots.group_means(groups, runs, "eval/accuracy").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "1", "0"]
    rendered(plots.learning_bands(curves, "eval/accuracy"))
    rendered(plots.bits_over_groups(bits))
    figure = plots.group_differences(groups, "eval/accuracy", baseline=0)
    assert figure.axes[0].get_xlabel().endswith("; baseline: 0")


def test_one_value_of_one_run_can_be_drawn():
    for figure in (
        plots.group_means(GROUPS.tail(2), GROUP_RUNS.tail(1), "eval/accuracy"),
        plots.group_means(GROUPS.iloc[1:2], GROUP_RUNS.tail(1), "eval/accuracy"),
        plots.parameter_effects(GROUP_RUNS.tail(1), ["group", "lr"], "eval/accuracy"),
        plots.learning_bands(CURVES.tail(1), "eval/accuracy"),
        plots.bits_over_groups(BITS.tail(1)),
    ):
        rendered(figure)


def test_a_parameter_with_few_values_is_categories_and_one_with_many_a_scatter_plot():
    runs = pd.DataFrame({"few": [1, 2, 1, 2] * 5, "many": np.logspace(-4, 0, 20), "x": np.arange(20.0)})
    few, many = (axes for axes in plots.parameter_effects(runs, ["few", "many"], "x").axes if axes.get_visible())
    assert [tick.get_text() for tick in few.get_xticklabels()] == ["1", "2"]
    means = [y for line in few.get_lines() for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    assert 9.0 in means  # of 0, 2, …, 18
    assert 10.0 in means
    assert many.get_xscale() == "log"
    assert many.collections[0].get_offsets()[:, 0].tolist() == pytest.approx(runs["many"].tolist())


def test_mixed_and_missing_values_of_a_parameter_are_categories():
    runs = pd.DataFrame({"p": [True, None, "auto", 3], "eval/accuracy": [0.1, 0.2, 0.3, 0.4]})
    text = words(plots.parameter_effects(runs, ["p"], "eval/accuracy"))
    assert all(word in text for word in ("True", "none", "auto", "3"))


def test_long_values_and_groups_that_begin_alike_stay_apart():
    values = [f"outputs/float-resnet20-adamw/seed={k}" for k in (0, 1)]
    runs = pd.DataFrame({"init_from": values, "eval/accuracy": [0.9, 0.5]})
    (axes,) = plots.parameter_effects(runs, ["init_from"], "eval/accuracy").axes[:1]
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"outputs/floa…damw/seed={k}" for k in (0, 1)]
    groups = [f"decoupled, theta_regularizer=l2, max_bits={k}, weight_decay=0.003" for k in (4, 8)]
    runs = pd.DataFrame({"group": groups, "eval/accuracy": [0.9, 0.5], "status": "done"})
    (axes,) = plots.group_means(summarize(runs, "eval/accuracy"), runs, "eval/accuracy").axes
    assert len({text.get_text() for text in axes.get_yticklabels()}) == 2


def test_curves_have_a_band_of_one_standard_deviation():
    (axes,) = plots.learning_bands(CURVES, "eval/accuracy").axes
    line = axes.get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2]
    assert line.get_ydata().tolist() == pytest.approx([50, 75])
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((40, 80))


def test_many_groups_have_no_legend():
    curves = pd.concat([CURVES.head(2).assign(group=f"g{k}") for k in range(30)], ignore_index=True)
    assert "g0" not in words(plots.learning_bands(curves, "eval/accuracy"))


def test_layers_stand_in_their_order_and_missing_ones_are_empty():
    figure = plots.bits_over_groups(BITS)
    values = figure.axes[0].collections[0].get_array()
    assert values.filled(-1).tolist() == [[4.5, 2.0], [8.0, -1]]
    assert words(figure).index("stem") < words(figure).index("head")


@pytest.mark.parametrize(
    ("metric", "scale"), [("eval/accuracy", 100), ("test/accuracy", 100), ("lr", 1), ("quantizer/mean_bits", 1)]
)
def test_fractions_are_shown_in_percent(metric, scale):
    assert metric_axis(metric)[0] == scale
    assert ("(%)" in metric_axis(metric)[1]) == (scale == 100)
