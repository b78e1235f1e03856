"""A real JupyterLab in the Chromium of the system, and the hands of a user who drives it by keyboard and mouse."""

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
# Width and height of a picture, once it is shown: while one takes the place of another there is none.
SHOWN = f"""place => {{
    const box = {PART}('.codeq-figure')?.getBoundingClientRect();
    return box?.width && [box.width, box.height];
}}"""
OTHER_WORDS = f"([place, before]) => {PART}('.codeq-summary').innerText !== before"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def jupyter_lab(folder: Path, home: Path) -> Iterator[str]:
    """A server of its own, with settings of its own; yields its address."""
    own = {f"JUPYTER_{kind}_DIR": str(home / f".jupyter-{kind.lower()}") for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--allow-root",
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
    environment = os.environ | own | {"CODEQ_HOME": str(home)}
    log = home / "lab.log"
    for _ in range(3):  # another process may take the port before the server does, which then ends
        address = f"http://127.0.0.1:{(port := free_port())}"
        with open(log, "a") as written:
            server = subprocess.Popen([*command, f"--port={port}"], env=environment, stdout=written, stderr=written)
        with ended(server):
            if answers(f"{address}/api?token={TOKEN}", server, log):
                yield address
                return
    pytest.fail(log.read_text())


@contextmanager
def ended(server: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        server.terminate()  # it shuts its kernels down
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(url: str, server: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until the server answers or ends; return whether it answers."""
    deadline = time.monotonic() + 300
    while server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return True
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.25)
    return False


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
        page.set_default_timeout(300_000)
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
    """Actions of a user on the widgets of a page, and their results."""

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
        source, size, before = picture.get_attribute("src"), self.size(widget), self.words(widget).inner_text()
        act()
        self.page.wait_for_function(NEW_PICTURE, arg=[widget, source])
        self.page.wait_for_function(SAYS, arg=[widget, words])
        self.page.wait_for_function(OTHER_WORDS, arg=[widget, before])  # they come after the picture
        after = self.size(widget)
        assert after == size
        assert after[0] > 250  # readable

    def size(self, widget: int) -> list[float]:
        """Return width and height of a widget's picture."""
        return self.page.wait_for_function(SHOWN, arg=widget).json_value()

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
