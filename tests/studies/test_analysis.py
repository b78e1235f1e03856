import json
import math
import shutil

import pandas as pd
import pytest

from codeq import plots
from codeq.common.errors import CodeqError
from codeq.studies.analysis import read_results
from codeq.studies.figures import FIGURES, draw_study
from codeq.studies.results import read_again
from codeq.studies.series import layer_bits, learning_curves

# Accuracies after two epochs by variant and seed; the last run diverges after the first.
ACCURACY = {
    ("l2", 0): (0.5, 0.90),
    ("l2", 1): (0.6, 0.92),
    ("l1", 0): (0.4, 0.80),
    ("l1", 1): (0.4, 0.84),
    ("l1", 2): (0.1,),
}
RATIO = {"l2": 20.0, "l1": 40.0}
BITS = {("l2", 0): (8, 4), ("l2", 1): (6, 4), ("l1", 0): (3, 2), ("l1", 1): (3, 3), ("l1", 2): (8, 8)}


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "outputs" / "s"
    members = {}
    for (variant, seed), accuracies in ACCURACY.items():
        name = f"{variant},seed={seed}"
        run = folder / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"model: mlp\ndataset: digits\nseed: {seed}\ntheta_regularizer: {variant}\n")
        done = len(accuracies) == 2
        state = {
            "status": "done" if done else "diverged",
            "message": "" if done else "loss is nan",
            "host": "x",
            "pid": 1,
        }
        (run / "status.json").write_text(json.dumps(state))
        rows = [f"{k},{a},{RATIO[variant]},{RATIO[variant] / 2}\n" for k, a in enumerate(accuracies)]
        names = "eval/accuracy,compression/unstructured_bops_ratio,compression/structured_bops_ratio"
        (run / "metrics.csv").write_text(f"epoch,{names}\n" + "".join(rows))
        stem, fc = BITS[variant, seed]
        layers = [
            f"{epoch},stem,True,{stem}\n{epoch},fc,True,{fc}\n{epoch},head,False,32\n"
            for epoch in range(len(accuracies))
        ]
        (run / "layers.csv").write_text("epoch,layer,quantized,bits\n" + "".join(layers))
        members[name] = {"variant": variant, "varied": {"theta_regularizer": variant, "seed": seed}}
    (folder / ".study").mkdir()
    (folder / ".study/members.json").write_text(json.dumps({"name": "s", "members": members}))
    return folder


def test_groups_baseline_and_states_are_found(study):
    results = read_results("outputs/s")
    assert (results.keys, results.baseline) == (["variant"], "l2")
    assert repr(results) == "5 runs: 4 done, 1 diverged; groups by variant; eval/accuracy on test images; baseline 'l2'"
    assert results.failed.to_numpy().tolist() == [["l1,seed=2", "diverged", "loss is nan"]]
    assert read_results().table.equals(results.table)  # the newest study


def test_means_and_differences_are_those_computed_by_hand(study):
    results = read_results("outputs/s", baseline="l1")
    l2, l1 = results.summary.to_dict("records")
    assert (l2["mean"], l2["n"], l2["members"]) == (pytest.approx(0.91), 2, 2)
    assert (l1["mean"], l1["n"], l1["members"]) == (pytest.approx(0.82), 2, 3)
    # Differences 0.10 and 0.08: mean 0.09, standard error 0.01; t(0.975, 1) = 12.706.
    (row,) = results.differences.to_dict("records")
    assert (row["mean"], row["pairs"]) == (pytest.approx(0.09), 2)
    assert row["high"] == pytest.approx(0.09 + 12.7062 * 0.01, rel=1e-5)


