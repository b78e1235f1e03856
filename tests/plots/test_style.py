"""Properties of every figure: units, titles, errors, and the default style whatever the user's is."""

import io
import subprocess
import sys
import threading

import matplotlib
import numpy as np
import pandas as pd
import plot_tables as tables
import pytest
from cases import each
from PIL import Image
from plot_tables import COSTS, FIGURES, HISTORY, LAYERS, LEVELS, NAMES, OVER_TIME, SCAN, SUMMARY, WEIGHTS, words

from codeq import plots
from codeq.common.errors import CodeqError
from codeq.plots.style import default_style

# A style as users have it: LaTeX, which may not be installed, and sizes, colours and scales of their own.
USER_STYLE = {
    "text.usetex": True,
    "font.size": 30.0,
    "axes.facecolor": "black",
    "axes.prop_cycle": matplotlib.cycler(color=["red"]),
    "image.cmap": "jet",
    "savefig.dpi": 10,
    "savefig.format": "pdf",
    "figure.constrained_layout.use": True,
}


@pytest.mark.slow
@each("name", FIGURES)
def test_every_figure_has_a_title_and_looks_the_same_whatever_the_style_of_the_user(name):
    figure = FIGURES[name]()
    figure.set_dpi(30)
    expected = tables.rendered(figure)
    assert len(np.unique(expected.reshape(-1, 4), axis=0)) > 2
    assert figure.get_suptitle() or figure.axes[0].get_title("left")
    with matplotlib.rc_context(USER_STYLE):
        figure = FIGURES[name]()
        figure.set_dpi(30)
        assert (tables.rendered(figure) == expected).all()
        assert matplotlib.rcParams["text.usetex"]  # the user's style is back


@pytest.mark.parametrize("name", ["sensitivity_heatmap", "weight_histogram"])
def test_text_of_a_vector_file_is_text(name):
    svg, pdf = io.BytesIO(), io.BytesIO()
    FIGURES[name]().savefig(svg, format="svg")
    FIGURES[name]().savefig(pdf, format="pdf")
    title = {"sensitivity_heatmap": "Per-layer sensitivity", "weight_histogram": "Weights of stem"}[name]
    assert f">{title}</text>" in svg.getvalue().decode()
    assert b"/CIDFontType2" in pdf.getvalue()  # TrueType
    assert b"/Type3" not in pdf.getvalue()


def test_a_style_of_the_user_changes_no_file():
    with matplotlib.rc_context(USER_STYLE):
        buffer = io.BytesIO()
        plots.accuracy_curve(HISTORY).savefig(buffer)
    with Image.open(buffer) as image:
        assert (image.format, image.size) == ("PNG", (960, 540))


def test_the_dark_theme_has_light_text_on_a_transparent_page_and_the_same_data():
    light = tables.rendered(FIGURES["per_layer_channels"]())
    plots.set_theme("dark")
    try:
        figure = FIGURES["per_layer_channels"]()
        dark = tables.rendered(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer)
    finally:
        plots.set_theme("light")
    with Image.open(buffer) as image:
        assert image.getpixel((0, 0))[3] == 0
    assert {text.get_color() for text in figure.axes[0].get_xticklabels()} == {"#E0E0E0"}
    shares = [(dark == [*level, 255]).all(axis=2).mean() for level in ([0, 0, 0], [255, 255, 255])]
    assert min(shares) > 0.01  # dead channels are black, alive ones white
    assert (tables.rendered(FIGURES["per_layer_channels"]()) == light).all()
    with pytest.raises(CodeqError, match="theme 'blue' is unknown; one of light, dark"):
        plots.set_theme("blue")


def test_threads_take_the_settings_of_matplotlib_one_after_the_other():
    entered = threading.Event()

    def draw():
        with default_style():
            entered.set()

    thread = threading.Thread(target=draw)
    with default_style():
        thread.start()
        assert not entered.wait(0.2)
    thread.join()
    assert entered.is_set()


