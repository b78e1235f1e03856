"""Output that never ends a training: figures, prints, services."""

import html
import io
import json
import logging
import sys
import warnings
from collections import OrderedDict

import matplotlib as mpl
import pytest
import torch
from torch import nn

from codeq import MODELS, ExperimentConfig, Run, plots, run_experiment
from codeq.analysis import draw_figures, run_notes, write_report
from codeq.common.errors import CodeqError
from codeq.runs.tracking import Tracker


def config(folder, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "small", "epochs": 1, "batch_size": 512, "device": "cpu"}
    return ExperimentConfig(name="tiny → ÷", run_dir=str(folder), quantizer=None, **(defaults | settings))


class Small(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(48, num_classes)

    def forward(self, x):
        return self.fc(nn.functional.avg_pool2d(self.norm(x), 8).flatten(1))


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    monkeypatch.setitem(MODELS, "small", Small)


def broken(*_, **__):
    raise RuntimeError("latex could not be found" + "x" * 10_000)


def test_the_environment_is_that_of_the_device_that_trains(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("codeq.runs.run.describe_environment", lambda *arguments: seen.append(arguments) or {})
    run_experiment(config(tmp_path / "run", seed=7))
    assert seen == [(7, "float32", torch.device("cpu"))]


def test_a_resumption_in_another_environment_says_and_records_what_differs(tmp_path, capsys):
    run = Run.create(config(tmp_path / "run"))
    run_of_now = run.environment
    older = run_of_now | {"versions": run_of_now["versions"] | {"torch": "1.0"}, "device": "mps"}
    (run.folder / "environment.json").write_text(json.dumps(older))
    run_experiment(config(tmp_path / "run"), resume=run.folder)
    line = f"resumed in another environment: device mps -> cpu, torch 1.0 -> {run_of_now['versions']['torch']}"
    assert line in capsys.readouterr().out.splitlines()
    changed = {"epoch": 0, "device": "cpu", "torch": run_of_now["versions"]["torch"]}
    assert run.environment == older | {"resumed_with": [changed]}


@pytest.mark.parametrize("where", ["usetex", "draw", "save"])
def test_a_figure_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch, caplog, where):
    if where == "usetex":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setitem(mpl.rcParams, "text.usetex", True)
    elif where == "draw":
        monkeypatch.setattr(plots, "channel_liveness", broken)
    else:
        monkeypatch.setattr(Tracker, "log_figure", broken)
    with caplog.at_level(logging.WARNING):
        run = run_experiment(config(tmp_path / "run"))
    assert run.status == "done"
    assert len(run.history) == 1
    if where != "usetex":  # the figures may set their own style
        assert "figure channel_liveness cannot be drawn: RuntimeError: latex could not be found" in caplog.text
        assert max(len(record.getMessage()) for record in caplog.records) < 400


@pytest.mark.parametrize("stream", ["cp1252", "ascii", "closed", "none"])
def test_a_terminal_that_cannot_show_a_line_does_not_end_the_training(tmp_path, monkeypatch, stream):
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if stream in ("closed", "none") else stream)
    if stream == "closed":
        output.close()
    monkeypatch.setattr(sys, "stdout", None if stream == "none" else output)
    assert run_experiment(config(tmp_path / "run")).status == "done"


# --- odd but legal models ---------------------------------------------------------------------------------------------


def test_a_model_of_which_everything_is_frozen_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "small", lambda num_classes: Small(num_classes).requires_grad_(False))
    with pytest.raises(CodeqError, match="Small has no trainable parameters"):
        run_experiment(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_with_frozen_weights_the_logits_of_the_quantizer_train_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "small", lambda num_classes: Small(num_classes).requires_grad_(False))
    content = {"model": "small", "dataset": "synthetic", "epochs": 1, "batch_size": 256, "device": "cpu"}
    content |= {"run_dir": str(tmp_path / "run"), "quantizer": {"name": "deadzone", "exclude_layers": []}}
    content |= {"optimizer": {"param_groups": {"base": {"lr": 0.5}, "dz": {"lr": 0.1}, "bit": {"lr": 0.2}}}}
    run = run_experiment(ExperimentConfig.from_dict(content))
    torch.manual_seed(0)
    fresh = Small()
    trained = run.load_model()
    assert torch.equal(trained.fc.parametrizations.weight.original, fresh.fc.weight)
    assert float(trained.fc.parametrizations.weight[0].quantizer.logit_dz.detach()) != 3.0
    assert run.history["lr"].tolist() == [0.5]  # that of the weights, though their group is empty


