import shutil

import pandas as pd
import pytest
from run_tables import record, written_run

from codeq.common.errors import CodeqError
from codeq.plots import compared_curves, set_theme
from codeq.runs import Run
from codeq.widgets import RunComparer
from codeq.widgets.panel import png

PNG = b"\x89PNG"


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "outputs" / "study"
    return [written_run(folder / name, bits=bits, lr=lr) for name, bits, lr in (("a", 8, 0.1), ("b", 4, 0.2))]


def test_any_number_of_runs_is_compared_in_two_pictures(runs, tmp_path):
    third = written_run(tmp_path / "outputs" / "other", accuracies=(0.25,), lr=0.4)
    comparer = RunComparer([*runs, third])
    assert comparer.selected.value == (1, 2)
    comparer.selected.value = (0, 1, 2)
    assert comparer.summary()[0] == "Learning curves of 3 runs: lr=0.1; lr=0.2; lr=0.4."
    assert (
        "lr=0.4: running, epoch 1 of 300, test accuracy 25.00%; BOPs 20.0× (5.0 %) unstructured" in comparer.text.value
    )
    assert comparer.settings().loc["optimizer.param_groups.base.lr"].tolist() == ["0.1", "0.2", "0.4"]
    assert "<th>optimizer.param_groups.base.lr</th>" in comparer.text.value
    curves = comparer.image.value
    assert curves == png(comparer.figure())
    assert comparer.image.alt == comparer.summary()[0]
    comparer.view.value = "layers"
    assert comparer.image.value == png(comparer.figure()) != curves
    assert "128.0 million more in lr=0.1 than in lr=0.2" in comparer.text.value  # 32 * 10^6 * (8 - 4)
    assert comparer.layers()["bits"].tolist() == [8] * 3 + [4] * 3 + [8] * 3


def test_a_run_that_is_given_twice_is_listed_once_at_its_last_place(runs, tmp_path):
    a, b = runs
    (tmp_path / "link").symlink_to(a.folder)
    comparer = RunComparer([a, b, Run(tmp_path / "link"), a])
    assert [run.folder for run in comparer.runs] == [b.folder, a.folder]
    assert comparer.selected.value == (0, 1)


def test_the_theme_of_a_picture_seen_before_is_that_of_now(runs):
    comparer = RunComparer(runs)
    light = comparer.image.value
    set_theme("dark")
    try:
        comparer.refresh.click()
        comparer.view.value = "layers"
        comparer.view.value = "learning curves"
        dark = comparer.image.value
        assert "codeq-drawn-dark" in comparer.image._html.value
    finally:
        set_theme("light")
    comparer.view.value = "layers"
    comparer.view.value = "learning curves"
    assert comparer.image.value == light != dark
    assert "codeq-drawn-dark" not in comparer.image._html.value


def test_runs_with_and_without_a_validation_split_are_compared_on_the_test_images(runs):
    a, b = runs
    a.history.assign(**{"test/accuracy": [0.375, 0.625]}).to_csv(a.folder / "metrics.csv", index=False)
    comparer = RunComparer([a, b])
    accuracy = comparer.figure().axes[0]
    assert accuracy.get_title("left") == "test accuracy (%)"
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[37.5, 62.5], [50, 75]]
    assert "lr=0.1: running, epoch 2 of 300, test accuracy 62.50%" in comparer.text.value
    assert "lr=0.2: running, epoch 2 of 300, test accuracy 75.00%" in comparer.text.value


def test_a_damaged_table_of_layers_leaves_the_picture_of_layers_to_the_other_runs(runs, tmp_path):
    damaged = written_run(tmp_path / "outputs" / "damaged", lr=0.4)
    (damaged.folder / "layers.csv").write_text("epoch,layer\n0,fc1\n")
    comparer = RunComparer([*runs, damaged])
    comparer.selected.value = (0, 1, 2)
    assert "damaged is left out" not in comparer.text.value
    comparer.view.value = "layers"
    assert comparer.layers()["run"].unique().tolist() == ["lr=0.1", "lr=0.2"]
    assert bytes(comparer.image.value).startswith(PNG)
    assert "Layers of 2 runs: lr=0.1; lr=0.2." in comparer.text.value
    assert "damaged is left out: " in comparer.text.value
    assert "layers.csv has no column" in comparer.text.value
    comparer.selected.value = (1, 2)
    assert comparer.image.value == b""
    assert "Fewer than two of the selected runs have layers that can be read" in comparer.text.value
    (damaged.folder / "layers.csv").write_bytes((runs[0].folder / "layers.csv").read_bytes())
    comparer.refresh.click()
    assert bytes(comparer.image.value).startswith(PNG)


