"""The notebook as a user sees it: a real JupyterLab in the Chromium of the system, driven by keyboard and mouse."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browser.lab import (
    ALL_RAN,
    ERRORS,
    PANELS,
    PICTURE,
    RUN_ALL,
    WORDS,
    Hands,
    chromium_or_skip,
    jupyter_lab,
    marks,
    notebook_page,
)
from PIL import Image

from codeq import ExperimentConfig, run_experiment
from codeq.cli.notebooks import NOTEBOOKS

CUT_OFF = """panel => [...panel.querySelectorAll('.codeq-controls, .codeq-controls *')]
  .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 2 && getComputedStyle(e).overflowX !== 'visible')
  .map(e => `${e.className} ${e.scrollWidth} ${e.clientWidth}`)"""
CHOSEN, TRIED = (0xD5, 0x5E, 0x00), (0x44, 0xAA, 0x99)  # marks of the selected channel and of a tried setting


@contextmanager
def explorer_page(tmp_path: Path, width: int = 1366, theme: str = "JupyterLab Light") -> Iterator[Hands]:
    """The notebook after *Run All* on a ResNet-20 of two epochs."""
    chromium_or_skip()
    settings = {"dataset": "synthetic", "batch_size": 128, "device": "cpu", "epochs": 2, "exclude_layers": []}
    outputs = tmp_path / "outputs"
    kwargs = {"init_deadzone_logit": 0.6}
    run_experiment(ExperimentConfig("tiny", run_dir=str(outputs / "tiny"), quantizer_kwargs=kwargs, **settings))
    shutil.copytree(outputs / "tiny", outputs / "twin")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / "liveness_explorer.ipynb", tmp_path / "notebooks" / "x.ipynb")
    complaints: list[str] = []
    with jupyter_lab(tmp_path / "notebooks", tmp_path) as address, notebook_page(address, complaints) as page:
        page.set_viewport_size({"width": width, "height": 768})
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
        if width < 800:  # as a user makes room
            page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
        page.evaluate(RUN_ALL)
        page.wait_for_function(ALL_RAN)
        assert page.locator(ERRORS).all_inner_texts() == []
        assert page.locator(".jp-RenderedImage img").count() == 0  # no static copies beside widgets
        page.wait_for_function("() => document.querySelectorAll('.codeq-panel .codeq-figure').length >= 3")
        yield Hands(page)
        assert page.locator(ERRORS).all_inner_texts() == []
    assert not complaints


@pytest.mark.slow
def test_every_control_updates_figures_and_summaries_by_keyboard_and_mouse(tmp_path):
    with explorer_page(tmp_path) as user:
        page = user.page
        # Liveness: everything is visible at once, keys reach all settings, a click selects a channel.
        user.screenshot(0, tmp_path / "liveness_before.png")
        boxes = [user.slider(name).bounding_box() for name in ("epoch", "layer", "channel", "norm threshold")]
        boxes.append(user.picture(0).bounding_box())
        assert all(box["y"] > 0 and box["y"] + box["height"] < 768 - 24 for box in boxes)  # above the status bar
        described = user.picture(0).get_attribute("alt")
        assert "conv1: 16 of 16 filters alive" in described
        assert re.search(r"its filter was alive in all 2 epochs\. Its norm was [\d.]+ in epoch 1", described)
        user.sees(0, "layer1.0.conv1", lambda: user.press("layer", "ArrowRight"))
        user.sees(0, "Channel 2: its filter was", lambda: user.press("channel", "ArrowRight", "ArrowRight"))
        user.reads(0, "Channel 2 in the last checkpoint: live.")
        user.reads(0, "MACs and")
        user.sees(0, "Channel 8 in the last", lambda: user.click_picture(user.picture(0), 0.3, 0.3))
        found = marks(user.picture(0), CHOSEN)
        assert (np.hypot(*(found - (0.3, 0.3)).T) < 0.03).any()  # its circle
        user.sees(0, "up to 0.02", lambda: user.press("norm threshold", "ArrowRight", "ArrowRight"))
        user.sees(0, "Filters with a norm up to 0.9", lambda: user.drag("norm threshold", 0.97))
        user.screenshot(0, tmp_path / "liveness.png")
        user.sees(0, "Epoch 1 of 2", lambda: user.press("epoch", "ArrowLeft"))
        table = tmp_path / "outputs" / "twin" / "layers.csv"  # the newest run is the opened one
        content = table.read_bytes()
        table.unlink()
        user.button("Refresh").click()
        user.reads(0, "no epoch has been recorded")
        assert page.locator(PANELS).nth(0).locator(PICTURE).count() == 0  # no picture of what is gone
        table.write_bytes(content)
        user.button("Refresh").click()
        user.reads(0, "Epoch 2 of 2")
        user.picture(0).wait_for()

        # What-if: the accuracy follows without a click; tried settings are returned to by key and by click.
        user.reads(1, "on 256 test images")
        user.sees(1, "20 of 20 layers changed", lambda: user.press("dead-zone", *["ArrowRight"] * 9))
        user.sees(1, "Mean bits: 2.00", lambda: user.drag("bit-width", 0.0))
        user.reads(1, "on 256 test images")
        user.screenshot(1, tmp_path / "what_if.png")
        boxes = [user.slider(name).bounding_box() for name in ("dead-zone", "bit-width")]
        boxes.append(user.picture(1).bounding_box())
        assert all(box["y"] > 0 and box["y"] + box["height"] < 768 - 24 for box in boxes)
        user.button("Reset").click()
        user.reads(1, "as trained")
        page.locator("li b", has_text="as trained").wait_for()  # the trail follows the words
        trail = page.locator(PANELS).nth(1).locator(PICTURE).nth(1)
        # The setting before the last one is in the trail if it was measured in time; two bits cost least.
        earlier = page.locator(PANELS).nth(1).locator("li").count() - 1
        points = marks(trail, TRIED)
        point = points[points[:, 0].argmin()]
        user.sees(1, "Mean bits: 2.00", lambda: user.click_picture(trail, *point))
        user.sees(1, "as trained", lambda: user.press("return to", *["ArrowLeft"] * earlier))
        user.sees(1, "Mean bits: 2.00", lambda: user.press("return to", *["ArrowRight"] * earlier))
        layer = page.locator(".widget-dropdown", has_text="set").first.locator("select")
        layer.select_option("linear")
        user.sees(1, "Mean bits: 2.05", lambda: user.press("bit-width", "ArrowRight"))
        user.screenshot(1, tmp_path / "trail.png")
        page.locator(".widget-text", has_text="save as").locator("input").fill("saved.yaml")
        user.button("Save as config").click()
        page.wait_for_selector("text=codeq train --config")
        assert (tmp_path / "saved.yaml").is_file()

        # Comparison: by curves and by layers, of the runs that are named.
        page.get_by_role("button", name="layers").focus()
        page.keyboard.press("Space")
        user.reads(2, "Layers of 2 runs: tiny; twin")
        listed = page.get_by_role("textbox", name="list runs of")
        for names, words in (("twin", "Only twin is listed"), ("outputs/*", "Layers of 2 runs")):
            listed.fill(names)
            listed.press("Enter")
            user.reads(2, words)
            assert user.picture(2).count() == (names != "twin")
        texts = [user.picture(k).get_attribute("alt") for k in range(3)]
        words = [" ".join(user.words(k).inner_text().split()) for k in range(3)]  # paragraphs as one
        assert [text in said for text, said in zip(texts, words, strict=True)] == [True] * 3
        user.screenshot(2, tmp_path / "comparison.png")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("width", "theme"), [(420, "Dark"), (420, "Light"), (1366, "Dark")])
def test_a_narrow_window_and_a_dark_theme_show_everything(tmp_path, width, theme):
    with explorer_page(tmp_path, width, f"JupyterLab {theme}") as user:
        page = user.page
        for widget in range(3):
            user.screenshot(widget, tmp_path / f"widget_{widget}.png")
            panel = page.locator(PANELS).nth(widget)
            assert panel.evaluate(CUT_OFF) == []
            box = user.picture(widget).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            shot = np.asarray(Image.open(io.BytesIO(user.picture(widget).screenshot())).convert("L"))
            assert np.median(shot) < 60 if theme == "Dark" else np.median(shot) > 200
            assert np.ptp(shot) > 150  # text and marks stand out
        user.sees(0, "Channel 8 in the last", lambda: user.click_picture(user.picture(0), 0.3, 0.3))
        user.sees(0, "linear: 10 of 10", lambda: user.press("layer", "End"))
        user.sees(0, "Filters with a norm up to 0.9", lambda: user.drag("norm threshold", 0.97))
        page.locator(".widget-text", has_text="relative BOPs").locator("input").fill("5")
        user.button("Solve").click()
        user.reads(1, "20 of 20 layers changed")
        user.reads(1, "on 256 test images")
        user.sees(1, "Mean bits: 2.00", lambda: user.drag("bit-width", 0.0))
        user.screenshot(1, tmp_path / "trail.png")
        page.get_by_role("button", name="layers").click()
        user.reads(2, "Layers of 2 runs: tiny; twin")
        user.screenshot(2, tmp_path / "comparison.png")


@pytest.mark.slow
def test_every_control_of_a_study_works_by_keyboard_and_mouse(tmp_path):
    chromium_or_skip()
    settings = {"model": "mlp", "dataset": "synthetic", "batch_size": 256, "device": "cpu", "epochs": 1}
    study = tmp_path / "outputs" / "s"
    for seed, name in enumerate(("one", "two")):
        run_experiment(ExperimentConfig(name, run_dir=str(study / name), seed=seed, **settings))
    members = {name: {"variant": None, "varied": {"seed": seed}} for seed, name in enumerate(("one", "two"))}
    (study / ".study").mkdir()
    (study / ".study" / "members.json").write_text(json.dumps({"name": "s", "members": members}))
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(NOTEBOOKS / "study_analysis.ipynb", 4)
    shown = "from codeq.widgets import StudyStatus\nStudyStatus('outputs/s')"
    notebook.cells.append(nbformat.v4.new_code_cell(shown, metadata={"trusted": True}))
    nbformat.write(notebook, tmp_path / "notebooks" / "x.ipynb")
    complaints: list[str] = []
    with jupyter_lab(tmp_path / "notebooks", tmp_path) as address, notebook_page(address, complaints) as page:
        page.evaluate(RUN_ALL)
        page.wait_for_function(ALL_RAN)
        assert page.locator(ERRORS).all_inner_texts() == []
        user = Hands(page)
        user.words(0).scroll_into_view_if_needed()
        other = "one" if "selected: two" in user.words(0).inner_text() else "two"
        user.sees(0, f"selected: {other}", lambda: user.press("run", "ArrowRight"))

        def choose(label, option):
            return lambda: page.locator(".widget-dropdown", has_text=label).locator("select").select_option(option)

        user.sees(0, "seed: ", choose("x axis", "seed"))
        user.sees(0, "eval/loss: ", choose("y axis", "eval/loss"))
        user.sees(0, "train/ce_loss: ", choose("colour", "train/ce_loss"))
        choose("filter by", "epoch")()  # a single value: there is nothing to limit
        user.reads(0, "epoch: ")
        choose("filter by", "seed")()
        page.wait_for_function("() => !document.querySelector('.widget-hslider .noUi-target[disabled]')")
        limits = user.slider("between").locator(".noUi-handle")
        limits.nth(1).focus()
        user.sees(0, "1 of 2 runs shown; selected: one", lambda: page.keyboard.press("Home"))
        limits.nth(1).focus()
        user.sees(0, "2 of 2 runs shown", lambda: page.keyboard.press("End"))
        metrics = study / "two" / "metrics.csv"
        metrics.write_text("\n".join(metrics.read_text().splitlines()[:1]) + "\n")  # its only epoch is lost
        user.sees(0, "1 of 2 runs shown; selected: one", user.button("Refresh").click)
        user.button("Open run").click()
        page.wait_for_selector(f"{WORDS} >> text=filters alive")
        user.screenshot(0, tmp_path / "study.png")

        page.wait_for_selector("text=2 members: 2 done")
        (study / "two" / "status.json").write_text(json.dumps({"status": "failed", "message": "CodeqError: no disk"}))
        page.get_by_role("button", name="Stop updates").click()
        page.get_by_role("button", name="Refresh", exact=True).last.click()
        page.wait_for_selector("text=2 members: 1 done, 1 failed")
        page.wait_for_selector("td >> text=no disk")
        page.screenshot(path=tmp_path / "status.png")
        assert page.locator(ERRORS).all_inner_texts() == []
    assert not complaints