def test_a_model_with_several_outputs_is_refused_by_name(tmp_path, monkeypatch):
    class Pair(Small):
        def forward(self, x):
            return super().forward(x), x

    monkeypatch.setitem(MODELS, "small", Pair)
    with pytest.raises(CodeqError, match="Pair"):
        run_experiment(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_last_batch_of_one_image_under_batchnorm_is_found_before_training(tmp_path, monkeypatch):
    class Normed(Small):
        def __init__(self, num_classes=10):
            super().__init__(num_classes)
            self.fc = nn.Sequential(nn.Linear(48, 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes))

    monkeypatch.setitem(MODELS, "small", Normed)
    with pytest.raises(CodeqError, match="batch_size=511: of 512 training images, a batch is left with one image"):
        run_experiment(config(tmp_path / "run", batch_size=511))
    assert not (tmp_path / "run").exists()


def test_a_bfloat16_model_trains(tmp_path, monkeypatch):
    class Half(Small):
        def __init__(self, num_classes=10):
            super().__init__(num_classes)
            self.bfloat16()

        def forward(self, x):
            return super().forward(x.bfloat16())

    monkeypatch.setitem(MODELS, "small", Half)
    run = run_experiment(config(tmp_path / "run", sparsity_fn="group_lasso"))
    assert Run.open(run.folder).status == "done"
    assert run.history["eval/loss"].notna().all()


class Idle(nn.Module):
    """A network with a layer that is never called."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.fc, self.spare = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


NOTE = "layer 'spare' is never called: it counts no MACs"


def footnotes(figure) -> list[str]:
    titles = [legend.get_title().get_text() for legend in figure.legends]
    return [title for title in titles if title.startswith("Note: ")]


def test_characters_that_the_font_of_the_figures_does_not_have_are_named_once(tmp_path, monkeypatch, caplog):
    network = lambda num_classes: nn.Sequential(OrderedDict(flat=nn.Flatten(), 量化=nn.Linear(3072, num_classes)))  # noqa: E731
    monkeypatch.setitem(MODELS, "foreign", network)
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        run = run_experiment(config(tmp_path / "run", model="foreign", epochs=2, viz_interval=1))
        run.save_figure("liveness", plots.channel_liveness(run.liveness()))
    assert not [str(warning.message) for warning in caught if "Glyph" in str(warning.message)]
    (line,) = (line for line in caplog.messages if "boxes" in line)
    assert line.endswith("drawn as boxes: 化 量")


def test_what_the_costs_leave_out_is_warned_of_stored_and_in_every_figure_of_costs(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(MODELS, "idle", Idle)
    drawn = {}
    log_figure = Tracker.log_figure
    monkeypatch.setattr(
        Tracker, "log_figure", lambda self, name, figure, *rest: (drawn.update({name: figure}),
                                                                   log_figure(self, name, figure, *rest))[1]
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        run = run_experiment(config(tmp_path / "run", model="idle"))
    assert sum(NOTE in record.getMessage() for record in caplog.records) == 1
    assert run.summary["notes"] == [NOTE]
    assert drawn.keys() == {"channel_liveness", "sparsity_bars"}
    assert all(footnotes(figure) == [f"Note: {NOTE}"] for figure in drawn.values())
    assert run_notes(run) == (NOTE,)
    drawings = draw_figures(run)
    noted = {name for name, drawing in drawings.items() if drawing.figure and footnotes(drawing.figure)}
    assert noted == {
        "training_curves", "sparsity_curves", "accuracy_against_bops", "layer_profile", "layer_costs",
        "per_layer_channels", "sparsity_bars", "channel_liveness", "liveness_over_time",
    }  # fmt: skip
    curve = {"accuracy_curve": drawings["accuracy_curve"]}
    page = write_report(run, tmp_path, drawings=curve).read_text()
    assert NOTE in html.unescape(page)
    # A run of an earlier version, and one that has not ended, have no notes in a summary.
    path = run.folder / "summary.json"
    for summary in ({key: value for key, value in run.summary.items() if key != "notes"}, None):
        path.unlink()
        if summary:
            path.write_text(json.dumps(summary))
        assert run_notes(run) == (NOTE,)
    monkeypatch.delitem(MODELS, "idle")
    assert run_notes(run) == ()


def test_a_model_that_is_followed_has_no_notes(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = run_experiment(config(tmp_path / "run"))
    assert "costs of the model" not in caplog.text
    assert run.summary["notes"] == []
