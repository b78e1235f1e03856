import json
import shutil
import threading

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from codeq import (
    Evaluator,
    ExperimentConfig,
    Run,
    detach_weight_quantizers,
    named_quantizers,
    run_experiment,
)
from codeq.analysis.compact_run import compact_run
from codeq.analysis.requantize import Requantizer
from codeq.analysis.source import Source
from codeq.analysis.subset import evaluation_subset
from codeq.common.errors import CodeqError
from codeq.graph.tracing import trace
from codeq.metrics.encoding import decode_norms, encode_norms
from codeq.metrics.records import used_weights
from codeq.models import MODELS, build_model, resnet20
from codeq.runs.checkpoints import load_checkpoint, read_manifest, save_checkpoint
from codeq.training.initial_weights import load_initial_weights, read_source
from codeq.widgets import LivenessExplorer, RunComparer, WhatIf, channel_figure, figures
from codeq.widgets.background import WEIGHTS
from codeq.widgets.panel import png
from codeq.widgets.states import State, channel_states

pytestmark = pytest.mark.usefixtures("without_figures")

PNG = b"\x89PNG"
SIZE = (3, 16, 16)  # small, because most of these tests measure networks
CONFIG = {"dataset": "synthetic", "batch_size": 128, "device": "cpu", "exclude_layers": []}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A ResNet-20 of three epochs whose last checkpoint has dead filters, recorded as a training would have."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    kwargs = {"init_deadzone_logit": 0.6, "init_bit_logit": 0.5}
    made = run_experiment(
        ExperimentConfig("trained", run_dir=str(folder), epochs=3, img_size=SIZE[1], quantizer_kwargs=kwargs, **CONFIG)
    )
    state, entry = load_checkpoint(folder / "checkpoints")
    weight = {name: tensor for name, tensor in state["model"].items() if name.endswith("weight.original")}
    weight["layer1.1.conv2.parametrizations.weight.original"][:3] = 0  # the stream lives on
    weight["layer2.0.conv1.parametrizations.weight.original"][5] = 0  # a channel inside a block
    for writer in ("conv1", "layer1.0.conv2", "layer1.1.conv2"):
        weight[f"{writer}.parametrizations.weight.original"][7] = 0
    save_checkpoint(folder / "checkpoints", state, epoch=2, step=entry.step + 1, accuracy=1.0)
    model, layers = made.load_model(), made.layers
    now = Evaluator(model, SIZE).evaluate(model).layers.assign(epoch=2)
    pd.concat([layers[layers["epoch"] < 2], now])[layers.columns].to_csv(folder / "layers.csv", index=False)
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "small"
    return run_experiment(ExperimentConfig("small", run_dir=str(folder), model="mlp", epochs=1, **CONFIG))


@pytest.fixture
def explorer(run) -> LivenessExplorer:
    return LivenessExplorer(run)


@pytest.fixture
def what_if(run) -> WhatIf:
    return WhatIf(run)


class Upsampled(torch.nn.Module):
    """A network with a transposed convolution, which is not followed, and with weights that belong to no layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem, self.up = torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ConvTranspose2d(8, 4, 2, 2)
        self.attention = torch.nn.MultiheadAttention(4, 1, batch_first=True)
        self.head = torch.nn.Linear(4, num_classes)

    def forward(self, x):
        tokens = self.up(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def copy_of(run: Run, folder, *without: str) -> Run:
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns(*without))
    return Run.open(folder)


def changes(widget, control, value) -> None:
    """Move one control and see that picture and words follow."""
    picture, text = widget.image.value, widget.text.value
    control.value = value
    assert bytes(widget.image.value).startswith(PNG)
    assert widget.image.value != picture
    assert widget.text.value != text


def test_layers_that_are_not_followed_are_shown_and_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "upsampled", Upsampled)
    config = ExperimentConfig("up", model="upsampled", img_size=16, epochs=1, run_dir=str(tmp_path / "up"), **CONFIG)
    made = run_experiment(config)
    explorer, what_if = LivenessExplorer(made), WhatIf(made)
    recorded = made.liveness()
    assert {"up", "attention.in_proj_weight"} < set(explorer.layer.options) == set(recorded)
    for layer, alive in recorded.items():
        explorer.layer.value = layer
        text = explorer.summary()
        assert f"{layer}: {alive.sum()} of {alive.size} filters alive" in text[0]
        assert any("not followed" in line for line in text[1:4]) == (layer in ("up", "attention.in_proj_weight"))
    weights = sum(weight.numel() for name, weight in Upsampled().named_parameters() if weight.ndim > 1)
    assert what_if.now.float_bytes == 4 * weights
    assert 0 < what_if.now.density <= 1


@pytest.mark.parametrize("sizes", [(3072,), (3072, 1)])
def test_the_second_position_of_a_slider_with_one_is_the_first(tmp_path, monkeypatch, sizes):
    def narrow(num_classes=10):
        return nn.Sequential(nn.Flatten(), *map(nn.Linear, sizes, (*sizes[1:], num_classes)))

    monkeypatch.setitem(MODELS, "narrow", narrow)
    config = ExperimentConfig("narrow", model="narrow", epochs=1, run_dir=str(tmp_path / "narrow"), **CONFIG)
    for made in (Run.create(config), run_experiment(config.override({"run_dir": str(tmp_path / "trained")}))):
        explorer = LivenessExplorer(made)
        before = explorer.summary()
        if made.status == "running" or len(sizes) == 1:
            assert explorer.layer.disabled
            assert len(explorer.layer.options) == 2
            explorer.layer.index = 1
        explorer.epoch.value = explorer.epoch.max
        if explorer.channel.disabled:
            explorer.channel.value = explorer.channel.max
        assert explorer.summary() == before
    assert explorer.layer.value == "1"
    assert explorer.figure().axes
    assert explorer.explain()[0].startswith("Channel 0 in the last checkpoint")


# --- the states of channels -------------------------------------------------------------------------------------------


class Half(torch.nn.Module):
    """A network of bfloat16 weights."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 6, 4, 4), torch.nn.Linear(6, num_classes)
        self.bfloat16()

    def forward(self, x):
        return self.fc(self.conv(x.bfloat16()).relu().mean((2, 3)))


