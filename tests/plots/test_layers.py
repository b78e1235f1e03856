import itertools

import numpy as np
import pandas as pd
import pytest
from plot_tables import LAYERS

from codeq import plots


def test_channels_are_stacked_to_the_number_of_filters_and_carry_their_bits():
    figure = plots.per_layer_channels(LAYERS)
    alive, dead = figure.axes[0].containers
    assert [bar.get_height() for bar in alive] == [16, 24, 10]
    assert [bar.get_height() for bar in dead] == [0, 8, 0]
    assert [bar.get_y() for bar in dead] == [16, 24, 10]
    assert [t.get_text() for t in figure.axes[0].texts] == ["8b", "4b", "32b"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == LAYERS["layer"].tolist()


def test_the_bits_of_many_layers_are_bars_of_their_own():
    count = 62
    layers = pd.DataFrame(
        {"layer": [f"blocks.{k}" for k in range(count)], "bits": np.arange(count) % 7 + 2, "filters": 8}
    ).assign(dead_filters=1)
    figure = plots.per_layer_channels(layers)
    bits, channels = figure.axes
    assert [bar.get_height() for bar in bits.containers[0]] == layers["bits"].tolist()
    assert [bar.get_height() for bar in channels.containers[0]] == [7] * count
    assert "bits" in bits.get_ylabel()
    assert not channels.texts


def test_sparsity_bars_show_both_ratios_in_percent():
    unstructured, structured = plots.layer_sparsity_bars(LAYERS).axes[0].containers
    assert [bar.get_height() for bar in unstructured] == [10, 50, 20]
    assert [bar.get_height() for bar in structured] == [0, 25, 0]
    assert "unstructured" in unstructured.get_label()


LONG = [f"vision_model.backbone.encoder.layers.{k}.attention.self_attention.query_projection.linear" for k in (0, 1)]


@pytest.mark.parametrize("draw", [plots.layer_sparsity_bars, plots.per_layer_channels])
def test_long_names_of_layers_lose_their_beginning_and_stay_inside_of_the_figure(draw):
    figure = draw(LAYERS.iloc[:2].assign(layer=LONG))
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    texts = [label.get_text() for label in labels]
    assert len(set(texts)) == 2
    for text, name in zip(texts, LONG, strict=True):
        assert len(text.partition(" (")[0]) <= 40
        assert name.endswith(text.partition(" (")[0].removeprefix("…"))
    assert all(label.get_window_extent().y0 >= 0 for label in labels)
    assert figure.axes[0].get_position().height > 0.3


def test_titles_of_small_panels_do_not_reach_into_the_next():
    weights = {name: np.ones((4, 4, 3, 3)) for name in (*LONG, "layer1.0.downsample.0", "conv1", "fc")}
    figure = plots.kernel_maps(weights)
    figure.draw_without_rendering()
    titles = [axes._left_title.get_window_extent() for axes in figure.axes[:5]]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(titles))
    assert figure.axes[3].get_title("left") == "conv1: 0 % zero"
