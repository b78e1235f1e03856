"""The notebook as a user sees it: a real JupyterLab in the Chromium of the system, driven by keyboard and mouse."""

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

import pytest
from playwright.sync_api import Locator, Page, sync_playwright

from codeq import ExperimentConfig, run_experiment
from codeq.cli.notebooks import NOTEBOOKS

pytestmark = pytest.mark.slow
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
PICTURES, WORDS = ".codeq-figure", ".codeq-summary"
NEW_PICTURE = "([place, before]) => document.querySelectorAll('.codeq-figure')[place].src !== before"
SAYS = "([place, words]) => document.querySelectorAll('.codeq-summary')[place].innerText.includes(words)"
OTHER_WORDS = "([place, before]) => document.querySelectorAll('.codeq-summary')[place].innerText !== before"


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

    def sees(self, widget: int, words: str, act: Callable[[], object]) -> None:
        """Do something, and wait until picture and words of a widget have followed without a jump of the page."""
        picture, text = self.page.locator(PICTURES).nth(widget), self.page.locator(WORDS).nth(widget)
        source, size, before = picture.get_attribute("src"), picture.bounding_box(), text.inner_text()
        act()
        self.page.wait_for_function(NEW_PICTURE, arg=[widget, source])
        self.page.wait_for_function(SAYS, arg=[widget, words])
        self.page.wait_for_function(OTHER_WORDS, arg=[widget, before])  # they come after the picture
        after = picture.bounding_box()
        assert (after["width"], after["height"]) == (size["width"], size["height"])
        assert after["width"] > 400  # readable

    def screenshot(self, heading: str, path: Path) -> None:
        self.page.locator("h2", has_text=heading).evaluate("heading => heading.scrollIntoView()")
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=path)


def test_sliders_update_figures_and_summaries_in_a_browser(tmp_path):
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
        page.evaluate(RUN_ALL)
        page.wait_for_function(ALL_RAN)
        assert page.locator(ERRORS).all_inner_texts() == []
        assert page.locator(".jp-RenderedImage img").count() == 3  # the static pictures below the widgets
        user = Hands(page)
        user.sees(0, "layer1.0.conv1", lambda: user.press("layer", "ArrowRight"))
        user.sees(0, "up to 0.02", lambda: user.press("norm threshold", "ArrowRight", "ArrowRight"))
        user.sees(0, "Filters with a norm up to 0.9", lambda: user.drag("norm threshold", 0.97))
        user.screenshot("Alive channels", tmp_path / "liveness.png")
        user.sees(0, "Epoch 1 of 2", lambda: user.press("epoch", "ArrowLeft"))
        user.sees(1, "20 of 20 layers changed", lambda: user.press("dead-zone", *["ArrowRight"] * 9))
        user.sees(1, "Mean bits: 2.00", lambda: user.drag("bit-width", 0.0))
        page.get_by_role("button", name="Accuracy").click()
        page.wait_for_selector(f"{WORDS} >> text=on 256 test images")
        user.screenshot("What-if", tmp_path / "what_if.png")
        tried = page.locator(".widget-select", has_text="return to").locator("select")
        tried.locator("option").nth(1).wait_for(state="attached")  # comes after the words
        tried.focus()
        user.sees(1, "as trained", lambda: page.keyboard.press("Home"))  # JupyterLab takes the arrow keys
        user.sees(1, "20 of 20 layers changed", lambda: tried.select_option(index=1))
        user.sees(1, "as trained", lambda: tried.select_option(index=0))
        page.get_by_role("button", name="layers").focus()
        page.keyboard.press("Space")
        page.wait_for_function(SAYS, arg=[2, "Layers of 2 runs: twin; tiny"])
        listed = page.get_by_role("textbox", name="list runs of")
        for names, words in (("twin", "Only twin is listed"), ("outputs/*", "Layers of 2 runs")):
            listed.fill(names)
            listed.press("Enter")
            page.wait_for_function(SAYS, arg=[2, words])
            assert page.locator(PICTURES).nth(2).is_visible() == (names != "twin")
        titles = [page.locator(PICTURES).nth(k).get_attribute("title") for k in range(3)]  # what screen readers say
        assert [title in page.locator(WORDS).nth(k).inner_text() for k, title in enumerate(titles)] == [True] * 3
        user.screenshot("Comparison of runs", tmp_path / "comparison.png")
        assert page.locator(ERRORS).all_inner_texts() == []
    assert not complaints


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
        page.locator(WORDS).first.scroll_into_view_if_needed()
        other = "one" if "selected: two" in page.locator(WORDS).first.inner_text() else "two"
        user.sees(0, f"selected: {other}", lambda: user.press("run", "ArrowRight"))
        across = page.locator(".widget-dropdown", has_text="x axis").locator("select")
        user.sees(0, "seed: ", lambda: across.select_option("seed"))
        page.get_by_role("button", name="Open run").click()
        page.wait_for_selector(f"{WORDS} >> text=filters alive")
        user.screenshot("Explorer", tmp_path / "study.png")
        assert page.locator(ERRORS).all_inner_texts() == []
    assert not complaints