@pytest.mark.slow
def test_a_network_of_half_precision_is_shown_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "half", Half)
    config = ExperimentConfig("half", model="half", img_size=16, epochs=1, run_dir=str(tmp_path / "half"), **CONFIG)
    made = run_experiment(config)
    records = LivenessExplorer(made).records
    for layer, norms in records.weights(0).norms.items():
        np.testing.assert_allclose(norms, records.norms[layer][0], rtol=1e-6)
    source = Source(made, None, None)
    assert source.weights["conv"].shape == (6, 3, 4, 4)
    latent, levels = source.levels("fc")
    assert latent.size == levels["count"].sum() == 60
    what_if = WhatIf(made)
    what_if.solve_budget(0.1)
    assert 1 / what_if.now.result.unstructured_bops_ratio <= 0.1


def test_a_skip_connection_keeps_what_only_one_writer_leaves():
    graph = trace(resnet20())
    sizes = {name: layer.weight.shape[:2] for name, layer in resnet20().named_modules() if hasattr(layer, "stride")}
    nonzero = {name: np.ones(size, dtype=bool) for name, size in sizes.items()} | {"linear": np.ones((10, 64), bool)}
    nonzero["layer1.1.conv2"][3] = False
    nonzero["layer1.1.conv1"][4] = False
    for writer in ("conv1", "layer1.0.conv2", "layer1.1.conv2"):
        nonzero[writer][8] = False
    nonzero["layer2.0.conv1"][2] = False
    nonzero["layer2.0.conv2"][:, :] = False
    nonzero["layer2.0.conv2"][5, 2] = True  # reads only the channel that is null
    states = channel_states(graph, nonzero)
    assert states["layer1.1.conv2"][3] == State.KEPT
    assert states["layer1.1.conv1"][4] == State.DEAD
    assert [states[writer][8] for writer in ("conv1", "layer1.0.conv2", "layer1.1.conv2")] == [State.DEAD] * 3
    assert states["layer1.2.conv2"][8] == State.ALIVE
    # Option A brings 16 channels to the middle of 32; beyond them nothing else writes after this block.
    second = states["layer2.0.conv2"]
    assert (second[8:24] == State.KEPT).all()
    assert second[5] == State.IDLE
    assert (np.delete(second, [*range(8, 24), 5]) == State.DEAD).all()


# --- LivenessExplorer -------------------------------------------------------------------------------------------------


def test_it_opens_at_the_last_epoch_with_the_recorded_counts(run, explorer):
    assert explorer.epoch.value == 3
    assert explorer.layer.value == "conv1"
    assert "Epoch 3 of 3, conv1: 15 of 16 filters alive, 1 dead." in explorer.text.value
    recorded = np.concatenate(list(run.liveness().values()))
    assert f"{recorded.sum()} of {recorded.size} filters alive, {(~recorded).sum()} dead" in explorer.text.value
    assert "differ from the recorded masks" not in explorer.text.value


def test_every_slider_changes_picture_and_words(explorer):
    changes(explorer, explorer.layer, "layer1.1.conv2")
    assert "12 of 16 filters alive, 4 dead" in explorer.text.value
    assert "3 channels of dead filters stay alive in the residual stream" in explorer.text.value
    assert "1 channels are dead in the stream, too" in explorer.text.value
    changes(explorer, explorer.layer, "layer2.0.conv1")
    assert "No skip connection is added to the output of this layer" in explorer.text.value
    changes(explorer, explorer.layer, "layer3.2.conv2")
    assert "Skip connection: all filters are alive" in explorer.text.value
    changes(explorer, explorer.threshold, 0.9)
    assert "Filters with a norm up to 0.90 × the largest of their layer" in explorer.text.value
    changes(explorer, explorer.epoch, 2)
    changes(explorer, explorer.epoch, 3)


def test_null_channels_are_those_of_the_evaluator(run, explorer):
    found = explorer.records.channels(2).states
    null = {layer: int((states != State.ALIVE).sum()) for layer, states in found.items()}
    assert null == dict(run.last_layers()[["layer", "null_out"]].to_numpy())


@pytest.mark.parametrize("threshold", [0.3, 0.71, 0.93])
def test_a_threshold_does_what_cutting_those_filters_does(run, explorer, threshold):
    model = run.load_model()
    detach_weight_quantizers(model)
    with torch.no_grad():
        for layer in run.liveness():
            weight = model.get_submodule(layer).weight
            norms = weight.flatten(1).norm(dim=1)
            weight[norms <= threshold * norms.max()] = 0
    layers = Evaluator(model, SIZE).evaluate(model).layers
    found = explorer.records.channels(2, threshold)
    assert [int((~alive).sum()) for alive in found.alive.values()] == layers["dead_filters"].tolist()
    assert [int((states != State.ALIVE).sum()) for states in found.states.values()] == layers["null_out"].tolist()


def test_an_epoch_without_weights_has_recorded_norms_for_a_threshold(run, explorer):
    kept = {entry.epoch for entry in read_manifest(run.folder / "checkpoints").values() if entry.accuracy == 1.0}
    assert kept == {2}
    explorer.epoch.value = 1
    assert "Recorded masks and norms. Checkpoints exist of epoch 3 (last)." in explorer.text.value
    explorer.threshold.value = 0.9
    norms = np.stack([decode_norms(text, 16) for text in run.layers.query("layer == 'conv1'")["norms"]])
    dead = (norms[0] <= 0.9 * norms[0].max()).sum()
    assert f"Epoch 1 of 3, conv1: {16 - dead} of 16 filters alive, {dead} dead." in explorer.text.value
    assert 0 < dead < 16
    text = (
        "Filters with a norm up to 0.90 × the largest of their layer count as dead, in all layers. Recorded masks and"
    )
    assert text in explorer.text.value
    explorer.epoch.value = 3
    assert "Weights of checkpoint &#x27;last&#x27;." in explorer.text.value


