import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from cases import each
from torch import nn

from codeq import ExperimentConfig, Run, attach_weight_quantizers, named_quantizers, run_experiment
from codeq.analysis import rank_layers, scan_run, solve_budget
from codeq.analysis import scan as scans
from codeq.analysis.sensitivity import BITS, DEAD_ZONES, sensitivity
from codeq.analysis.subset import evaluation_images, evaluation_subset
from codeq.common.errors import CodeqError
from codeq.data import hold_out, load_dataset
from codeq.runs.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("without_figures")

CELLS = len(BITS) * (len(DEAD_ZONES) + 1)  # the trained dead-zone is one of no other layer, the 8 bits are scanned
SETTINGS = {"model": "mlp", "dataset": "synthetic", "batch_size": 128, "device": "cpu", "exclude_layers": []}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "small"
    return run_experiment(ExperimentConfig("small", run_dir=str(folder), epochs=1, **SETTINGS))


@pytest.fixture
def run(trained, tmp_path) -> Run:
    shutil.copytree(trained.folder, tmp_path / "run")
    return Run.open(tmp_path / "run")


def train_on(run: Run) -> None:
    """Save a checkpoint with other weights."""
    state, entry = load_checkpoint(run.folder / "checkpoints")
    state["model"]["fc1.parametrizations.weight.original"] *= torch.linspace(0, 1, 3072)
    save_checkpoint(run.folder / "checkpoints", state, epoch=0, step=entry.step + 1, accuracy=0.5)


def test_the_scan_is_the_sensitivity_of_the_checkpoint_with_the_macs_of_each_layer(run):
    table = scan_run(run, max_images=60)
    expected = sensitivity(run.load_model(), evaluation_subset(run.config, 60))
    shared = table[table["grid"]].drop(columns=["dense_macs", "grid"])
    pd.testing.assert_frame_equal(shared.reset_index(drop=True), expected, check_exact=True)
    assert dict(table.groupby("layer", sort=False)["dense_macs"].first()) == {
        "fc1": 3072 * 120,
        "fc2": 120 * 84,
        "fc3": 84 * 10,
    }


def test_a_second_scan_is_read_from_the_folder_to_the_bit(run, monkeypatch):
    first = scan_run(run, max_images=60)
    monkeypatch.setattr(scans, "scan_layers", lambda *_: [])
    pd.testing.assert_frame_equal(scan_run(run, max_images=60), first, check_exact=True)
    monkeypatch.undo()
    seen = []
    scan_run(run, max_images=61, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (3 * CELLS, 3 * CELLS)  # other images are another scan
    assert len(list((run.folder / "sensitivity").glob("*.json"))) == 2


def test_a_cancelled_scan_resumes_behind_the_last_finished_layer(run):
    def cancel(measured: int, total: int) -> None:
        assert total == 3 * CELLS
        if measured == CELLS + 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_run(run, max_images=60, progress=cancel)
    seen = []
    table = scan_run(run, max_images=60, progress=lambda measured, _: seen.append(measured))
    assert seen == list(range(CELLS + 1, 3 * CELLS + 1))
    pd.testing.assert_frame_equal(table, scan_run(run, max_images=60), check_exact=True)


def test_another_checkpoint_is_another_scan_and_a_damaged_file_is_measured_again(run):
    first = scan_run(run, max_images=60)
    (path,) = (run.folder / "sensitivity").iterdir()
    path.write_bytes(b"\xff\x00 no table")
    pd.testing.assert_frame_equal(scan_run(run, max_images=60), first, check_exact=True)
    train_on(run)
    assert scan_run(run, max_images=60)["baseline_loss"].iloc[0] != first["baseline_loss"].iloc[0]


def test_a_scan_is_that_of_the_checkpoint_it_has_read_where_the_run_trains_on(run, monkeypatch):
    read = scans.evaluation_subset
    monkeypatch.setattr(scans, "evaluation_subset", lambda *of: (train_on(run), read(*of))[1])
    first = scan_run(run, max_images=60)
    monkeypatch.undo()
    assert scan_run(run, max_images=60)["baseline_loss"].iloc[0] != first["baseline_loss"].iloc[0]


def test_images_are_those_that_select_the_best_checkpoint():
    config = ExperimentConfig("x", dataset="synthetic", validation=0.25, seed=3)
    held = hold_out(load_dataset("synthetic"), 0.25, seed=3)[1].test
    found = torch.cat([labels for _, labels in evaluation_subset(config, 10**6)])
    assert found.tolist() == held.labels.tolist()
    assert (evaluation_images(config), evaluation_images(ExperimentConfig("x"))) == ("validation", "test")


def test_layers_are_ranked_by_accuracy_lost_per_bit_and_per_mac():
    grid = [(layer, bits, zone) for layer in ("a", "b") for bits in (2, 4, 8) for zone in (0.0, 0.5)]
    table = pd.DataFrame(grid, columns=["layer", "bits", "dead_zone"])
    table["zero_weights"] = np.where(table["dead_zone"] == 0.5, 0.6, 0.0)
    accuracy = {("a", 2, 0.0): 0.3, ("a", 4, 0.0): 0.88, ("a", 8, 0.5): 0.7, ("b", 2, 0.5): 0.78, ("b", 4, 0.5): 0.9}
    table["accuracy"] = [accuracy.get(cell, 0.9) for cell in grid]
    trained = {"a": (8, 0.0, 0.0), "b": (4, 0.5, 0.6)}
    for place, column in enumerate(("trained_bits", "trained_dead_zone", "trained_zero_weights")):
        table[column] = [trained[layer][place] for layer in table["layer"]]
    table["dense_macs"] = [2_000_000 if layer == "a" else 1_000_000 for layer in table["layer"]]
    ranking = rank_layers(table.assign(baseline=0.9)).set_index("layer")
    assert ranking.index.tolist() == ["b", "a"]
    # a: 60 points over 6 bits, 2 points over 4 bits, at no dead-zone; 20 points for 1.2 of 2 million MACs.
    assert ranking.loc["a", "per_bit"] == pytest.approx((10 + 0.5) / 2)
    assert ranking.loc["a", "per_million_macs"] == pytest.approx(20 / 1.2)
    assert ranking.loc["a", "lowest_bits"] == 8
    # b: 12 points over 2 bits at a dead-zone of 0.5; nothing is wider than what it has.
    assert ranking.loc["b", "per_bit"] == pytest.approx(6)
    assert ranking.loc["b", "lowest_bits"] == 4
    assert np.isnan(ranking.loc["b", "per_million_macs"])


def quantized(bits: int, **kwargs) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 12), nn.ReLU(), nn.Linear(12, 10))
    zone = {"init_deadzone_logit": 0.5} if kwargs.get("grid") != "affine" else {}
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": bits, "init_bit_logit": 5.0} | zone | kwargs)
    with torch.no_grad():
        for quantizer in dict(named_quantizers(net)).values():
            if quantizer.logit_dz.numel() > 1:
                quantizer.logit_dz.copy_(torch.linspace(-1, 1, quantizer.logit_dz.numel()).view_as(quantizer.logit_dz))
    return net.eval()


