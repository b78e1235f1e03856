"""`notebooks/study_analysis.ipynb` executed headlessly on a tiny study."""

import nbformat
import pandas as pd
import pytest
from PIL import Image

from codeq.cli.main import main
from codeq.cli.notebooks import run_notebook
from codeq.common.errors import CodeqError
from codeq.studies.figures import FIGURES

pytestmark = pytest.mark.slow
STUDY = """
name: tiny
base: configs/deadzone_mlp.yaml
set: {dataset: digits, epochs: 1, device: cpu}
grid:
  optimizer.param_groups.dz.weight_decay: [0.25, 2.5]
seeds: [0, 1]
executor: {name: local, workers: 2}
"""


def test_a_study_leaves_figures_and_tables_beside_the_executed_notebook(tmp_path):
    from codeq.common.paths import WORKBENCH

    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY.replace("configs/", f"{WORKBENCH}/configs/"))
    assert main(["sweep", str(file)]) == 0
    assert main(["notebook", "study_analysis", "-p", "study", "outputs/tiny", "--run-dir", "look"]) == 0
    folder = tmp_path / "look"
    cells = nbformat.read(folder / "study_analysis.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    shown = [output.data for output in outputs if "image/png" in output.get("data", {})]
    widgets = [data for data in shown if "application/vnd.jupyter.widget-view+json" in data]  # with a static copy each
    assert (len(shown) - len(widgets), len(widgets)) == (len(FIGURES), 1)
    for name in FIGURES:
        with Image.open(folder / "plots" / f"{name}.png") as image:
            assert min(image.size) > 200, name
    summary = pd.read_csv(folder / "summary.csv")
    assert summary["group"].tolist() == ["weight_decay=0.25", "weight_decay=2.5"]
    assert summary["n"].tolist() == [2, 2]
    runs = pd.read_csv(folder / "runs.csv")
    assert summary["mean"].tolist() == pytest.approx(runs.groupby("group")["eval/accuracy"].mean().tolist())
    assert (folder / "differences.tex").read_text("utf-8").startswith(r"\begin{tabular}")


def test_a_folder_without_runs_is_one_message(tmp_path):
    with pytest.raises(CodeqError, match="outputs/nothing holds no runs"):
        run_notebook("study_analysis", {"study": "outputs/nothing"}, tmp_path / "look")
