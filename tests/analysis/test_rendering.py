"""Figures rendered by worker processes against equal ones rendered here."""

import os
import signal
import sys

import pytest

from codeq.analysis.drawings import Drawing, save_drawings
from codeq.analysis.rendering import render_in_parallel
from codeq.plots.style import new_figure


def drawings():
    made = {"none": Drawing("none", "", None, "no data")}
    for name in ("first", "second"):
        figure, axes = new_figure(name)
        axes.plot([1, 2], [3, len(name)])
        made[name] = Drawing(name, "", figure)
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")
def test_workers_render_what_this_process_would(monkeypatch, tmp_path):
    expected = [path.read_bytes() for path in save_drawings(drawings(), tmp_path / "here", ["png", "svg"])]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    made = drawings()
    render_in_parallel(made, ["png", "svg"])
    for name in ("first", "second"):
        monkeypatch.setattr(made[name].figure, "savefig", None)  # nothing is left to do here
    assert [path.read_bytes() for path in save_drawings(made, tmp_path / "there", ["png", "svg"])] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")
def test_what_a_killed_worker_leaves_is_rendered_here(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    made, parent = drawings(), os.getpid()
    render = Drawing.render

    def killed(drawing, *args, **kwargs):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return render(drawing, *args, **kwargs)

    monkeypatch.setattr(Drawing, "render", killed)
    render_in_parallel(made, ["png"])
    assert made["first"].render("png").startswith(b"\x89PNG")
