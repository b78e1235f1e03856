"""Controls of `WhatIf`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets  # type: ignore[import-untyped]

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.config.session_parts import call_in_session, session_parts
from codeq.widgets.panel import DESCRIPTION, slider

ALL = "all layers"


class WhatIfControls:
    """Sliders, buttons and fields of `WhatIf`, see there.

    Attributes
    ----------
    column : list of widgets
        All of them, from top to bottom.
    """

    def __init__(self) -> None:
        wide = ipywidgets.Layout(width="440px", max_width="100%")
        self.layer = ipywidgets.Dropdown(description="set", options=[ALL], style=DESCRIPTION, layout=wide)
        self.dead_zone = slider(ipywidgets.FloatSlider, "dead-zone d/2R", min=0, max=1, step=0.01)
        self.bits = slider(ipywidgets.IntSlider, "bit-width", min=2, max=8)
        self.reset = ipywidgets.Button(description="Reset", tooltip="restore the trained dead-zones and bits")
        self.refresh = ipywidgets.Button(
            description="Refresh", tooltip="read the checkpoint of a running training again"
        )
        limits = {"value": 3.0, "min": 0.01, "max": 100, "step": 0.5, "layout": {"flex": "1 1 180px", "width": "auto"}}
        self.budget = ipywidgets.BoundedFloatText(description="relative BOPs (%)", style=DESCRIPTION, **limits)
        self.solve = _button("Solve", "dead-zones and bits per layer for this budget")
        self.file = ipywidgets.Text(
            description="save as",
            placeholder="a new file in outputs/what_if/",
            style=DESCRIPTION,
            layout={"flex": "1 1 180px", "width": "auto"},
        )
        self.save = _button("Save as config", "configuration that continues the training with these settings")
        self.status = ipywidgets.HTML()  # a Label truncates
        self.progress = ipywidgets.IntProgress(
            description="measuring", min=0, max=1, style=DESCRIPTION, layout={"visibility": "hidden"}
        )
        row = {"flex_flow": "row wrap", "max_width": "440px"}
        rows = [[self.reset, self.refresh], [self.budget, self.solve], [self.file, self.save]]
        self.column: list[Any] = [self.layer, self.dead_zone, self.bits]
        self.column += [ipywidgets.HBox(items, layout=row) for items in rows] + [self.progress, self.status]

    def set_enabled(self, enabled: bool) -> None:
        """Enable or disable everything but `refresh`."""
        for control in (self.layer, self.dead_zone, self.bits, self.reset, self.budget, self.solve, self.save):
            control.disabled = not enabled
        self.file.disabled = not enabled

    def show_progress(self, done: int, total: int) -> None:
        """Show the bar of progress until all is done."""
        self.progress.max, self.progress.value = total, done
        self.progress.layout.visibility = "visible" if done < total else "hidden"

    def attempt(self, doing: str, act: Callable[[], object]) -> None:
        """Do what a button is for, and show why it failed, or how a file that it wrote is used."""
        self.status.value = doing
        try:
            done = act()
            advice = f"Saved. Train with: <code>{escape(_training(done))}</code>" if isinstance(done, Path) else ""
        except (CodeqError, OSError) as error:
            self.status.value = escape(str(error))
        except Exception as error:  # nobody sees an exception of a button
            self.status.value = escape(f"{type(error).__name__}: {error}")
        except KeyboardInterrupt:
            self.status.value = "Interrupted."
            raise
        else:
            self.status.value = advice


def _training(file: Path) -> str:
    """Return the command that trains a saved configuration, or the call where no new process knows its parts."""
    config = ExperimentConfig.from_yaml(file)
    if parts := session_parts(config, config.imports):
        return call_in_session(f"run_experiment(ExperimentConfig.from_yaml({str(file)!r}))", parts)
    return shlex.join(["codeq", "train", "--config", str(file)])


def _button(description: str, tooltip: str) -> Any:
    return ipywidgets.Button(description=description, tooltip=tooltip, layout={"width": "120px"})
