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


def test_sparsity_bars_show_both_ratios_in_percent():
    unstructured, structured = plots.layer_sparsity_bars(LAYERS).axes[0].containers
    assert [bar.get_height() for bar in unstructured] == [10, 50, 20]
    assert [bar.get_height() for bar in structured] == [0, 25, 0]
    assert "unstructured" in unstructured.get_label()
