import gc
import json
import shutil
import weakref

import ipywidgets
import pandas as pd
import pytest

from codeq.common.errors import CodeqError
from codeq.studies import collect
from codeq.studies.analysis import read_results
from codeq.studies.results import read_again
from codeq.widgets import LivenessExplorer, StudyExplorer, study
from codeq.widgets.panel import png
from codeq.widgets.study_figure import scatter

PNG = b"\x89PNG"
# Accuracy, BOPs ratio and learning rate of each run; the last one has recorded nothing.
RUNS = {"a": (0.9, 10.0, 0.1), "b": (0.8, 40.0, 0.2), "c": (0.7, 20.0, 0.4), "d": (0.6, 5.0, 0.4), "early": None}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "outputs" / "s"
    for k, (name, figures) in enumerate(RUNS.items()):
        run = root / name
        run.mkdir(parents=True)
        rate = figures[2] if figures else 0.1
        (run / "config.yaml").write_text(f"seed: {k}\noptimizer: {{lr: {rate}}}\ntheta: {'l1' if k < 2 else 'l2'}\n")
        state = {"status": "done" if figures else "died", "message": "", "host": "x", "pid": 1}
        (run / "status.json").write_text(json.dumps(state))
        if figures:
            columns = "epoch,eval/accuracy,compression/unstructured_bops_ratio,layers/fc/bits"
            (run / "metrics.csv").write_text(f"{columns}\n0,{figures[0]},{figures[1]},4\n")
    return root


@pytest.fixture
def explorer(folder) -> StudyExplorer:
    return StudyExplorer(collect("outputs/s"))


def names(explorer) -> list[str]:
    return [label for label, value in explorer.point.options if value >= 0]


def points(explorer) -> list[list[float]]:
    axes = explorer.figure().axes[0]
    return sorted(point for part in axes.collections[:-1] for point in part.get_offsets().tolist())


def test_it_opens_with_accuracy_against_relative_bops(explorer):
    assert (explorer.x.value, explorer.y.value, explorer.color.value) == (
        "relative BOPs, unstructured", "eval/accuracy", "optimizer.lr",
    )  # fmt: skip
    assert names(explorer) == ["b", "c", "a", "d"]  # from left to right; one has recorded nothing
    assert points(explorer) == [[0.025, 0.8], [0.05, 0.7], [0.1, 0.9], [0.2, 0.6]]
    assert "4 of 5 runs shown; selected: b, done." in explorer.text.value
    assert bytes(explorer.image.value).startswith(PNG)
    assert explorer.image.value == png(explorer.figure())
    assert "layers/fc/bits" not in explorer.x.options


def test_with_two_kinds_of_evaluation_images_it_opens_with_the_accuracy_on_the_test_images(folder):
    metrics = folder / "a" / "metrics.csv"
    metrics.write_text("epoch,eval/accuracy,test/accuracy,compression/unstructured_bops_ratio\n0,0.9,0.5,10\n")
    mixed = StudyExplorer(collect("outputs/s"))
    assert mixed.y.value == "test/accuracy"
    assert points(mixed) == [[0.025, 0.8], [0.05, 0.7], [0.1, 0.5], [0.2, 0.6]]
    alike = StudyExplorer(collect("outputs/s/a"))
    assert alike.y.value == "eval/accuracy"


def test_axes_and_colour_change_the_picture(explorer):
    for control, value in (
        (explorer.x, "seed"),
        (explorer.y, "epoch"),
        (explorer.color, ""),
        (explorer.color, "theta"),
    ):
        before = explorer.image.value
        control.value = value
        assert explorer.image.value != before
    assert names(explorer) == ["a", "b", "c", "d"]
    legend = explorer.figure().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["l1", "l2"]


