"""Sliders over finished and running runs in a notebook; the only package that knows ipywidgets.

Each widget is state, a pure computation and a pure figure: a slider changes the state, the figure is drawn into PNG
bytes and shown as an image beside a summary in words. All of it works without a browser, by setting ``.value``.
"""

from codeq.widgets.compare import RunComparer
from codeq.widgets.liveness import LivenessExplorer
from codeq.widgets.newest import newest_run
from codeq.widgets.what_if import WhatIf

__all__ = ["LivenessExplorer", "WhatIf", "RunComparer", "newest_run"]