def test_its_figure_is_the_one_of_the_same_tables(run, explorer):
    explorer.layer.value = "layer2.0.conv1"
    norms = run.load_model().layer2[0].conv1.weight.detach().flatten(1).norm(dim=1).numpy()
    states = explorer.records.channels(2).states
    history = [mask == "1" for mask in ("1", "1", "0")]
    explorer.channel.value = 5
    texts = run.layers.query("layer == 'layer2.0.conv1'")["norms"]
    course = np.stack([decode_norms(text, 32) for text in texts])
    assert course[2] == pytest.approx(norms)
    given = states, "layer2.0.conv1", norms, 0.0, "Channels after epoch 3", 5, history
    assert explorer.image.value == png(channel_figure.channels(*given, course)) == png(explorer.figure())
    assert explorer.image.value != png(channel_figure.channels(*given))


def test_the_norm_of_a_channel_is_drawn_among_those_of_its_layer_with_its_death():
    course = np.array([[3.0, 1, 2, 0, 4], [2.0, 1, 2, 0, 4], [0.0, 1, 2, np.nan, 4], [0.0, 1, 2, 0, np.inf]])
    drawn = {"states": {"a": np.ones(5, int)}, "layer": "a", "course": course}
    panel = channel_figure.channels(**drawn, history=[True, True, False, False]).axes[2]
    median, line, death = (line for line in panel.lines if len(line.get_xdata()) != 2 or line.get_xdata()[0])
    assert line.get_xydata().tolist() == [[1, 3], [2, 2], [3, 0], [4, 0]]
    assert median.get_ydata().tolist()[:3] == [2, 2, 2]
    assert np.isnan(median.get_ydata()[3:]).all()  # of epochs with a norm that is not finite
    band = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.4, 3.6))  # 10 % and 90 %, between two of the five
    assert set(death.get_xdata()) == {3}
    assert panel.texts[0].get_text() == "dead since epoch 3"
    revived = channel_figure.channels(**drawn, channel=4, history=[True, False, True, True]).axes[2]
    assert not revived.texts
    assert revived.get_title("right") == "not finite in 1 of 4 epochs"
    bare = channel_figure.channels(**drawn | {"course": course[:0]}, history=[True, False]).axes[2]
    assert not bare.lines
    assert "norms were not recorded" in bare.get_title("right")


@pytest.mark.parametrize("length", [50, 120])
def test_long_names_of_layers_leave_room_for_the_channels_and_the_titles(length):
    name = "encoder.layers.0.".ljust(length, "x")
    figure = channel_figure.channels({name: np.ones(2, int), "b": np.ones(1, int)}, name, np.array([1.0, 2.0]))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_position().width > 0.4
        title, note = axes._left_title.get_window_extent(), axes._right_title.get_window_extent()
        assert 0 <= title.x0 < title.x1 < note.x0
    assert all(tick % 1 == 0 for axes in figure.axes[:2] for tick in axes.get_xticks())


def test_the_norms_of_a_dead_layer_have_an_axis_up_to_1():
    dead = {"history": [False, False], "norms": np.zeros(3), "course": np.zeros((2, 3))}
    _, *panels = channel_figure.channels({"a": np.zeros(3, int)}, "a", **dead).axes
    assert [axes.get_ylim()[1] for axes in panels] == pytest.approx([1.08, 1.08])


def test_without_checkpoints_the_masks_are_shown(run, tmp_path):
    explorer = LivenessExplorer(copy_of(run, tmp_path / "copy", "checkpoints"))
    assert "1 dead." in explorer.text.value
    assert "skip connection is added" not in explorer.text.value  # unknown without the model
    assert "Recorded masks and norms; without a checkpoint skip connections are not known." in explorer.text.value
    assert not explorer.threshold.disabled
    changes(explorer, explorer.layer, "layer2.0.conv1")


def test_a_run_of_an_earlier_version_is_shown_without_norms(run, tmp_path):
    old = copy_of(run, tmp_path / "old")
    run.layers.drop(columns="norms").to_csv(old.folder / "layers.csv", index=False)
    explorer = LivenessExplorer(old)
    assert "Its norms were not recorded: an earlier version of codeq began this run." in explorer.text.value
    assert not explorer.threshold.disabled  # of the checkpoint
    explorer.epoch.value = 1
    assert explorer.threshold.disabled
    assert "Recorded masks alone, without norms for a threshold. Checkpoints exist of epoch 3" in explorer.text.value
    assert explorer.image.value.startswith(PNG)


def test_a_filter_of_nan_is_shown_and_said_to_be_alive(small, tmp_path):
    broken = copy_of(small, tmp_path / "nan", "checkpoints")
    table = broken.layers
    norms = decode_norms(table["norms"][0], table["filters"][0]).copy()
    norms[3] = np.nan
    table.loc[0, "norms"] = encode_norms(norms)
    table.to_csv(broken.folder / "layers.csv", index=False)
    explorer = LivenessExplorer(broken)
    explorer.channel.value = 3
    explorer.threshold.value = 1.0
    assert "Its norm was NaN in the one recorded epoch." in explorer.text.value
    assert "1 of 120 filters alive, 119 dead." in explorer.text.value
    assert explorer.image.value.startswith(PNG)


def test_a_checkpoint_in_the_middle_of_an_epoch_is_of_no_recorded_epoch(run, tmp_path):
    copied = copy_of(run, tmp_path / "copy")
    manifest = json.loads((copied.folder / "checkpoints" / "manifest.json").read_text())
    manifest["last"] |= {"accuracy": None}
    (copied.folder / "checkpoints" / "manifest.json").write_text(json.dumps({"last": manifest["last"]}))
    explorer = LivenessExplorer(copied)
    explorer.layer.value = "layer1.1.conv2"
    assert "No recorded epoch has a checkpoint." in explorer.text.value
    assert "3 channels of dead filters stay alive" in explorer.text.value  # from the masks


