import json

import numpy as np
import pandas as pd
import pytest

from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.runs.tables import read_rows
from codeq.runs.tracking import Tracker

METRICS = "epoch,eval/accuracy\n0,0.5\n1,0.75\n"
LAYERS = "epoch,layer,filters,alive\n0,a,4,f0\n0,b,4,80\n1,a,4,f0\n1,b,4,00\n"


@pytest.mark.parametrize("text", ["", "\n", "\n\n", "epoch,eval/acc", "epoch,eval/accuracy\n"])
def test_a_table_without_a_complete_row_is_empty(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    (tmp_path / "layers.csv").write_text(text)
    run = Run(tmp_path)
    assert len(run.history) == len(run.last_layers()) == 0
    assert read_rows(tmp_path / "metrics.csv") == []
    with pytest.raises(CodeqError, match="has recorded 0 epochs"):
        run.liveness()


def test_a_row_that_is_being_written_is_left_out_at_every_length(tmp_path):
    for length in range(len(METRICS) + 1):
        (tmp_path / "metrics.csv").write_text(METRICS[:length])
        accuracies = Run(tmp_path).history.get("eval/accuracy", pd.Series()).tolist()
        rows = [float(row["eval/accuracy"]) for row in read_rows(tmp_path / "metrics.csv")]
        assert accuracies == rows == [0.5, 0.75][: max(METRICS[:length].count("\n") - 1, 0)]


def test_an_epoch_whose_layers_are_being_written_is_left_out(tmp_path):
    for length in range(LAYERS.index("1,a"), len(LAYERS) + 1):
        (tmp_path / "layers.csv").write_text(LAYERS[:length])
        run = Run(tmp_path)
        complete = length == len(LAYERS)
        assert run.last_layers()["epoch"].tolist() == ([1, 1] if complete else [0, 0])
        assert run.liveness()["b"].tolist() == [not complete, False, False, False]
        assert list(run.liveness()) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has no column epoch"),
        ("epoch,layer\n0,a\n", "has no column alive, filters; another version"),
        ("epoch,layer,filters,alive\n0,a,4,xyz\n", "layers.csv is damaged"),
        ("epoch,layer,filters,alive\n0,a,4,\n", "layers.csv is damaged"),
        ("epoch,layer,filters,alive\n0,a\n0,b,4,80,1,1\n", "layers.csv is damaged"),
        ("epoch,layer,filters,alive\n0,a,4,80,1\n", "layers.csv is damaged: its rows have more cells than columns"),
        ("epoch,layer,filters,alive\n0,0,a,4,80\n1,1,a,4,80\n", "damaged: its rows have more cells than columns"),
        ("epoch,layer,filters,alive\n0,a,four,80\n", "layers.csv is damaged: not every filters in it is a number"),
        ("epoch,layer,filters,alive\n,a,4,80\n0,b,4,80\n", "layers.csv is damaged: not every epoch in it is a number"),
        ("epoch,layer\n\x80\n", "layers.csv cannot be read"),
    ],
)
def test_a_table_of_another_version_or_damaged_is_named(tmp_path, text, message):
    (tmp_path / "layers.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(CodeqError, match=message):
        Run(tmp_path).liveness()


@pytest.mark.parametrize("text", ["", "null", "[1]", "{", "3"])
@pytest.mark.parametrize("file", ["summary.json", "environment.json"])
def test_a_damaged_json_file_is_named(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    with pytest.raises(CodeqError, match=file):
        getattr(Run(tmp_path), file.removesuffix(".json"))


def test_a_summary_of_another_version_names_what_it_lacks(tmp_path):
    (tmp_path / "summary.json").write_text('{"baseline_macs": 5, "unstructured_macs": null}')
    with pytest.raises(CodeqError, match="has no number unstructured_macs, structured_macs"):
        Run(tmp_path).compression  # noqa: B018


def test_a_summary_is_json_without_infinity_and_reads_back_with_it(tmp_path):
    seen = []
    sink = type("Sink", (), {"log_summary": lambda _, summary: seen.append(summary)})()
    ratios = {"structured_mac_ratio": float("inf"), "structured_bops_ratio": np.float64("inf")}
    Tracker(tmp_path, [sink]).log_summary({"accuracy_last": 0.5, "mean_bits": float("nan"), "seconds": 3} | ratios)

    def forbidden(name):
        raise AssertionError(name)

    stored = json.loads((tmp_path / "summary.json").read_text(), parse_constant=forbidden)
    assert stored == {"accuracy_last": 0.5, "mean_bits": None, "seconds": 3} | dict.fromkeys(ratios)
    assert seen == [stored]
    assert Run(tmp_path).summary == stored | ratios
