import base64
import io
import json
import os
import re
import runpy
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases import each, small_files
from IPython.core.formatters import DisplayFormatter
from PIL import Image
from plot_tables import words
from run_tables import COMPACTED_WEIGHTS, DENSE_WEIGHTS, compacted_run
from torch import nn

from codeq import ExperimentConfig, Run, analysis, attach_weight_quantizers, plots, run_experiment
from codeq.analysis import dense, figures
from codeq.analysis.calibrate_run import calibrate_run, load_calibrated
from codeq.analysis.channel import channel_history, channel_norms, explain_channel
from codeq.analysis.compact_run import compact_run
from codeq.analysis.comparison import mean_over_seeds
from codeq.analysis.network import recorded_gains, recorded_proof
from codeq.analysis.published import published_for, published_network
from codeq.analysis.source import Source
from codeq.cli.notebooks import run_notebook
from codeq.common.errors import CodeqError
from codeq.export.export_run import export_run
from codeq.metrics import dense_stats, measure
from codeq.metrics.codes import weight_codes
from codeq.quantizer import DeadZoneQuantizer
from codeq.quantizer.layers import latent_weight
from codeq.runs.checkpoints import checkpoint_entry

pytestmark = pytest.mark.usefixtures("without_figures")

ROOT = Path(__file__).parents[2]
STATES = {
    "running": "The run has not ended",
    "failed": "The run failed",
    "diverged": "The run diverged",
    "degenerate": "no longer learns",
    "preempted": "can be resumed",
}
LASSO = {
    "name": "coupled_group_lasso",
    "lambda": 70.0,
    "step": "proximal",
    "schedule": {"name": "linear_warmup", "kwargs": {"delay": 1, "ramp": 0}},
}
TINY = {"dataset": "synthetic", "model": "mlp", "epochs": 2, "batch_size": 128, "device": "cpu", "exclude_layers": []}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run whose last epoch kills channels."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    settings = TINY | {"dataset": "digits", "epochs": 3, "lr": 3e-3, "loss_terms": [LASSO], "run_dir": str(folder)}
    return run_experiment(ExperimentConfig("tiny", **settings)).folder


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A copy of it that a test may damage."""
    shutil.copytree(trained, tmp_path / "outputs" / "tiny")
    return Run.open(tmp_path / "outputs" / "tiny")


@pytest.fixture
def few(run) -> dict[str, analysis.Drawing]:
    """One figure of it, where a test is about the words around the figures: drawing all of them takes seconds."""
    curve = plots.accuracy_curve(run.history)
    return {"accuracy_curve": analysis.Drawing("accuracy_curve", "Accuracy in training and evaluation.", curve)}


@pytest.fixture
def begun(run, tmp_path) -> Run:
    """A run that failed before its first epoch ended."""
    folder = tmp_path / "outputs" / "begun"
    begun = Run.create(ExperimentConfig("begun", **TINY, run_dir=str(folder)))
    begun.set_status("failed", "a <reason> & more")
    return begun


# --- tables ---------------------------------------------------------------------------------------------------------


@each("read", [
    analysis.layer_costs, analysis.draw_figures, analysis.write_figures, analysis.size_table, analysis.readable_ledger,
    analysis.run_notes, analysis.recorded_gains, recorded_proof, analysis.verdict_table, analysis.latency_table,
    compact_run, calibrate_run, load_calibrated, lambda name: list(export_run(name, ["onnx"])),
    partial(analysis.check_choice, layer="fc1"), partial(analysis.weight_levels, layer="fc1"),
    *(partial(read, layer="fc1", channel=0) for read in (channel_history, channel_norms, explain_channel)),
])  # fmt: skip
def test_the_name_of_a_run_is_no_run(read):
    with pytest.raises(CodeqError, match=r"'latest' is no Run: codeq\.analysis\.find_run\(NAME\)"):
        read("latest")


@each("read", [
    analysis.summary_table, analysis.run_labels, analysis.differing_settings, analysis.distinct_names, mean_over_seeds,
    lambda runs: analysis.common_layers(runs, []), lambda runs: analysis.write_report(runs, Path("report")),
])  # fmt: skip
def test_names_of_runs_are_no_runs(read, tmp_path):
    run = Run(tmp_path)
    with pytest.raises(CodeqError, match=r"runs='outputs/\*' is text: codeq\.analysis\.find_runs\(NAMES\)"):
        read("outputs/*")
    with pytest.raises(CodeqError, match="'latest' is no Run"):
        read([run, "latest"])
    with pytest.raises(CodeqError, match="'latest' is no Run"):
        analysis.draw_figures(run, compared=["latest"])


def test_the_summary_says_what_the_run_itself_says(run):
    row = analysis.summary_table(run).iloc[0]
    summary = run.summary
    assert row["run"] == "tiny"
    assert row["status"] == "done"
    assert (row["accuracy"], row["accuracy_best"]) == (summary["accuracy_last"], summary["accuracy_best"])
    assert row["best_epoch"] == summary["best_epoch"]
    assert (row["chosen_by"], row["test_accuracy"]) == ("test", summary["accuracy_best"])
    assert (row["bits"], row["zero_weights"]) == (summary["mean_bits"], summary["unstructured_sparsity"])
    for kind in ("structured", "unstructured"):
        assert row[f"{kind}_bops"] == pytest.approx(summary[f"{kind}_bops"] / summary["baseline_bops"])
        assert row[f"{kind}_macs"] == pytest.approx(summary[f"{kind}_macs"] / summary["baseline_macs"])
    weights = [layer.weight for layer in run.load_model().modules() if isinstance(layer, nn.Linear)]
    assert row["dense_bytes"] == row["float_bytes"] == 4 * sum(weight.numel() for weight in weights)
    assert 0 < row["entropy_bytes"] < row["packed_bytes"]
    assert row["packed_bytes"] * 8 == pytest.approx(row["float_bytes"] / 4 * 8, rel=1e-3)  # all are of 8 bits still


def test_the_readable_summary_has_units_and_a_column_a_run(run, begun):
    table = analysis.readable_summary(analysis.summary_table([run, begun]))
    assert list(table) == ["tiny", "begun"]
    assert table.loc["accuracy, last epoch", "tiny"] == f"{100 * run.summary['accuracy_last']:.2f} %"
    assert table.loc["epochs"].tolist() == ["3 of 3", "0 of 2"]
    assert table.loc["accuracy, last epoch", "begun"] == "–"
    assert table.loc["accuracy on the test images, last epoch"].tolist() == [
        f"{100 * run.summary['accuracy_last']:.2f} %", "–",
    ]  # fmt: skip
    ratio = run.summary["unstructured_bops_ratio"]
    relative = table.loc["BOPs, unstructured: compression (relative)", "tiny"]
    assert relative == f"{ratio:.1f}× ({100 / ratio:.2f} %)"
    assert table.loc["bytes of weights, packed at their bits", "tiny"].endswith("KiB; 4.00 × smaller)")
    assert "smaller" not in table.loc["bytes of weights, float32", "tiny"]


def test_bytes_of_a_compacted_network_are_compared_with_those_of_the_whole_one(tmp_path, monkeypatch):
    summary = analysis.summary_table(compacted_run(tmp_path / "compacted", monkeypatch))
    (row,) = summary.to_dict("records")
    assert row["dense_bytes"] == 4 * DENSE_WEIGHTS
    assert row["float_bytes"] == row["packed_bytes"] == 4 * COMPACTED_WEIGHTS
    table = analysis.readable_summary(summary)
    for name in ("float32", "packed at their bits"):
        assert table.loc[f"bytes of weights, {name}", "compacted"].endswith("KiB; 2.00 × smaller)")


def test_sizes_are_those_of_the_last_checkpoint_even_if_it_was_written_since(run):
    before = analysis.summary_table(run)["entropy_bytes"][0]
    manifest = run.folder / "checkpoints" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("sha256", "damaged"))
    os.utime(manifest, ns=(0, 0))
    assert before > 0
    assert np.isnan(analysis.summary_table(run)["entropy_bytes"][0])


def test_the_costs_before_and_after_are_the_evaluators(run):
    costs = analysis.layer_costs(run)
    dense = dense_stats(measure(run.load_model()))
    assert costs["dense_macs"].tolist() == [layer.macs for layer in dense.layers]
    assert costs["dense_bops"].sum() == run.summary["baseline_bops"]
    for kind in ("structured", "unstructured"):
        assert costs[f"{kind}_bops"].sum() == run.summary[f"{kind}_bops"]
        assert costs[f"{kind}_share"].sum() == pytest.approx(1)
    assert costs["null_in"].sum() > 0  # or nothing was compared
    quantizer = run.load_model().fc1.parametrizations.weight[0].quantizer
    assert costs["dead_zone"][0] == pytest.approx(1 - np.tanh(abs(quantizer.logit_dz.item())), rel=1e-5)


def test_costs_of_an_earlier_epoch(run):
    assert analysis.layer_costs(run, 0)["density"].tolist() == run.layers.query("epoch == 0")["density"].tolist()
    with pytest.raises(
        CodeqError, match=r"^epoch 4 of tiny is not recorded: it has epochs 1 to 3, which are 0 to 2 where"
    ):
        analysis.layer_costs(run, 3)


def test_an_epoch_that_was_only_half_written_does_not_count(run):
    path = run.folder / "layers.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:60])
    assert analysis.layer_costs(run)["density"].tolist() == run.layers.query("epoch == 1")["density"].tolist()
    assert not [d for d in analysis.draw_figures(run).values() if d.missing]


def test_published_results_are_those_of_the_paper():
    table = analysis.published_results()
    resnet20 = table[table["key_model"] == "resnet20"].set_index("method")
    assert resnet20["accuracy"].to_dict() == pytest.approx(
        {"baseline": 0.9170, "SQL": 0.9090, "QST-P": 0.9180, "GETA": 0.9142, "QST-Q": 0.9160, "CoDeQ 4 bit": 0.9188,
         "CoDeQ mixed": 0.9186}
    )  # fmt: skip
    assert resnet20["relative_bops"].to_dict() == pytest.approx(
        {"baseline": 1, "SQL": 0.061, "QST-P": 0.05, "GETA": 0.045, "QST-Q": 0.033, "CoDeQ 4 bit": 0.0295,
         "CoDeQ mixed": 0.0261}
    )  # fmt: skip
    for method, accuracy, bops in [("CoDeQ 4 bit", 0.0015, 0.0012), ("CoDeQ mixed", 0.0010, 0.0008)]:
        spreads = resnet20.loc[method, ["accuracy_std", "relative_bops_std"]].tolist()
        assert spreads == pytest.approx([accuracy, bops])
    assert resnet20.loc[["baseline", "QST-Q"], ["accuracy_std", "relative_bops_std"]].isna().all(axis=None)
    assert set(table["source"]) == {"arXiv 2512.12981"}
    assert table.loc[table["structured"], "method"].tolist() == ["GETA"]


TINY_VIT = {"model": "vit", "img_size": 32, "model_kwargs": {"patch_size": 4}}


@each(
    ("settings", "models"),
    [
        ([{}], {"ResNet-20"}),
        ([{"pretrained": True}], {"ResNet-20"}),
        ([{"img_size": 16}], set()),
        ([{"dataset": "digits"}], set()),
        ([TINY_VIT] * 2, {"TinyViT"}),
        ([TINY_VIT | {"model_kwargs": {}, "img_size": 224, "pretrained": True}], set()),  # configs/deadzone_vit.yaml
        ([TINY_VIT | {"pretrained": True}], set()),
        ([TINY_VIT | {"model_kwargs": {"patch_size": 8}}], set()),
        ([{"model": "resnet18", "dataset": "imagefolder", "img_size": 224}], set()),
        ([TINY_VIT, {}], set()),
    ],
)
def test_published_results_are_compared_only_with_the_same_network_and_data(settings, models):
    configs = [ExperimentConfig.from_dict({"dataset": "cifar10"} | one).to_dict() for one in settings]
    table = published_for(pd.DataFrame({"network": [published_network(config) for config in configs]}))
    assert set(table["model"]) == models
    assert set(table["dataset"]) <= {"CIFAR-10"}


def test_a_layer_without_weights_in_every_epoch_has_its_dense_cost(run):
    pruned = run.layers
    rows = pruned["layer"] == "fc2"
    pruned.loc[rows, ["density", "structured_macs", "structured_bops", "unstructured_macs", "unstructured_bops"]] = 0
    pruned.loc[rows, "dead_filters"] = pruned.loc[rows, "filters"]
    pruned.to_csv(run.folder / "layers.csv", index=False)
    costs = analysis.layer_costs(run)
    dense = np.array([3072 * 120, 120 * 84, 84 * 10])  # by hand: inputs × outputs of each layer
    assert costs["dense_macs"].tolist() == dense.tolist()
    assert costs["dense_bops"].tolist() == (1024 * dense).tolist()
    assert costs["dense_share"].tolist() == pytest.approx((dense / dense.sum()).tolist(), rel=1e-12)
    assert costs["structured_share"][1] == 0
    assert "–" not in analysis.readable_costs(costs)["dense MBOPs"].tolist()


def test_the_dense_costs_of_a_compacted_network_are_those_of_the_whole_one(run):
    config = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(config.replace("init_from: null", "init_from: outputs/x/trainable.pt"))
    assert run.config.init_from
    whole = {"fc1": 3072 * 120, "fc2": 120 * 84, "fc3": 84 * 10}
    macs = {"fc1": 3072 * 60, "fc2": 60 * 84, "fc3": 84 * 10}  # half of the neurons of fc1
    left = run.layers["layer"].map(macs)
    compacted = run.layers.assign(density=0.5, unstructured_macs=0.5 * left, structured_macs=left)
    compacted.to_csv(run.folder / "layers.csv", index=False)
    ratio = sum(whole.values()) / sum(macs.values())
    history = run.history.assign(**{"compression/structured_mac_ratio": ratio})
    history.to_csv(run.folder / "metrics.csv", index=False)
    assert analysis.layer_costs(run)["dense_macs"].tolist() == list(whole.values())


def test_a_layer_that_a_compaction_removed_has_its_dense_cost(run):
    config = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(config.replace("init_from: null", "init_from: outputs/x/trainable.pt"))
    rest = run.layers.query("layer != 'fc2'")
    macs = rest["layer"].map({"fc1": 3072 * 120, "fc3": 84 * 10})
    rest.assign(density=1.0, unstructured_macs=macs, structured_macs=macs).to_csv(
        run.folder / "layers.csv", index=False
    )
    ratio = (3072 * 120 + 120 * 84 + 84 * 10) / (3072 * 120 + 84 * 10)
    history = run.history.assign(**{"compression/structured_mac_ratio": ratio}).drop(columns="layers/fc2/bitwidth")
    history.to_csv(run.folder / "metrics.csv", index=False)
    costs = analysis.layer_costs(run)
    assert costs["layer"].tolist() == ["fc1", "fc2", "fc3"]
    assert costs["dense_macs"].tolist() == [3072 * 120, 120 * 84, 84 * 10]
    assert costs["dense_share"].sum() == pytest.approx(1)
    lost = costs.iloc[1]
    assert lost[["bits", "filters", "dead_filters", "null_in", "null_out"]].tolist() == [0, 84, 84, 120, 84]
    assert lost[["density", "structured_macs", "unstructured_bops", "structured_share"]].tolist() == [0] * 4
    assert not lost["quantized"]
    assert analysis.readable_costs(costs)["filters"].tolist() == [120, 84, 10]
    assert plots.layer_profile(costs)
    assert plots.layer_costs(costs)


def test_a_run_that_starts_from_a_whole_network_is_not_traced_again(run, monkeypatch):
    config = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(config.replace("init_from: null", "init_from: outputs/x"))
    monkeypatch.setattr(dense, "configured_layers", None)
    assert analysis.layer_costs(run)["dense_macs"].tolist() == [3072 * 120, 120 * 84, 84 * 10]


def test_a_network_of_one_epoch_without_any_weight_left_has_its_dense_cost(run):
    empty = run.layers.query("epoch == 0").copy()
    empty[["density", "structured_macs", "structured_bops", "unstructured_macs", "unstructured_bops"]] = 0
    empty.to_csv(run.folder / "layers.csv", index=False)
    costs = analysis.layer_costs(run)
    assert costs["dense_macs"].tolist() == [368640, 10080, 840]
    assert costs[["structured_share", "unstructured_share"]].to_numpy().tolist() == [[0, 0]] * 3
    assert "368,640" not in analysis.readable_costs(costs)["dense MBOPs"][0]
    assert "0 GBOPs, 0 %" in words(plots.layer_costs(costs))


def test_a_dense_cost_that_nobody_knows_makes_no_wrong_share(run):
    with open(run.folder / "config.yaml", "a") as file:
        file.write("a_key_of_the_past: 1\n")  # so the network cannot be built
    pruned = run.layers
    pruned.loc[pruned["layer"] == "fc2", ["density", "unstructured_macs"]] = 0
    pruned.to_csv(run.folder / "layers.csv", index=False)
    costs = analysis.layer_costs(run)
    assert costs["dense_macs"].isna().tolist() == [False, True, False]
    assert costs["dense_share"].isna().all()
    readable = analysis.readable_costs(costs)
    assert readable["dense share (%)"].tolist() == ["–"] * 3
    assert readable["dense MBOPs"].tolist()[1] == "–"
    assert "baseline unknown" in words(plots.layer_costs(costs))


def test_a_quantizer_that_is_off_has_no_dead_zone(run):
    table = run.layers
    table.loc[table["layer"] == "fc1", ["quantized", "bits"]] = [False, 32]
    table.to_csv(run.folder / "layers.csv", index=False)
    assert analysis.layer_costs(run)["dead_zone"].isna().tolist() == [True, False, False]


def test_the_only_epoch_counts_only_when_all_its_layers_were_written(run):
    for name, rows in (("layers", 2), ("metrics", 1)):
        path = run.folder / f"{name}.csv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: rows + 1]))
    with pytest.raises(CodeqError, match=r"no epoch has been recorded; status of tiny: done"):
        analysis.layer_costs(run)


def test_a_run_of_another_version_is_summarized_as_far_as_it_can_be_read(run):
    run.history.drop(columns="eval/accuracy").to_csv(run.folder / "metrics.csv", index=False)
    run.layers.drop(columns="density").to_csv(run.folder / "layers.csv", index=False)
    row = analysis.summary_table(run).iloc[0]
    assert np.isnan(row["accuracy"])
    assert row["epochs"] == 3
    assert row["bits"] == run.summary["mean_bits"]
    drawings = analysis.draw_figures(run)
    assert "layers.csv has no column density: not written by this version" in drawings["layer_costs"].missing
    assert drawings["weight_histograms"].figure
    assert "no column density" in analysis.write_report(run, run.folder, drawings={}).read_text()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_values_that_are_not_finite_do_not_hide_the_others(run, value):
    history = run.history
    losses = ["eval/loss", "train/ce_loss", "compression/structured_bops_ratio", "compression/unstructured_bops_ratio"]
    history.loc[1, losses] = float(value)
    history.loc[1, "eval/accuracy"] = np.nan
    history.to_csv(run.folder / "metrics.csv", index=False)
    plots.training_curves(run.history).savefig(io.BytesIO(), dpi=30)
    row = analysis.summary_table(run).iloc[0]
    assert row["accuracy"] == history["eval/accuracy"][2]
    assert row["accuracy_best"] == max(history["eval/accuracy"][[0, 2]])


def test_an_unexpected_table_loses_one_figure_alone(run, monkeypatch):
    table = run.layers
    table["bits"] = "eight"
    table.to_csv(run.folder / "layers.csv", index=False)
    chosen = [row for row in figures.FIGURES if row[0] in ("per_layer_channels", "kernel_maps")]
    monkeypatch.setattr(figures, "FIGURES", [*chosen, ("unexpected", "", lambda _: {}["x"])])
    drawings = analysis.draw_figures(run)
    assert "layers.csv is damaged: not every bits in it is a number" in drawings["per_layer_channels"].missing
    assert drawings["unexpected"].missing == "KeyError: 'x'"
    assert drawings["kernel_maps"].figure


def test_the_report_is_a_dark_page_in_the_dark_theme(run, few):
    light = analysis.write_report(run, run.folder / "light", drawings=few).read_text()
    plots.set_theme("dark")
    try:
        dark = analysis.write_report(run, run.folder / "dark", drawings=few).read_text()
    finally:
        plots.set_theme("light")
    assert "color-scheme: dark" in dark
    assert "color-scheme: dark" not in light


def test_a_run_that_cannot_be_read_is_named_beside_the_others(run, begun, few, tmp_path, monkeypatch):
    (begun.folder / "metrics.csv").write_text("epoch,eval/accuracy\n0,y\n")
    monkeypatch.setattr(figures, "FIGURES", [row for row in figures.FIGURES if row[0] == "accuracy_against_bops"])
    monkeypatch.setattr(figures, "COMPARISONS", figures.COMPARISONS[:1])
    twin = shutil.copytree(run.folder, tmp_path / "twin")
    drawings = analysis.draw_figures(run, compared=[begun, Run.open(twin)])
    for name in ("accuracy_against_bops", "compared_curves"):
        assert "Note: a run is left out: " in words(drawings[name].figure)
    row = analysis.summary_table([run, begun]).iloc[1]
    assert (row["model"], row["epochs"], np.isnan(row["accuracy"])) == ("mlp", 0, True)
    assert "not every eval/accuracy in it is a number" in row["message"]
    assert "<th>begun</th>" in analysis.write_report([run, begun], run.folder / "both", drawings=few).read_text()


def test_runs_that_have_not_recorded_an_epoch_are_named_and_one_that_is_left_is_not_compared(
    run, begun, tmp_path, monkeypatch
):
    other = Run.create(ExperimentConfig("other", **TINY, run_dir=str(tmp_path / "outputs" / "other")))
    twin = Run.open(shutil.copytree(run.folder, tmp_path / "twin"))
    monkeypatch.setattr(figures, "FIGURES", [row for row in figures.FIGURES if row[0] == "accuracy_against_bops"])
    compared = ("compared_curves", "compared_layers")
    why = r"no epoch has been recorded; status of begun: failed\."
    for one, beside, count in ((begun, other, 0), (run, begun, 1)):
        drawings = analysis.draw_figures(one, compared=[beside])
        for name in compared:
            assert re.match(rf"a comparison needs two runs, here {count}: {why}", drawings[name].missing)
    drawings = analysis.draw_figures(run, compared=[begun, twin])
    for name in ("accuracy_against_bops", *compared):
        assert "Note: a run is left out: no epoch has been recorded; status of begun" in words(drawings[name].figure)


def test_a_run_without_a_readable_table_of_layers_leaves_the_figure_of_layers_to_the_others(
    run, tmp_path, few, monkeypatch
):
    others = []
    for name in ("twin", "damaged"):
        shutil.copytree(run.folder, tmp_path / "others" / name)
        others.append(Run.open(tmp_path / "others" / name))
    (others[1].folder / "layers.csv").write_text("epoch,layer\n0,fc1\n")
    monkeypatch.setattr(figures, "FIGURES", ())
    drawings = analysis.draw_figures(run, compared=others)
    curves, layers = (drawings[f"compared_{name}"].figure for name in ("curves", "layers"))
    assert [len(figure.axes[0].lines) for figure in (curves, layers)] == [3, 2]
    assert "a run is left out" not in words(curves)
    assert "Note: a run is left out: " in words(layers)
    for one in (run, others[0]):
        (one.folder / "layers.csv").write_text("epoch,layer\n0,fc1\n")
    assert "layers.csv has no column" in analysis.draw_figures(run, compared=others)["compared_layers"].missing


def test_a_folder_that_cannot_be_written_is_one_error_before_anything_is_drawn(run, monkeypatch):
    (run.folder / "plots").write_text("a file")
    monkeypatch.setattr(Source, "__init__", None)
    for write in (lambda: analysis.write_figures(run), lambda: analysis.write_report(run, run.folder / "plots")):
        with pytest.raises(CodeqError, match=r"plots cannot be a folder, because .* is a file"):
            write()


# --- levels ---------------------------------------------------------------------------------------------------------

QUANTIZERS = [
    ("deadzone", {"max_bits": 4, "init_deadzone_logit": 0.5}),
    ("deadzone", {"learnable_bit": False, "fixed_bit_val": 2, "init_deadzone_logit": 1.0}),
    ("deadzone", {"max_bits": 4, "granularity": "channel", "init_deadzone_logit": 1.0}),
    ("deadzone", {"max_bits": 3, "scale": "learned"}),
    ("deadzone", {"max_bits": 3, "scale": "learned", "granularity": "channel"}),
    ("uniform", {"bitwidth": 3}),
]


@each(("quantizer", "kwargs"), QUANTIZERS)
def test_levels_are_where_the_quantizer_puts_the_weights(quantizer, kwargs):
    net = nn.Sequential(nn.Conv2d(8, 12, 3), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.mul_(torch.logspace(-1, 1, 12)[:, None, None, None])
    attach_weight_quantizers(net, ["1"], quantizer, kwargs)
    table = analysis.weight_levels(net, "0")
    latent = analysis.latent_weights(net, "0").ravel()
    scale = np.ones((12, 1, 1, 1))
    if kwargs.get("granularity") == "channel":
        scale = np.quantile(np.abs(latent_weight(net[0]).detach().numpy()), 0.99, axis=(1, 2, 3), keepdims=True)
    quantized = (net[0].weight.detach().numpy() / scale).ravel()
    assert latent * scale.repeat(72) == pytest.approx(latent_weight(net[0]).detach().numpy().ravel(), rel=1e-5)
    assert table["count"].sum() == quantized.size
    assert (np.diff(table["level"]) > 0).all()
    # Between the thresholds of a level lie exactly the latent weights that the quantizer put on it.
    for row in table.itertuples():
        inside = (latent > row.lower + 1e-6) & (latent < row.upper - 1e-6)
        assert quantized[inside] == pytest.approx(row.level, abs=1e-5)
        assert abs(int((np.abs(quantized - row.level) < 1e-5).sum()) - row.count) == 0
    bits = int(net[0].parametrizations.weight[0].quantizer.get_bitwidth())
    assert table["code"].tolist() == list(range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)))


@pytest.mark.parametrize("quantizer", ["uniform", "deadzone"])
def test_levels_that_no_weight_is_on_are_listed_too(quantizer):
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 0.3, -1.0, 1.0]]))
    attach_weight_quantizers(net, [], quantizer, {"bitwidth": 8} if quantizer == "uniform" else {"max_bits": 8})
    table = analysis.weight_levels(net, "0")
    assert table["code"].tolist() == list(range(-127, 128))
    used = table[table["count"] > 0]
    assert used["code"].tolist() == sorted(weight_codes(net[0]).ravel().tolist()) == [-127, 0, 38, 127]
    assert used["count"].tolist() == [1, 1, 1, 1]


def test_levels_of_a_float_or_unknown_layer_are_a_clear_error(run):
    with pytest.raises(CodeqError, match=r"'fc4' is unknown\. Did you mean"):
        analysis.weight_levels(run, "fc4")
    with pytest.raises(CodeqError, match="'0' is not quantized"):
        analysis.weight_levels(nn.Sequential(nn.Linear(2, 2)), "0")


def test_a_quantizer_of_ones_own_shows_the_levels_that_occur():
    class Signs(nn.Module):
        def forward(self, w):
            return w.sign() / 2

    net = nn.Sequential(nn.Linear(30, 4))
    attach_weight_quantizers(net, [], Signs, {})
    table = analysis.weight_levels(net, "0")
    assert table["level"].tolist() == [-0.5, 0.5]
    assert table["code"].tolist() == [-1, 1]
    assert table["count"].sum() == 120


def test_a_quantizer_of_ones_own_with_levels_per_channel_shows_them_in_their_steps():
    class Rounded(nn.Module):
        granularity = "channel"

        def forward(self, w):
            step = w.abs().amax(1, keepdim=True).clamp(min=1e-9) / 3
            return w + (step * (w / step).round() - w).detach()  # straight-through, which rounds the levels once more

    net = nn.Sequential(nn.Linear(64, 8))
    with torch.no_grad():
        net[0].weight.mul_(torch.logspace(-1, 1, 8)[:, None])
        net[0].weight[5] = 0
    attach_weight_quantizers(net, [], Rounded, {})
    table = analysis.weight_levels(net, "0")
    assert table["level"].tolist() == table["code"].tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert table["count"].sum() == 512
    latent = latent_weight(net[0]).detach().numpy()
    steps = np.abs(latent).max(1, keepdims=True) / 3
    steps[5] = 1
    assert analysis.latent_weights(net, "0") == pytest.approx(latent / steps, rel=1e-5)
    assert table["lower"].tolist()[1:] == pytest.approx([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], abs=0.1)
    run = Run(Path("unread"))
    source = Source(run, None, None)
    source.model = net
    assert source.unit == "step of its channel"


def test_a_subclass_with_a_forward_of_its_own_keeps_the_levels_of_the_paper():
    class Clamped(DeadZoneQuantizer):
        def forward(self, w):
            return super().forward(w.clamp(-5, 5))

    kwargs = {"max_bits": 3, "granularity": "channel", "init_deadzone_logit": 0.5}
    nets = [nn.Sequential(nn.Linear(64, 8)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    attach_weight_quantizers(nets[0], [], "deadzone", kwargs)
    attach_weight_quantizers(nets[1], [], Clamped, kwargs)
    ours, own = (analysis.weight_levels(net, "0") for net in nets)
    assert own["level"].to_numpy() == pytest.approx(ours["level"].to_numpy(), abs=1e-5)
    assert own["count"].tolist() == ours["count"].tolist()
    assert analysis.latent_weights(nets[1], "0") == pytest.approx(analysis.latent_weights(nets[0], "0"))


# --- figures and the report -----------------------------------------------------------------------------------------

NAMES = [
    "training_curves", "accuracy_curve", "sparsity_curves", "accuracy_against_bops", "layer_profile", "layer_costs",
    "per_layer_channels", "sparsity_bars", "channel_liveness", "liveness_over_time", "sizes", "weight_histograms",
    "weight_histogram", "kernel_maps", "sparsity_map",
]  # fmt: skip


@pytest.mark.slow
def test_every_figure_is_written_as_png_and_svg(run):
    written = analysis.write_figures(run, layer="fc2")
    assert [path.name for path in written] == [f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    assert {path.parent for path in written} == {run.folder / "plots"}
    for path in written[::2]:
        with Image.open(path) as image:
            assert min(image.size) > 300
    assert all(b"<svg" in path.read_bytes()[:800] for path in written[1::2])


@pytest.mark.slow
def test_the_same_figure_is_the_same_file(run):
    first, second = (analysis.draw_figures(run)["weight_histogram"] for _ in range(2))
    for kind in ("png", "svg", "pdf"):
        assert first.render(kind, dpi=50) == second.render(kind, dpi=50)
    written = analysis.save_drawings({"weight_histogram": first}, run.folder / "paper", ["pdf"])
    assert [path.name for path in written] == ["weight_histogram.pdf"]
    assert written[0].read_bytes().startswith(b"%PDF")


def test_liveness_is_that_of_the_epoch_asked_for(run):
    for epoch in (0, 2):
        image = analysis.draw_figures(run, epoch=epoch)["channel_liveness"].figure.axes[0].images[0].get_array()
        alive = run.liveness(epoch)
        assert [row[: len(mask)].tolist() for row, mask in zip(image, alive.values(), strict=True)] == [
            mask.astype(int).tolist() for mask in alive.values()
        ]


def test_a_layer_or_an_epoch_that_does_not_exist_is_an_error(run):
    with pytest.raises(CodeqError, match=r"layer 'fc9' is unknown\. Did you mean"):
        analysis.draw_figures(run, layer="fc9")
    with pytest.raises(CodeqError, match=r"epoch 8 of .* is not recorded"):
        analysis.draw_figures(run, epoch=7)
    for wrong in ("0", 0.0, True):
        with pytest.raises(CodeqError, match=f"epoch={wrong!r}: must be the number of an epoch, counted from 0"):
            analysis.layer_costs(run, wrong)


def test_of_a_run_that_has_recorded_nothing_a_layer_is_known_but_no_epoch(begun):
    drawings = analysis.draw_figures(begun, layer="fc2", epoch=7)
    assert not [name for name, drawing in drawings.items() if drawing.figure]
    with pytest.raises(CodeqError, match=r"layer 'fc9' is unknown\. Did you mean"):
        analysis.draw_figures(begun, layer="fc9")


def test_a_run_without_quantizers_says_why_it_has_no_levels(tmp_path):
    run = run_experiment(ExperimentConfig("float", **(TINY | {"epochs": 1, "exclude_layers": None, "quantizer": None})))
    missing = {name: d.missing for name, d in analysis.draw_figures(run).items() if d.missing}
    assert set(missing) == {"weight_histograms", "weight_histogram"}
    assert "no layer is quantized" in missing["weight_histograms"]


def test_without_its_checkpoint_a_run_still_has_its_tables(run):
    shutil.rmtree(run.folder / "checkpoints")
    drawings = analysis.draw_figures(run)
    missing = [name for name, drawing in drawings.items() if drawing.missing]
    assert missing == ["sizes", "weight_histograms", "weight_histogram", "kernel_maps", "sparsity_map"]
    assert "not drawn" in repr(drawings["kernel_maps"])
    assert np.isnan(analysis.summary_table(run)["packed_bytes"][0])


def test_a_drawing_shows_itself_in_a_notebook(run, begun):
    drawing = analysis.draw_figures(run)["accuracy_curve"]
    data, metadata = DisplayFormatter().format(drawing)
    with Image.open(io.BytesIO(data["image/png"])) as image:
        assert min(image.size) > 200
    assert metadata["image/png"]["alt"] == drawing.caption  # nbconvert's pages show it
    assert analysis.draw_figures(begun)["accuracy_curve"]._repr_png_() is None


def loaded(page: str) -> list[str]:
    """Return the addresses that a browser would fetch to show the page."""
    return re.findall(r"""(?:src|href|srcset|data|action)\s*=\s*["']?([^"'>\s]+)|url\(([^)]*)\)|@import""", page)


@pytest.mark.slow
def test_the_report_needs_nothing_but_itself(run):
    page = analysis.write_report(run, run.folder).read_text()
    sources = [first or second for first, second in loaded(page)]
    places = [source[1:] for source in sources if source.startswith("#")]  # of the table of contents
    assert len(places) == len(NAMES) + 5
    assert all(page.count(f'id="{place}"') == 1 for place in places)
    sources = [source for source in sources if not source.startswith("#")]
    assert len(sources) == len(NAMES)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "<script" not in page
    assert "<link" not in page
    for source in sources:  # nor does a picture in it
        picture = base64.b64decode(source.partition(",")[2]).decode()
        assert not [uri for uri in re.findall(r'href="([^"]*)"', picture) if not uri.startswith(("#", "data:image/"))]
    assert "<title>tiny</title>" in page
    assert f"{100 * run.summary['accuracy_last']:.2f} %" in page
    assert "fc1" in page
    assert "max_bits: 8" in page  # the configuration
    assert "git_commit" in page
    assert 'class="warning"' not in page


def test_the_report_of_a_failed_run_says_so_and_what_is_missing(begun):
    page = analysis.write_report(begun, begun.folder).read_text()
    assert "The run failed" in page
    assert "Epochs recorded: 0 of 2" in page
    assert "a &lt;reason&gt; &amp; more" in page
    assert "Not drawn" in page
    assert "<code>training_curves</code>: no epoch has been recorded" in page
    assert not [source for source, _ in loaded(page) if not source.startswith("#")]


@pytest.mark.parametrize("status", ["running", "diverged", "degenerate", "preempted", "failed"])
def test_an_unfinished_run_reports_what_it_recorded(run, few, status):
    (run.folder / "summary.json").unlink()
    run.set_status(status, "why")
    page = analysis.write_report(run, run.folder, drawings=few).read_text()
    assert len([source for source, _ in loaded(page) if not source.startswith("#")]) == 1
    assert STATES[status] in page
    assert "Epochs recorded: 3 of 3" in page
    assert page.index('class="warning"') < page.index('<h2 id="summary">')


def test_a_report_of_several_runs_compares_them(run, begun, few):
    page = analysis.write_report([run, begun], run.folder / "both", drawings=few).read_text()
    assert "<title>tiny</title>" in page
    assert "<th>begun</th>" in page
    assert "<th>dataset</th>" in page  # a setting that differs
    assert page.count("not measured yet: codeq compact") == 2
    folder = run.folder / "compacted"
    folder.mkdir()
    proof = {"masked_macs": 1000, "compacted_macs": 500, "inputs": 7, "flipped": 0, "max_error": 1e-12}
    (folder / "proof.json").write_text(json.dumps(proof))
    (folder / "gains.csv").write_text("model,batch,ms\ncompacted,128,1.25\n")
    page = analysis.write_report(run, run.folder / "one", drawings=few).read_text()
    assert "1,000 MACs masked, 500 compacted; on 7 test images 0 predictions changed" in page
    assert "<td>1.25</td>" in page
    with pytest.raises(CodeqError, match="at least one"):
        analysis.write_report([], run.folder)


def test_a_report_takes_drawings_of_which_the_files_alone_are_left(run, few):
    def report(drawings):
        return analysis.write_report(run, run.folder, drawings=drawings).read_text()

    page = report({name: drawing.without_figure(["png"]) for name, drawing in few.items()})
    assert "accuracy_curve</code>: CodeqError: accuracy_curve: only its files are left, none of them svg" in page
    assert report({name: drawing.without_figure(["svg"]) for name, drawing in few.items()}) == report(few)


def test_a_proof_of_a_checkpoint_that_was_trained_further_says_so(run):
    (run.folder / "compacted").mkdir(exist_ok=True)
    proof = {"masked_macs": 1000, "compacted_macs": 500, "inputs": 7, "flipped": 0, "max_error": 1e-12}
    for checkpoint, said in ((checkpoint_entry(run.folder / "checkpoints").file, False), ("step-1.pt", True)):
        (run.folder / "compacted" / "proof.json").write_text(json.dumps(proof | {"checkpoint": checkpoint}))
        assert ("It is that of step-1.pt; the run was trained further" in recorded_proof(run)) is said


def test_a_report_on_a_full_disk_is_one_message(run, few):
    with small_files(), pytest.raises(CodeqError, match=r"report\.html cannot be written: File too large"):
        analysis.write_report(run, run.folder, drawings=few)


def test_a_run_of_another_version_of_codeq_is_reported_as_far_as_it_can_be_read(run):
    with open(run.folder / "config.yaml", "a") as file:
        file.write("a_key_of_the_past: 1\n")
    page = analysis.write_report(run, run.folder).read_text()
    assert "a_key_of_the_past" in page
    assert "<code>kernel_maps</code>" in page  # its model cannot be built any more


# --- the notebook ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_leaves_figures_and_a_report_with_the_first_run(run, begun, tmp_path):
    tables = (run.folder / "metrics.csv").read_bytes()
    executed = run_notebook("compression_analysis", {"runs": "outputs/tiny outputs/begun", "epoch": 1, "layer": "fc2"})
    assert executed.is_relative_to(tmp_path / "outputs" / "compression_analysis")
    for name in NAMES:
        assert (run.folder / "plots" / f"{name}.png").is_file()
        assert (run.folder / "plots" / f"{name}.svg").is_file()
    report = (run.folder / "report.html").read_text()
    assert "<title>tiny</title>" in report
    assert "<th>begun</th>" in report
    assert not (begun.folder / "report.html").exists()
    assert (run.folder / "metrics.csv").read_bytes() == tables
    shown = len(NAMES) - 2  # training_curves shows two more of the files
    assert executed.read_text().count('"image/png": "iVBOR') == shown
    assert executed.read_text().count("a comparison needs two runs, here 1") == 2  # curves and layers: one has none


@pytest.mark.slow
def test_the_notebook_takes_the_newest_run_and_one_that_has_only_begun(run, begun):
    status = json.loads((run.folder / "status.json").read_text())
    status["started"] = "2026-01-01T00:00:00+00:00"  # runs of the same second are in the order of their names
    (run.folder / "status.json").write_text(json.dumps(status))
    executed = run_notebook("compression_analysis")
    assert "not drawn, no epoch has been recorded" in executed.read_text()
    assert "Epochs recorded: 0 of 2" in (begun.folder / "report.html").read_text()


@pytest.mark.slow
def test_the_notebook_scans_the_sensitivity_if_asked(run):
    run_notebook("compression_analysis", {"sensitivity": True})
    assert (run.folder / "plots" / "sensitivity.svg").is_file()
    assert 'id="sensitivity"' in (run.folder / "report.html").read_text()


def test_the_notebook_shows_why_nothing_was_compacted_or_measured_and_finishes(run, capsys):
    (run.folder / "compacted").mkdir()
    (run.folder / "compacted" / "trainable.pt").touch()
    names = {"compaction": True, "sensitivity": True, "run": run, "analysis": analysis, "figures": {}}
    names |= {"compact_run": compact_run, "CodeqError": CodeqError}
    cells = json.loads((ROOT / "notebooks" / "compression_analysis.ipynb").read_text("utf-8"))["cells"]
    compaction, scan = ["".join(cell["source"]) for cell in cells if cell["source"][0].startswith("if ")]
    exec(compaction, names)
    assert re.match("not compacted: .*trainable.pt, which would be lost", capsys.readouterr().out)
    shutil.rmtree(run.folder / "checkpoints")
    exec(scan, names)
    assert capsys.readouterr().out.startswith("not measured: ")
    assert not names["figures"]


@pytest.mark.slow
def test_the_pictures_of_the_readme_are_made_from_a_run_and_are_small(run, begun, tmp_path):
    make_images = runpy.run_path(str(ROOT / "docs" / "make_images.py"))
    make_images["main"]([str(run.folder), "--folder", str(tmp_path / "images")])
    pictures = {path.stem: path for path in (tmp_path / "images").iterdir()}
    assert {"training_curves", "layer_profile", "layer_costs", "weight_histograms"} == pictures.keys()
    for path in pictures.values():
        assert path.stat().st_size < 150_000
        with Image.open(path) as image:
            assert image.width == 800
    with pytest.raises(CodeqError, match="cannot be shown: training_curves: no epoch"):
        make_images["main"]([str(begun.folder)])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"run": "outputs/tiny"}, r"no parameter 'run'\. Did you mean 'runs'"),
        ({"epoch": "last"}, "epoch='last' must be of type int"),
    ],
)
def test_a_wrong_parameter_of_the_notebook_is_an_error_before_it_starts(parameters, message, tmp_path):
    with pytest.raises(CodeqError, match=message):
        run_notebook("compression_analysis", parameters)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_error(run):
    run.folder.chmod(0o555)
    with pytest.raises(CodeqError, match="plots cannot be written: Permission denied"):
        analysis.write_figures(run)


def test_damaged_gains_are_named(tmp_path):
    (tmp_path / "compacted").mkdir()
    for text in ("", 'model,"ms\n'):
        (tmp_path / "compacted" / "gains.csv").write_text(text)
        assert "gains.csv cannot be read: " in recorded_gains(Run(tmp_path))
