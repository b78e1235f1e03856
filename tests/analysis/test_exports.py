import json
import re

import nbformat
import pytest

from codeq import ExperimentConfig, Run, analysis, plots, run_experiment
from codeq.analysis.calibrate_run import calibrate_run
from codeq.cli.notebooks import NOTEBOOKS, run_notebook
from codeq.common.errors import CodeqError
from codeq.export.verdict import read_verdicts
from codeq.runs.checkpoints import save_checkpoint

pytestmark = pytest.mark.usefixtures("without_figures", "quick_timing")


@pytest.fixture
def run(tmp_path):
    settings = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 256, "device": "cpu"}
    return run_experiment(ExperimentConfig("small", run_dir=str(tmp_path / "outputs" / "small"), **settings))


def deploy(**parameters):
    """Execute the cells of the notebook `deploy` in this process; return what they define."""
    cells = json.loads((NOTEBOOKS / "deploy.ipynb").read_text("utf-8"))["cells"]
    first, *others = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {"display": lambda *_: None}
    exec(first, names)
    names |= parameters
    for source in others:
        exec(source.replace("%matplotlib inline\n", ""), names)
    return names


def test_tables_and_figure_show_what_the_verdicts_say(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(CodeqError, match="has no exported files; codeq export"):
        analysis.verdict_table(run)
    times = {"dense float": 4.0, "compacted float": 3.0}
    entry = {
        "format": "pt2", "file": "model.pt2", "bytes": 9, "max_error": 0.5, "flipped": 1, "inputs": 10, "accuracy": 0.8,
        "reference_accuracy": 0.9, "runtime": "torch 3", "threads": 2, "latency_ms": {"1": 3.0, "64": 30.0},
        "compared": {name: {"bytes": 9, "latency_ms": {"1": ms, "64": 10 * ms}} for name, ms in times.items()},
    }  # fmt: skip
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "verdict.json").write_text(json.dumps([entry, entry | {"format": "qonnx", "compared": {}}]))
    table = analysis.verdict_table(run)
    assert table["format"].tolist() == ["pt2", "qonnx"]
    assert table.loc[0, ["flipped", "accuracy", "ms_1", "ms_64"]].tolist() == [1, 0.8, 3.0, 30.0]
    latency = analysis.latency_table(run)
    assert latency["ms"].tolist() == [4.0, 40.0, 3.0, 30.0]
    assert set(latency["format"]) == {"pt2"}
    first, second = plots.latency_bars(latency).axes
    assert [text.get_text() for text in first.figure.legends[0].get_texts()] == list(times)
    whole = latency.replace("compacted float", "dense int8")  # exported with --whole
    assert [float(bar.get_height()) for bar in plots.latency_bars(whole).axes[0].patches] == [4.0, 3.0]
    assert [float(bar.get_height()) for bar in second.patches][:2] == [40.0, 30.0]
    assert first.get_title() == "batch 1"
    (tmp_path / "exports" / "verdict.json").write_text(json.dumps([entry | {"format": "qonnx", "compared": {}}]))
    assert analysis.latency_table(run).empty
    older = entry | {"format": "onnx", "checkpoint": "step-20.pt"}
    (tmp_path / "exports" / "verdict.json").write_text(json.dumps([older, entry | {"checkpoint": "step-40.pt"}]))
    both = analysis.latency_table(run)
    assert both["checkpoint"].tolist() == ["step-20.pt"] * 4 + ["step-40.pt"] * 4
    save_checkpoint(tmp_path / "checkpoints", {}, epoch=40, step=40, accuracy=0.5)
    for step, shown in ((20, "onnx\nstep-20.pt"), (40, "onnx")):
        older["checkpoint"] = f"step-{step}.pt"
        (tmp_path / "exports" / "verdict.json").write_text(json.dumps([older]))
        (label,) = plots.latency_bars(analysis.latency_table(run)).axes[0].get_xticklabels()
        assert label.get_text() == shown
    assert list(analysis.latency_table(run)) == list(latency)