def test_a_run_that_is_repeated_with_its_seed_counts_once(study):
    shutil.copytree(study / "l2,seed=0", study / "l2,seed=0 again")
    results = read_results("outputs/s/l*")
    l2 = results.summary.iloc[1]
    assert (l2["group"], l2["members"], l2["n"], l2["mean"]) == ("theta_regularizer=l2", 3, 2, pytest.approx(0.91))
    why = "same settings and seed as l2,seed=0 again, which is counted"
    assert ["l2,seed=0", "repeated", why] in results.failed.to_numpy().tolist()
    assert results.differences["pairs"].tolist() == [2]
    shutil.copytree(study / "l2,seed=1", study / "x" / "1")
    shutil.copytree(study / "l2,seed=1", study / "x" / "2")
    assert read_results("outputs/s/x/*").summary["n"].tolist() == [1]  # no setting differs at all


def test_of_repeated_runs_the_one_that_started_last_counts(study):
    for name, minute in (("a", 2), ("b", 1)):
        run = shutil.copytree(study / "l2,seed=0", study.parent / "slurm" / "y" / name)
        state = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps(state | {"started": f"2026-11-21T12:0{minute}:00+00:00"}))
    repeated = read_results("outputs/slurm/y/*").failed
    assert repeated.to_numpy().tolist() == [["b", "repeated", "same settings and seed as a, which is counted"]]
    shutil.copytree(study.parent / "slurm", study.parent / "again")  # the same names below another folder
    assert read_results("outputs/*/y/*").summary["n"].tolist() == [1]


def test_tables_of_the_best_accuracy_name_the_images_that_chose_it(study):
    results = read_results("outputs/s", "best/eval/accuracy")
    (column,) = (c for c in results.readable_tables()["summary"] if "±" in c)
    assert column == "best accuracy (%) on test images, which chose the epoch, mean ± std"
    assert "; best/eval/accuracy on test images, which chose the epoch; " in repr(results)
    chosen = " Measured on test images. The epoch was chosen on test images."
    captions = {name: drawing.caption for name, drawing in draw_study(results).items()}
    assert [name for name, caption in captions.items() if caption.endswith(chosen)] == [
        "group_means", "group_differences", "parameter_effects",
    ]  # fmt: skip
    with_validation(study, dict.fromkeys(("l2,seed=0", "l2,seed=1", "l1,seed=0", "l1,seed=1"), 0.5))
    results = read_results("outputs/s", "best/test/accuracy")
    (column,) = (c for c in results.readable_tables()["summary"] if "±" in c)
    assert column == "test accuracy of the best epoch (%), chosen on validation images, mean ± std"
    assert draw_study(results)["group_means"].caption.endswith(" The epoch was chosen on validation images.")


def test_the_tradeoff_has_the_means_of_groups_with_model_and_data_set(study):
    tradeoff = read_results("outputs/s").tradeoff
    assert tradeoff["run"].tolist() == ["l2", "l1"]
    assert tradeoff["accuracy"].tolist() == pytest.approx([0.91, 0.82])
    assert tradeoff["unstructured_bops"].tolist() == pytest.approx([0.05, 0.025])
    assert tradeoff["structured_bops"].tolist() == pytest.approx([0.1, 0.05])
    assert set(zip(tradeoff["model"], tradeoff["dataset"], tradeoff["network"], strict=True)) == {("mlp", "digits", "")}


def with_validation(study, tests):
    """Give runs a validation split with these accuracies on the test images after the last epoch."""
    for name, test in tests.items():
        path = study / name / "metrics.csv"
        head, first, last = path.read_text().splitlines()
        path.write_text(f"{head},test/accuracy\n{first},0.1\n{last},{test}\n")


