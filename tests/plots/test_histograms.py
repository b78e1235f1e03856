import numpy as np
import pandas as pd
import pytest
from plot_tables import LEVELS, WEIGHTS, words

from codeq import plots


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


@pytest.mark.slow
def test_a_layer_with_a_level_for_every_weight_is_drawn_without_a_wall_of_lines():
    code = np.arange(-32767, 32768)
    levels = pd.DataFrame({"code": code, "level": code / 32767, "lower": code - 0.5, "upper": code + 0.5, "count": 1})
    latent, quantized = plots.weight_histogram(WEIGHTS, levels, "stem").axes
    assert not latent.collections  # no lines
    histogram = latent.patches[-1]
    assert histogram.get_label() == "latent weights"
    assert histogram.get_data().values.sum() == WEIGHTS.size
    assert len(quantized.collections[0].get_segments()) == 65535


def test_weights_that_differ_by_rounding_are_drawn():
    near = np.nextafter(np.float32(0.1), np.float32(1))
    for values in ([0.1, near], [0, 1e-42]):
        latent, _ = plots.weight_histogram(np.array(values, dtype=np.float32), LEVELS, "stem").axes
        assert latent.patches[-1].get_data().values.sum() == 2


def test_the_histograms_of_all_layers_name_the_unit_of_scaled_weights():
    layers = {"stem": (WEIGHTS, LEVELS)}
    assert "x: weight (R of its channel); y: count, log scale" in words(
        plots.weight_histograms(layers, "R of its channel")
    )
    assert "x: weight; y: count, log scale" in words(plots.weight_histograms(layers))
