import numpy as np
from plot_tables import LIVENESS, NAMES, OVER_TIME, rendered, words

from codeq import plots


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
    found = words(plots.channel_liveness(LIVENESS))
    assert "1/2 dead" in found
    assert "1/4 dead" in found
    assert "2 of 6 channels dead (33.3 %)" in found


def test_liveness_of_a_large_network_stays_a_picture_of_moderate_size():
    liveness = {f"layer{k}": np.arange(2048) % 3 > 0 for k in range(60)}
    assert max(rendered(plots.channel_liveness(liveness)).shape) < 4000


def test_all_dead_and_none_dead_are_drawn():
    assert "3 of 3" in words(plots.channel_liveness({"a": np.zeros(3, dtype=bool)}))
    assert "0 of 3" in words(plots.channel_liveness({"a": np.ones(3, dtype=bool)}))


def test_liveness_over_time_keeps_the_order_of_the_layers():
    axes = plots.liveness_over_time(OVER_TIME).axes[0]
    assert axes.collections[0].get_array().tolist() == [[100, 75], [100, 0], [100, 100]]
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]  # epochs
    dead, alive = (axes.collections[0].to_rgba(np.array([[share]]))[0, 0, :3].tolist() for share in (0, 100))
    assert (dead, alive) == ([0, 0, 0], [1, 1, 1])


def test_one_dead_filter_of_many_is_not_rounded_away():
    figure = plots.liveness_over_time(OVER_TIME.assign(filters=512, dead_filters=1))
    assert "> 99 %" in words(figure)
    assert "100 %" not in words(figure)
