"""`notebooks/own_model.ipynb`: a user's model and images, from definition to compacted network."""

import json

import nbformat
import pytest
import torch
from PIL import Image

from codeq import DATASETS, MODELS, Run
from codeq.cli.notebooks import NOTEBOOKS, run_notebook
from codeq.common.errors import CodeqError
from codeq.data import load_dataset


@pytest.fixture
def registries():
    """Entries that a test adds are removed."""
    yield
    MODELS.pop("own_net", None)
    DATASETS.pop("own_digits", None)


def execute(source: str, last: str) -> dict:
    """Execute the cells up to the one that contains `last`."""
    names: dict = {}
    for cell in json.loads((NOTEBOOKS / "own_model.ipynb").read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"])
            exec(text, names)
            if "parameters" in cell["metadata"].get("tags", []):
                names["source"] = source
            if last in text:
                break
    return names


def test_all_forms_of_the_images_give_the_same_data_set(registries):
    found = []
    for source in ("arrays", "dataset", "folder"):
        execute(source, "register_dataset(")
        data = load_dataset("own_digits", img_size=8)
        images = torch.cat([data.train.images, data.test.images]).flatten(1)
        labels = torch.cat([data.train.labels, data.test.labels])
        found.append(sorted(map(tuple, torch.cat([images, labels[:, None]], 1).tolist())))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 1797


def test_another_form_is_refused_before_the_training(registries):
    with pytest.raises(CodeqError, match="source='array': must be arrays, dataset or folder"):
        execute("array", "register_dataset(")


def check(folder, changed):
    cells = nbformat.read(folder / "own_model.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert f"{changed} of 360 predictions changed" in "".join(output.get("text", "") for output in outputs)
    for name in ("channel_liveness", "predictions"):
        with Image.open(folder / "plots" / f"{name}.png") as image:
            assert min(image.size) > 200, name
    assert set(torch.load(folder / "compacted.pt", weights_only=True))


@pytest.mark.slow
def test_a_folder_of_images_ends_as_a_compacted_network(tmp_path):
    run_notebook("own_model", {"source": "folder", "epochs": 3}, tmp_path / "run")
    check(tmp_path / "run", changed=0)
    assert len(list((tmp_path / "data" / "digits_png").glob("*/*.png"))) == 1797


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_shows_the_method_working(tmp_path, seed):
    run_notebook("own_model", {"seed": seed, "source": "dataset"}, tmp_path / "run")
    check(tmp_path / "run", changed=0)
    run = Run.open(tmp_path / "run")
    assert run.summary["accuracy_last"] >= 0.95
    assert run.summary["mean_bits"] < 6
    assert run.summary["structured_sparsity"] > 0.1
    assert run.summary["unstructured_bops_ratio"] > 25
    assert run.summary["structured_bops_ratio"] > 8
