"""`notebooks/liveness_explorer.ipynb` executed headlessly: on a run, on a piece of one, and on none."""

import html
import shutil

import nbformat
import pytest
from PIL import Image

from codeq import ExperimentConfig, Run, run_experiment
from codeq.cli.notebooks import run_notebook
from codeq.common.errors import CodeqError

pytestmark = pytest.mark.slow
FIGURES = {"liveness", "what_if", "comparison"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    settings = {"dataset": "synthetic", "batch_size": 256, "device": "cpu", "epochs": 1, "exclude_layers": []}
    return run_experiment(ExperimentConfig("tiny", run_dir=str(folder), **settings))


def outputs(executed) -> tuple[str, int, int]:
    """All text that the cells put out, and how many static pictures and widgets."""
    cells = nbformat.read(executed, as_version=4).cells
    found = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in found if output.output_type == "error" or output.get("name") == "stderr"]
    data = [output.get("data", {}) for output in found]
    text = "".join(output.get("text", "") for output in found) + "".join(d.get("text/plain", "") for d in data)
    return text, sum("image/png" in d for d in data), sum("application/vnd.jupyter.widget-view+json" in d for d in data)


def widget_words(executed) -> str:
    """Return the texts of all widgets, from the state that the notebook keeps of them."""
    state = nbformat.read(executed, as_version=4).metadata.widgets["application/vnd.jupyter.widget-state+json"]
    return html.unescape(" ".join(str(model["state"].get("value", "")) for model in state["state"].values()))


def pictures(executed) -> set[str]:
    found = {path.stem: path for path in (executed.parent / "plots").glob("*.png")}
    for path in found.values():
        with Image.open(path) as image:
            assert min(image.size) > 100, path
    return set(found)


def test_a_run_leaves_widgets_and_static_pictures(run, tmp_path):
    executed = run_notebook("liveness_explorer", {"run": str(run.folder)}, tmp_path / "look")
    text, static, widgets = outputs(executed)
    assert "status='done'" in text
    assert (static, widgets) == (3, 3)
    assert pictures(executed) == FIGURES


def test_an_unfinished_run_shows_what_it_has(run, tmp_path):
    folder = tmp_path / "outputs" / "unfinished"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("checkpoints", "summary.json"))
    Run.open(folder).set_status("failed", "the disk is full")
    executed = run_notebook("liveness_explorer", {}, tmp_path / "look")  # it is the newest run
    text, static, widgets = outputs(executed)
    assert "status='failed'" in text
    assert (static, widgets) == (3, 3)
    words = widget_words(executed)
    assert "Recorded masks and norms; without a checkpoint skip connections are not known." in words
    assert "unfinished cannot be requantized" in words
    assert "Only unfinished is listed" in words


def test_several_runs_are_compared(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "outputs" / "other")
    executed = run_notebook("liveness_explorer", {"run": str(run.folder)}, tmp_path / "look")
    words = widget_words(executed)
    assert "Learning curves of 2 runs: other; tiny." in words
    assert "No setting differs." in words
    with Image.open(executed.parent / "plots" / "comparison.png") as image:
        assert image.height > 400  # panels, not a message


def test_an_unknown_parameter_is_an_error_before_anything_starts(tmp_path):
    with pytest.raises(CodeqError, match=r"no parameter 'runs'\. Did you mean 'run'"):
        run_notebook("liveness_explorer", {"runs": "outputs/a"}, tmp_path / "look")
    assert not list(tmp_path.iterdir())


def test_without_any_run_it_says_how_to_make_one(tmp_path):
    with pytest.raises(CodeqError, match=r"there is none in .*outputs yet: `codeq notebook debug_run` makes one"):
        run_notebook("liveness_explorer", {}, tmp_path / "look")