def test_weights_are_those_of_the_epoch_also_if_a_training_goes_on(run, tmp_path):
    copied = copy_of(run, tmp_path / "copy")
    folder = copied.folder / "checkpoints"
    state, entry = load_checkpoint(folder)
    save_checkpoint(folder, state, epoch=2, step=entry.step + 1, accuracy=0.5)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["best"] |= {"epoch": 0, "accuracy": 0.8}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    explorer = LivenessExplorer(copied)
    assert explorer.records.checkpoints == {0: "best", 2: "last"}
    save_checkpoint(folder, state, epoch=3, step=entry.step + 2, accuracy=0.9)  # the new best one
    assert not (folder / manifest["best"]["file"]).exists()
    explorer.epoch.value = 1
    assert "Recorded masks and norms. Checkpoints exist of epoch 3 (last)." in explorer.text.value


def test_a_failed_explanation_is_shown_and_does_not_end_the_later_ones(small, monkeypatch):
    monkeypatch.setattr("codeq.widgets.liveness.in_kernel", lambda: True)
    explorer = LivenessExplorer(small)
    explorer._background.wait()
    monkeypatch.setattr(explorer.records, "explain", lambda *_: {}["x"])
    explorer.channel.value = 1
    explorer._background.wait()
    assert "Channel 1 cannot be explained: KeyError: &#x27;x&#x27;" in explorer.text.value
    explorer._background.start(lambda _: {}["x"])  # that nothing handles
    explorer._background.wait()
    done = []
    explorer._background.start(done.append)
    explorer._background.wait()
    assert done


def test_a_run_of_one_epoch_and_a_run_of_none(small, run, tmp_path):
    explorer = LivenessExplorer(small)
    assert (explorer.epoch.disabled, explorer.layer.disabled) == (True, False)
    assert "Epoch 1 of 1" in explorer.text.value
    nothing = LivenessExplorer(copy_of(run, tmp_path / "copy", "checkpoints", "*.csv"))
    assert "no epoch has been recorded; status of copy: done." in nothing.text.value
    assert nothing.image.value == b""
    assert png(nothing.figure()).startswith(PNG)


def test_a_channel_is_selected_by_slider_or_click_and_explained(run, explorer):
    explorer.layer.value = "layer2.0.conv1"
    assert explorer.channel.max == 31
    changes(explorer, explorer.channel, 5)
    lived = "Channel 5: its filter was alive in epochs 1-2, dead since epoch 3 (of 3). Its norm was "
    assert lived in explorer.text.value
    assert ", 0 in epoch 3, the last.</p>" in explorer.text.value
    assert lived in explorer.image.alt
    lines = explorer.explain()
    assert lines[:2] == ["Channel 5 in the last checkpoint: constant.", "All of its 144 weights are zero."]
    assert "All of its 144 weights are zero." in explorer.text.value
    explorer.channel.value = 31
    assert "All of its 144 weights" not in explorer.text.value  # of another channel
    saved = explorer.explain()[-1]
    # The filter reads 16 channels with stride 2, and 32 filters read its channel, at 8 x 8 positions of 9 weights.
    bits = run.last_layers().set_index("layer")["bits"]
    macs = {"layer2.0.conv1": 64 * 9 * 16, "layer2.0.conv2": 64 * 9 * 32}
    bops = sum(count * int(bits[layer]) * 32 for layer, count in macs.items())
    assert saved == f"If its filter were zero: {sum(macs.values()):,} MACs and {bops:,} BOPs fewer."
    explorer.layer.value = "conv1"
    assert (explorer.channel.max, explorer.channel.value) == (15, 15)
    overview, detail = explorer._image(*explorer.state)[1]
    across = overview.left + (overview.right - overview.left) * 20.5 / 64
    down = overview.top + (overview.bottom - overview.top) * 13.5 / 20
    explorer.image._clicked.value = f"{across} {down} 1"
    assert (explorer.layer.value, explorer.channel.value) == (list(run.liveness())[13], 20)
    explorer.image._clicked.value = f"{detail.left + 0.01} {detail.bottom - 0.01} 2"
    assert (explorer.layer.value, explorer.channel.value) == (list(run.liveness())[13], 0)
    explorer.image._clicked.value = "0.01 0.01 3"  # beside everything
    assert explorer.channel.value == 0


def test_refresh_follows_a_running_training(run, tmp_path):
    running = copy_of(run, tmp_path / "running", "*.csv", "checkpoints")
    explorer = LivenessExplorer(running)
    assert explorer.epoch.disabled
    for recorded in (1, 2, 3):
        for name in ("metrics.csv", "layers.csv"):
            table = pd.read_csv(run.folder / name, dtype=str)
            table[table["epoch"].astype(int) < recorded].to_csv(running.folder / name, index=False)
        explorer.refresh.click()
        assert f"Epoch {recorded} of 3, conv1: " in explorer.text.value
        assert bytes(explorer.image.value).startswith(PNG)
        if recorded == 2:
            assert not explorer.epoch.disabled
            explorer.epoch.value, explorer.layer.value = 2, "layer1.1.conv2"
            explorer.layer.value = "conv1"
    explorer.epoch.value, explorer.layer.value = 1, "layer1.1.conv2"
    explorer.refresh.click()
    assert "Epoch 1 of 3, layer1.1.conv2: " in explorer.text.value  # an earlier epoch stays
    for name in ("metrics.csv", "layers.csv"):
        (running.folder / name).unlink()
    explorer.refresh.click()
    assert "no epoch has been recorded" in explorer.text.value
    assert (explorer.image.value, explorer.image.layout.display) == (b"", "none")


# --- WhatIf -----------------------------------------------------------------------------------------------------------


def test_it_opens_as_trained(run, what_if):
    assert "as trained" in what_if.text.value
    last = run.history.iloc[-1]
    assert last["compression/unstructured_bops_ratio"] > 1
    assert what_if.layer.options == ("all layers", *run.liveness())
    pd.testing.assert_frame_equal(
        what_if.now.result.layers, run.last_layers()[what_if.now.result.layers.columns], check_dtype=False
    )