def test_runs_with_and_without_a_validation_split_are_compared_on_the_test_images(study):
    with_validation(study, {"l2,seed=0": 0.7, "l2,seed=1": 0.8})
    was, chosen = "was measured", "is of an epoch that was chosen"
    for metric, what in {"eval/accuracy": was, "best/eval/accuracy": chosen, "best/test/accuracy": chosen}.items():
        with pytest.raises(CodeqError, match=f"metric='{metric}' {what} on validation images .*; 'test/accuracy', of"):
            read_results("outputs/s", metric)
    best = read_results("outputs/s", "test/accuracy").table["best/test/accuracy"]
    assert best.notna().tolist() == [True, True, False, False, False]  # the test images chose the others' best epoch
    results = read_results("outputs/s", "test/accuracy")
    assert results.summary["mean"].tolist() == pytest.approx([0.75, 0.82])
    assert results.tradeoff["accuracy"].tolist() == pytest.approx([0.75, 0.82])
    assert results.curves["mean"].tolist() == pytest.approx([0.1, 0.75, 0.4, 0.82])
    assert read_again(results.table)["test/accuracy"].tolist()[:4] == pytest.approx([0.7, 0.8, 0.8, 0.84])
    without_split = results.table[results.table["variant"] == "l1"]
    assert read_again(without_split)["test/accuracy"].tolist()[:2] == pytest.approx([0.8, 0.84])


def test_an_accuracy_names_the_images_that_it_was_measured_on(study):
    results = read_results("outputs/s")
    assert "accuracy (%) on test images, mean ± std" in results.readable_tables()["summary"]
    with_validation(study, dict.fromkeys(("l2,seed=0", "l2,seed=1", "l1,seed=0", "l1,seed=1"), 0.5))
    results = read_results("outputs/s")  # one has failed without a split
    assert (
        "difference of accuracy (points) on validation images, mean ± std" in results.readable_tables()["differences"]
    )
    captions = [drawing.caption for drawing in draw_study(results).values()]
    assert sum(caption.endswith(" Measured on validation images.") for caption in captions) == 4


def test_a_group_of_runs_in_several_number_formats_is_named(study, caplog):
    for (variant, seed), precision in {("l2", 0): "bf16", ("l1", 0): "bf16", ("l1", 1): "bf16"}.items():
        (study / f"{variant},seed={seed}" / "environment.json").write_text(json.dumps({"precision": precision}))
    read_results("outputs/s")
    assert not caplog.records  # of one nothing is known
    (study / "l2,seed=1" / "environment.json").write_text(json.dumps({"precision": "float32"}))
    read_results("outputs/s")
    assert caplog.messages == ["the runs of 'l2' were not trained in one number format: bf16, float32"]


def test_curves_and_bits_are_means_over_done_runs(study):
    results = read_results("outputs/s")
    curves = results.curves
    assert curves[["group", "epoch", "n"]].to_numpy().tolist() == [
        ["l2", 0, 2],
        ["l2", 1, 2],
        ["l1", 0, 2],
        ["l1", 1, 2],
    ]
    assert curves["mean"].tolist() == pytest.approx([0.55, 0.91, 0.4, 0.82])
    assert curves["std"].tolist() == pytest.approx([0.1 / math.sqrt(2), 0.02 / math.sqrt(2), 0, 0.04 / math.sqrt(2)])
    bits = results.bits
    assert bits[["group", "layer"]].to_numpy().tolist() == [["l2", "stem"], ["l2", "fc"], ["l1", "stem"], ["l1", "fc"]]
    assert bits["mean"].tolist() == [7, 4, 3, 2.5]
    assert bits[["min", "max"]].to_numpy().tolist() == [[6, 8], [4, 4], [3, 3], [2, 3]]


def test_every_figure_is_drawn(study):
    drawings = draw_study(read_results("outputs/s"))
    assert list(drawings) == list(FIGURES)
    assert not [drawing.missing for drawing in drawings.values() if drawing.missing]
    assert all(drawing.caption for drawing in drawings.values())


def test_what_cannot_be_drawn_says_why(study):
    for name in ("l2,seed=0", "l2,seed=1", "l1,seed=0", "l1,seed=1"):
        (study / name / "status.json").write_text(json.dumps({"status": "failed", "host": "x", "pid": 1}))
    results = read_results("outputs/s")
    missing = {name: drawing.missing for name, drawing in draw_study(results).items()}
    assert missing["group_means"] == "no done run has a value of 'eval/accuracy'"
    assert missing["parameter_effects"] == missing["group_means"]
    assert "no group has a done run with a seed in common with the baseline" in missing["group_differences"]
    assert missing["accuracy_against_bops"] == "no done run has recorded accuracy and BOPs"
    assert missing["learning_curves"] == "no done run has recorded 'eval/accuracy' after each epoch"
    assert missing["layer_bits"] == "no done run has recorded the bits of a quantized layer"
    assert all(missing.values())
    assert results.readable_tables()["summary"]["accuracy (%), mean ± std"].tolist() == ["– ± –"] * 2