@each(
    "net",
    [quantized(3), quantized(7), quantized(8, granularity="channel"), quantized(5, scale="learned"),
     quantized(4, grid="affine")],
)  # fmt: skip
def test_a_layer_loses_nothing_at_its_trained_setting(net, run, monkeypatch):
    """Each layer against `sensitivity` with its own bits and dead-zone in the grid."""
    monkeypatch.setattr(Run, "load_model", lambda *_: net)
    shutil.rmtree(run.folder / "sensitivity", ignore_errors=True)  # of another network
    scan = scan_run(run, max_images=200)
    ranking = rank_layers(scan).set_index("layer")
    assert (ranking["lowest_bits"] <= ranking["trained_bits"]).all()
    for name, row in ranking.iterrows():
        bits, zone = int(row["trained_bits"]), row["trained_dead_zone"]
        widths = sorted({*BITS, bits})
        table = sensitivity(net, evaluation_subset(run.config, 200), widths, [zone], [str(name)])
        accuracy = 100 * table.set_index("bits")["accuracy"]
        fewer = [b for b in BITS if b < bits]
        lost = [(accuracy[bits] - accuracy[b]) / (bits - b) for b in fewer]
        assert row["per_bit"] == pytest.approx(np.mean(lost), abs=1e-9)
        enough = [b for b in widths if accuracy[b] >= accuracy[bits] - 1 - 1e-9]
        assert row["lowest_bits"] == min(enough)


@each("baseline", [0.75, 0.83, 0.29])
def test_bits_that_lose_exactly_one_percentage_point_are_enough(baseline):
    table = pd.DataFrame(
        {"layer": "fc", "bits": [2, 4], "dead_zone": 0.0, "accuracy": [0.1, round(baseline - 0.01, 2)]}
    )
    trained = {"trained_bits": 8, "trained_dead_zone": 0.0, "trained_zero_weights": 0.0, "zero_weights": 0.0}
    assert rank_layers(table.assign(**trained, baseline=baseline, dense_macs=1000))["lowest_bits"].tolist() == [4]


@each("number", [0, -1, "5", 2.0])
def test_a_number_of_images_is_at_least_one(number, trained):
    with pytest.raises(CodeqError, match=f"max_images={number!r}: must be an integer of at least 1"):
        evaluation_subset(trained.config, number)


def test_names_are_no_runs():
    for use in (scan_run, partial(solve_budget, relative_bops=0.1)):
        with pytest.raises(CodeqError, match="'latest' is no Run: "):
            use("latest")
