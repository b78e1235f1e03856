"""`WhatIf` where something fails, is interrupted, or has changed meanwhile."""

import shutil
import threading
from html import escape
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import parametrize

from codeq import ExperimentConfig, Run, run_experiment
from codeq.analysis.requantize import Requantizer
from codeq.common.errors import CodeqError
from codeq.models import MODELS
from codeq.runs.checkpoints import load_checkpoint, save_checkpoint
from codeq.training.initial_weights import read_source
from codeq.widgets import WhatIf
from codeq.widgets.settings import TRAINED

pytestmark = pytest.mark.usefixtures("without_figures")

CONFIG = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 128, "device": "cpu"}


def trained(folder, **settings) -> Run:
    return run_experiment(ExperimentConfig("small", run_dir=str(folder), exclude_layers=[], **CONFIG | settings))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "small", quantizer_kwargs={"init_bit_logit": 0.8})  # 6 bits


@pytest.fixture
def run(original, tmp_path) -> Run:
    shutil.copytree(original.folder, tmp_path / "small")
    return Run.open(tmp_path / "small")


@pytest.fixture
def in_kernel(monkeypatch):
    """Measurements in the background, which start only once they are started again."""
    batch = torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)
    monkeypatch.setattr("codeq.widgets.measurements.evaluation_subset", lambda *_: [batch])
    monkeypatch.setattr("codeq.widgets.what_if.in_kernel", lambda: True)
    monkeypatch.setattr("codeq.widgets.background.PAUSE", 60.0)


def failing(monkeypatch, error):
    def fail(*_):
        monkeypatch.setattr("codeq.widgets.background.PAUSE", 0.0)
        raise error

    return fail


def test_a_failed_solve_leaves_the_measurement_to_the_background(run, in_kernel, monkeypatch):
    monkeypatch.setattr("codeq.widgets.what_if.solve_budget", failing(monkeypatch, CodeqError("cannot be kept")))
    what_if = WhatIf(run)
    assert "Accuracy: measuring" in what_if.text.value
    what_if.solve.click()
    what_if._background.wait()
    assert what_if.status.value == "cannot be kept"
    assert "images, no retraining" in what_if.text.value


def test_an_interrupted_solve_says_so(run, in_kernel, monkeypatch):
    monkeypatch.setattr("codeq.widgets.what_if.solve_budget", failing(monkeypatch, KeyboardInterrupt()))
    what_if = WhatIf(run)
    with pytest.raises(KeyboardInterrupt):
        what_if._controls.attempt("Solving …", lambda: what_if.solve_budget(0.03))
    what_if._background.wait()
    assert what_if.status.value == "Interrupted."
    assert "images, no retraining" in what_if.text.value


def test_an_interrupted_measurement_is_measured_in_the_background(run, in_kernel, monkeypatch):
    interrupts = [failing(monkeypatch, KeyboardInterrupt())]
    monkeypatch.setattr(
        "codeq.widgets.measurements.measure_accuracy", lambda *_: interrupts.pop()() if interrupts else (0.5, 0.0)
    )
    what_if = WhatIf(run)
    with pytest.raises(KeyboardInterrupt):
        what_if.accuracy()
    what_if._background.wait()
    assert "Accuracy: 50.00% (trained 50.00%)" in what_if.text.value


def train_on(run):
    """Save a checkpoint whose layers have 2 bits."""
    state, entry = load_checkpoint(run.folder / "checkpoints")
    for name, tensor in state["model"].items():
        if name.endswith("logit_bit"):
            tensor.fill_(0.0)
    save_checkpoint(run.folder / "checkpoints", state, epoch=1, step=entry.step + 1, accuracy=1.0)


def test_solve_reads_a_newer_checkpoint_first(run, monkeypatch):
    solved = []

    def solve(*_):
        solved.append(dict(what_if.requantizer.trained))
        return SimpleNamespace(dead_zone={}, bits={"fc1": 5})

    monkeypatch.setattr("codeq.widgets.what_if.solve_budget", solve)
    what_if = WhatIf(run, max_images=16)
    what_if.accuracy()
    what_if.solve.click()
    assert list(what_if._measured.points) == [TRAINED]  # of the same checkpoint
    train_on(run)
    what_if.solve.click()
    assert [{setting.bits for setting in each.values()} for each in solved] == [{6}, {2}]
    assert "(trained 2.00)" in what_if.text.value
    assert not what_if._measured.points
    shutil.rmtree(run.folder / "checkpoints")
    what_if.solve.click()
    assert "no checkpoint yet" in what_if.status.value
    assert len(solved) == 2


def test_solve_reads_the_network_that_is_shown_where_the_training_saves_another(run, monkeypatch):
    solved = []

    def solve(of, bops, zones, images, checkpoint, show):
        train_on(run)
        solved.append(Requantizer(of.load_model(checkpoint)).trained)
        return SimpleNamespace(dead_zone={}, bits={})

    monkeypatch.setattr("codeq.widgets.what_if.solve_budget", solve)
    what_if = WhatIf(run, max_images=16)
    what_if.solve_budget(0.1)
    assert solved == [what_if.requantizer.trained]


