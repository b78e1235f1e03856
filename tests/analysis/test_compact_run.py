import dataclasses
import errno
import json
import os
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from cases import small_files

from codeq import ExperimentConfig, run_experiment
from codeq.analysis.calibrate_run import calibrate_run
from codeq.analysis.compact_run import compact_run
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.compaction import measure_gains
from codeq.compaction.proof import prove
from codeq.data import load_dataset
from codeq.quantizer.layers import latent_weight
from codeq.runs.checkpoints import checkpoint_entry

pytestmark = pytest.mark.usefixtures("without_figures", "quick_timing")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    config = ExperimentConfig(
        "small", model="mlp", dataset="synthetic", epochs=1, batch_size=256, device="cpu", run_dir=str(folder)
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEQ_HOME", str(folder.parent))
        made = run_experiment(config)
        model = made.load_model()
        patch.setattr(type(made), "load_model", lambda *_: model)  # one with dead neurons
        with torch.no_grad():
            first = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
            latent_weight(first)[::3] = 0
        yield made


@pytest.mark.slow
def test_a_run_is_compacted_proved_on_the_whole_test_set_and_exported(run, capsys):
    assert main(["compact", str(run.folder)]) == 0
    said = capsys.readouterr().out
    folder = run.folder / "compacted"
    proof = json.loads((folder / "proof.json").read_text())
    dataset = load_dataset("synthetic")
    assert proof["inputs"] == len(dataset.test)
    assert proof["flipped"] == 0
    assert proof["checkpoint"] == checkpoint_entry(run.folder / "checkpoints").file
    assert proof["max_error"] < 1e-5
    assert proof["masked_accuracy"] == proof["compacted_accuracy"]
    assert proof["compacted_macs"] == 80 * 3072 + 84 * 80 + 840
    assert f"{proof['compacted_macs']:,} compacted" in said
    channels = json.loads((folder / "channels.json").read_text())
    assert 0 not in next(iter(channels.values()))["outputs"]
    gains = pd.read_csv(folder / "gains.csv")
    assert gains["model"].tolist() == ["dense", "masked", "compacted"] * 2
    assert gains["batch"].tolist() == [1] * 3 + [128] * 3
    assert gains.groupby("model")["weights_mb"].first()["compacted"] < 0.8 * gains["weights_mb"][0]


@pytest.mark.slow
def test_the_exported_program_needs_no_codeq_and_takes_any_batch(run):
    done = compact_run(run)
    program = torch.export.load(done.folder / "model.pt2").module()
    model = run.load_model()
    for size in (1, 7):
        x = torch.randn(size, 3, 32, 32)
        with torch.no_grad():
            assert torch.allclose(program(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("borders", ["live", "absorb"])
def test_options_reach_the_compaction(run, borders):
    done = compact_run(run, borders=borders, streams="whole", multiple_of=8)
    assert done.report.assumes == f"borders={borders}, streams=whole, multiple_of=8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.5, "latency": 0.5}, r"macs=0\.5, latency=0\.5: only one of both"),
        ({"latency": float("nan")}, "latency=nan: must be a fraction between 0 and 1"),
        ({"macs": 2.0}, "macs=2.0: must be a fraction"),
        ({"macs": "0.5"}, "macs='0.5': must be a fraction"),
        ({"borders": "absorbs"}, "borders='absorbs': must be 'map' or 'live' or 'absorb'"),
        ({"multiple_of": 8}, "multiple_of=8: requires streams='whole'"),
        ({"checkpoint": "best", "trainable": True}, "cannot be trained further: .* the test images chose its epoch"),
    ],
)
def test_wrong_options_are_refused_before_the_work(run, options, message):
    before = sorted(run.folder.iterdir())
    with pytest.raises(CodeqError, match=message):
        compact_run(run, **options)
    assert sorted(run.folder.iterdir()) == before


def test_the_network_of_an_earlier_cut_is_not_lost(run):
    folder = run.folder / "compacted"
    folder.mkdir(exist_ok=True)
    (folder / "trainable.pt").write_bytes(b"mine")
    with pytest.raises(CodeqError, match=r"holds trainable\.pt, which would be lost: rename the folder"):
        compact_run(run)
    assert (folder / "trainable.pt").read_bytes() == b"mine"
    (folder / "trainable.pt").unlink()


def test_the_network_of_a_cut_beside_this_one_is_not_lost(run, monkeypatch):
    folder = run.folder / "compacted"
    monkeypatch.setattr("codeq.analysis.compact_run.save_program", lambda *_: None)  # seconds of torch.export

    def timed(*_, **__):
        folder.mkdir(exist_ok=True)
        (folder / "trainable.pt").write_bytes(b"mine")  # by another process
        return pd.DataFrame()

    monkeypatch.setattr("codeq.analysis.compact_run.measure_gains", timed)
    with pytest.raises(CodeqError, match=r"holds trainable\.pt, which would be lost: rename the folder"):
        compact_run(run)
    assert (folder / "trainable.pt").read_bytes() == b"mine"
    (folder / "trainable.pt").unlink()


def test_a_network_that_takes_no_single_image_is_timed_with_many(run, monkeypatch):
    monkeypatch.setattr("codeq.analysis.compact_run.save_program", lambda *_: None)  # seconds of torch.export
    timed = []
    monkeypatch.setattr(
        "codeq.analysis.compact_run.measure_gains",
        lambda _models, _size, sizes, *_: timed.append(sizes) or pd.DataFrame(),
    )

    def refuse(_, args):
        if len(args[0]) == 1:
            raise ValueError("expected 2D or 3D input (got 1D input)")

    compact_run(run)
    handle = run.load_model().register_forward_pre_hook(refuse)
    try:
        compact_run(run)
    finally:
        handle.remove()
    assert timed == [(1, 128), (128,)]


def test_a_network_that_differs_on_a_test_image_is_refused(run, monkeypatch):
    def differing(*arguments):
        return dataclasses.replace(prove(*arguments), relative_error=1e-3, max_error=1e-3)

    monkeypatch.setattr("codeq.analysis.compact_run.prove", differing)
    monkeypatch.setattr("codeq.analysis.compact_run.save_program", lambda *_: pytest.fail("it was not refused"))
    before = sorted(path.name for path in run.folder.iterdir())
    with pytest.raises(CodeqError, match=r"the compacted \w+ differs by 1\.0e-03 \(relative\), more than 1e-05"):
        compact_run(run)
    assert sorted(path.name for path in run.folder.iterdir()) == before
    monkeypatch.setattr("codeq.analysis.compact_run.save_program", lambda *_: None)
    monkeypatch.setattr("codeq.analysis.compact_run.measure_gains", lambda *_, **__: pd.DataFrame())
    assert compact_run(run, borders="absorb").proof.relative_error == 1e-3  # it states the error that it allows


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_run_that_cannot_be_written_is_refused_before_the_work(run, reason, monkeypatch):
    def refuse(*_, **__):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    monkeypatch.setattr(type(run), "load_model", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(CodeqError, match=f"compacted cannot be written: {os.strerror(reason)}"):
        compact_run(run)


@pytest.mark.parametrize("command", [compact_run, calibrate_run])
def test_a_disk_that_is_full_ends_with_one_message_and_leaves_nothing(run, command):
    before = sorted(path.name for path in run.folder.iterdir())
    with small_files(), pytest.raises(CodeqError, match=r"(compacted|calibrated) cannot be written: File too large"):
        command(run)
    assert sorted(path.name for path in run.folder.iterdir()) == before


@pytest.mark.parametrize("command", [compact_run, calibrate_run])
def test_a_file_of_the_data_set_that_cannot_be_read_is_named_itself(run, command, monkeypatch):
    before = sorted(path.name for path in run.folder.iterdir())
    module = command.__module__
    monkeypatch.setattr(f"{module}.load_dataset", lambda *_: Path("/nowhere/images.npz").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"/nowhere/images\.npz"):
        command(run)
    assert sorted(path.name for path in run.folder.iterdir()) == before


def test_a_device_that_is_not_there(run):
    with pytest.raises(CodeqError, match="gpu"):
        compact_run(run, device="gpu")


def test_gains_take_models():
    with pytest.raises(CodeqError, match="no models"):
        measure_gains({})


def test_peak_memory_is_that_of_the_tensors_alive_at_once():
    chain = torch.nn.Sequential(*(torch.nn.Conv2d(c, 8, 1) for c in (3, 8, 8)))
    table = measure_gains({"chain": chain}, (3, 10, 10), batch_sizes=[5])
    assert table["peak_mb"].item() == 2 * 5 * 8 * 100 * 4 / 1e6  # the input and the result of a layer