def test_the_ring_is_around_the_selected_run_which_keeps_selected(explorer):
    explorer.point.value = 0
    ring = explorer.figure().axes[0].collections[-1].get_offsets().tolist()
    assert ring == [[0.1, 0.9]]
    assert "selected: a, done." in explorer.text.value
    explorer.x.value = "seed"
    assert explorer.point.value == 0


def test_the_filter_hides_runs_and_moves_the_selection_if_its_run_is_hidden(explorer):
    explorer.filter.value = "eval/accuracy"
    assert (explorer.range.min, explorer.range.max, explorer.range.value) == (0.6, 0.9, (0.6, 0.9))
    assert names(explorer) == ["b", "c", "a", "d"]
    explorer.range.value = (0.75, 0.9)
    assert names(explorer) == ["b", "a"]
    assert "2 of 5 runs shown" in explorer.text.value
    explorer.range.value = (0.85, 0.9)
    assert names(explorer) == ["a"]
    assert (explorer.point.value, explorer.point.disabled, len(explorer.point.options)) == (0, True, 2)
    explorer.range.value = (0.61, 0.65)
    assert names(explorer) == []
    assert "None of 5 runs is shown" in explorer.text.value
    assert explorer.open_run.disabled
    assert explorer.image.value == b""
    assert png(explorer.figure()).startswith(PNG)
    explorer.filter.value = "compression/unstructured_bops_ratio"
    assert explorer.range.value == (5, 40)
    explorer.filter.value = ""
    assert names(explorer) == ["b", "c", "a", "d"]
    assert explorer.range.disabled


def test_a_filter_with_one_value_is_disabled_and_hides_nothing(explorer):
    explorer.filter.value = "epoch"
    assert explorer.range.disabled
    assert explorer.range.min < explorer.range.max
    assert len(names(explorer)) == 4


def test_the_selected_run_opens_in_the_liveness_explorer(explorer, folder):
    explorer.point.value = 2
    explorer.open_run.click()
    (opened,) = explorer.opened.children
    assert isinstance(opened, LivenessExplorer)
    assert opened.run.folder == folder / "c"
    explorer.point.value = 0
    explorer.open_run.click()
    assert explorer.opened.children[0].run.folder == folder / "a"


def test_refresh_follows_running_members(explorer, folder):
    explorer.x.value = "seed"
    explorer.point.value = 2
    before = explorer.image.value
    path = folder / "c" / "metrics.csv"
    header, *rows = path.read_text().splitlines()
    values = dict(zip(header.split(","), rows[-1].split(","), strict=True)) | {"epoch": "7", "eval/accuracy": "0.875"}
    path.write_text("\n".join([header, *rows, ",".join(values.values())]) + "\n")
    explorer.refresh.click()
    assert explorer.table.loc[2, ["epoch", "eval/accuracy"]].tolist() == [7, 0.875]
    assert (explorer.x.value, explorer.point.value) == ("seed", 2)
    assert "87.50 %" in explorer.text.value
    assert explorer.image.value != before


def test_rows_of_any_index_are_told_apart(folder):
    table = collect("outputs/s")
    explorer = StudyExplorer(table[table["run"] != "a"])
    explorer.point.value = next(value for label, value in explorer.point.options if label == "c")
    explorer.refresh.click()
    assert "selected: c, done." in explorer.text.value
    twice = StudyExplorer(table.set_axis([0, 1, 0, 1, 2], axis="index"))  # as of two tables, one after the other
    assert names(twice) == ["b", "c", "a", "d"]
    assert "selected: b, done." in twice.text.value


def test_refresh_keeps_runs_apart_that_a_later_one_repeats(folder):
    shutil.copytree(folder / "a", folder / "again")
    table = read_results("outputs/s/*").table
    assert table.set_index("run")["status"]["a"] == "repeated"
    again = read_again(table).set_index("run")
    assert (again["status"]["a"], again["status"]["again"]) == ("repeated", "done")
    assert "which is counted" in again["reason"]["a"]


