import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from plot_tables import PUBLISHED, SUMMARY, words

from codeq import plots
from codeq.common.errors import CodeqError

COORDINATE = st.one_of(st.integers(0, 5).map(float), st.just(float("nan")))


def brute_force_front(cost, accuracy) -> list[bool]:
    points = list(zip(cost, accuracy, strict=True))
    return [
        not np.isnan([c, a]).any() and not any((c2 <= c and a2 > a) or (c2 < c and a2 >= a) for c2, a2 in points)
        for c, a in points
    ]


@given(st.lists(st.tuples(COORDINATE, COORDINATE), max_size=12))
def test_the_front_is_what_comparing_all_pairs_finds(points):
    cost, accuracy = (np.array([point[k] for point in points]) for k in (0, 1))
    assert plots.pareto_front(cost, accuracy).tolist() == brute_force_front(cost, accuracy)


def test_a_front_needs_two_lists_of_one_length():
    with pytest.raises(CodeqError, match="both must be"):
        plots.pareto_front(np.ones(2), np.ones(3))


def test_runs_are_drawn_at_their_costs_and_the_front_through_the_unbeaten():
    figure = plots.accuracy_against_bops(SUMMARY)
    (axes,) = figure.axes
    points = [
        tuple(collection.get_offsets()[0].tolist()) for collection in axes.collections if len(collection.get_offsets())
    ]
    expected = [(2, 90), (10, 90), (5, 92), (8, 92), (3, 89), (20, 89)]
    assert [pytest.approx(point) for point in expected] == points
    fronts = {line.get_label(): line for line in axes.get_lines() if "Pareto" in str(line.get_label())}
    (unstructured,) = fronts.values()  # by structured BOPs one run beats all others
    assert unstructured.get_xdata().tolist() == pytest.approx([2, 5])
    assert unstructured.get_ydata().tolist() == pytest.approx([90, 92])
    assert axes.get_xscale() == "log"


def test_runs_on_different_data_sets_do_not_compete():
    other = SUMMARY.assign(dataset="digits", accuracy=[0.97, 0.99, 0.98])
    (axes,) = plots.accuracy_against_bops(pd.concat([SUMMARY, other], ignore_index=True)).axes
    fronts = {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines() if "Pareto" in line.get_label()}
    assert fronts == {
        "Pareto front of the runs, unstructured, cifar10": pytest.approx([90, 92]),
        "Pareto front of the runs, unstructured, digits": pytest.approx([97, 98, 99]),
    }


def test_of_many_runs_those_on_the_front_are_named_where_they_stand():
    many = pd.concat([SUMMARY.assign(run=[f"{name}{k}" for name in "abc"], accuracy=SUMMARY["accuracy"] - k / 100)
                      for k in range(10)], ignore_index=True)  # fmt: skip
    (axes,) = plots.accuracy_against_bops(many).axes
    assert {text.get_text() for text in axes.texts} == {"a0", "b0"}
    assert len(axes.get_legend_handles_labels()[1]) == 2  # the front, and what hollow means


def test_long_names_fit_into_the_legend_and_stay_apart():
    names = [f"init_from=/projects/{'long-name/' * 20}seed={k}" for k in range(3)]
    figure = plots.accuracy_against_bops(SUMMARY.assign(run=names))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len({text.get_text() for text in legend.get_texts()[:3]}) == 3
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1


def test_runs_may_be_named_by_numbers():
    figure = plots.accuracy_against_bops(SUMMARY.assign(run=[0, 1, 2]))
    assert [text.get_text() for text in figure.legends[0].get_texts()[:3]] == ["0", "1", "2"]


def test_equal_costs_of_both_kinds_hide_neither():
    (axes,) = plots.accuracy_against_bops(SUMMARY.assign(structured_bops=SUMMARY["unstructured_bops"])).axes
    filled, hollow = axes.collections[:2]
    assert filled.get_zorder() > hollow.get_zorder()
    assert filled.get_sizes() < hollow.get_sizes()


def test_no_accuracy_is_above_100_percent():
    (axes,) = plots.accuracy_against_bops(SUMMARY.assign(accuracy=[0.5, 0.8, 1.0])).axes
    assert 100 < axes.get_ylim()[1] < 103


def test_published_results_carry_their_names_and_their_source():
    figure = plots.accuracy_against_bops(SUMMARY, PUBLISHED)
    assert "published, 32-bit activations: ResNet-20, CIFAR-10 (arXiv 1)" in words(figure)
    assert figure.axes[0].collections[0].get_offsets().tolist() == [
        pytest.approx([2.6, 91.8]), pytest.approx([100, 91.7]),
    ]  # fmt: skip
    faces = figure.axes[0].collections[0].get_facecolors()
    assert faces[:, :3].tolist() == [[0, 0, 0], [1, 1, 1]]  # the structured one is hollow
    assert {"base", "new"} <= {text.get_text() for text in figure.axes[0].texts}


def test_labels_overlap_neither_each_other_nor_points():
    close = pd.concat([PUBLISHED] * 6, ignore_index=True)
    close = close.assign(method=[f"method {k}" for k in range(12)], relative_bops=0.03, accuracy=0.91)
    close["accuracy"] += np.arange(12) * 1e-4
    (axes,) = plots.accuracy_against_bops(SUMMARY, close).axes
    axes.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the point
    assert len(boxes) == 12
    assert not [k for k in range(12) for other in boxes[:k] if boxes[k].overlaps(other)]
    points = axes.transData.transform(axes.collections[0].get_offsets())
    assert not [point for point in points for box in boxes if box.contains(*point)]


def test_means_over_seeds_have_error_bars():
    spread = SUMMARY.assign(
        accuracy_std=[0.01, 0.02, np.nan], unstructured_bops_std=[0.005, 0.0, np.nan], structured_bops_std=0.01
    )
    (axes,) = plots.accuracy_against_bops(spread).axes
    ends = [segment.tolist() for bars in axes.containers for lines in bars.lines[2] for segment in lines.get_segments()]
    assert [pytest.approx([1.5, 90]), pytest.approx([2.5, 90])] in ends  # 2 % ± 0.5 %
    assert [pytest.approx([2, 89]), pytest.approx([2, 91])] in ends


def test_a_network_with_nothing_left_is_named_where_a_log_axis_has_no_place_for_it():
    figure = plots.accuracy_against_bops(SUMMARY.assign(structured_bops=[0.0, 0.08, 0.0]))
    figure.savefig(io.BytesIO())
    assert "not on a log axis: 0 % structured BOPs of a, c" in words(figure)
    assert "log axis" not in words(plots.accuracy_against_bops(SUMMARY))


def test_without_a_cost_the_axis_is_not_logarithmic():
    (axes,) = plots.accuracy_against_bops(SUMMARY.assign(structured_bops=np.nan, unstructured_bops=0.0)).axes
    assert axes.get_xscale() == "linear"
    axes.figure.savefig(io.BytesIO())


def test_published_results_need_a_source_and_may_be_none():
    with pytest.raises(CodeqError, match="source"):
        plots.accuracy_against_bops(SUMMARY, PUBLISHED.drop(columns="source"))
    assert "published" not in words(plots.accuracy_against_bops(SUMMARY, PUBLISHED.head(0)))
