import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from codeq import plots
from codeq.common.errors import CodeqError

HISTORY = pd.DataFrame(
    {
        "epoch": [0, 1, 2],
        "train/accuracy": [0.5, 0.7, 0.9],
        "eval/accuracy": [0.4, 0.8, 0.75],
        "sparsity/unstructured": [0.0, 0.25, 0.5],
        "sparsity/structured": [0.0, 0.0, 0.125],
        "train/sparsity_coeff": [0.0, 5.0, 10.0],
    }
)
LAYERS = pd.DataFrame(
    {
        "layer": ["conv1", "layer1.0.conv1", "linear"],
        "bits": [8, 4, 32],
        "filters": [16, 32, 10],
        "dead_filters": [0, 8, 0],
        "structured_pruning": [0.0, 0.25, 0.0],
        "unstructured_pruning": [0.1, 0.5, 0.2],
    }
)
LIVENESS = {"conv1": np.array([True, False]), "conv2": np.array([False, True, True, True])}
WEIGHT = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2) % 4

FIGURES = {
    "accuracy_curve": lambda: plots.accuracy_curve(HISTORY),
    "sparsity_curves": lambda: plots.sparsity_curves(HISTORY),
    "channel_liveness": lambda: plots.channel_liveness(LIVENESS),
    "per_layer_channels": lambda: plots.per_layer_channels(LAYERS),
    "layer_sparsity_bars": lambda: plots.layer_sparsity_bars(LAYERS),
    "sparsity_map": lambda: plots.sparsity_map(WEIGHT, "conv1"),
}


def rendered(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def texts(figure: Figure) -> str:
    axes = figure.axes[0]
    written = [text.get_text() for text in (*axes.texts, *figure.texts)]
    return " | ".join(written + [axes.get_title(side) for side in ("left", "right")])


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_renders_without_a_warning_and_names_its_axes(name):
    figure = FIGURES[name]()
    assert len(np.unique(rendered(figure).reshape(-1, 4), axis=0)) > 2
    assert figure.get_suptitle() or figure.axes[0].get_title("left")
    assert figure.axes[0].get_ylabel() or name == "channel_liveness"


def test_accuracy_is_drawn_in_percent_over_epochs_counted_from_one():
    training, evaluation = plots.accuracy_curve(HISTORY).axes[0].get_lines()
    assert training.get_xdata().tolist() == [1, 2, 3]
    assert training.get_ydata().tolist() == pytest.approx([50, 70, 90])
    assert evaluation.get_ydata().tolist() == pytest.approx([40, 80, 75])


def test_accuracy_says_last_and_best_apart():
    assert "last 75.00 %, best 80.00 % (epoch 2)" in texts(plots.accuracy_curve(HISTORY))


def test_sparsities_have_their_own_axis_and_the_coefficient_another():
    first, second = plots.sparsity_curves(HISTORY).axes
    unstructured, structured = first.get_lines()
    assert unstructured.get_ydata().tolist() == [0, 25, 50]
    assert structured.get_ydata().tolist() == [0, 0, 12.5]
    (coefficient,) = second.get_lines()
    assert coefficient.get_ydata().tolist() == [0, 5, 10]
    assert coefficient.get_linestyle() == "--"


def test_liveness_is_black_for_dead_white_for_alive_grey_for_padding():
    figure = plots.channel_liveness(LIVENESS)
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == [[1, 0, 2, 2], [0, 1, 1, 1]]
    dead, alive, padding = (image.cmap(image.norm(code))[:3] for code in (0, 1, 2))
    assert dead == (0, 0, 0)
    assert alive == (1, 1, 1)
    assert len({*padding}) == 1
    assert 0.2 < padding[0] < 0.9


def test_liveness_counts_the_dead_of_every_layer_and_of_all():
    words = texts(plots.channel_liveness(LIVENESS))
    assert "1/2 dead" in words
    assert "1/4 dead" in words
    assert "2 of 6 channels dead (33.3 %)" in words


def test_liveness_of_a_large_network_stays_a_picture_of_moderate_size():
    liveness = {f"layer{k}": np.arange(2048) % 3 > 0 for k in range(60)}
    assert max(rendered(plots.channel_liveness(liveness)).shape) < 4000


def test_channels_are_stacked_to_the_number_of_filters_and_carry_their_bits():
    figure = plots.per_layer_channels(LAYERS)
    alive, dead = figure.axes[0].containers
    assert [bar.get_height() for bar in alive] == [16, 24, 10]
    assert [bar.get_height() for bar in dead] == [0, 8, 0]
    assert [bar.get_y() for bar in dead] == [16, 24, 10]
    assert [t.get_text() for t in figure.axes[0].texts] == ["8b", "4b", "32b"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == LAYERS["layer"].tolist()


def test_sparsity_bars_show_both_ratios_in_percent():
    unstructured, structured = plots.layer_sparsity_bars(LAYERS).axes[0].containers
    assert [bar.get_height() for bar in unstructured] == [10, 50, 20]
    assert [bar.get_height() for bar in structured] == [0, 25, 0]
    assert "unstructured" in unstructured.get_label()


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (4, 5), (1, 1, 3, 3)])
def test_the_map_shows_every_weight_at_its_place(shape):
    weight = (np.arange(np.prod(shape)) % 3).reshape(shape)
    (image,) = plots.sparsity_map(weight, "x").axes[0].images
    pixels = image.get_array()
    kernels = weight.reshape(*shape[:2], *(shape[2:] or (1, 1)))
    k_h, k_w = kernels.shape[2:]
    assert pixels.shape == (shape[0] * k_h, shape[1] * k_w)
    for out, row in enumerate(kernels):
        for channel, kernel in enumerate(row):
            top, left = out * k_h, channel * k_w
            assert (pixels[top : top + k_h, left : left + k_w] == (kernel != 0)).all()