@pytest.mark.slow
def test_slider_figures_are_the_evaluators_on_logits_set_by_hand(run, what_if):
    random = np.random.default_rng(1)
    by_hand = run.load_model()
    for target in random.permutation(list(run.liveness()))[:3].tolist():
        what_if.layer.value = target
        what_if.dead_zone.value = zone = round(float(random.uniform(0.05, 0.95)), 2)
        what_if.bits.value = bits = int(random.integers(2, 8))
        quantizer = dict(named_quantizers(by_hand))[target]
        quantizer.logit_dz.data = torch.tensor(np.arctanh(1 - zone), dtype=torch.float32)
        quantizer.logit_bit.data = torch.tensor(np.arctanh((bits - 2) / 6), dtype=torch.float32)
        expected, shown = Evaluator(by_hand, SIZE).evaluate(by_hand), what_if.now.result
        pd.testing.assert_frame_equal(shown.layers, expected.layers, check_exact=True)
        assert shown.structured_bops_ratio == expected.structured_bops_ratio
        assert shown.unstructured_bops_ratio == expected.unstructured_bops_ratio
        trained = run.load_model()
        before = Evaluator(trained, SIZE).evaluate(trained).layers
        assert what_if.image.value == png(figures.what_if(expected.layers, before)) == png(what_if.figure())
        ratio = expected.structured_bops_ratio
        assert f"structured: {ratio:.1f}× ({100 / ratio:.2f} %), trained" in what_if.text.value


def test_sliders_set_all_layers_or_one_and_reset_takes_it_back(what_if):
    start, text = what_if.image.value, what_if.text.value
    changes(what_if, what_if.bits, 2)
    assert set(what_if.now.result.layers["bits"]) == {2}
    assert "20 of 20 layers changed" in what_if.text.value
    what_if.layer.value = "layer3.0.conv1"
    assert (what_if.bits.value, what_if.dead_zone.value) == (2, 0.47)  # 1 - tanh 0.6 = 0.463, as trained so far
    assert "20 of 20 layers" in what_if.text.value  # looking at a layer sets nothing
    changes(what_if, what_if.dead_zone, 0.9)
    density = what_if.now.result.layers.set_index("layer")["density"]
    assert density["layer3.0.conv1"] < 0.05 < density["layer3.0.conv2"]
    what_if.reset.click()
    assert (what_if.image.value, what_if.text.value) == (start, text)


def test_all_layers_move_by_one_factor_and_keep_their_differences(what_if):
    for layer, zone, bits in (("conv1", 0.2, 8), ("layer3.0.conv1", 0.8, 4)):
        what_if.layer.value = layer
        what_if.dead_zone.value, what_if.bits.value = zone, bits
    what_if.layer.value = "all layers"
    chosen = what_if.key

    def zones() -> np.ndarray:
        return np.array([zone for _, zone in what_if.key[0]])

    def cost() -> float:
        return what_if.now.result.unstructured_stats.total_bops

    start = what_if.dead_zone.value
    what_if.dead_zone.value = 0.3
    assert zones().mean() == pytest.approx(0.3, abs=1e-9)
    assert dict(what_if.key[0])["layer3.0.conv1"] == pytest.approx(4 * dict(what_if.key[0])["conv1"])
    costs = [cost()]
    what_if.dead_zone.value = start
    assert what_if.key == chosen  # the other eighteen are as trained
    costs.append(cost())
    for value in (0.7, 0.9, 1.0):  # 0.8 reaches its limit, the others stay in their order
        what_if.dead_zone.value = value
        assert zones().mean() == pytest.approx(value, abs=1e-9)
        costs.append(cost())
    assert costs == sorted(costs, reverse=True)
    what_if.dead_zone.value = 0.3
    assert dict(what_if.key[0])["layer3.0.conv1"] == pytest.approx(4 * dict(what_if.key[0])["conv1"])  # as before
    assert what_if.bits.value == 5  # 8, 4 and eighteen times 5
    what_if.bits.value = 4
    bits = dict(what_if.key[1])
    assert (bits["conv1"], bits["layer3.0.conv1"], bits["linear"]) == (6, 3, 4)
    what_if.bits.value = 5
    assert what_if.key[1] == chosen[1]


def test_a_budget_is_solved_and_its_settings_are_shown(small):
    what_if = WhatIf(Run.open(small.folder))
    what_if.budget.value = 3
    what_if.solve.click()
    assert what_if.status.value == ""
    what_if.accuracy()
    assert 0.95 * 0.03 <= 1 / what_if.now.result.unstructured_bops_ratio <= 0.03
    assert "3 of 3 layers changed" in what_if.text.value
    assert "(trained " in what_if.text.value  # the accuracy
    bits = [bits for _, bits in what_if.key[1]]
    assert what_if.bits.value == round(sum(bits) / 3)
    before = what_if.key
    what_if.budget.value = 0.01
    what_if.solve.click()
    assert "cannot be kept" in what_if.status.value
    assert what_if.key == before


def test_a_budget_is_solved_while_no_other_thread_reads_weights(small, monkeypatch):
    free = []

    def solve(*_):
        thread = threading.Thread(target=try_lock)
        thread.start()
        thread.join()
        raise CodeqError("seen")

    def try_lock():
        free.append(WEIGHTS.acquire(blocking=False))
        if free[0]:
            WEIGHTS.release()

    monkeypatch.setattr("codeq.widgets.what_if.solve_budget", solve)
    what_if = WhatIf(small)
    what_if.solve.click()
    assert what_if.status.value == "seen"
    assert free == [False]


def test_weights_are_read_while_no_other_thread_reads_some(small, monkeypatch):
    free = []

    def try_lock():
        free.append(WEIGHTS.acquire(blocking=False))
        if free[-1]:
            WEIGHTS.release()

    def watched(read):
        def reads(*args):
            thread = threading.Thread(target=try_lock)
            thread.start()
            thread.join()
            return read(*args)

        return reads

    monkeypatch.setattr("codeq.widgets.what_if.Requantizer", watched(Requantizer))
    monkeypatch.setattr("codeq.widgets.records.used_weights", watched(used_weights))
    WhatIf(small)
    LivenessExplorer(small)
    assert free == [False, False]


def test_a_position_seen_before_is_neither_measured_nor_drawn_again(what_if, monkeypatch):
    what_if.bits.value = 3
    first = what_if.image.value
    what_if.bits.value = 4
    monkeypatch.setattr(what_if.requantizer, "evaluate", None)
    monkeypatch.setattr(figures, "what_if", None)
    what_if.bits.value = 3
    assert what_if.image.value == first