def test_refresh_offers_new_columns_and_extends_a_range_that_spanned_all(explorer, folder):
    explorer.filter.value = "eval/accuracy"
    explorer.range.value = (0.7, 0.9)
    path = folder / "a" / "metrics.csv"
    header, row = path.read_text().splitlines()
    path.write_text(f"{header},train/accuracy\n{row.replace('0.9', '0.95')},0.8\n")
    explorer.refresh.click()
    assert (explorer.range.max, explorer.range.value) == (0.95, (0.7, 0.95))
    assert names(explorer) == ["b", "c", "a"]
    assert (explorer.filter.value, explorer.color.value) == ("eval/accuracy", "optimizer.lr")
    explorer.color.value = explorer.filter.value = "train/accuracy"
    assert names(explorer) == ["a"]


def record(folder, column, **values) -> None:
    """Give some runs another value of a column after their last epoch."""
    for name, value in values.items():
        path = folder / name / "metrics.csv"
        header, row = path.read_text().splitlines()
        cells = dict(zip(header.split(","), row.split(","), strict=True)) | {column: str(value)}
        path.write_text(f"{header}\n{','.join(cells.values())}\n")


@pytest.mark.parametrize(
    ("chosen", "now", "shown", "limits", "position"),
    [
        ((1, 3), (6, 7, 8, 9), "", (3, 9), (3, 3)),  # up to 3
        ((2, 3), (6, 7, 8, 9), "", (2, 9), (2, 3)),
        ((2, 5), (0.5, 1, 1.5, 1.25), "", (0.5, 2), (2, 2)),  # from 2 on
        ((2, 3), (1, 2.5, 9, 3), "bd", (1, 9), (2, 3)),
        ((1, 5), (6, 7, 8, 9), "abcd", (6, 9), (6, 9)),
    ],
)
def test_refresh_keeps_the_interval_of_the_filter(folder, chosen, now, shown, limits, position):
    column = "compression/unstructured_bops_ratio"
    record(folder, column, a=1, b=2, c=3, d=5)
    explorer = StudyExplorer(collect("outputs/s"))
    explorer.filter.value = column
    explorer.range.value = chosen
    record(folder, column, **dict(zip("abcd", now, strict=True)))
    explorer.refresh.click()
    assert sorted(names(explorer)) == list(shown)
    assert ((explorer.range.min, explorer.range.max), explorer.range.value) == (limits, position)
    record(folder, column, a=1, b=2, c=3, d=5)
    explorer.refresh.click()
    assert explorer.range.value == chosen


def open_widgets() -> int:
    return len(ipywidgets.Widget.get_manager_state()["state"])


def test_an_opened_explorer_is_released_by_the_next_one(explorer):
    explorer.open_run.click()
    opened, before = weakref.ref(explorer.opened.children[0]), open_widgets()
    explorer.point.value = 0
    explorer.open_run.click()
    gc.collect()
    assert opened() is None
    assert open_widgets() == before
    explorer.close()
    assert open_widgets() < before


def test_a_best_accuracy_is_shown_with_the_images_that_chose_it(explorer):
    assert "chosen" not in explorer.text.value
    explorer.y.value = "best/eval/accuracy"
    assert "best/chosen_by: test" in explorer.text.value


def test_a_run_whose_folder_was_moved_is_named(explorer, folder):
    (folder / "b").rename(folder / "moved")
    explorer.open_run.click()
    assert str(folder / "b") in explorer.opened.children[0].value


def test_a_filter_by_a_column_with_an_infinite_value_spans_the_finite_ones(explorer, folder):
    path = folder / "b" / "metrics.csv"
    path.write_text(path.read_text().replace("40.0", "inf"))
    explorer.refresh.click()
    explorer.filter.value = "compression/unstructured_bops_ratio"
    assert (explorer.range.min, explorer.range.max) == (5, 20)
    assert names(explorer) == ["c", "a", "d"]