def test_the_map_says_how_much_is_zero():
    assert "25.0 % zero" in texts(plots.sparsity_map(WEIGHT, "conv1"))


def test_a_large_layer_is_drawn_without_lines_between_kernels():
    small, large = (plots.sparsity_map(np.ones((n, n, 3, 3)), "x").axes[0] for n in (3, 512))
    across, down = (lines.get_segments() for lines in small.collections)
    assert [segment[0][1] for segment in across] == [2.5, 5.5]
    assert [segment[0][0] for segment in down] == [2.5, 5.5]
    assert not large.collections
    assert (large.images[0].get_array() == 1).all()


def test_a_map_is_black_where_weights_are_zero():
    (image,) = plots.sparsity_map(WEIGHT, "conv1").axes[0].images
    zero, other = (image.cmap(image.norm(value))[:3] for value in (0, 1))
    assert (zero, other) == ((0, 0, 0), (1, 1, 1))


def test_one_epoch_and_missing_values_are_drawn():
    rendered(plots.accuracy_curve(HISTORY.head(1)))
    rendered(plots.sparsity_curves(HISTORY.head(1)))
    unknown = HISTORY.assign(**{"eval/accuracy": np.nan})
    assert "best" not in texts(plots.accuracy_curve(unknown))


def test_all_dead_and_none_dead_are_drawn():
    assert "3 of 3" in texts(plots.channel_liveness({"a": np.zeros(3, dtype=bool)}))
    assert "0 of 3" in texts(plots.channel_liveness({"a": np.ones(3, dtype=bool)}))


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (plots.accuracy_curve, HISTORY, "eval/accuracy"),
        (plots.sparsity_curves, HISTORY, "train/sparsity_coeff"),
        (plots.per_layer_channels, LAYERS, "bits"),
        (plots.layer_sparsity_bars, LAYERS, "structured_pruning"),
    ],
)
def test_a_missing_column_is_named_and_an_empty_table_explained(draw, table, column):
    with pytest.raises(CodeqError, match=column):
        draw(table.drop(columns=column))
    with pytest.raises(CodeqError, match="no rows"):
        draw(table.head(0))


def test_nothing_to_draw_is_a_clear_error():
    with pytest.raises(CodeqError, match="names no layer"):
        plots.channel_liveness({})
    with pytest.raises(CodeqError, match=r"'conv1'.*\(3,\)"):
        plots.sparsity_map(np.ones(3), "conv1")


def test_the_inputs_are_left_alone():
    before = HISTORY.copy(), LAYERS.copy(), WEIGHT.copy()
    for draw in FIGURES.values():
        draw()
    pd.testing.assert_frame_equal(HISTORY, before[0])
    pd.testing.assert_frame_equal(LAYERS, before[1])
    assert (before[2] == WEIGHT).all()


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, codeq.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