def test_accuracy_is_that_of_the_evaluator(run):
    what_if = WhatIf(run, max_images=100)
    assert "not measured yet" in what_if.text.value
    seen = []
    what_if.progress.observe(lambda change: seen.append((change["new"], what_if.progress.max)), "value")
    what_if.bits.value = 2
    what_if.accuracy()
    assert (1, 2) in seen  # a batch of the trained network, one of this
    assert what_if.progress.layout.visibility == "hidden"
    what_if.bits.value = 3
    assert "not measured yet" in what_if.text.value
    what_if.bits.value = 2
    model = run.load_model()
    for _, quantizer in named_quantizers(model):
        quantizer.logit_bit.data.fill_(0.0)
    batches = evaluation_subset(run.config, 100)
    expected = Evaluator(model, SIZE).evaluate(model, batches).test_accuracy
    assert what_if.accuracy() == expected
    assert f"Accuracy: {expected:.2%} (trained " in what_if.text.value
    assert "on 100 test images" in what_if.text.value


def test_tried_settings_are_listed_and_can_be_returned_to(small):
    what_if = WhatIf(Run.open(small.folder), max_images=100)
    assert "codeq-hidden" in what_if.trail._dom_classes
    what_if.layer.value = "fc2"
    what_if.bits.value, what_if.dead_zone.value = 3, 0.7
    what_if.accuracy()
    assert "codeq-hidden" not in what_if.trail._dom_classes
    key, text, picture = what_if.key, what_if.text.value, what_if.image.value
    nothing, trained, tried = (label for label, _ in what_if.trail.points.options)
    cost = 100 / what_if.now.result.unstructured_bops_ratio
    assert nothing == "–"
    assert trained.startswith("1: ")
    assert " % BOPs, as trained</li>" in what_if.trail.list.value
    assert tried == f"2: {what_if.accuracy():.2%}"
    assert f"<b>{what_if.accuracy():.2%} at {cost:.2f} % BOPs, 1 of 3 layers changed</b>" in what_if.trail.list.value
    assert what_if.trail.points.index == 2
    drawn = what_if.trail.image.value
    what_if.bits.value = 5
    assert what_if.trail.points.value == ""  # not measured
    assert what_if.trail.image.value != drawn  # without the ring
    replaced: list = []
    what_if.trail.points.observe(replaced.append, "options")
    what_if.trail.points.index = 2
    assert not replaced  # a list replaced during a selection shows another one in the browser
    assert (what_if.key, what_if.text.value, what_if.image.value) == (key, text, picture)
    assert (what_if.bits.value, what_if.dead_zone.value) == (3, 0.7)
    assert what_if.trail.image.value == drawn
    what_if.trail.points.index = 1
    assert "as trained" in what_if.text.value
    left, right = sorted(what_if.trail._places)  # fewer BOPs are at the left
    assert right[0] - left[0] > 0.3
    what_if.trail.image._clicked.value = f"{left[0] + 0.01} {left[1]} 1"
    assert what_if.key == key
    what_if.trail.image._clicked.value = f"{right[0]} {right[1]} 2"
    assert "as trained" in what_if.text.value
    what_if.trail.image._clicked.value = "0.5 0.01 3"  # nothing is near
    assert "as trained" in what_if.text.value


def test_in_jupyter_the_newest_position_is_measured_in_the_background(small, monkeypatch):
    monkeypatch.setattr("codeq.widgets.what_if.in_kernel", lambda: True)
    monkeypatch.setattr("codeq.widgets.background.PAUSE", 0.0)
    batch, entered, proceed = torch.zeros(8, 3, 32, 32), threading.Event(), threading.Event()

    class Slow:
        """Images that are read once the test has moved the slider."""

        def __bool__(self):
            return True

        def __len__(self):
            return 2

        def __iter__(self):
            entered.set()
            assert proceed.wait(60)
            yield from [(batch, torch.zeros(8, dtype=torch.long))] * 2

    monkeypatch.setattr("codeq.widgets.measurements.evaluation_subset", lambda *_: Slow())
    what_if = WhatIf(Run.open(small.folder))
    assert entered.wait(60)
    assert "Accuracy: measuring" in what_if.text.value
    what_if.bits.value = 3  # not blocked
    assert "Mean bits: 3.00" in what_if.text.value
    what_if.bits.value = 2
    newest = what_if.key
    proceed.set()
    what_if._background.wait()
    assert list(what_if._measured.points) == [((), ()), newest]  # nothing of 3 bits
    assert "(trained " in what_if.text.value
    assert what_if.trail.points.index == 2
    monkeypatch.setattr("codeq.widgets.measurements.measure_accuracy", None)
    what_if.bits.value = 4
    what_if._background.wait()
    assert "Accuracy: not measured: &#x27;NoneType&#x27; object is not callable" in what_if.text.value


def test_refresh_reads_the_checkpoint_of_now(small, tmp_path):
    folder = tmp_path / "running"
    what_if = WhatIf(copy_of(small, folder, "checkpoints"))
    assert what_if.bits.disabled
    shutil.copytree(small.folder / "checkpoints", folder / "checkpoints")
    what_if.refresh.click()
    assert not what_if.bits.disabled
    assert "as trained" in what_if.text.value
    assert bytes(what_if.image.value).startswith(PNG)
    what_if.bits.value = 3
    what_if.accuracy()
    shutil.rmtree(folder / "checkpoints")
    what_if.refresh.click()
    assert "cannot be requantized" in what_if.text.value
    assert (what_if.image.value, what_if.image.layout.display) == (b"", "none")
    assert (what_if.trail.image.value, what_if.trail.points.value) == (b"", "")


