"""The figures of the compression analysis: what is drawn is what the tables say."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeq import plots
from codeq.common.errors import CodeqError

HISTORY = pd.DataFrame(
    {
        "epoch": [0, 1, 2],
        "lr": [1e-3, 5e-4, 1e-5],
        "train/ce_loss": [2.0, 1.0, 0.5],
        "train/accuracy": [0.5, 0.7, 0.9],
        "eval/loss": [1.5, 1.0, 0.75],
        "eval/accuracy": [0.4, 0.8, 0.75],
        "sparsity/unstructured": [0.0, 0.25, 0.5],
        "sparsity/structured": [0.0, 0.0, 0.125],
        "quantizer/mean_bits": [8.0, 6.0, 4.5],
        "compression/unstructured_bops_ratio": [4.0, 8.0, 20.0],
        "compression/structured_bops_ratio": [4.0, 5.0, 10.0],
        "train/sparsity_coeff": [0.0, 5.0, 10.0],
        "train/lasso_coeff": [0.0, 2.0, 4.0],
        "train/l1_coeff": [0.0, 3.0, 6.0],
    }
)
# Not in the order of the alphabet, which would be the wrong one.
NAMES = ["stem", "layer1", "head"]
OVER_TIME = pd.DataFrame(
    {
        "epoch": [0, 0, 0, 1, 1, 1],
        "layer": NAMES * 2,
        "filters": [4, 8, 10] * 2,
        "dead_filters": [0, 0, 0, 1, 8, 0],
    }
)
COSTS = pd.DataFrame(
    {
        "layer": NAMES,
        "bits": [8, 4, 32],
        "dead_zone": [0.1, 0.5, np.nan],
        "density": [0.9, 0.25, 1.0],
        "null_in": [0, 2, 1],
        "null_out": [2, 1, 0],
        "dense_bops": [1024e6, 2048e6, 1e6],
        "structured_bops": [256e6, 128e6, 1e6],
        "unstructured_bops": [200e6, 64e6, 1e6],
        "dense_share": [0.25, 0.5, 0.25],
        "structured_share": [0.5, 0.25, 0.25],
        "unstructured_share": [0.6, 0.3, 0.1],
    }
)
LEVELS = pd.DataFrame(
    {
        "code": [-1, 0, 1],
        "level": [-1.0, 0.0, 1.0],
        "lower": [-np.inf, -0.5, 0.5],
        "upper": [-0.5, 0.5, np.inf],
        "count": [1, 4, 2],
    }
)
WEIGHTS = np.array([-1.2, -0.3, 0.0, 0.1, 0.2, 0.9, 1.1])
SUMMARY = pd.DataFrame(
    {
        "run": ["a", "b", "c"],
        "dataset": "cifar10",
        "accuracy": [0.90, 0.92, 0.89],
        "unstructured_bops": [0.02, 0.05, 0.03],
        "structured_bops": [0.10, 0.08, 0.20],
    }
)
PUBLISHED = pd.DataFrame(
    {
        "model": "ResNet-20", "dataset": "CIFAR-10", "source": "arXiv 1", "method": ["base", "new"],
        "accuracy": [0.917, 0.918], "relative_bops": [1.0, 0.026], "structured": [True, False],
    }
)  # fmt: skip
SCAN = pd.DataFrame(
    {
        "layer": ["stem"] * 4 + ["head"] * 4,
        "bits": [2, 2, 4, 4] * 2,
        "dead_zone": [0.0, 0.5] * 4,
        "accuracy": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        "baseline": 0.8,
    }
)

FIGURES = {
    "training_curves": lambda: plots.training_curves(HISTORY),
    "liveness_over_time": lambda: plots.liveness_over_time(OVER_TIME),
    "layer_profile": lambda: plots.layer_profile(COSTS),
    "layer_costs": lambda: plots.layer_costs(COSTS),
    "weight_histogram": lambda: plots.weight_histogram(WEIGHTS, LEVELS, "stem"),
    "weight_histograms": lambda: plots.weight_histograms({"stem": (WEIGHTS, LEVELS), "head": (WEIGHTS, LEVELS)}),
    "kernel_maps": lambda: plots.kernel_maps({"stem": np.ones((2, 3, 3, 3)), "head": np.zeros((4, 2))}),
    "accuracy_against_bops": lambda: plots.accuracy_against_bops(SUMMARY, PUBLISHED),
    "sensitivity_heatmap": lambda: plots.sensitivity_heatmap(SCAN),
}


def words(figure) -> str:
    import matplotlib.text

    return " | ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def heights(container) -> list[float]:
    return [bar.get_height() for bar in container]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_becomes_a_vector_file_without_a_warning_and_has_a_title(name):
    figure = FIGURES[name]()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    assert b"<svg" in buffer.getvalue()
    assert figure.get_suptitle() or figure.axes[0].get_title("left")


UNITS = {
    "training_curves": [
        "cross-entropy", "accuracy (%)", "bits of a weight", "sparsity (%)", "BOPs (% of dense 32 bit)",
        "learning rate", "coefficient", "epoch",
    ],
    "liveness_over_time": ["living filters (%)", "epoch"],
    "layer_profile": ["bits", "d / 2R (%)", "weights (%)", "channels", "BOPs (%)", *NAMES],
    "layer_costs": ["BOPs of one input", "share of all BOPs (%)", "activations count as 32 bits", *NAMES],
    "weight_histogram": ["stem", "latent weights", "weights on a level", "dead-zone", "quantization levels"],
    "weight_histograms": ["stem: 3 levels", "head", "log scale"],
    "kernel_maps": ["input channel", "output channel", "non-zero weights of a kernel (%)", "stem: 0 % zero"],
    "accuracy_against_bops": ["relative BOPs (% of dense 32 bit", "accuracy after the last epoch (%)"],
    "sensitivity_heatmap": ["2 bits", "4 bits", "d / 2R (%)", "accuracy (%)", "baseline 80.0 %"],
}  # fmt: skip


@pytest.mark.parametrize("name", UNITS)
def test_axes_say_what_they_show_and_in_which_unit(name):
    found = words(FIGURES[name]()).replace("\n", " ")
    for unit in UNITS[name]:
        assert unit in found


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (plots.training_curves, HISTORY, "eval/loss"),
        (plots.liveness_over_time, OVER_TIME, "dead_filters"),
        (plots.layer_profile, COSTS, "dead_zone"),
        (plots.layer_costs, COSTS, "dense_share"),
        (lambda levels: plots.weight_histogram(WEIGHTS, levels, "stem"), LEVELS, "count"),
        (plots.accuracy_against_bops, SUMMARY, "accuracy"),
        (plots.sensitivity_heatmap, SCAN, "baseline"),
    ],
)
def test_a_missing_column_is_named_and_no_rows_are_explained(draw, table, column):
    with pytest.raises(CodeqError, match=column):
        draw(table.drop(columns=column))
    with pytest.raises(CodeqError, match="no rows"):
        draw(table.head(0))


def test_published_results_need_a_source_and_may_be_none():
    with pytest.raises(CodeqError, match="source"):
        plots.accuracy_against_bops(SUMMARY, PUBLISHED.drop(columns="source"))
    assert "published" not in words(plots.accuracy_against_bops(SUMMARY, PUBLISHED.head(0)))


def test_nothing_to_draw_is_a_clear_error():
    for draw in (plots.kernel_maps, plots.weight_histograms):
        with pytest.raises(CodeqError, match="names no layer"):
            draw({})
    with pytest.raises(CodeqError, match="'stem' has no weights"):
        plots.weight_histogram(np.array([]), LEVELS, "stem")


# --- over the epochs ------------------------------------------------------------------------------------------------


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


def test_without_terms_of_its_own_the_sum_of_the_coefficients_is_drawn():
    plain = HISTORY.drop(columns=["train/lasso_coeff", "train/l1_coeff"])
    (line,) = plots.training_curves(plain).axes[-1].get_lines()
    assert line.get_ydata().tolist() == [0, 5, 10]


@pytest.mark.parametrize("history", [HISTORY.head(1), HISTORY.assign(**{"eval/accuracy": np.nan, "eval/loss": np.inf})])
def test_a_history_that_has_only_begun_or_went_wrong_is_drawn(history):
    plots.training_curves(history).savefig(io.BytesIO())


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


def test_liveness_over_time_keeps_the_order_of_the_layers():
    axes = plots.liveness_over_time(OVER_TIME).axes[0]
    assert axes.images[0].get_array().tolist() == [[100, 75], [100, 0], [100, 100]]
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    assert axes.images[0].get_extent() == [0.5, 2.5, 2.5, -0.5]  # epochs 1 and 2
    dead, alive = (axes.images[0].to_rgba(np.array([[share]]))[0, 0, :3].tolist() for share in (0, 100))
    assert (dead, alive) == ([0, 0, 0], [1, 1, 1])


# --- layers ---------------------------------------------------------------------------------------------------------


def test_the_profile_of_the_layers_is_the_table():
    bits, dead_zone, density, nulls, share = plots.layer_profile(COSTS).axes
    assert heights(bits.containers[0]) == [8, 4, 32]
    assert heights(dead_zone.containers[0])[:2] == [10, 50]
    assert np.isnan(heights(dead_zone.containers[0])[2])
    assert heights(density.containers[0]) == [90, 25, 100]
    assert [heights(bars) for bars in nulls.containers] == [[0, 2, 1], [2, 1, 0]]
    assert [heights(bars) for bars in share.containers] == [[50, 25, 25], [60, 30, 10]]


def test_a_network_that_is_not_compressed_has_a_profile():
    plain = COSTS.assign(dead_zone=np.nan, null_in=0, null_out=0)
    figure = plots.layer_profile(plain)
    assert "no layer has a dead-zone" in words(figure)
    assert figure.axes[3].get_ylim() == (0, 1)
    assert "no layer has a dead-zone" not in words(plots.layer_profile(COSTS))


def test_the_costs_of_the_layers_are_the_table_with_their_sums():
    figure = plots.layer_costs(COSTS)
    absolute, shares = figure.axes
    assert [heights(bars) for bars in absolute.containers] == [
        COSTS[f"{kind}_bops"].tolist() for kind in ("dense", "structured", "unstructured")
    ]
    assert [heights(bars) for bars in shares.containers] == [[25, 50, 25], [50, 25, 25], [60, 30, 10]]
    assert "3.07 GBOPs, 100 %" in words(figure)
    assert "0.265 GBOPs, 8.62 %" in words(figure)


def test_a_hundred_layers_stay_a_picture_of_moderate_size():
    many = pd.concat([COSTS.assign(layer=[f"{k}.{name}" for name in NAMES]) for k in range(60)])
    figure = plots.layer_profile(many)
    assert max(figure.get_size_inches()) <= 30
    assert len(figure.axes[-1].get_xticklabels()) <= 120


# --- weights --------------------------------------------------------------------------------------------------------


def test_the_histogram_draws_levels_counts_and_dead_zone():
    latent, quantized = plots.weight_histogram(WEIGHTS, LEVELS, "stem", "R of its channel").axes
    lines = latent.collections[0].get_segments()
    assert [segment[0][0] for segment in lines] == [-1, 0, 1]
    stems = quantized.collections[0].get_segments()
    assert [(segment[1][0], segment[1][1]) for segment in stems] == [(-1, 1), (0, 4), (1, 2)]
    (zone,) = [patch for patch in latent.patches if patch.get_label() == "dead-zone"]
    assert (zone.get_x(), zone.get_x() + zone.get_width()) == (-0.5, 0.5)
    assert quantized.get_xlabel() == "weight (R of its channel)"
    assert "57.1 % zero, 3 of 3 levels used" in words(latent.figure)


def test_a_layer_with_a_level_for_every_weight_is_drawn_without_a_wall_of_lines():
    code = np.arange(-32767, 32768)
    levels = pd.DataFrame({"code": code, "level": code / 32767, "lower": code - 0.5, "upper": code + 0.5, "count": 1})
    latent, quantized = plots.weight_histogram(WEIGHTS, levels, "stem").axes
    assert not latent.collections
    assert len(quantized.collections[0].get_segments()) == 65535


def test_kernel_maps_show_the_share_of_weights_that_is_left():
    weight = np.zeros((2, 2, 2, 2))
    weight[0, 0] = 1
    weight[1, 0, 0, 0] = -1
    axes = plots.kernel_maps({"conv": weight}).axes[0]
    assert axes.images[0].get_array().tolist() == [[100, 0], [25, 0]]


# --- several runs ---------------------------------------------------------------------------------------------------


def brute_force_front(cost, accuracy) -> list[bool]:
    points = list(zip(cost, accuracy, strict=True))
    return [
        not np.isnan([c, a]).any() and not any((c2 <= c and a2 > a) or (c2 < c and a2 >= a) for c2, a2 in points)
        for c, a in points
    ]


COORDINATE = st.one_of(st.integers(0, 5).map(float), st.just(float("nan")))


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
    assert "published: ResNet-20, CIFAR-10 (arXiv 1)" in words(figure)
    assert figure.axes[0].collections[0].get_offsets().tolist() == [
        pytest.approx([2.6, 91.8]), pytest.approx([100, 91.7]),
    ]  # fmt: skip
    faces = figure.axes[0].collections[0].get_facecolors()
    assert faces[:, :3].tolist() == [[0, 0, 0], [1, 1, 1]]  # the structured one is hollow
    assert {"base", "new"} <= {text.get_text() for text in figure.axes[0].texts}
    assert "orientation" not in words(figure)
    assert "for orientation only" in words(plots.accuracy_against_bops(SUMMARY, PUBLISHED, comparable=False))


def test_nothing_left_of_a_network_is_drawn_too():
    plots.accuracy_against_bops(SUMMARY.assign(structured_bops=0.0)).savefig(io.BytesIO())


# --- sensitivity ----------------------------------------------------------------------------------------------------


def test_the_scan_is_a_panel_for_each_bit_width():
    two, four, *_ = plots.sensitivity_heatmap(SCAN).axes
    assert two.images[0].get_array().tolist() == [pytest.approx([10, 20]), pytest.approx([50, 60])]
    assert four.images[0].get_array().tolist() == [pytest.approx([30, 40]), pytest.approx([70, 80])]
    assert [label.get_text() for label in two.get_yticklabels()] == ["stem", "head"]
    assert [label.get_text() for label in two.get_xticklabels()] == ["0", "50"]
    assert two.images[0].get_clim() == four.images[0].get_clim()


def test_the_inputs_are_left_alone():
    tables = (HISTORY, OVER_TIME, COSTS, LEVELS, SUMMARY, PUBLISHED, SCAN)
    before = [table.copy() for table in tables]
    for draw in FIGURES.values():
        draw()
    for table, copy in zip(tables, before, strict=True):
        pd.testing.assert_frame_equal(table, copy)
