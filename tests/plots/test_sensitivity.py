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
