"""Interactive widgets for notebooks, over finished and running runs; the only package that imports ipywidgets.

Each widget consists of state, a pure computation and a pure figure: a slider changes the state, the figure is rendered
as PNG and shown beside a text summary. Everything also works without a browser, by setting ``.value``.
"""

from codeq.widgets.compare import RunComparer
from codeq.widgets.liveness import LivenessExplorer
from codeq.widgets.study import StudyExplorer
from codeq.widgets.study_status import StudyStatus
from codeq.widgets.what_if import WhatIf

__all__ = ["LivenessExplorer", "WhatIf", "RunComparer", "StudyExplorer", "StudyStatus"]