@pytest.mark.slow
def test_refresh_with_a_shorter_slider_of_bits_changes_no_setting(tmp_path):
    settings = CONFIG | {"quantizer_kwargs": {"max_bits": 12}, "model": "mlp", "epochs": 1}
    run = run_experiment(ExperimentConfig("wide", run_dir=str(tmp_path / "wide"), **settings))
    what_if = WhatIf(run)
    assert (what_if.bits.max, what_if.bits.value) == (16, 12)
    state, entry = load_checkpoint(run.folder / "checkpoints")
    for name, tensor in state["model"].items():
        if name.endswith("logit_bit"):
            tensor.fill_(0.0)
    save_checkpoint(run.folder / "checkpoints", state, epoch=0, step=entry.step + 1, accuracy=1.0)
    what_if.refresh.click()
    assert (what_if.bits.max, what_if.bits.value, what_if.key) == (8, 2, ((), ()))
    what_if._settings.replace({}, {"fc1": 12})
    what_if.refresh.click()
    assert (what_if.bits.max, what_if.key) == (16, ((), (("fc1", 12),)))
    what_if.reset.click()
    assert (what_if.bits.max, what_if.bits.value, what_if.key) == (8, 2, ((), ()))


def initial_model(path):
    """The model as a training of the saved configuration starts with it."""
    config = ExperimentConfig.from_yaml(path)
    model = build_model(config.model, 10, config.model_kwargs, quantizer=config.quantizer)
    load_initial_weights(model, read_source(config.init_from)[0], config.init_from, config.init_from_strict)
    return model.eval()


def zones_of(model) -> dict[str, float]:
    return {name: float(1 - torch.tanh(q.logit_dz.detach().abs())) for name, q in named_quantizers(model)}


def test_the_saved_configuration_keeps_the_settings_of_each_layer(run, what_if, tmp_path):
    what_if.layer.value = "layer3.0.conv1"
    what_if.dead_zone.value = 0.25
    what_if.layer.value = "conv1"
    what_if.bits.value = 3
    what_if.save.click()
    saved = tmp_path / "outputs" / "what_if" / "trained.yaml"
    assert str(saved) in what_if.status.value
    assert "#   conv1: 3 bits, dead-zone 0.4" in saved.read_text("utf-8")
    config = ExperimentConfig.from_yaml(saved)
    assert (config.name, config.run_dir) == ("trained_what_if", None)
    assert (tmp_path / config.init_from).parent == saved.parent
    model, trained = initial_model(saved), run.load_model()
    expected = {name: int(q.get_bitwidth()) for name, q in named_quantizers(trained)} | {"conv1": 3}
    assert {name: int(q.get_bitwidth()) for name, q in named_quantizers(model)} == expected
    assert zones_of(model) == pytest.approx(zones_of(trained) | {"layer3.0.conv1": 0.25})
    before = dict(trained.state_dict())
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    quantizer = "parametrizations.weight.0.quantizer"
    assert changed == [f"conv1.{quantizer}.logit_bit", f"layer3.0.conv1.{quantizer}.logit_dz"]
    assert what_if.save_config().name == "trained-2.yaml"
    what_if.file.value = str(saved)
    what_if.save.click()
    assert "exists; choose another name" in what_if.status.value


@pytest.mark.parametrize(("bits", "logit", "zone", "zone_logit"), [(2, 0.01, 1.0, 0.01), (8, 3.0, 0.0, 3.0)])
def test_starts_are_kept_where_logits_can_train(what_if, bits, logit, zone, zone_logit):
    what_if.bits.value = bits
    what_if.dead_zone.value = zone
    for _, quantizer in named_quantizers(initial_model(what_if.save_config("start.yaml"))):
        assert quantizer.logit_bit.item() == pytest.approx(logit)
        assert quantizer.logit_dz.item() == pytest.approx(zone_logit)
        assert int(quantizer.get_bitwidth()) == bits


@pytest.mark.parametrize(
    ("quantizer", "kwargs", "key"),
    [
        ("uniform", {"bitwidth": 6}, "bitwidth"),
        ("deadzone", {"learnable_bit": False}, "fixed_bit_val"),
        ("deadzone", {"learnable_bit": False, "max_bits": 4}, "fixed_bit_val"),
    ],
)
def test_bits_that_are_not_learned_are_saved_if_all_layers_have_the_same(tmp_path, quantizer, kwargs, key):
    settings = CONFIG | {"quantizer": quantizer, "quantizer_kwargs": kwargs, "model": "mlp", "epochs": 1}
    what_if = WhatIf(run_experiment(ExperimentConfig("other", run_dir=str(tmp_path / "run"), **settings)))
    assert what_if.dead_zone.disabled == (quantizer == "uniform")
    what_if.bits.value = 7
    saved = what_if.save_config()
    assert ExperimentConfig.from_yaml(saved).quantizer.kwargs[key] == 7
    assert {int(q.get_bitwidth()) for _, q in named_quantizers(initial_model(saved))} == {7}
    what_if.layer.value = "fc2"
    what_if.bits.value = 5
    what_if.file.value = "refused.yaml"
    what_if.save.click()
    assert "but these differ: fc1 7, fc2 5, fc3 7. Set all layers to one bit-width" in what_if.status.value
    assert not (tmp_path / "refused.yaml").exists()


def test_more_bits_than_the_trained_maximum_become_the_new_maximum(tmp_path):
    settings = CONFIG | {"quantizer_kwargs": {"max_bits": 4}, "model": "mlp", "epochs": 1}
    what_if = WhatIf(run_experiment(ExperimentConfig("other", run_dir=str(tmp_path / "run"), **settings)))
    what_if.layer.value = "fc2"
    what_if.bits.value = 7
    saved = what_if.save_config()
    assert ExperimentConfig.from_yaml(saved).quantizer.kwargs["max_bits"] == 7
    assert [int(q.get_bitwidth()) for _, q in named_quantizers(initial_model(saved))] == [4, 7, 4]


@pytest.mark.slow
def test_a_compacted_network_is_saved_with_its_structure(small, tmp_path):
    whole = copy_of(small, tmp_path / "whole")
    compact_run(whole, trainable=True, macs=0.5)
    start = {"init_from": str(whole.folder / "compacted" / "trainable.pt"), "model": "mlp", "epochs": 1}
    compacted = run_experiment(ExperimentConfig("compacted", run_dir=str(tmp_path / "compacted"), **start, **CONFIG))
    what_if = WhatIf(compacted)
    what_if.bits.value = 3
    saved = what_if.save_config(tmp_path / "next.yaml")
    run = run_experiment(ExperimentConfig.from_yaml(saved).override({"run_dir": str(tmp_path / "next")}))
    assert run.last_layers()["filters"].tolist() == compacted.last_layers()["filters"].tolist()
    assert run.summary["mean_bits"] == 3


