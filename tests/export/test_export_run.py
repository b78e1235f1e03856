import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import small_files
from torch import nn

from codeq import ExperimentConfig, run_experiment
from codeq.cli.export import FORMATS as FORMATS_OF_THE_COMMAND
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.data import load_dataset
from codeq.export import load_packed
from codeq.export.builders import BUILDERS
from codeq.export.export_run import _source, export_run
from codeq.export.verdict import Comparison, compare, read_verdicts
from codeq.graph.activations import attach_activation_quantizers
from codeq.graph.baking import baked_copy
from codeq.quantizer.activations import toggle_activation_quantization
from codeq.quantizer.layers import latent_weight, named_layers
from codeq.runs.checkpoints import checkpoint_entry
from codeq.runs.networks import build_network

pytestmark = pytest.mark.usefixtures("quick_timing")

FORMATS = ["onnx", "qdq", "qonnx", "openvino", "pt2", "packed"]
FILES = ["model.onnx", "model.qdq.onnx", "model.qonnx.onnx", "model.xml", "model.pt2", "model.codeq"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    config = ExperimentConfig(
        "small", model="lenet5", dataset="synthetic", epochs=1, batch_size=128, device="cpu", run_dir=str(folder),
        quantizer_kwargs={"max_bits": 6, "init_deadzone_logit": 1.5}, viz_interval=100,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEQ_HOME", str(folder.parent))
        patch.setattr("codeq.training.recording.Recorder._draw", lambda *_: None)
        yield run_experiment(config)


@pytest.mark.slow
def test_every_format_is_executed_on_the_test_set_and_recorded(run, capsys, monkeypatch):
    assert main(["export", str(run.folder), "--to", *FORMATS, "--whole", "--tolerance", "0.05"]) == 0
    printed = capsys.readouterr().out
    verdicts = json.loads((run.folder / "exports" / "verdict.json").read_text())
    assert [entry["format"] for entry in verdicts] == FORMATS
    assert [entry["file"] for entry in verdicts] == FILES
    for entry in verdicts:
        path = run.folder / "exports" / entry["file"]
        beside = path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0
        assert entry["bytes"] == path.stat().st_size + beside
        assert (entry["checkpoint"], entry["compacted"]) == (checkpoint_entry(run.folder / "checkpoints").file, False)
        assert entry["inputs"] == 256
        assert entry["flipped"] <= 0.05 * 256  # after one epoch many logits are close
        integer = entry["format"] in ("qdq", "qonnx")
        assert entry["max_error"] > 0 if integer else entry["relative_error"] < 1e-5
        assert entry["latency_ms"].keys() == {"1", "64"}
        assert all(time > 0 for time in entry["latency_ms"].values())
        assert bool(entry["weight_errors"]) == integer  # the paper's grid is not affine
        assert entry["file"] in printed
    sizes = {entry["format"]: entry["bytes"] for entry in verdicts}
    assert sizes["packed"] < sizes["qdq"] < sizes["onnx"]
    integer = ["dense float", "dense int8"]  # nothing is compacted
    compared = {"onnx": integer, "qdq": integer, "qonnx": [], "openvino": integer}
    assert [list(entry["compared"]) for entry in verdicts] == [compared.get(name, ["dense float"]) for name in FORMATS]
    state = load_packed(run.folder / "exports" / "model.codeq")
    assert sum(tensor.numel() for tensor in state.values()) > 40_000
    # A verdict above the tolerance keeps nothing of its format, not even what an earlier export has left.
    for path in (run.folder / "exports").iterdir():
        if path.suffix not in (".json", ".codeq", ""):
            path.unlink()
    different = replace(Comparison(0, 0, 0, 256, 0.5, 0.5), max_error=1.0, relative_error=2e-4)
    results = iter([different, Comparison(0, 0, 0, 256, 0.5, 0.5)])
    monkeypatch.setattr("codeq.export.export_run.compare", lambda *_: next(results))
    assert main(["export", str(run.folder), "--to", "packed", "pt2"]) == 2
    assert "packed: the largest difference of a logit is 2.0e-04" in capsys.readouterr().err
    assert {path.name for path in (run.folder / "exports").iterdir()} == {".lock", "verdict.json", "model.pt2"}
    kept = json.loads((run.folder / "exports" / "verdict.json").read_text())
    assert [e for e in kept if e["format"] != "pt2"] == [e for e in verdicts if e["format"] not in ("pt2", "packed")]
    assert not list(run.folder.glob(".*exports*"))


def test_bad_arguments_are_refused_before_the_work(tmp_path):
    with pytest.raises(CodeqError, match=r"format 'onyx' is unknown\. Did you mean 'onnx'\?"):
        next(export_run(None, ["onyx"]))
    assert tuple(BUILDERS) == FORMATS_OF_THE_COMMAND
    with pytest.raises(CodeqError, match=r"int4: weights of 4 bits are for the format qdq"):
        next(export_run(None, ["onnx"], int4=True))
    with pytest.raises(CodeqError, match=r"tolerance=nan: must be a fraction"):
        next(export_run(None, ["onnx"], tolerance=float("nan")))
    with pytest.raises(CodeqError, match=r"tolerance='0.1': must be a fraction"):
        next(export_run(None, ["onnx"], tolerance="0.1"))
    with pytest.raises(CodeqError, match=r"tolerance=1: must be a fraction, at least 0 and below 1"):
        next(export_run(None, ["onnx"], tolerance=1))
    with pytest.raises(CodeqError, match=r"to='onnx': must be a list, e\.g\. \['onnx'\]"):
        next(export_run(None, "onnx"))
    with pytest.raises(CodeqError, match=r"no format to export to: must be one or more of onnx, qdq"):
        next(export_run(None, []))
    (tmp_path / "verdict.json").write_text('{"a": 1}')
    with pytest.raises(CodeqError, match="is damaged"):
        read_verdicts(tmp_path)


@pytest.mark.slow
def test_a_network_that_has_no_integer_version_is_exported_as_float(run, monkeypatch):
    def refuse(*_):
        raise ValueError("no integers")  # as ONNX Runtime may

    monkeypatch.setattr("codeq.export.builders.export_qdq", refuse)
    with pytest.raises(CodeqError, match=r"^qdq: ValueError: no integers$"):
        list(export_run(run, ["onnx", "openvino", "qdq"]))
    verdicts = {entry["format"]: entry for entry in read_verdicts(run.folder / "exports")}
    for name in ("onnx", "openvino"):
        assert list(verdicts[name]["compared"]) == ["dense float", "compacted float"]


@pytest.mark.slow
def test_a_file_that_returns_nan_keeps_nothing_of_an_earlier_export(run, monkeypatch):
    folder = run.folder / "exports"
    list(export_run(run, ["packed"], whole=True))
    assert (folder / "model.codeq").exists()
    monkeypatch.setattr(
        "codeq.export.builders.load_packed_network", lambda _: lambda x: torch.full((len(x), 10), torch.nan)
    )
    with pytest.raises(CodeqError, match="packed: the exported file or the network returns NaN or inf"):
        list(export_run(run, ["packed"], whole=True))
    assert not (folder / "model.codeq").exists()
    assert "packed" not in [entry["format"] for entry in read_verdicts(folder)]


class Converting(nn.Module):
    """Computes in another precision than that of the images."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net = net.to(dtype)

    def forward(self, x):
        return self.net(x.to(self.net.fc3.bias.dtype))


def test_what_a_runtime_raises_refuses_its_format_alone(run, monkeypatch):
    double = Converting(run.load_model(), torch.float64)
    monkeypatch.setattr(type(run), "load_model", lambda *_: double)
    exported = export_run(run, ["onnx", "packed"], whole=True)  # ONNX Runtime has no convolutions in float64
    assert next(exported).format == "packed"
    with pytest.raises(CodeqError, match=r"^onnx: NotImplemented: .*Conv"):
        next(exported)


def test_networks_of_half_precision_are_exported(run, monkeypatch):
    half = Converting(run.load_model(), torch.bfloat16)
    monkeypatch.setattr(type(run), "load_model", lambda *_: half)
    verdicts = list(export_run(run, ["pt2", "packed"], tolerance=0.05))
    assert [verdict.compacted for verdict in verdicts] == [True, True]


@pytest.mark.slow
def test_float_files_of_networks_that_round_activations_are_judged_by_flips(run, monkeypatch):
    results = iter(Comparison(0.1, 2e-3, flipped, 256, 0.5, 0.5) for flipped in (1, 2, 0))
    monkeypatch.setattr("codeq.export.export_run.compare", lambda *_: next(results))
    model, (images, _) = run.load_model(), next(iter(load_dataset("synthetic").test_batches(8)))
    attach_activation_quantizers(model, images, 4, "minmax")
    monkeypatch.setattr(type(run), "load_model", lambda *_: model)
    assert [verdict.format for verdict in export_run(run, ["packed"], whole=True)] == ["packed"]
    with pytest.raises(CodeqError, match="packed: 2 of 256 predictions flip"):
        list(export_run(run, ["packed"], whole=True))
    toggle_activation_quantization(model, enabled=False)
    with pytest.raises(CodeqError, match=r"packed: the largest difference of a logit is 2\.0e-03"):
        list(export_run(run, ["packed"], whole=True))


@pytest.mark.parametrize("formats", [["pt2", "packed"], pytest.param(FORMATS, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_is_named_for_each_format(run, formats):
    with small_files(), pytest.raises(CodeqError) as refused:
        list(export_run(run, formats, whole=True))
    lines = str(refused.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == formats
    assert all("cannot be written: File too large" in line for line in lines), lines
    assert not list(run.folder.glob(".exports-*"))


@pytest.mark.slow
def test_weights_that_no_integers_hold_are_exported_as_float(run, monkeypatch):
    def refuse(_):
        raise CodeqError("layer 'fc': no levels")

    monkeypatch.setattr("codeq.export.builders.check_levels", refuse)
    exported = export_run(run, ["qdq", "onnx", "qonnx"])
    verdict = next(exported)
    assert (verdict.format, list(verdict.compared)) == ("onnx", ["dense float", "compacted float"])
    with pytest.raises(CodeqError, match=r"^qdq: layer 'fc': no levels\nqonnx: layer 'fc': no levels$"):
        next(exported)


def test_comparison_counts_flips_and_refuses_what_proves_nothing():
    x, labels = torch.eye(4)[:, :3] + 0.1, torch.tensor([0, 1, 2, 0])
    found = compare([x.numpy()], lambda x: x[:, ::-1] * 1.5, [(x, labels)])
    assert (found.flipped, found.inputs, found.accuracy, found.reference_accuracy) == (2, 4, 0.5, 1.0)
    assert found.max_error == pytest.approx(1.55)
    assert found.relative_error == pytest.approx(1.55 / 1.1)
    for wrong, message in ((lambda x: x[:, :2], "returns"), (lambda x: x * np.nan, "NaN or inf")):
        with pytest.raises(CodeqError, match=message):
            compare([x.numpy()], wrong, [(x, labels)])
    with pytest.raises(CodeqError, match="no test images"):
        compare([], lambda x: x, [])


def test_a_run_that_began_compacted_is_compared_with_its_whole_network(tmp_path):
    config = ExperimentConfig("small", model="lenet5", dataset="synthetic", batch_size=128, device="cpu")
    dataset = load_dataset(config.dataset, config.data_dir, config.img_size)
    whole = build_network(config, dataset.num_classes).eval()
    with torch.no_grad():
        latent_weight(next(layer for _, layer in named_layers(whole)))[:3] = 0
    example = next(iter(dataset.test_batches(4)))[0]
    model = compact(whole, example, keep_quantizers=True).model
    source = _source(model, config, dataset, True, tmp_path, None, False, "step-1.pt")
    weights = [sum(p.numel() for p in net.parameters()) for net in (source.dense, baked_copy(whole), source.trained)]
    assert weights[0] == weights[1] > weights[2]
    assert source.network is source.trained
    assert source.name == "compacted float"
    torch.testing.assert_close(source.trained(example), whole(example))


@pytest.mark.slow
def test_a_network_that_is_exported_whole_is_called_dense(run):
    found = export_run(run, ["onnx", "packed"], whole=True)
    assert [list(verdict.compared) for verdict in found] == [["dense float", "dense int8"], ["dense float"]]


def test_a_format_that_is_named_twice_is_written_once(run):
    assert [verdict.format for verdict in export_run(run, ["packed", "packed"], whole=True)] == ["packed"]
