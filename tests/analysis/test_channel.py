import shutil

import numpy as np
import pytest
import torch
from cases import each
from run_tables import written_run
from torch import nn

from codeq import MODELS, ExperimentConfig, Run, run_experiment
from codeq.analysis import draw_figures
from codeq.analysis.channel import channel_history, channel_norms, describe_history, describe_norms
from codeq.analysis.network import input_size_of, readable_ledger
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.runs.checkpoints import recorded_input_size

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A float MLP whose filter 5 of fc1 was dead in the second of four recorded epochs alone."""
    settings = {"model": "mlp", "dataset": "synthetic", "epochs": 4, "batch_size": 512, "device": "cpu"}
    folder = tmp_path_factory.mktemp("explained") / "run"
    run = run_experiment(ExperimentConfig("x", **settings, quantizer=None, run_dir=str(folder)))
    lines = (run.folder / "layers.csv").read_text().splitlines(keepends=True)
    column, filters = (lines[0].strip().split(",").index(name) for name in ("alive", "filters"))
    for k, line in enumerate(lines):
        cells = line.split(",")
        if cells[:2] == ["1", "fc1"]:
            assert int(cells[filters]) == 120
            digits = cells[column]
            assert set(digits) == {"f"}
            assert len(digits) == 30
            cells[column] = digits[0] + "b" + digits[2:]  # 1011: channel 4 + 1
            lines[k] = ",".join(cells)
    (run.folder / "layers.csv").write_text("".join(lines))
    return run


def test_a_channel_is_explained_with_its_history_and_savings(run, capsys):
    assert main(["explain", str(run.folder), "fc1", "5"]) == 0
    first, *reasons = capsys.readouterr().out.splitlines()
    assert first == "channel 5 of fc1: live"
    assert reasons[0].startswith("- 3072 of its 3072 weights are not zero")
    # 3072 weights of the filter and 84 that read it, at 32 x 32 bits.
    assert "- if its filter were zero: 3,156 MACs and 3,231,744 BOPs fewer" in reasons
    assert reasons[-2] == "- its filter was alive in epoch 1, dead in epoch 2, alive since epoch 3 (of 4)"
    assert channel_history(run, "fc1", 5) == [True, False, True, True]
    assert channel_history(run, "fc1", 4) == [True] * 4


def test_a_channel_is_an_integer(tmp_path):
    run = written_run(tmp_path / "run")
    assert channel_history(run, "conv1", np.int64(3)) == [True, True]
    for read in (channel_history, channel_norms):
        for channel in ("3", 1.5, True, None):
            with pytest.raises(CodeqError, match=f"channel={channel!r}: must be an integer, the output channel"):
                read(run, "conv1", channel)


def test_norms_are_recorded_for_every_epoch(run, capsys):
    weight = run.load_model().fc1.weight.detach().numpy().astype(float)
    for channel in (0, 5, 119):
        norms = channel_norms(run, "fc1", channel)
        assert len(norms) == 4
        assert norms[-1] == pytest.approx(np.sqrt((weight[channel] ** 2).sum()))
    norms = channel_norms(run, "fc1", 5)
    assert norms[0] < norms[3]  # it has learned something
    assert main(["explain", str(run.folder), "fc1", "5"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"- its norm was {norms[0]:.3g} in epoch 1")
    assert f"{norms[3]:.3g} in epoch 4, the last" in line


def test_a_run_of_an_earlier_version_has_no_norms(run, tmp_path, capsys):
    shutil.copytree(run.folder, tmp_path / "old")
    run.layers.drop(columns="norms").to_csv(tmp_path / "old" / "layers.csv", index=False)
    old = Run.open(tmp_path / "old")
    assert channel_norms(old, "fc1", 5) == []
    assert main(["explain", str(old.folder), "fc1", "5"]) == 0
    *_, alive, norms = capsys.readouterr().out.splitlines()
    assert alive == "- its filter was alive in epoch 1, dead in epoch 2, alive since epoch 3 (of 4)"
    assert norms == "- its norms were not recorded: an earlier version of codeq began this run"
    for column, content in (("norms", "AAAAPw=="), ("norms", "§"), ("norms", ""), ("alive", "zz")):
        run.layers.assign(**{column: content}).to_csv(old.folder / "layers.csv", index=False)
        assert main(["explain", str(old.folder), "fc1", "5"]) == 0
        assert "layers.csv is damaged: " in capsys.readouterr().out.splitlines()[-1]


def test_the_sentence_is_that_of_the_weights(run, capsys):
    model = run.load_model()
    with torch.no_grad():
        model.fc2.weight[:, 7] = 0
    from codeq import explain

    assert explain(model, "fc1", 7).kind == "unread"
    assert main(["explain", str(run.folder), "fc1", "7"]) == 0  # of the checkpoint, not of this model
    assert capsys.readouterr().out.startswith("channel 7 of fc1: live")


@pytest.mark.parametrize(
    ("layer", "channel", "message"),
    [
        ("fc11", "5", "layer 'fc11' is unknown. Did you mean 'fc1'? Allowed: fc1, fc2, fc3"),
        ("fc1", "120", "120"),
        ("fc1", "-1", "-1"),
    ],
)
def test_an_unknown_layer_or_channel_is_one_line(run, capsys, layer, channel, message):
    assert main(["explain", str(run.folder), layer, channel]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("codeq: ")
    assert message in line
    print(line)


class Attentive(nn.Module):
    """A network with the packed projection of an attention, a weight that belongs to no conv or linear layer."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, 4, 8, 8), nn.MultiheadAttention(4, 1, batch_first=True)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def test_a_weight_without_a_layer_is_explained_and_not_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "attentive", Attentive)
    settings = {"model": "attentive", "dataset": "synthetic", "epochs": 1, "batch_size": 512, "device": "cpu"}
    made = run_experiment(ExperimentConfig("x", **settings, quantizer=None, run_dir=str(tmp_path / "run")))
    name = "attention.in_proj_weight"
    capsys.readouterr()
    assert main(["explain", str(made.folder), name, "3"]) == 0
    first, *_, alive, norms = capsys.readouterr().out.splitlines()
    assert first == f"channel 3 of {name}: live"
    assert (alive, norms[:10]) == ("- its filter was alive in the one recorded epoch", "- its norm")
    drawings = draw_figures(made, name)
    for figure in ("weight_histogram", "sparsity_map"):
        assert f"the weights of '{name}' are not drawn: it is no conv" in drawings[figure].missing
    assert drawings["kernel_maps"].figure