def test_a_position_seen_before_is_not_drawn_again(explorer, monkeypatch):
    first = explorer.image.value
    explorer.point.value = 2
    monkeypatch.setattr(study, "scatter", None)
    explorer.point.value = 1
    assert explorer.image.value == first


def test_a_click_on_a_point_selects_and_opens_its_run(explorer, folder):
    figure = explorer.figure()
    png(figure)  # computes the layout
    box = figure.axes[0].get_position()

    def click(across: float, down: float) -> None:  # fractions of the axes, from the upper left corner
        x, y = box.x0 + across * box.width, 1 - box.y1 + down * box.height
        explorer.image._clicked.value = f"{x} {y} 1"

    margin = 0.05 / 1.1  # of matplotlib's, on either side of the points
    click(1 - margin, 1 - margin)  # the most expensive run has the lowest accuracy
    assert explorer.point.label == "d"
    assert explorer.opened.children[0].run.folder == folder / "d"
    click(0.5, 1 - margin)  # nothing is near
    assert explorer.point.label == "d"
    click(margin, 1 / 3)  # 0.8 of 0.6 … 0.9
    assert explorer.opened.children[0].run.folder == folder / "b"


def test_without_any_epoch_it_says_so(folder):
    for name in "abcd":
        (folder / name / "metrics.csv").unlink()
    explorer = StudyExplorer(collect("outputs/s"))
    assert "None of 5 runs has recorded an epoch" in explorer.text.value
    explorer.open_run.click()
    assert explorer.opened.children == ()


def test_names_are_no_html(folder):
    (folder / "a").rename(folder / "<b>a")
    explorer = StudyExplorer(collect("outputs/s"))
    explorer.point.value = next(value for label, value in explorer.point.options if label == "<b>a")
    assert "<b>a" not in explorer.text.value
    assert "&lt;b&gt;a" in explorer.text.value


def test_many_values_of_a_number_have_a_colour_scale_and_sliders_report_on_release(tmp_path):
    for k in range(20):
        run = tmp_path / "many" / f"{k:02d}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"seed: {k}\nlr: {0.1 * (k + 1):.1f}\n")
        (run / "status.json").write_text('{"status": "done"}')
        (run / "metrics.csv").write_text(f"epoch,eval/accuracy\n0,{k / 20}\n")
    explorer = StudyExplorer(collect(tmp_path / "many"))
    explorer.color.value = "seed"
    assert len(explorer.figure().axes) == 2  # the second is the colour bar
    assert not explorer.range.continuous_update
    assert not explorer.point.continuous_update


def test_points_without_a_value_of_the_colour_are_hollow():
    table = pd.DataFrame({"x": range(20), "y": range(20), "c": [float("nan"), float("inf"), *range(2, 20)]})
    axes, _ = (figure := scatter(table, "x", "y", "c", None)).axes
    colored, hollow = axes.collections
    assert colored.get_offsets().tolist() == [[k, k] for k in range(2, 20)]
    assert hollow.get_offsets().tolist() == [[0, 0], [1, 1]]
    assert figure.legends[0].get_texts()[0].get_text() == "c: none or infinite"


def test_a_legend_of_many_texts_leaves_room_for_the_points():
    table = pd.DataFrame({"x": range(50), "y": range(50), "name": [f"run {k}" for k in range(50)]})
    figure = scatter(table, "x", "y", "name", None)
    png(figure)
    assert figure.axes[0].get_position().height * figure.get_figheight() > 1.5  # inches


def test_a_table_of_no_runs_is_shown_as_none():
    explorer = StudyExplorer(pd.DataFrame())
    explorer.refresh.click()
    assert explorer.summary() == ["None of 0 runs has recorded an epoch."]


def test_what_is_no_table_of_runs_is_refused():
    for wrong in ("outputs/s", None, pd.DataFrame({"run": ["a"]})):
        with pytest.raises(CodeqError, match="is no table of runs"):
            StudyExplorer(wrong)