def test_the_notebook_finishes_where_every_format_is_refused(run, monkeypatch, capsys):
    def refuse(_):
        raise CodeqError("needs a package")

    monkeypatch.setattr("codeq.export.export_run.BUILDERS", {"packed": refuse})
    names = deploy(formats="packed")
    assert "not exported:\npacked: needs a package" in capsys.readouterr().out
    assert len(names["sizes"]) >= 3
    assert not (run.folder / "exports").exists()


def test_the_notebook_names_the_ranges_that_integer_formats_take(run, monkeypatch, capsys):
    def refuse(_):
        raise CodeqError("needs a package")

    monkeypatch.setattr("codeq.export.export_run.BUILDERS", dict.fromkeys(("packed", "qdq", "qonnx"), refuse))
    deploy(formats="packed qdq qonnx", bits=4)
    folder = run.folder / "calibrated"
    assert (
        f"qonnx: ranges of activations from {folder}; qdq: ranges of 8 bits, measured anew, as those in {folder} have 4"
        in capsys.readouterr().out
    )
    deploy(formats="packed")
    assert "ranges of" not in capsys.readouterr().out


def test_the_notebook_refuses_several_runs(tmp_path):
    for name in "ab":
        Run.create(ExperimentConfig("x", model="mlp", dataset="synthetic", run_dir=f"outputs/study/{name}"))
    with pytest.raises(CodeqError, match="'study' names 2 runs"):
        deploy(run="study")


def test_the_notebook_refuses_to_calibrate_trained_activations(run, monkeypatch):
    trained = run.config.override({"activations": {"bits": 8}})
    monkeypatch.setattr(Run, "config", trained)
    with pytest.raises(CodeqError, match=r"bits=4: the activations of .*small were quantized in its training"):
        deploy(formats="packed", bits=4)


@pytest.mark.slow
def test_the_notebook_keeps_the_calibration_of_the_user(run, capsys):
    calibrate_run(run, 6, "minmax", residual="shared")
    path = run.folder / "calibrated" / "calibration.json"
    before = path.read_text()
    deploy(formats="packed")
    assert "with 6-bit activations" in capsys.readouterr().out
    assert path.read_text() == before
    deploy(formats="packed", bits=8)
    assert json.loads(path.read_text())["bits"] == 8
    path.write_text(before.replace("step-", "step-9"))
    deploy(formats="packed qdq")
    printed = capsys.readouterr().out
    assert "without qdq and qonnx, unless -p bits 8 calibrates anew: " in printed
    assert re.search("calibrated with step-9.*: run codeq calibrate --checkpoint last, or remove", printed)
    assert [entry["format"] for entry in read_verdicts(run.folder / "exports")] == ["packed"]


def test_the_notebook_exports_floats_where_the_calibration_fails(run, monkeypatch, capsys):
    def fail(*_):
        raise CodeqError("no input of a layer can be quantized")

    monkeypatch.setattr("codeq.analysis.calibrate_run.calibrate_run", fail)
    deploy(formats="packed qdq")
    assert "without qdq and qonnx: no input of a layer can be quantized" in capsys.readouterr().out
    assert [entry["format"] for entry in read_verdicts(run.folder / "exports")] == ["packed"]
    with pytest.raises(CodeqError, match="no input of a layer"):
        deploy(formats="packed", bits=8)


@pytest.mark.exhaustive
def test_the_debug_run_is_deployed_in_every_format(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path))
    run_notebook("debug_run", {}, tmp_path / "outputs" / "debug")
    formats = "onnx qdq qonnx openvino pt2 packed"
    run_notebook("deploy", {"run": "latest", "formats": formats}, tmp_path / "notebook")
    verdicts = json.loads((tmp_path / "outputs" / "debug" / "exports" / "verdict.json").read_text())
    assert [entry["format"] for entry in verdicts] == formats.split()
    for entry in verdicts:
        assert entry["inputs"] == 360
        assert entry["flipped"] <= 1 if entry["format"] in ("qdq", "qonnx") else entry["relative_error"] < 1e-4
    sizes = {entry["format"]: entry["bytes"] for entry in verdicts}
    assert sizes["packed"] < sizes["qdq"] < sizes["onnx"]
    cells = nbformat.read(tmp_path / "notebook" / "deploy.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
