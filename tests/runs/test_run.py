import json
import multiprocessing
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from codeq import Evaluator, ExperimentConfig, Run, plots, run_experiment, trainer
from codeq.common.errors import CodeqError
from codeq.data import load_dataset
from codeq.models import MODELS, CifarMLP
from codeq.quantizer.layers import latent_weight
from codeq.runs import provenance
from codeq.runs.checkpoints import read_manifest, save_checkpoint

pytestmark = pytest.mark.usefixtures("without_figures")

COUPLED = {
    "name": "coupled_group_lasso",
    "lambda": 70.0,
    "step": "proximal",
    "schedule": {"name": "linear_warmup", "kwargs": {"delay": 1, "ramp": 0}},
}


def config(folder=None, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "mlp", "epochs": 3, "batch_size": 64, "device": "cpu"}
    return ExperimentConfig("tiny", run_dir=folder and str(folder), **(defaults | settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose last epoch kills most channels, and what the trainer measured and trained while it made it."""
    results, models = [], []

    class Recording(Evaluator):
        def evaluate(self, model, loader=None, total=None):
            result = super().evaluate(model, loader, total)
            models.append(model)
            if loader is not None:
                results.append(result)
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codeq.training.building.Evaluator", Recording)
        settings = {"dataset": "digits", "batch_size": 128, "lr": 3e-3, "loss_terms": [COUPLED]}
        run = run_experiment(config(tmp_path_factory.mktemp("trained") / "run", **settings))
    return run, results, models[-1].eval()


@pytest.fixture
def run(trained) -> Run:
    return Run.open(trained[0].folder)


@pytest.fixture
def images() -> torch.Tensor:
    return next(iter(load_dataset("digits").test_batches(40)))[0]


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_new_run_says_that_it_runs_and_keeps_its_configuration(tmp_path):
    asked = config(tmp_path / "run", seed=7, loss_terms=[COUPLED])
    run = Run.create(asked)
    assert (run.status, run.message) == ("running", "")
    assert run.folder == tmp_path / "run"
    assert Run.open(tmp_path / "run").config == asked


def test_without_a_choice_the_folder_is_named_by_time_and_name(tmp_path):
    run = Run.create(config())
    assert run.folder.parent == tmp_path / "outputs" / "tiny"
    assert re.fullmatch(r"20\d{6}-\d{6}_tiny", run.folder.name)


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    runs = [Run.create(config()) for _ in range(3)]
    assert len({run.folder for run in runs}) == 3
    assert len(Run.list()) == 3


def create_many(folder, process, times):
    made = [Run.create(config(seed=100 * process + k, save_dir=str(folder))) for k in range(times)]
    return [(str(run.folder), 100 * process + k) for k, run in enumerate(made)]


def create_at(folder, process):
    try:
        return str(Run.create(config(folder, seed=process)).folder)
    except CodeqError as error:
        return str(error)


@pytest.mark.slow
def test_processes_that_create_runs_at_once_get_folders_with_their_own_configurations(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_git_commit", lambda: None)  # 240 processes would take most of the time
    with multiprocessing.get_context("fork").Pool(4) as pool:
        made = [
            pair for part in pool.starmap(create_many, [(tmp_path / "runs", k, 60) for k in range(4)]) for pair in part
        ]
    assert len({folder for folder, _ in made}) == 240 == len(list((tmp_path / "runs").iterdir()))
    for folder, seed in made:
        assert f"\nseed: {seed}\n" in Path(folder, "config.yaml").read_text()
        assert json.loads(Path(folder, "environment.json").read_text())["seed"] == seed


def test_of_processes_that_choose_the_same_folder_one_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_git_commit", lambda: None)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        answers = pool.starmap(create_at, [(tmp_path / f"run{k // 4}", k) for k in range(40)], chunksize=1)
    for k in range(10):
        won = [answer for answer in answers[4 * k : 4 * k + 4] if answer == str(tmp_path / f"run{k}")]
        assert len(won) == 1
        lost = [answer for answer in answers[4 * k : 4 * k + 4] if answer not in won]
        assert all("already holds a run" in answer for answer in lost)
        assert Run.open(won[0]).config.seed == answers.index(won[0])


@pytest.mark.parametrize("key", ["save_dir", "run_dir"])
@pytest.mark.parametrize(
    ("place", "message"), [("file", "file"), ("file/below", "is a file"), ("x" * 300, "255 bytes")]
)
def test_a_place_that_cannot_hold_a_run_is_one_message(tmp_path, key, place, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(CodeqError, match=message):
        Run.create(config(**{"folder" if key == "run_dir" else key: str(tmp_path / place)}))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_that_is_too_long_for_a_folder_is_one_message(tmp_path):
    with pytest.raises(CodeqError, match=r"^…?.*x cannot be written: .*too long"):
        Run.create(ExperimentConfig("x" * 250, model="mlp", save_dir=str(tmp_path)))


def test_save_dir_is_the_parent_and_run_dir_the_folder_itself(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # relative paths mean the project, not the working directory
    assert Run.create(config(save_dir="save_temp")).folder.parent == tmp_path / "save_temp"
    assert Run.create(config("a/b")).folder == tmp_path / "a" / "b"
    assert Run.create(config(tmp_path / "c", save_dir="save_temp")).folder == tmp_path / "c"
    assert Run.open("a/b").status == "running"


def test_a_name_that_is_no_file_name_still_makes_one_folder(tmp_path):
    run = Run.create(ExperimentConfig("../up / & away: λ", model="mlp"))
    assert run.folder.parent.parent == tmp_path / "outputs"
    assert Run.open(run.folder).config.name == "../up / & away: λ"


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(run):
    before = {path: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    with pytest.raises(CodeqError, match=r"run_dir='.*run' already holds a run"):
        Run.create(config(run.folder))
    assert {path: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before


def test_a_folder_with_other_files_can_become_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "executed.ipynb").write_text("{}")
    assert Run.create(config(tmp_path / "run")).status == "running"


def test_opening_what_is_no_run_names_the_runs_beside_it(tmp_path):
    Run.create(config(tmp_path / "first"))
    with pytest.raises(CodeqError, match=r"frist holds no run .*; runs beside it: first"):
        Run.open(tmp_path / "frist")
    with pytest.raises(CodeqError, match="holds no run"):
        Run.open(tmp_path / "a" / "b")


def test_opening_a_folder_of_runs_names_the_runs_in_it(tmp_path):
    Run.create(config(tmp_path / "unrelated"))
    for name in ("a", "b"):
        Run.create(config(tmp_path / "study" / "seeds" / name))
    for folder, names in ((tmp_path / "study", "seeds/a, seeds/b"), (tmp_path / "study" / "seeds", "a, b")):
        with pytest.raises(CodeqError, match=rf"holds no run .*; runs below it: {names}$"):
            Run.open(folder)


def test_runs_are_listed_oldest_first_from_any_depth(tmp_path):
    for name, year in (("a/x", 2026), ("b", 2024), ("c/d/e", 2025)):
        edit(Run.create(config(tmp_path / "outputs" / name)).folder / "status.json", started=f"{year}-01-01T00:00:00")
    (tmp_path / "outputs" / "note").mkdir()
    assert [r.folder.name for r in Run.list()] == ["b", "e", "x"]
    assert [r.folder.name for r in Run.list("outputs/c")] == ["e"]
    assert Run.list("nowhere") == []


def test_the_environment_says_what_made_the_run(tmp_path):
    run = Run.create(config(tmp_path / "run", seed=11))
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["seed"] == 11
    assert environment["precision"] == "float32"
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("codeq", "torch", "torchvision", "numpy"):
        assert environment["versions"][name] == version(name)
    assert environment["cpu_threads"] == torch.get_num_threads()
    assert environment["command"] == sys.argv
    assert sys.platform[:3].lower() in environment["platform"].lower()


def test_the_environment_names_a_gpu_only_if_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    for device, gpu in (("cuda:1", "GPU cuda:1"), ("cpu", None), ("mps", None)):
        run = Run.create(config(tmp_path / device), device=torch.device(device))
        assert run.environment["gpu"] == gpu
    assert Run.create(config(tmp_path / "default")).environment["gpu"] is None


def test_a_resumption_records_what_differs_from_the_environment_before_it(tmp_path, monkeypatch):
    run = Run.create(config(tmp_path / "run"))
    first = run.environment
    file = run.folder / "environment.json"

    def resume(epoch, *missing, **changes):
        found = {key: value for key, value in (first | changes).items() if key not in missing}
        monkeypatch.setattr("codeq.runs.run.describe_environment", lambda *_: found | {"command": ["other"]})
        return run.record_resumption("float32", torch.device("cpu"), epoch)

    before = file.read_bytes()
    assert resume(1) == []
    assert file.read_bytes() == before
    newer = {"versions": first["versions"] | {"torch": "9.0"}, "git_commit": f"{'ab' * 20}-dirty", "device": "mps"}
    old = [f"torch {first['versions']['torch']} -> 9.0", "device cpu -> mps"]
    changes = resume(2, **newer)
    assert set(old) < set(changes)
    assert any(text.startswith("git_commit ") and text.endswith(" -> abababab-dirty") for text in changes)
    assert resume(3, **newer) == []
    assert "device mps -> cpu" in resume(4)
    later = run.environment.pop("resumed_with")
    assert run.environment == first | {"resumed_with": later}
    assert [entry["epoch"] for entry in later] == [2, 4]
    assert later[1] == {
        "epoch": 4,
        "git_commit": first["git_commit"],
        "device": "cpu",
        "torch": first["versions"]["torch"],
    }
    file.write_text(json.dumps({key: value for key, value in first.items() if key != "device"}))  # of an older version
    assert resume(5, device="mps") == []


def test_the_commit_is_that_of_the_code_wherever_the_outputs_go(tmp_path, monkeypatch):
    checkout = Path(trainer.__file__).parents[1]
    asked = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("no checkout")
    run_command = subprocess.run

    def patient(*command, timeout=None, **settings):  # git has seconds, which may be too few on a busy machine
        return run_command(*command, **settings)

    monkeypatch.setattr(subprocess, "run", patient)
    monkeypatch.setattr(provenance, "_git_commit", provenance._git_commit.__wrapped__)  # not what another test has got
    run = Run.create(config(tmp_path / "run"))
    commit = json.loads((run.folder / "environment.json").read_text())["git_commit"]
    assert commit.removesuffix("-dirty") == asked.stdout.strip()


# --- status -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["done", "failed", "diverged", "preempted"])
def test_a_status_comes_back_with_its_message_and_keeps_the_start(tmp_path, status):
    run = Run.create(config(tmp_path / "run"))
    edit(run.folder / "status.json", started="2020-01-01T00:00:00+00:00")
    run.set_status(status, "why")
    again = Run.open(run.folder)
    assert (again.status, again.message) == (status, "why")
    stored = json.loads((run.folder / "status.json").read_text())
    assert stored["started"] == "2020-01-01T00:00:00+00:00"
    assert stored["updated"] > stored["started"]


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_whose_process_is_gone_died(tmp_path, dead_pid):
    run = Run.create(config(tmp_path / "run"))
    edit(run.folder / "status.json", pid=dead_pid)
    assert run.status == "died"
    assert "died" in repr(run)


def test_a_run_on_another_machine_is_not_called_dead(tmp_path, dead_pid):
    run = Run.create(config(tmp_path / "run"))
    edit(run.folder / "status.json", pid=dead_pid, host=socket.gethostname() + "-other")
    assert run.status == "running"


def test_a_run_that_ended_does_not_die_later(tmp_path, dead_pid):
    run = Run.create(config(tmp_path / "run"))
    for status in ("done", "failed", "diverged"):
        run.set_status(status)
        edit(run.folder / "status.json", pid=dead_pid)
        assert run.status == status


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_died(tmp_path):
    code = (
        "import os; from codeq import ExperimentConfig, Run;"
        "Run.create(ExperimentConfig('tiny', model='mlp', run_dir='run')); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert Run.open("run").status == "died"


# --- what the trainer measured ----------------------------------------------------------------------------------------


def test_the_history_is_what_was_measured(trained, run):
    _, results, _ = trained
    history = run.history
    assert history["epoch"].tolist() == [0, 1, 2]
    for column, attribute in {
        "eval/accuracy": "test_accuracy",
        "eval/loss": "test_loss",
        "sparsity/structured": "structured_sparsity",
        "sparsity/unstructured": "unstructured_sparsity",
        "quantizer/mean_bits": "mean_bits",
        "compression/structured_bops_ratio": "structured_bops_ratio",
        "compression/structured_mac_ratio": "structured_mac_ratio",
        "compression/unstructured_bops_ratio": "unstructured_bops_ratio",
        "compression/unstructured_mac_ratio": "unstructured_mac_ratio",
    }.items():
        assert history[column].tolist() == [getattr(result, attribute) for result in results], column
    for result, (_, row) in zip(results, history.iterrows(), strict=True):
        for structured, unstructured in zip(
            result.structured_stats.layers, result.unstructured_stats.layers, strict=True
        ):
            assert row[f"layers/{structured.name}/bitwidth"] == structured.bitwidth
            assert row[f"layers/{structured.name}/structured_pruning"] == structured.pruning_ratio
            assert row[f"layers/{structured.name}/unstructured_pruning"] == unstructured.pruning_ratio


def test_the_layers_are_what_was_measured(trained, run):
    _, results, _ = trained
    for epoch, result in enumerate(results):
        rows = run.layers[run.layers["epoch"] == epoch].drop(columns="epoch").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, result.layers, check_dtype=False, check_exact=True)
    pd.testing.assert_frame_equal(run.last_layers(), run.layers[run.layers["epoch"] == 2].reset_index(drop=True))


def test_the_liveness_of_every_epoch_is_what_was_measured(trained, run):
    _, results, _ = trained
    dead = sum((~alive).sum() for alive in results[-1].liveness.values())
    assert 0 < dead < 120 + 84  # something died and something lives, or this shows nothing
    for epoch in (0, 1, 2, None):
        expected = results[-1 if epoch is None else epoch].liveness
        found = run.liveness(epoch)
        assert list(found) == list(expected)
        for name, alive in expected.items():
            assert np.array_equal(found[name], alive), name


@pytest.mark.parametrize("epoch", [3, -1])
def test_the_liveness_of_an_epoch_that_was_not_is_an_error(run, epoch):
    with pytest.raises(CodeqError, match=f"epoch={epoch}: run has recorded 3 epochs"):
        run.liveness(epoch)


def test_the_summary_and_the_compression_are_those_of_the_last_epoch(trained, run):
    _, results, _ = trained
    last, accuracies = results[-1], [result.test_accuracy for result in results]
    summary = run.summary
    assert (summary["name"], summary["epochs"]) == ("tiny", 3)
    assert summary["accuracy_last"] == last.test_accuracy
    assert summary["accuracy_best"] == max(accuracies) > last.test_accuracy
    assert summary["best_epoch"] == accuracies.index(max(accuracies))
    assert summary["mean_bits"] == last.mean_bits
    assert summary["structured_bops_ratio"] == last.structured_bops_ratio
    dense = 3072 * 120 + 120 * 84 + 84 * 10
    table = run.compression
    assert table.index.tolist() == ["dense, 32 bit", "unstructured", "structured"]
    structured, unstructured = last.structured_stats, last.unstructured_stats
    assert table["MACs"].tolist() == [dense, unstructured.total_macs, structured.total_macs]
    assert table["BOPs"].tolist() == [dense * 1024, unstructured.total_bops, structured.total_bops]
    assert table["BOPs ×"].tolist() == [1.0, last.unstructured_bops_ratio, last.structured_bops_ratio]
    assert table["MACs ×"].tolist() == [1.0, last.unstructured_mac_ratio, last.structured_mac_ratio]
    assert table["BOPs %"].tolist() == pytest.approx((100 / table["BOPs ×"]).tolist())
    assert table["MACs %"].tolist() == pytest.approx((100 / table["MACs ×"]).tolist())


# --- the trained model ------------------------------------------------------------------------------------------------


def test_the_loaded_model_is_the_trained_one(trained, run, images):
    _, _, model = trained
    loaded = run.load_model()
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_the_accuracy_of_the_loaded_model_is_the_recorded_one(run, checkpoint):
    model, dataset = run.load_model(checkpoint), load_dataset("digits")
    right = 0
    with torch.no_grad():
        for x, y in dataset.test_batches(100):
            right += int((model(x).argmax(1) == y).sum())
    assert right / len(dataset.test) == run.summary[f"accuracy_{checkpoint}"]


def test_best_is_the_epoch_with_the_highest_accuracy(run):
    manifest = read_manifest(run.folder / "checkpoints")
    assert manifest["best"].epoch == run.history["eval/accuracy"].idxmax() != manifest["last"].epoch == 2
    assert not torch.equal(latent_weight(run.load_model().fc1), latent_weight(run.load_model("best").fc1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"num_classes": 7}, r"size mismatch for fc3.*\[10, 84\].*\[7, 84\]"), ({}, r"Missing.*extra\.bias")],
)
def test_a_changed_model_class_is_named_with_what_differs(run, monkeypatch, kwargs, message):
    def changed(num_classes: int = 10) -> nn.Module:
        model = CifarMLP(**({"num_classes": num_classes} | kwargs))
        if not kwargs:
            model.extra = nn.Linear(2, 2)
        return model

    monkeypatch.setitem(MODELS, "mlp", changed)
    with pytest.raises(CodeqError, match=rf"step-\d+\.pt does not fit today's CifarMLP: .*{message}"):
        run.load_model()


def test_a_checkpoint_without_a_model_is_named(tmp_path):
    run = Run.create(config(tmp_path / "run"))
    save_checkpoint(run.folder / "checkpoints", {"weights": {}}, epoch=0, step=1, accuracy=None)
    with pytest.raises(CodeqError, match=r"step-1\.pt holds no model"):
        run.load_model()


def test_loading_keeps_the_learned_bits_and_logits(run):
    last = run.last_layers()
    layers = Evaluator(run.load_model()).evaluate(run.load_model()).layers
    for column in ("bits", "theta_dz", "theta_bit", "density", "alive", "norms"):
        assert layers[column].tolist() == last[column].tolist()


# --- read elsewhere ---------------------------------------------------------------------------------------------------

ELSEWHERE = """
import json, sys, torch
from codeq import Run, plots
run = Run.open(sys.argv[1])
for name, figure in {
    "accuracy_curve": plots.accuracy_curve(run.history),
    "sparsity_curves": plots.sparsity_curves(run.history),
    "channel_liveness": plots.channel_liveness(run.liveness()),
    "per_layer_channels": plots.per_layer_channels(run.last_layers()),
    "sparsity_bars": plots.layer_sparsity_bars(run.last_layers()),
}.items():
    run.save_figure(name, figure)
model = run.load_model()
alive = {name: mask.tolist() for name, mask in run.liveness().items()}
with torch.no_grad():
    logits = model(torch.linspace(-1, 1, 3072).view(1, 3, 32, 32)).tolist()
found = {"status": run.status, "history": run.history.to_dict("list"), "alive": alive, "logits": logits}
print(json.dumps(found | {"compression": run.compression.to_dict("list"), "seed": run.config.seed}))
"""


@pytest.mark.slow
def test_a_copied_run_opens_and_plots_in_another_process(run, tmp_path):
    copied = tmp_path / "far" / "away"
    shutil.copytree(run.folder, copied)
    edit(copied / "status.json", host="the-cluster", pid=1)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(copied)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["status"] == "done"
    assert found["history"] == run.history.to_dict("list")
    assert found["alive"] == {name: mask.tolist() for name, mask in run.liveness().items()}
    assert found["compression"] == run.compression.to_dict("list")
    with torch.no_grad():
        expected = run.load_model()(torch.linspace(-1, 1, 3072).view(1, 3, 32, 32))
    torch.testing.assert_close(torch.tensor(found["logits"]), expected)
    pictures = sorted(path.name for path in (copied / "plots").iterdir())
    assert len(pictures) == 5
    assert all((copied / "plots" / name).stat().st_size > 4000 for name in pictures)


def test_figures_go_into_the_folder_of_the_run(run, tmp_path):
    copied = Run.open(shutil.copytree(run.folder, tmp_path / "copy"))
    path = copied.save_figure("curve", plots.accuracy_curve(copied.history))
    assert path == tmp_path / "copy" / "plots" / "curve.png"
    assert path.read_bytes()[1:4] == b"PNG"


# --- unfinished and damaged -------------------------------------------------------------------------------------------


def test_an_unfinished_run_has_an_empty_history_and_says_what_is_missing(tmp_path):
    run = Run.create(config(tmp_path / "run"))
    assert len(run.history) == len(run.layers) == len(run.last_layers()) == 0
    with pytest.raises(CodeqError, match="has recorded 0 epochs"):
        run.liveness()
    for ask in (lambda: run.summary, lambda: run.compression):
        with pytest.raises(CodeqError, match="no summary; its status is 'running'"):
            ask()
    with pytest.raises(CodeqError, match="no checkpoint yet"):
        run.load_model()


def test_a_run_that_failed_says_why_it_has_no_summary(tmp_path):
    run = Run.create(config(tmp_path / "run"))
    run.set_status("failed", "the disk is full")
    with pytest.raises(CodeqError, match=r"'failed'.*the disk is full"):
        run.summary  # noqa: B018


def test_a_mask_that_reads_like_a_number_is_still_a_mask(tmp_path):
    run = Run.create(config(tmp_path / "run"))
    (run.folder / "layers.csv").write_text("epoch,layer,filters,alive\n0,a,16,1e05\n0,b,8,80\n0,c,16,0012\n")
    alive = run.liveness()
    assert np.packbits(alive["a"]).tobytes().hex() == "1e05"
    assert alive["b"].tolist() == [True] + [False] * 7
    assert np.flatnonzero(alive["c"]).tolist() == [11, 14]


def test_layers_of_a_plain_sequential_keep_their_names(tmp_path, monkeypatch):
    def plain(num_classes: int = 10) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))

    monkeypatch.setitem(MODELS, "plain", plain)
    run = run_experiment(config(tmp_path / "run", model="plain", epochs=1, batch_size=512))
    assert run.last_layers()["layer"].tolist() == ["1"]
    assert list(run.liveness()) == ["1"]


def test_one_damaged_folder_does_not_hide_the_other_runs(tmp_path):
    good, bad = Run.create(config(tmp_path / "outputs" / "good")), Run.create(config(tmp_path / "outputs" / "bad"))
    (bad.folder / "status.json").write_text("")
    assert good.folder in [run.folder for run in Run.list()]


def test_a_folder_with_the_figures_of_an_earlier_run_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(run.folder / "metrics.csv", tmp_path / "run")
    with pytest.raises(CodeqError, match="already holds"):
        Run.create(config(tmp_path / "run"))


def test_a_run_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CodeqError, match="file"):
        Run.create(config(tmp_path / "file"))


def test_a_folder_with_other_files_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CodeqError, match=r"holds other files \(notes\.txt\); choose a new folder"):
        Run.create(ExperimentConfig("x", run_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    beside = tmp_path / "new"
    beside.mkdir()
    for name in (".hidden", "executed.ipynb", "job.log"):
        (beside / name).touch()
    assert Run.create(ExperimentConfig("x", run_dir=str(beside))).status == "running"
