import pytest
from plot_tables import SCAN

from codeq import plots


def test_the_scan_is_a_panel_for_each_bit_width():
    two, four, *_ = plots.sensitivity_heatmap(SCAN).axes
    assert two.collections[0].get_array().tolist() == [pytest.approx([10, 20]), pytest.approx([50, 60])]
    assert four.collections[0].get_array().tolist() == [pytest.approx([30, 40]), pytest.approx([70, 80])]
    assert [label.get_text() for label in two.get_yticklabels()] == ["stem", "head"]
    assert [label.get_text() for label in two.get_xticklabels()] == ["0", "50"]
    assert two.collections[0].get_clim() == four.collections[0].get_clim()


def test_a_frame_marks_the_cell_nearest_to_the_trained_setting_of_each_layer():
    trained = {"stem": (3.9, 0.1), "head": (2.0, 0.4)}
    columns = {"trained_bits": SCAN["layer"].map(lambda n: trained[n][0])}
    columns |= {"trained_dead_zone": SCAN["layer"].map(lambda n: trained[n][1])}
    two, four, *_ = plots.sensitivity_heatmap(SCAN.assign(**columns)).axes
    assert [patch.get_xy() for patch in two.patches] == [(1, 1)]
    assert [patch.get_xy() for patch in four.patches] == [(0, 0)]
    assert not plots.sensitivity_heatmap(SCAN).axes[0].patches


def test_the_heading_of_one_bit_width_is_not_cut_off():
    figure = plots.sensitivity_heatmap(SCAN[SCAN["bits"] == 2].assign(trained_bits=2.0, trained_dead_zone=0.0))
    figure.draw_without_rendering()
    title, note = figure._suptitle.get_window_extent(), figure.texts[-1].get_window_extent()
    assert title.x1 < note.x0 < note.x1 <= figure.bbox.x1