def test_a_selection_without_a_picture_leaves_none(runs, tmp_path):
    comparer = RunComparer(runs)
    assert bytes(comparer.image.value).startswith(PNG)
    for chosen, words in (((1,), "only b is selected"), ((), "no run is selected")):
        comparer.selected.value = (0, 1)
        comparer.selected.value = chosen
        assert (bytes(comparer.image.value), comparer.image.layout.display) == (b"", "none")
        assert words in comparer.text.value
        assert png(comparer.figure()).startswith(PNG)  # a message
    other = written_run(tmp_path / "mlp", layers=("fc",))
    comparer = RunComparer([*runs, other])
    comparer.view.value = "layers"
    assert bytes(comparer.image.value) == b""
    assert "no layer in common" in comparer.text.value
    assert "Only a is listed" in RunComparer(runs[:1]).text.value


def test_runs_are_listed_by_a_folder_and_read_again(runs, tmp_path):
    comparer = RunComparer([written_run(tmp_path / "mine"), written_run(tmp_path / "begun", accuracies=())])
    assert [label for label, _ in comparer.selected.options] == ["mine"]
    comparer.reference.value = "study"
    assert (comparer.selected.value, [run.folder.name for run in comparer.runs]) == ((0, 1), ["a", "b"])
    written_run(tmp_path / "outputs" / "study" / "c", lr=0.3)
    record(runs[0], (0.5, 0.75, 0.875))
    before = comparer.image.value
    comparer.refresh.click()
    assert comparer.selected.value == (0, 1)  # the new one is listed, and the selection is kept
    assert len(comparer.runs) == 3
    assert "epoch 3 of 300, test accuracy 87.50%" in comparer.text.value
    assert comparer.image.value != before
    comparer.reference.value = "studdy"
    assert "no run is named" in comparer.text.value
    assert bytes(comparer.image.value) == b""
    comparer.reference.value = ""
    assert len(comparer.runs) == 1


def test_a_run_that_is_still_training_is_shown_at_one_moment(runs):
    comparer = RunComparer(runs)
    record(runs[0], (0.5, 0.75, 0.875))
    path = runs[0].folder / "layers.csv"
    layers = pd.read_csv(path, dtype=str)
    layers.assign(bits=layers["bits"].mask(layers["epoch"] == "2", "2")).to_csv(path, index=False)
    runs[0].set_status("done")
    comparer.view.value = "layers"
    assert "lr=0.1: running, epoch 2 of 300" in comparer.text.value
    assert comparer.layers()["bits"].tolist() == [8] * 3 + [4] * 3
    comparer.refresh.click()
    assert "lr=0.1: done, epoch 3 of 300" in comparer.text.value
    assert comparer.layers()["bits"].tolist() == [2] * 3 + [4] * 3


def test_a_run_that_was_removed_meanwhile_is_named(runs, tmp_path):
    comparer = RunComparer([*runs, written_run(tmp_path / "outputs" / "c", lr=0.3)])
    shutil.rmtree(runs[0].folder)
    comparer.selected.value = (0, 1)
    assert "Moved or removed since the list was made: a. Refresh" in comparer.text.value
    comparer.view.value = "layers"
    assert bytes(comparer.image.value) == b""
    comparer.selected.value = (1, 2)
    assert bytes(comparer.image.value).startswith(PNG)
    comparer.refresh.click()
    assert [label for label, _ in comparer.selected.options] == ["b", "c"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("step,eval/accuracy\n0,0.5\n", "has no column epoch"),
        ("epoch,eval/accuracy\n0,0.5,3\n", "its rows have more cells than columns"),
        ("epoch,eval/accuracy\n0,y\n", "not every eval/accuracy in it is a number"),
        ("\x80\n", "metrics.csv cannot be read"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_compared(runs, tmp_path, text, reason):
    damaged = written_run(tmp_path / "outputs" / "damaged")
    (damaged.folder / "metrics.csv").write_bytes(text.encode("latin-1"))
    comparer = RunComparer([*runs, damaged])
    assert f"damaged is left out: {damaged.folder / 'metrics.csv'}" in comparer.text.value
    assert comparer.summary()[0].startswith("Fewer than two of the selected runs can be read.")
    comparer.selected.value = (0, 1, 2)
    assert comparer.summary()[0] == "Learning curves of 2 runs: lr=0.1; lr=0.2."
    assert reason in comparer.text.value
    assert bytes(comparer.image.value).startswith(PNG)


def test_more_runs_than_can_be_distinguished_are_refused(runs):
    histories = {str(k): runs[0].history for k in range(29)}
    with pytest.raises(CodeqError, match="29 runs are too many for one picture: at most 28"):
        compared_curves(histories)