def test_a_name_with_dollar_signs_is_no_formula():
    name = r"a$\frac{$b"
    layers = {key: table.assign(layer=name).head(1) for key, table in (("costs", COSTS), ("layers", LAYERS))}
    for figure in (
        plots.layer_costs(layers["costs"]),
        plots.per_layer_channels(layers["layers"]),
        plots.channel_liveness({name: np.array([True])}),
        plots.liveness_over_time(OVER_TIME.assign(layer=name).head(1)),
        plots.sparsity_map(tables.KERNELS, name),
        plots.kernel_maps({name: tables.KERNELS}),
        plots.weight_histogram(WEIGHTS, LEVELS, name),
        plots.weight_histograms({name: (WEIGHTS, LEVELS)}),
        plots.sensitivity_heatmap(SCAN.assign(layer=name).head(1)),
        plots.accuracy_against_bops(SUMMARY.assign(run=name)),
        plots.bits_over_groups(tables.BITS.head(1).assign(group=name)),
        plots.learning_bands(tables.CURVES.head(2).assign(group=name), "eval/accuracy"),
        plots.group_differences(tables.GROUPS.head(1).assign(group=name), "eval/accuracy", "plain"),
    ):
        tables.rendered(figure)
        assert name.replace("$", r"\$") in words(figure)


def test_a_name_with_an_underscore_in_front_is_in_the_legend():
    history = HISTORY.head(1)
    figure = plots.compared_curves({"_old": history, "_new": history})
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_old", "_new"]


UNITS = {
    "accuracy_curve": ["accuracy (%)", "epoch"],
    "sparsity_curves": ["sparsity (%)", "coefficient of the sparsity loss", "epoch"],
    "training_curves": [
        "cross-entropy", "accuracy (%)", "bits per weight", "sparsity (%)", "BOPs (% of dense 32 bit)",
        "learning rate", "coefficient", "epoch",
    ],
    "target_course": ["relative bops", "factor of λ", "target ± 5 %", "plan", "measured", "epoch"],
    "channel_liveness": ["channel", "alive", "dead", "padding"],
    "liveness_over_time": ["alive filters (%)", "epoch"],
    "per_layer_channels": ["output channels", "bits of the weights"],
    "layer_sparsity_bars": ["pruned (%)"],
    "layer_profile": ["bits", "d / 2R (%)", "weights (%)", "channels", "BOPs (%)", *NAMES],
    "layer_costs": ["BOPs per input", "share of total BOPs (%)", "activations: 32 bits, or", *NAMES],
    "sparsity_map": ["input channel", "output channel", "% zero"],
    "weight_histogram": ["stem", "latent weights", "weights per level", "dead-zone", "quantization levels"],
    "weight_histograms": ["stem: 3 levels", "head", "log scale"],
    "activation_histograms": ["stem: 2 bits, 3 of 4 levels", "50.0 % zero, 12.50 % clipped", "log scale"],
    "kernel_maps": ["input channel", "output channel", "non-zero weights of a kernel (%)", "stem: 0 % zero"],
    "accuracy_against_bops": ["relative BOPs (% of dense, weights and activat", "accuracy after the last epoch (%)"],
    "sensitivity_heatmap": ["2 bits", "4 bits", "d / 2R (%)", "accuracy (%)", "baseline 80.0 %"],
    "group_means": ["accuracy (%)", "95 % interval (Student's t)", "l2", "l1", "none"],
    "group_differences": ["difference of accuracy (percentage points); baseline: plain", "paired by seed", "l1"],
    "parameter_effects": ["accuracy (%)", "group", "lr", "0.1", "0.2", "none"],
    "learning_bands": ["train/ce_loss", "epoch", "standard deviation over runs", "l2 (n = 2)", "l1 (n = 1)"],
    "bits_over_groups": ["bits", "mean over the runs of a group", "stem", "head", "4.5", "8.0"],
}  # fmt: skip


@each("name", FIGURES)
def test_axes_have_labels_with_units(name):
    found = words(FIGURES[name]()).replace("\n", " ")
    for unit in UNITS[name]:
        assert unit in found