def test_runs_that_cannot_be_paired_have_all_other_results(study, tmp_path):
    shutil.copytree(study / "l2,seed=0", study / "l2,seed=0 larger")
    config = study / "l2,seed=0 larger" / "config.yaml"
    config.write_text(config.read_text().replace("mlp", "resnet20"))
    results = read_results("outputs/s/l*", groups="theta_regularizer")
    tables = results.readable_tables()
    assert "has several runs with seed 0" in tables["differences"].loc[0, "not computed"]
    assert tables["summary"]["n"].tolist() == [2, 3]
    assert "differences.tex" in {path.name for path in results.write_tables(tmp_path / "tables")}
    assert [name for name, drawing in draw_study(results).items() if drawing.missing] == ["group_differences"]


def test_an_unexpected_error_loses_one_figure(study, monkeypatch):
    assert draw_study(read_results("outputs/s", metric="epoch"))["learning_curves"].missing.startswith("no done run")
    monkeypatch.setattr(plots, "learning_bands", lambda *_: {}["x"])
    drawings = draw_study(read_results("outputs/s"))
    assert {name: drawing.missing for name, drawing in drawings.items() if drawing.missing} == {
        "learning_curves": "KeyError: 'x'"
    }


def test_a_study_without_an_epoch_says_why(study):
    for path in study.glob("*/metrics.csv"):
        path.unlink()
    with pytest.raises(CodeqError, match="none of 5 runs has recorded an epoch: loss is nan"):
        read_results("outputs/s")


def test_a_done_run_whose_layers_lack_an_epoch_is_left_out_of_the_bits(study, caplog):
    folder = study / "l2,seed=0"
    with open(folder / "config.yaml", "a") as file:
        file.write("epochs: 2\n")
    layers = folder / "layers.csv"
    layers.write_text("".join(layers.read_text().splitlines(True)[:-1]))  # the row of the head
    assert layer_bits(read_results("outputs/s").table)["n"].tolist() == [1, 1, 2, 2]
    assert f"a table of {folder} has 1 of 2 epochs" in caplog.text


def test_float_runs_have_no_bits_and_one_run_is_a_group(study):
    for name in ("l2,seed=0", "l2,seed=1"):
        (study / name / "layers.csv").write_text("epoch,layer,quantized,bits\n1,stem,False,32\n1,fc,False,32\n")
    table = read_results("outputs/s").table
    assert set(layer_bits(table)["group"]) == {"l1"}
    one = read_results("outputs/s/l2*0")
    assert (one.keys, one.summary["n"].tolist(), len(one.differences)) == ([], [1], 0)
    assert [name for name, drawing in draw_study(one).items() if drawing.figure] == [
        "group_means", "accuracy_against_bops", "learning_curves",
    ]  # fmt: skip


def test_a_run_whose_tables_cannot_be_read_costs_itself_alone(study, caplog):
    metrics = study / "l2,seed=0" / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("\n0,", "\n0,7,").replace("\n1,", "\n1,7,"))
    (study / "l2,seed=1" / "layers.csv").write_text("layer\nfc\n")
    results = read_results("outputs/s")
    table = results.table
    (damaged,) = results.failed.to_numpy().tolist()[:1]
    assert damaged[:2] == ["l2,seed=0", "done"]
    assert damaged[2].endswith("metrics.csv is damaged: its rows have more cells than columns")
    assert results.summary["n"].tolist() == [1, 2]
    assert results.summary["mean"].tolist() == pytest.approx([0.92, 0.82])
    assert learning_curves(table, "eval/accuracy")["n"].tolist() == [1, 1, 2, 2]
    assert layer_bits(table)["n"].tolist() == [1, 1, 2, 2]
    assert "l2,seed=0/metrics.csv is damaged" in caplog.text
    assert "l2,seed=1/layers.csv has no column epoch" in caplog.text


