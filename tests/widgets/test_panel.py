import threading

import ipywidgets

from codeq.widgets.panel import Panel, slider
from codeq.widgets.trail import Trail


def widgets() -> set[str]:
    return set(ipywidgets.Widget.get_manager_state()["state"])


def test_a_closed_panel_leaves_nothing_open_and_nothing_running(monkeypatch):
    monkeypatch.setattr("codeq.widgets.background.PAUSE", 60.0)
    before, done = widgets(), threading.Event()
    inner = Panel([slider(ipywidgets.IntSlider, "n"), ipywidgets.Button(), ipywidgets.Text()], [Trail(print)])
    outer = Panel([], [ipywidgets.VBox([inner])])
    inner._background.start(lambda _: done.set())
    assert widgets() > before
    outer.close()
    inner._background.wait()
    assert not done.is_set()
    assert widgets() == before
    outer.close()
