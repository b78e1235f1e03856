import numpy as np
import pandas as pd
from plot_tables import COSTS, NAMES, heights, words

from codeq import plots


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