def test_history_of_what_was_not_recorded(run):
    with pytest.raises(CodeqError, match="layer 'fc4' is unknown"):
        channel_history(run, "fc4", 0)
    with pytest.raises(CodeqError, match=r"channel=120: fc1 has 120 channels \(0-based\)"):
        channel_history(run, "fc1", 120)


def test_a_run_without_a_checkpoint_is_one_line(capsys):
    Run.create(ExperimentConfig("begun", model="mlp", run_dir="outputs/begun"))
    assert main(["explain", "begun", "fc1", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "begun" in line


@each(
    ("alive", "text"),
    [
        ([False], "dead in the one recorded epoch"),
        ([True, True], "alive in all 2 epochs"),
        ([False, True], "dead in epoch 1, alive since epoch 2 (of 2)"),
        ([True, False] * 5, "… alive in epoch 5, dead in epoch 6, alive in epoch 7, dead in epoch 8, "
         "alive in epoch 9, dead since epoch 10 (of 10)"),
    ],
)  # fmt: skip
def test_histories(alive, text):
    assert describe_history(alive) == f"its filter was {text}"


@each(
    ("norms", "text"),
    [
        ([0.00706], "0.00706 in the one recorded epoch"),
        ([0.41, 0.44, 0.02], "0.41 in epoch 1, largest 0.44 in epoch 2, 0.02 in epoch 3, the last"),
        ([0.1, 0.2, 123.4], "0.1 in epoch 1, 123 in epoch 3, the last and largest"),
        ([np.nan, np.nan], "NaN in all 2 epochs"),
        ([0.5, np.nan, 0.75, np.nan], "0.5 in epoch 1, largest 0.75 in epoch 3, NaN in epoch 4, the last; "
         "NaN in 2 of 4 epochs"),
        ([0.5, np.nan, 0.5], "0.5 in epoch 1, the largest, 0.5 in epoch 3, the last; NaN in 1 of 3 epochs"),
    ],
)  # fmt: skip
def test_courses_of_norms(norms, text):
    assert describe_norms(norms) == f"its norm was {text}"


class HeadFirst(nn.Module):
    """Defines its classifier before its stem, whose weight has one input channel for each of three groups."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.head = nn.Linear(6, num_classes)
        self.stem = nn.Conv2d(3, 6, 3, groups=3)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))


def test_a_network_may_define_its_layers_in_any_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "head_first", HeadFirst)
    settings = {"model": "head_first", "dataset": "synthetic", "epochs": 1, "device": "cpu", "exclude_layers": []}
    run = run_experiment(ExperimentConfig("x", **settings, run_dir=str(tmp_path / "run")))
    assert recorded_input_size(run.folder / "checkpoints") == (3, 32, 32)
    assert main(["explain", str(run.folder), "stem", "5"]) == 0
    assert "channel 5 of stem: live" in capsys.readouterr().out
    assert not isinstance(readable_ledger(run), str)
    # Without a size, as in checkpoints of earlier versions, it is derived from the layer that is defined first.
    (run.folder / "checkpoints" / "manifest.json").unlink()
    assert recorded_input_size(run.folder / "checkpoints") is None
    assert input_size_of(run, nn.Sequential(nn.Conv2d(1, 2, 1))) == (1, 32, 32)