def test_a_setting_moved_back_is_as_trained_and_saved_so(run):
    what_if = WhatIf(run)
    picture, zone = what_if.image.value, what_if.dead_zone.value
    for layer in ("all layers", "fc2"):
        what_if.layer.value = layer
        what_if.bits.value, what_if.dead_zone.value = 5, 0.9
        assert "layers changed" in what_if.text.value
        what_if.bits.value, what_if.dead_zone.value = 6, zone
        assert what_if.key == TRAINED
        assert "as trained" in what_if.text.value
        assert what_if.image.value == picture
    what_if.bits.value = 5
    what_if.bits.value = 6
    saved = ExperimentConfig.from_yaml(what_if.save_config())
    before = run.load_model().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in read_source(saved.init_from)[0].items())


def test_controls_without_an_effect_say_why(run, tmp_path):
    uniform = WhatIf(trained(tmp_path / "uniform", quantizer="uniform", quantizer_kwargs={"bitwidth": 6}))
    with pytest.raises(CodeqError, match=r"dead_zone=0\.3: uniform quantizers have none to set"):
        uniform.dead_zone.value = 0.3
    assert (uniform.dead_zone.value, uniform.key) == (0.0, TRAINED)
    shutil.rmtree(run.folder / "checkpoints")
    what_if = WhatIf(run)
    for control, value in ((what_if.bits, 4), (what_if.dead_zone, 0.3)):
        with pytest.raises(CodeqError, match="small cannot be requantized: "):
            control.value = value
    what_if.reset.click()
    assert "small cannot be requantized: " in what_if.status.value


def test_the_command_for_a_path_with_a_space_can_be_copied(run, tmp_path):
    what_if = WhatIf(run)
    what_if.file.value = "my study/start.yaml"
    what_if.save.click()
    path = tmp_path / "my study" / "start.yaml"
    assert path.is_file()
    assert escape(f"codeq train --config '{path}'") in what_if.status.value


def test_the_call_is_shown_where_no_new_process_knows_the_model(run, monkeypatch):
    what_if = WhatIf(run)
    monkeypatch.setitem(MODELS, run.config.model, MODELS["lenet5"])
    what_if.save.click()
    assert "codeq train" not in what_if.status.value
    assert "run_experiment(ExperimentConfig.from_yaml(" in what_if.status.value
    assert escape(f"that has defined model {run.config.model!r} again") in what_if.status.value


def test_a_target_that_the_settings_keep_already_is_left_out_of_the_saved_configuration(run, tmp_path):
    bops = 1 / WhatIf(run).now.result.unstructured_bops_ratio
    changes = {"target": {"relative_bops": 1.1 * bops}, "optimizer.param_groups.bit.weight_decay": 1.0}
    run.config.override(changes).to_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").replace(run.folder / "config.yaml")
    what_if = WhatIf(run)
    saved = what_if.save_config()
    assert f"# Without target.relative_bops={1.1 * bops}, which these settings keep already" in saved.read_text("utf-8")
    config = ExperimentConfig.from_yaml(saved)
    assert config.target is None
    assert run_experiment(config.override({"run_dir": str(tmp_path / "next")})).status == "done"
    what_if.bits.value = 8
    saved = what_if.save_config()
    assert ExperimentConfig.from_yaml(saved).target == run.config.target
    assert "Without target" not in saved.read_text("utf-8")


def test_the_background_leaves_cached_weights_to_the_cells_of_the_user(run, in_kernel, monkeypatch):
    threads, cached = set(), parametrize.cached

    def watched():
        threads.add(threading.current_thread())
        return cached()

    monkeypatch.setattr(parametrize, "cached", watched)
    monkeypatch.setattr("codeq.widgets.background.PAUSE", 0.0)
    what_if = WhatIf(run)
    what_if.bits.value = 3
    what_if._background.wait()
    assert "images, no retraining" in what_if.text.value
    assert threads == {threading.main_thread()}


def test_the_reason_of_an_earlier_setting_is_not_that_of_the_present_one(run, in_kernel, monkeypatch):
    monkeypatch.setattr("codeq.widgets.background.PAUSE", 0.0)
    monkeypatch.setattr("codeq.widgets.measurements.evaluation_subset", failing(monkeypatch, CodeqError("no images")))
    what_if = WhatIf(run)
    what_if._background.wait()
    assert "Accuracy: not measured: no images" in what_if.text.value
    monkeypatch.setattr("codeq.widgets.background.PAUSE", 60.0)
    what_if.bits.value = 3
    assert "Accuracy: measuring" in what_if.text.value
    what_if.close()
    what_if._background.wait()
