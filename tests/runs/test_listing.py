import json
import shutil

import pytest

from codeq.runs import Run
from codeq.runs.listing import describe_run, run_row

COLUMNS = (
    "epoch,eval/accuracy,sparsity/unstructured,sparsity/structured,quantizer/mean_bits,"
    "compression/unstructured_bops_ratio,compression/structured_bops_ratio"
)
SUMMARY = {
    "epochs": 3, "accuracy_last": 0.5, "accuracy_best": 0.75, "unstructured_sparsity": 0.25, "structured_sparsity": 0.1,
    "mean_bits": 4.5, "unstructured_bops_ratio": 16.0, "structured_bops_ratio": None,
}  # fmt: skip


def folder(tmp_path, status, metrics=None, summary=None):
    (tmp_path / "config.yaml").write_text("name: x\nmodel: mlp\nepochs: 300\n")
    (tmp_path / "status.json").write_text(json.dumps({"status": status}))
    if metrics is not None:
        (tmp_path / "metrics.csv").write_text(metrics)
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    return Run(tmp_path)


def squeezed(run):
    return " ".join(describe_run(run).split())


def test_a_finished_run_is_described_by_its_summary_alone(tmp_path):
    assert squeezed(folder(tmp_path, "done", summary=SUMMARY)) == (
        "done epoch 3/3 accuracy 50.00% best 75.00% (test) zero weights 25.0% dead filters 10.0% 4.50 bits "
        f"BOPs 16.0× (6.2 %) unstructured, inf× (0.0 %) structured {tmp_path}"
    )


def test_an_unfinished_run_is_described_by_its_complete_epochs(tmp_path):
    rows = f"{COLUMNS}\n0,0.5,0,0,8,4,1\n1,0.75,0,0,8,4,1\n2,0.625,0.4,0.1,5.25,12.34,inf\n3,0.9"
    assert squeezed(folder(tmp_path, "failed", rows)) == (
        "failed epoch 3/300 accuracy 62.50% best 75.00% (test) zero weights 40.0% dead filters 10.0% 5.25 bits "
        f"BOPs 12.3× (8.1 %) unstructured, inf× (0.0 %) structured {tmp_path}"
    )


def test_the_split_that_chose_the_best_epoch_is_named(tmp_path):
    finished = folder(tmp_path, "done", summary=SUMMARY | {"best_chosen_by": "validation"})
    assert "accuracy 50.00% best 75.00% (validation) zero" in squeezed(finished)
    rows = f"{COLUMNS},test/accuracy\n0,0.5,0,0,8,4,1,0.9\n"
    assert "accuracy 50.00% best 50.00% (validation) zero" in squeezed(folder(tmp_path, "failed", rows))


@pytest.mark.parametrize("metrics", [None, "", "epoch,eval/accuracy", f"{COLUMNS}\n"])
def test_a_run_without_a_complete_epoch_says_so(tmp_path, metrics):
    assert squeezed(folder(tmp_path, "preempted", metrics)) == f"preempted no epoch finished {tmp_path}"


@pytest.mark.parametrize(
    ("status", "metrics", "summary", "part"),
    [
        ("done", None, None, "has no summary"),
        ("done", None, "null", "summary.json is damaged"),
        ("done", None, "", "summary.json cannot be read"),
        ("done", None, {"epochs": 3, "accuracy_last": "?"}, "epoch 3/3 accuracy – best – (test) zero weights –"),
        ("failed", "epoch,loss\n0,1.5\n", None, "dead filters – – bits BOPs – unstructured, – structured"),
        ("failed", "epoch,eval/accuracy\n0,\n1,0.5\n", None, "accuracy 50.00% best 50.00%"),
    ],
)
def test_a_run_of_another_version_or_damaged_is_listed_all_the_same(tmp_path, status, metrics, summary, part):
    line = squeezed(folder(tmp_path, status, metrics, summary))
    assert part in line
    assert line.startswith(status)
    assert line.endswith(str(tmp_path))


def test_a_configuration_that_cannot_be_read_costs_only_the_number_of_epochs(tmp_path):
    run = folder(tmp_path, "failed", "epoch,eval/accuracy\n0,0.5\n")
    (tmp_path / "config.yaml").write_bytes(b"\x80\x81")
    assert "epoch 1/? accuracy 50.00%" in squeezed(run)


def test_damaged_runs_do_not_hide_the_others(tmp_path):
    for name, status in (("a", "null"), ("b", "[]"), ("c", '{"status": "done"}'), ("d", '{"started": 3}'), ("e", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("epochs: 1\n")
        (tmp_path / name / "status.json").write_text(status)
    assert [run.folder.name for run in Run.list(tmp_path)] == list("abcde")
    assert all(describe_run(run) for run in Run.list(tmp_path))


def test_a_folder_that_disappears_meanwhile_is_described(tmp_path):
    (tmp_path / "run").mkdir()
    run = folder(tmp_path / "run", "failed")
    shutil.rmtree(tmp_path / "run")
    assert squeezed(run).startswith("died no epoch finished")


def test_a_row_tells_why_a_run_ended_or_cannot_be_read(tmp_path):
    assert run_row(folder(tmp_path, "done"))["reason"].endswith("has no summary; its status is 'done'.")
    (tmp_path / "status.json").write_text(json.dumps({"status": "diverged", "message": "loss is nan\nin epoch 3"}))
    row = run_row(Run(tmp_path))
    assert (row["run"], row["status"], row["reason"]) == (".", "diverged", "loss is nan in epoch 3")


def test_a_done_run_whose_table_lacks_epochs_says_so_beside_its_summary(tmp_path):
    row = run_row(folder(tmp_path, "done", f"{COLUMNS}\n0,0.25,0,0,8,4,1\n", SUMMARY))
    assert (row["epochs"], row["eval/accuracy"]) == ("3/3", 0.5)
    assert row["reason"] == "done, but metrics.csv has 1 of 300 epochs"