@each(
    ("draw", "table", "column"),
    [
        (plots.accuracy_curve, HISTORY, "eval/accuracy"),
        (plots.sparsity_curves, HISTORY, "train/sparsity_coeff"),
        (plots.training_curves, HISTORY, "eval/loss"),
        (lambda table: plots.target_course(table, "bytes", 0.05), tables.UPDATES, "factor"),
        (plots.per_layer_channels, LAYERS, "bits"),
        (plots.layer_sparsity_bars, LAYERS, "structured_pruning"),
        (plots.liveness_over_time, OVER_TIME, "dead_filters"),
        (plots.layer_profile, COSTS, "dead_zone"),
        (plots.layer_costs, COSTS, "dense_share"),
        (lambda levels: plots.weight_histogram(WEIGHTS, levels, "stem"), LEVELS, "count"),
        (plots.accuracy_against_bops, SUMMARY, "accuracy"),
        (plots.sensitivity_heatmap, SCAN, "baseline"),
        (lambda table: plots.group_means(table, tables.GROUP_RUNS, "eval/accuracy"), tables.GROUPS, "high"),
        (lambda table: plots.parameter_effects(table, ["lr"], "eval/accuracy"), tables.GROUP_RUNS, "lr"),
        (lambda table: plots.learning_bands(table, "eval/accuracy"), tables.CURVES, "std"),
        (plots.bits_over_groups, tables.BITS, "layer"),
    ],
)
def test_a_missing_column_is_named_and_an_empty_table_explained(draw, table, column):
    with pytest.raises(CodeqError, match=column):
        draw(table.drop(columns=column))
    with pytest.raises(CodeqError, match="no rows"):
        draw(table.head(0))


def test_nothing_to_draw_is_a_clear_error():
    for draw in (plots.kernel_maps, plots.weight_histograms, plots.channel_liveness):
        with pytest.raises(CodeqError, match="contains no layer"):
            draw({})
    with pytest.raises(CodeqError, match=r"'conv1'.*\(3,\)"):
        plots.sparsity_map(np.ones(3), "conv1")
    for weights in (np.array([]), np.array([np.nan, np.inf])):
        with pytest.raises(CodeqError, match="'stem' has no finite weights"):
            plots.weight_histogram(weights, LEVELS, "stem")


def test_the_inputs_are_left_unchanged():
    inputs = [table for table in vars(tables).values() if isinstance(table, pd.DataFrame)]
    assert len(inputs) == 14
    before = [table.copy() for table in inputs]
    for draw in FIGURES.values():
        draw()
    for table, copy in zip(inputs, before, strict=True):
        pd.testing.assert_frame_equal(table, copy)


@pytest.mark.slow
def test_a_training_imports_matplotlib_for_its_first_figure_and_never_seaborn():
    code = """if True:
        import sys, numpy, pandas
        from codeq import plots
        assert not {"matplotlib", "seaborn"} & sys.modules.keys()
        plots.channel_liveness({"a": numpy.ones(2, bool)})
        row = {"layer": ["a"], "structured_pruning": 0.0, "unstructured_pruning": 0.0}
        plots.layer_sparsity_bars(pandas.DataFrame(row))
        assert "seaborn" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["channel_liveness", "training_curves"])  # with a legend, and without
def test_a_footnote_is_one_line_below_the_axes(name):
    figure = FIGURES[name]()
    legends = list(figure.legends)
    assert plots.footnote(figure, ()) is figure
    assert figure.legends == legends
    plots.footnote(figure, ("layer '$x$' is never called: it counts no MACs", "b", "c"))
    figure.savefig(io.BytesIO())
    note = figure.legends[0].get_title()
    assert note.get_text().replace("\\", "") == "Note: layer '$x$' is never called: it counts no MACs (and 2 more)"
    box, label = note.get_window_extent(), figure.axes[-1 if name == "channel_liveness" else 4].xaxis.label
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= label.get_window_extent().y0


def test_a_long_footnote_is_cut_to_the_width_of_its_figure():
    figure = plots.footnote(plots.channel_liveness({"conv": np.array([True])}), ("MAC " * 500, "b"))
    figure.savefig(io.BytesIO())
    note = figure.legends[0].get_title()
    assert note.get_text().endswith("… (and 1 more)")
    assert 0 <= note.get_window_extent().x0 < note.get_window_extent().x1 <= figure.bbox.x1