def test_runs_whose_settings_cannot_be_read_are_no_common_group(study):
    for name in ("l2,seed=0", "l2,seed=1", "l1,seed=2"):
        (study / name / "config.yaml").write_text("seed: [")
    results = read_results("outputs/s")  # the index of the study has all that divides its runs
    assert results.summary["n"].tolist() == [2, 2]
    assert results.failed["run"].tolist() == ["l1,seed=2"]
    shutil.copytree(study / "l1,seed=0", study / "lasso,seed=0")
    config = study / "lasso,seed=0" / "config.yaml"
    config.write_text(config.read_text().replace("l1", "decoupled"))
    results = read_results("outputs/s/l*")
    alone = [f"outputs/s/{name} (settings unknown)" for name in ("l1,seed=2", "l2,seed=0", "l2,seed=1")]
    groups = ["theta_regularizer=l1", "theta_regularizer=decoupled"]
    assert (results.keys, results.baseline) == (["theta_regularizer"], groups[0])
    summary = results.summary.set_index("group")["n"]
    assert summary.to_dict() == {groups[0]: 2, groups[1]: 1, alone[0]: 0, alone[1]: 1, alone[2]: 1}
    assert {"l2,seed=0", "l2,seed=1"} <= {*results.failed["run"]}
    axis = draw_study(results)["parameter_effects"].figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["decoupled", "l1"]
    assert not [name for name, drawing in draw_study(results).items() if drawing.missing]
    results = read_results("outputs/s/l2*")  # nothing else is known to differ
    assert (results.summary["group"].tolist(), results.baseline) == (alone[1:], alone[1])


def test_a_metric_that_is_not_recorded_after_each_epoch_has_no_curves(study):
    table = read_results("outputs/s").table
    with pytest.raises(CodeqError, match="no done run has recorded 'nothing' after each epoch"):
        learning_curves(table, "nothing")
    assert read_results("outputs/s", metric="best/eval/accuracy").curves["mean"].tolist()[1] == pytest.approx(0.91)


def test_tables_are_written_as_csv_with_raw_numbers_and_as_latex(study, tmp_path):
    results = read_results("outputs/s")
    written = {path.name: path.read_text("utf-8") for path in results.write_tables(tmp_path / "tables")}
    both = [f"{name}.{kind}" for name in ("summary", "differences", "failed") for kind in ("csv", "tex")]
    assert set(written) == {*both, "runs.csv"}
    stored = pd.read_csv(tmp_path / "tables" / "summary.csv")
    pd.testing.assert_frame_equal(stored, results.summary)
    assert r"l2 & 2 & 2 & 91.00 $\pm$ 1.41 & 78.29 \dots{} 103.71 \\" in written["summary.tex"]
    assert r"accuracy (\%)" in written["summary.tex"]
    assert len(written["runs.csv"].splitlines()) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "accuracy"}, "column 'accuracy' is unknown. Did you mean 'eval/accuracy'"),
        ({"metric": "status"}, "metric='status' is not a number in each run"),
        ({"groups": "variant sed"}, "column 'sed' is unknown. Did you mean 'seed'"),
        ({"baseline": "l3"}, "baseline 'l3' is unknown"),
        ({"groups": "'variant"}, 'groups="\'variant": No closing quotation'),
        ({"study": "outputs/t"}, "holds no runs"),
    ],
)
def test_a_wrong_parameter_is_named(study, arguments, message):
    with pytest.raises(CodeqError, match=message):
        read_results(**{"study": "outputs/s", **arguments})


def test_without_a_study_it_says_how_to_run_one(tmp_path):
    with pytest.raises(CodeqError, match=r"no study in .*outputs yet: `codeq sweep"):
        read_results()
