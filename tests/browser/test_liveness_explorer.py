"""The notebook as a user sees it: a real JupyterLab in the Chromium of the system, driven by keyboard and mouse."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from codeq import ExperimentConfig, run_experiment
from codeq.cli.notebooks import NOTEBOOKS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "browsertest"
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
IDLE = """() => {
  const context = window.jupyterapp?.shell?.currentWidget?.sessionContext;
  return context?.isReady && context.session?.kernel?.status === 'idle';
}"""
ALL_RAN = """() => {
  const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
  const codes = [...cells].filter(cell => cell.type === 'code');
  const failed = codes.some(cell => cell.outputs.toJSON().some(output => output.output_type === 'error'));
  return failed || codes.every(cell => cell.executionCount);
}"""
ERRORS = ".jp-OutputArea-output[data-mime-type$='stderr'], .jp-OutputArea-output[data-mime-type$='error']"
PANELS = ".codeq-panel"  # the first picture and the first words in a panel are its main ones; others are of its trail
PICTURE, WORDS = ".codeq-figure", ".codeq-summary"
PART = "document.querySelectorAll('.codeq-panel')[place].querySelector"
NEW_PICTURE = f"([place, before]) => {PART}('.codeq-figure')?.src !== before"
SAYS = f"([place, words]) => {PART}('.codeq-summary').innerText.includes(words)"
OTHER_WORDS = f"([place, before]) => {PART}('.codeq-summary').innerText !== before"
CHOSEN, TRIED = (0xD5, 0x5E, 0x00), (0x44, 0xAA, 0x99)  # marks of the selected channel and of a tried setting


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def jupyter_lab(folder: Path, home: Path) -> Iterator[str]:
    """A server of its own, with settings of its own; yields its address."""
    port = free_port()
    own = {f"JUPYTER_{kind}_DIR": str(home / f".jupyter-{kind.lower()}") for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None",
        f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    overrides = Path(own["JUPYTER_CONFIG_DIR"]) / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    # Without windowing all cells stay in the page, so that widgets are counted from its beginning after scrolling, too.
    tracker = {"windowingMode": "none"}
    settings = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    overrides.write_text(json.dumps(settings | {"@jupyterlab/notebook-extension:tracker": tracker}))
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | own | {"CODEQ_HOME": str(home)}, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (home / "lab.log").read_text()
                time.sleep(0.25)
        yield address
    finally:
        server.terminate()  # it shuts its kernels down
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def chromium_or_skip() -> None:
    if CHROMIUM is None:
        reason = "no chromium is installed (Debian: apt-get install chromium)"
        if os.environ.get("CODEQ_REQUIRE_BROWSER") == "1":
            pytest.fail(f"CODEQ_REQUIRE_BROWSER=1, but {reason}")
        pytest.skip(reason)


@contextmanager
def notebook_page(address: str, complaints: list[str]) -> Iterator[Page]:
    """The notebook in a window of a small laptop's size; what the browser complains of is collected."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: complaints.append(f"page: {error}"))
        page.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type == "error" else None)
        page.goto(f"{address}/lab/tree/x.ipynb?token={TOKEN}&reset")
        page.wait_for_function(IDLE)
        yield page
        browser.close()


def marks(picture: Locator, color: tuple[int, int, int]) -> np.ndarray:
    """Positions of the pixels with this colour `[N, 2]`, as fractions of width and height."""
    content = base64.b64decode(picture.get_attribute("src").partition("base64,")[2])
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    down, across = np.nonzero((abs(pixels - color) < 12).all(axis=2))
    return np.stack([across / pixels.shape[1], down / pixels.shape[0]], axis=1)


