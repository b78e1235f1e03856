"""The pictures of README.md that show the workbench in a browser."""

import runpy
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from codeq import ExperimentConfig, run_experiment

SCRIPT = Path(__file__).parents[2] / "docs" / "make_screenshots.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.exhaustive
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_the_script_photographs_widgets_and_tensorboard(tmp_path):
    settings = {"dataset": "synthetic", "batch_size": 128, "device": "cpu", "epochs": 2, "exclude_layers": []}
    run = run_experiment(ExperimentConfig("tiny", run_dir=str(tmp_path / "tiny"), tensorboard=True, **settings))
    script = runpy.run_path(str(SCRIPT))
    script["main"]([str(run.folder), "--folder", str(tmp_path / "images")])
    with ExitStack() as stack:
        pictures = {path.name: stack.enter_context(Image.open(path)) for path in (tmp_path / "images").iterdir()}
        assert pictures.keys() == {"liveness_explorer.gif", "what_if.png", "tensorboard.png"}
        for picture in pictures.values():
            assert picture.width > 1000
            assert picture.height > 400
        animation = pictures["liveness_explorer.gif"]
        assert animation.n_frames == 2
        frames = []
        for k in range(2):
            animation.seek(k)
            frames.append(animation.convert("RGB"))
        changed = ImageChops.difference(*frames).getbbox()
        assert changed[1] < 100  # the slider above the picture has moved, too


def test_the_pictures_of_the_documentation_exist_and_are_small():
    folder = SCRIPT.parent / "images"
    named = {"liveness_explorer.gif", "what_if.png", "tensorboard.png"}
    assert named <= {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