@pytest.mark.slow
def test_a_training_continues_from_the_saved_settings(tmp_path):
    settings = {"dataset": "digits", "model": "mlp", "batch_size": 64, "device": "cpu", "exclude_layers": []}
    settings |= {"quantizer_kwargs": {"init_bit_logit": 0.6}, "validation": 0.1}
    what_if = WhatIf(run_experiment(ExperimentConfig("digits", run_dir=str(tmp_path / "run"), epochs=3, **settings)))
    what_if.layer.value = "fc2"
    what_if.bits.value = 3
    what_if.dead_zone.value = 0.4
    shown = what_if.accuracy()
    assert "on 144 validation images" in what_if.text.value  # a tenth of 1437
    assert shown > 0.5
    # Without noticeable steps of the optimizer, the accuracy after one epoch is that of the beginning.
    still = {"epochs": 1, "optimizer.param_groups.base.lr": 1e-12, "run_dir": str(tmp_path / "still")}
    still |= {f"optimizer.param_groups.{group}.lr": 1e-12 for group in ("dz", "bit")}
    config = ExperimentConfig.from_yaml(what_if.save_config())
    begun = run_experiment(config.override(still))
    layers = begun.last_layers().set_index("layer")
    assert begun.history["eval/accuracy"].tolist() == [shown]
    assert layers["bits"].to_dict() == what_if.now.result.layers.set_index("layer")["bits"].to_dict()
    assert layers.loc["fc2", "theta_dz"] == pytest.approx(np.arctanh(0.6))
    trained = run_experiment(config.override({"epochs": 1, "run_dir": str(tmp_path / "trained")}))
    assert trained.summary["accuracy_last"] > 0.5


def test_without_a_checkpoint_or_quantizers_it_says_so(run, tmp_path):
    what_if = WhatIf(copy_of(run, tmp_path / "copy", "checkpoints"))
    assert "copy cannot be requantized: " in what_if.text.value
    assert "no checkpoint yet" in what_if.text.value
    assert what_if.bits.disabled
    assert what_if.solve.disabled
    assert png(what_if.figure()).startswith(PNG)
    for asked in (what_if.accuracy, what_if.save_config, lambda: what_if.now):
        with pytest.raises(CodeqError, match=r"copy cannot be requantized: .*no checkpoint yet"):
            asked()


def test_the_run_is_left_as_it_was(run):
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    what_if = WhatIf(run)
    what_if.bits.value = 2
    LivenessExplorer(run).epoch.value = 1
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == files


# --- damaged runs and runs of other versions --------------------------------------------------------------------------


def test_what_the_costs_leave_out_is_said_beside_the_figure(small, tmp_path):
    other = copy_of(small, tmp_path / "other")
    note = "layer 'spare' is never called: it counts no MACs"
    (other.folder / "summary.json").write_text(json.dumps(other.summary | {"notes": [note]}))
    other = Run.open(other.folder)
    assert LivenessExplorer(other).summary()[-1] == f"Note: {note}"
    assert RunComparer([small, other]).summary()[-1] == f"Note on other: {note}"
    assert not any("Note" in line for line in LivenessExplorer(small).summary())


def damaged(run: Run, folder, file: str, content: bytes) -> Run:
    copied = copy_of(run, folder)
    (copied.folder / file).write_bytes(content)
    return copied


DAMAGES = {
    "a configuration of another version": ("config.yaml", b"a_key_of_the_past: 1\n"),
    "a table of another version": ("layers.csv", b"epoch,layer\n0,fc1\n"),
    "masks that are no digits": ("layers.csv", "alive"),
    "norms that are no numbers": ("layers.csv", "norms"),
    "an empty manifest": ("checkpoints/manifest.json", b"{}"),
}


SLOW_DAMAGES = ("a table of another version", "norms that are no numbers", "an empty manifest")


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_DAMAGES)) for name in DAMAGES]
)
def test_a_damaged_run_is_a_message_in_every_widget(small, tmp_path, damage):
    file, content = DAMAGES[damage]
    if isinstance(content, str):
        content = small.layers.assign(**{content: "zz"}).to_csv(index=False).encode()
    broken = damaged(small, tmp_path / "broken", file, content)
    for widget in (LivenessExplorer(broken), WhatIf(broken), RunComparer([small, broken])):
        assert png(widget.figure()).startswith(PNG)
        assert all(widget.summary())
    if file == "config.yaml":
        assert "Epoch 1 of ?" in LivenessExplorer(broken).text.value
        assert "a_key_of_the_past" in WhatIf(broken).text.value
        assert ": done, epoch 1 of ?" in RunComparer([small, broken]).text.value
    if damage == "a table of another version":
        assert "layers.csv has no column quantized" in LivenessExplorer(broken).text.value
        comparer = RunComparer([small, broken])
        assert comparer.image.value.startswith(PNG)
        comparer.view.value = "layers"
        assert "layers.csv has no column quantized" in comparer.text.value
        assert comparer.image.value == b""


# --- all of them ------------------------------------------------------------------------------------------------------


def test_sliders_report_only_where_they_are_let_go(explorer, what_if):
    sliders = [explorer.epoch, explorer.layer, explorer.threshold, what_if.dead_zone, what_if.bits]
    assert not any(slider.continuous_update for slider in sliders)
    assert all(slider.max > slider.min for slider in sliders if not isinstance(slider, ipywidgets.SelectionSlider))


def test_names_of_runs_and_layers_are_no_html(small, tmp_path):
    comparer = RunComparer([small, copy_of(small, tmp_path / "<script>")])
    assert "<script>" not in comparer.text.value


@pytest.mark.parametrize("make", [LivenessExplorer, WhatIf, lambda name: RunComparer([name])])
def test_names_are_no_runs(make):
    with pytest.raises(CodeqError, match=r"'latest' is no Run: codeq\.analysis\.find_run\(NAME\)"):
        make("latest")
    with pytest.raises(CodeqError, match="is text: codeq"):
        RunComparer("outputs/*")