class Hands:
    """What a user does to the widgets of a page, and sees."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def slider(self, name: str) -> Locator:
        slider = self.page.locator(".widget-hslider", has_text=name)
        slider.scroll_into_view_if_needed()
        return slider

    def press(self, name: str, *keys: str) -> None:
        self.slider(name).locator(".noUi-handle").focus()
        for key in keys:
            self.page.keyboard.press(key)

    def drag(self, name: str, share: float) -> None:
        slider, mouse = self.slider(name), self.page.mouse
        track = slider.locator(".noUi-target").bounding_box()
        at = slider.locator(".noUi-handle").bounding_box()
        y = at["y"] + at["height"] / 2
        mouse.move(at["x"] + at["width"] / 2, y)
        mouse.down()
        mouse.move(track["x"] + share * track["width"], y, steps=4)
        mouse.up()

    def picture(self, widget: int) -> Locator:
        return self.page.locator(PANELS).nth(widget).locator(PICTURE).first

    def words(self, widget: int) -> Locator:
        return self.page.locator(PANELS).nth(widget).locator(WORDS).first

    def sees(self, widget: int, words: str, act: Callable[[], object]) -> None:
        """Do something, and wait until picture and words of a widget have followed without a jump of the page."""
        picture = self.picture(widget)
        source, size, before = picture.get_attribute("src"), picture.bounding_box(), self.words(widget).inner_text()
        act()
        self.page.wait_for_function(NEW_PICTURE, arg=[widget, source])
        self.page.wait_for_function(SAYS, arg=[widget, words])
        self.page.wait_for_function(OTHER_WORDS, arg=[widget, before])  # they come after the picture
        after = picture.bounding_box()
        assert (after["width"], after["height"]) == (size["width"], size["height"])
        assert after["width"] > 250  # readable

    def reads(self, widget: int, words: str) -> None:
        self.page.wait_for_function(SAYS, arg=[widget, words])

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True).first

    def click_picture(self, picture: Locator, across: float, down: float) -> None:
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        picture.click(position={"x": across * box["width"], "y": down * box["height"]})

    def screenshot(self, widget: int, path: Path) -> None:
        """Picture of the window with a widget at its top."""
        self.page.locator(PANELS).nth(widget).evaluate("panel => panel.scrollIntoView()")
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=path)


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
        assert "conv1: 16 of 16 filters alive" in user.picture(0).get_attribute("alt")
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
        user.reads(0, "Epoch 1 of 2")
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
        trail = page.locator(PANELS).nth(1).locator(PICTURE).nth(1)
        points = marks(trail, TRIED)
        user.sees(1, "20 of 20 layers changed", lambda: user.click_picture(trail, *points.mean(axis=0)))
        user.sees(1, "as trained", lambda: user.press("return to", "ArrowLeft"))
        user.sees(1, "20 of 20 layers changed", lambda: user.press("return to", "ArrowRight"))
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
        user.reads(2, "Layers of 2 runs: twin; tiny")
        listed = page.get_by_role("textbox", name="list runs of")
        for names, words in (("twin", "Only twin is listed"), ("outputs/*", "Layers of 2 runs")):
            listed.fill(names)
            listed.press("Enter")
            user.reads(2, words)
            assert user.picture(2).count() == (names != "twin")
        texts = [user.picture(k).get_attribute("alt") for k in range(3)]
        assert [text in user.words(k).inner_text() for k, text in enumerate(texts)] == [True] * 3
        user.screenshot(2, tmp_path / "comparison.png")


@pytest.mark.exhaustive
def test_a_narrow_window_and_a_dark_theme_show_everything(tmp_path):
    with explorer_page(tmp_path, width=420, theme="JupyterLab Dark") as user:
        page = user.page
        for widget in range(2):
            user.screenshot(widget, tmp_path / f"narrow_{widget}.png")
            panel = page.locator(PANELS).nth(widget)
            hidden = "panel => [...panel.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1 && "
            hidden += "getComputedStyle(e).overflowX === 'hidden' && e.clientWidth).map(e => e.className)"
            assert panel.evaluate(hidden) == []
            box = user.picture(widget).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 420
            shot = np.asarray(Image.open(io.BytesIO(user.picture(widget).screenshot())).convert("L"))
            assert np.median(shot) < 60  # dark
            assert shot.max() > 180  # with light text
        user.sees(0, "Channel 8 in the last", lambda: user.click_picture(user.picture(0), 0.3, 0.3))
        user.sees(0, "layer", lambda: user.press("layer", "End"))
        user.sees(0, "Filters with a norm up to 0.9", lambda: user.drag("norm threshold", 0.97))
        page.locator(".widget-text", has_text="relative BOPs").locator("input").fill("5")
        user.button("Solve").click()
        user.reads(1, "20 of 20 layers changed")
        user.reads(1, "on 256 test images")
        user.sees(1, "Mean bits: 2.00", lambda: user.drag("bit-width", 0.0))
        user.screenshot(1, tmp_path / "narrow_trail.png")


@pytest.mark.slow
def test_a_run_of_a_study_is_selected_by_key_and_opened_by_mouse(tmp_path):
    chromium_or_skip()
    settings = {"model": "mlp", "dataset": "synthetic", "batch_size": 256, "device": "cpu", "epochs": 1}
    study = tmp_path / "outputs" / "s"
    for seed, name in enumerate(("one", "two")):
        run_experiment(ExperimentConfig(name, run_dir=str(study / name), seed=seed, **settings))
    members = {name: {"variant": None, "varied": {"seed": seed}} for seed, name in enumerate(("one", "two"))}
    (study / ".study").mkdir()
    (study / ".study" / "members.json").write_text(json.dumps({"name": "s", "members": members}))
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / "study_analysis.ipynb", tmp_path / "notebooks" / "x.ipynb")
    complaints: list[str] = []
    with jupyter_lab(tmp_path / "notebooks", tmp_path) as address, notebook_page(address, complaints) as page:
        page.evaluate(RUN_ALL)
        page.wait_for_function(ALL_RAN)
        assert page.locator(ERRORS).all_inner_texts() == []
        user = Hands(page)
        user.words(0).scroll_into_view_if_needed()
        other = "one" if "selected: two" in user.words(0).inner_text() else "two"
        user.sees(0, f"selected: {other}", lambda: user.press("run", "ArrowRight"))
        across = page.locator(".widget-dropdown", has_text="x axis").locator("select")
        user.sees(0, "seed: ", lambda: across.select_option("seed"))
        page.get_by_role("button", name="Open run").click()
        page.wait_for_selector(f"{WORDS} >> text=filters alive")
        user.screenshot(0, tmp_path / "study.png")
        assert page.locator(ERRORS).all_inner_texts() == []
    assert not complaints
