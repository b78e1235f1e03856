"""Figures drawn by worker processes against equal ones drawn here."""

import os
import signal
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest

from codeq.analysis import drawings
from codeq.analysis.drawings import Drawing, save_drawings
from codeq.analysis.rendering import draw_in_parallel
from codeq.common.errors import CodeqError
from codeq.plots.style import new_figure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def draw(name, killed=None):
    if killed not in (None, os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "none":
        return Drawing(name, "", None, "no data")
    figure, axes = new_figure(name)
    if name == "broken":  # drawn, but not rendered
        axes.set_title("$\\frac$")
    axes.plot([1, 2], [3, len(name)])
    return Drawing(name, f"a line of {len(name)}", figure)


def planned(*names, **settings):
    return {name: partial(draw, name, **settings) for name in names}


def test_workers_draw_what_this_process_would(tmp_path, monkeypatch):
    names = ("first", "none", "second")
    expected = {name: draw(name) for name in names}
    files = [path.read_bytes() for path in save_drawings(expected, tmp_path / "here", ["png", "svg"])]
    found = draw_in_parallel(planned(*names), ["png", "svg"])
    assert list(found) == list(names)
    assert [(d.name, d.caption, d.missing) for d in found.values()] == [
        (d.name, d.caption, d.missing) for d in expected.values()
    ]
    monkeypatch.setattr(drawings, "_lay_out", None)  # nothing is left to do here
    assert [path.read_bytes() for path in save_drawings(found, tmp_path / "there", ["png", "svg"])] == files


def test_what_a_killed_worker_leaves_is_drawn_here():
    found = draw_in_parallel(planned("first", "second", killed=os.getpid()), ["png"])
    assert list(found) == ["first", "second"]
    assert all(drawing.figure and drawing.render("png").startswith(b"\x89PNG") for drawing in found.values())


def test_a_worker_that_is_killed_before_all_have_their_work_leaves_everything_to_this_process(monkeypatch):
    def refuse(*_):
        raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", refuse)
    found = draw_in_parallel(planned("first", "second"), ["png"])
    assert [drawing.name for drawing in found.values() if not drawing.missing] == ["first", "second"]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_figure_that_cannot_be_rendered_loses_itself_alone(monkeypatch, tmp_path, caplog, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    found = draw_in_parallel(planned("first", "broken"), ["png"])
    assert not found["first"].missing
    assert found["broken"].missing.startswith("ValueError")
    assert found["broken"].figure is None
    assert [path.name for path in save_drawings(found, tmp_path, ["png"])] == ["first.png"]
    assert not caplog.messages  # the reason is there already
    assert save_drawings({"broken": draw("broken")}, tmp_path, ["png"]) == []
    assert caplog.messages[0].startswith("not drawn: broken: ValueError")


@pytest.mark.parametrize("cores", [1, 2])
def test_characters_that_the_font_does_not_have_are_named_in_one_line(monkeypatch, tmp_path, caplog, capfd, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    found = draw_in_parallel(planned("量化", "化 ± é", "plain"), ["png", "svg"])
    with warnings.catch_warnings(record=True) as caught:
        save_drawings(found, tmp_path, ["png", "svg"])
    assert not caught
    assert "Glyph" not in capfd.readouterr().err  # of the workers
    (line,) = caplog.messages
    assert line.endswith("drawn as boxes: 化 量")


def test_formats_are_a_list_of_known_ones(tmp_path):
    for wrong, message in (
        ("png", r"formats='png': must be a list, e\.g\. \['png'\]"),
        (["jpg"], "formats='jpg': must be 'png' or"),
    ):
        for use in (
            lambda wrong: save_drawings({}, tmp_path / "plots", wrong),
            lambda wrong: draw_in_parallel({}, wrong),
        ):
            with pytest.raises(CodeqError, match=message):
                use(wrong)
    assert not (tmp_path / "plots").exists()


def test_files_that_were_not_rendered_are_named(tmp_path, caplog):
    left = {"first": draw("first").without_figure(["png"])}
    assert save_drawings(left, tmp_path, ["svg"]) == []
    assert caplog.messages == ["not drawn: first: CodeqError: first: only its files are left, none of them svg"]
