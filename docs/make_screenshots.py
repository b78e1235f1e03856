"""Photograph the widgets in JupyterLab for README.md: ``python docs/make_screenshots.py [RUN]``, after ``make debug``.

Writes an animation of a moving slider and a picture of the what-if widget to docs/images/, and for a run with
``tensorboard: true`` the page of TensorBoard. Needs the extra ``dev`` and Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import nbformat
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from codeq.analysis import find_run
from codeq.common.errors import CodeqError
from codeq.runs import Run

IMAGES = Path(__file__).parent / "images"
WINDOW = {"width": 1366, "height": 1000}  # of which a widget takes 768 at most
LARGEST = 500_000  # bytes of the animation: images in a repository are downloaded with every clone
COLORS = 128  # size of the palette
FRAME_TIME = 350  # milliseconds
TOKEN = "screenshots"
CELLS = (
    "from codeq import Run\nfrom codeq.widgets import LivenessExplorer, WhatIf\nrun = Run.open({folder!r})",
    "LivenessExplorer(run)",
    "WhatIf(run)",
)
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
HIDE_SIDEBAR = "() => { window.jupyterapp.shell.collapseLeft(); }"
IDLE = """() => {
  const context = window.jupyterapp?.shell?.currentWidget?.sessionContext;
  return context?.isReady && context.session?.kernel?.status === 'idle';
}"""
DRAWN = "([count]) => [...document.querySelectorAll('.codeq-figure')].filter(one => one.naturalWidth).length === count"
EXPLAINED = "() => !document.body.innerText.includes('Explaining')"
MEASURED = "() => !document.body.innerText.includes('measuring')"
NEW_PICTURE = "([place, before]) => document.querySelectorAll('.codeq-figure')[place].src !== before"


@contextmanager
def serve(command: Sequence[str], log: Path, cwd: Path, **settings: str) -> Iterator[str]:
    """Run a server in the folder `cwd`, with ``{port}`` in its command; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", *(word.format(port=port) for word in command)]
    with open(log, "w") as file:
        server = subprocess.Popen(words, env=os.environ | settings, stdout=file, stderr=file, cwd=cwd)
    try:
        for _ in range(720):  # three minutes, for a busy machine
            try:
                urllib.request.urlopen(address, timeout=2).close()
                break
            except OSError as error:
                if server.poll() is not None:
                    raise CodeqError(f"{command[0]} ended: {log.read_text()[-2000:]}") from error
                time.sleep(0.25)
        else:
            raise CodeqError(f"{command[0]} does not answer at {address}")
        yield address
    finally:
        server.terminate()  # JupyterLab shuts its kernels down
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def jupyter_lab(folder: Path) -> AbstractContextManager[str]:
    """Serve JupyterLab in `folder`, with default settings."""
    overrides = folder / ".config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    quiet = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    overrides.write_text(json.dumps(quiet | {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}))
    command = [
        "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port={port}", "--allow-root",
        f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    settings = {f"JUPYTER_{kind}_DIR": str(folder / f".{kind.lower()}") for kind in ("CONFIG", "DATA", "RUNTIME")}
    return serve(command, folder / "lab.log", folder, **settings)


@contextmanager
def new_page() -> Iterator[Page]:
    """Open a page of the Chromium of the system."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise CodeqError("no chromium is installed (Debian: apt-get install chromium)")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(120_000)
        yield page
        browser.close()


@contextmanager
def open_widgets(run_folder: Path) -> Iterator[Page]:
    """Show the widgets of a run in a notebook; yields the page, in which all pictures are drawn."""
    kernel = {"name": "python3", "display_name": "Python 3"}  # without one, JupyterLab asks
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell(source.format(folder=str(run_folder))) for source in CELLS]
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(notebook, Path(folder, "workbench.ipynb"))
        with jupyter_lab(Path(folder)) as address, new_page() as page:
            page.goto(f"{address}/lab/tree/workbench.ipynb?token={TOKEN}&reset")
            page.wait_for_function(IDLE)
            page.evaluate(HIDE_SIDEBAR)
            page.evaluate(RUN_ALL)
            page.wait_for_function(DRAWN, arg=[len(CELLS) - 1])
            yield page


def photograph(seen: Page | Locator) -> Image.Image:
    """Return a picture of a page, or of a whole widget with its controls and text."""
    return Image.open(io.BytesIO(seen.screenshot())).convert("RGB")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as a PNG with few colours."""
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def move(page: Page, place: int, name: str, *keys: str) -> None:
    """Press keys on the slider `name` of the widget at `place`, and wait for its new picture after each."""
    for key in keys:
        before = page.locator(".codeq-figure").nth(place).get_attribute("src")
        page.locator(".widget-hslider:visible", has_text=name).first.locator(".noUi-handle").focus()
        page.keyboard.press(key)
        page.wait_for_function(NEW_PICTURE, arg=[place, before])
        page.wait_for_timeout(150)  # the words come after the picture


def photograph_widgets(run: Run, folder: Path) -> None:
    """Write the epochs of the liveness explorer as an animation, and the what-if widget with a wider dead-zone."""
    with open_widgets(run.folder) as page:
        widgets = page.locator(".jp-OutputArea-output", has=page.locator(".codeq-figure"))
        move(page, 0, "layer", "End", "ArrowLeft")
        move(page, 0, "epoch", "Home")
        page.wait_for_function(EXPLAINED)
        frames = [photograph(widgets.nth(0))]
        for _ in range(len(run.history) - 1):
            move(page, 0, "epoch", "ArrowRight")
            frames.append(photograph(widgets.nth(0)))
        move(page, 1, "dead-zone", "PageUp")
        page.wait_for_function(MEASURED)
        page.wait_for_timeout(3_000)  # the picture of the tried settings comes after the words
        save_picture(photograph(widgets.nth(1)), folder / "what_if.png")
    save_animation(frames, folder / "liveness_explorer.gif")


def photograph_tensorboard(run: Run, path: Path) -> None:
    """Write TensorBoard's page of a run."""
    command = ["tensorboard.main", "--logdir", run.folder.name, "--port", "{port}"]
    where = run.folder.parent
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(command, Path(folder, "log"), where) as address,
        new_page() as page,
    ):
        page.goto(f"{address}/#scalars")  # drawn without a GPU, other than the first page
        page.locator("svg path.line").first.wait_for(state="attached")  # not "visible": a level line has no height
        page.wait_for_timeout(5_000)  # the page says nowhere that all curves are drawn
        save_picture(photograph(page), path)


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write `frames` as a GIF that repeats, with a pause at its end."""
    # One palette for all, so that only what changes is stored.
    last = frames[-1].quantize(COLORS, dither=Image.Dither.NONE)
    first, *others = (frame.quantize(palette=last, dither=Image.Dither.NONE) for frame in frames)
    times = [FRAME_TIME] * len(others) + [4 * FRAME_TIME]
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures of one run and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="latest", help="run (default: the newest in outputs/)")
    parser.add_argument("--folder", type=Path, default=IMAGES, help="folder to write to (default: docs/images)")
    options = parser.parse_args(arguments)
    run = find_run(options.run)
    options.folder.mkdir(parents=True, exist_ok=True)
    photograph_widgets(run, options.folder)
    if (run.folder / "tensorboard").is_dir():
        photograph_tensorboard(run, options.folder / "tensorboard.png")
    animation = options.folder / "liveness_explorer.gif"
    if animation.stat().st_size > LARGEST:
        raise CodeqError(f"{animation} has {animation.stat().st_size:,} bytes; at most {LARGEST:,} are allowed")
    for path in sorted(options.folder.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    try:
        main()
    except CodeqError as error:
        sys.exit(f"make_screenshots: {error}")
