import pytest
import torch
from cases import each

from codeq import ExperimentConfig, Run, run_experiment
from codeq.analysis.channel import channel_history, describe_history
from codeq.cli.main import main
from codeq.common.errors import CodeqError

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
    assert reasons[-1] == "- its filter was alive in epoch 1, dead in epoch 2, alive since epoch 3 (of 4)"
    assert channel_history(run, "fc1", 5) == [True, False, True, True]
    assert channel_history(run, "fc1", 4) == [True] * 4


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
