import pandas as pd
from plot_tables import HISTORY, rendered

from codeq import plots


def test_runs_may_be_named_by_numbers():
    row = {"layer": "fc", "bits": 4, "zero_weights": 0.5, "dead_filters": 0.25, "structured_bops": 2e6}
    for figure in (
        plots.compared_curves({8: HISTORY, 4: HISTORY}),
        plots.compared_layers(pd.DataFrame([{"run": 8} | row, {"run": 4} | row])),
    ):
        rendered(figure)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["8", "4"]
