"""Signals to the process that executes a notebook reach the training in its kernel."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from unittest.mock import Mock

import nbformat
import pytest

from codeq import Run
from codeq.cli import notebook_engine
from codeq.cli.notebooks import run_notebook

CELL = """
from codeq import ExperimentConfig, run_experiment
settings = dict(model="mlp", dataset="synthetic", epochs=60, batch_size=64, device="cpu")
config = ExperimentConfig("x", run_dir=run_dir, **settings)
run_experiment(config, resume=resume)
"""
PARAMETERS = "run_dir: str = None  # where\nresume: str = None  # what\nepochs: int = 3  # how long"


@pytest.fixture
def notebook(tmp_path):
    nb = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    nb.cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(CELL),
    ]
    path = tmp_path / "training.ipynb"
    nbformat.write(nb, path)
    return path


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "codeq", "notebook", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_in_training(process, folder, number):
    table = folder / "metrics.csv"
    deadline = time.monotonic() + 120
    while not table.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    return process.communicate(timeout=60)


@pytest.mark.slow
def test_a_signal_that_ends_the_kernel_is_named(tmp_path):
    # A signal just before a sleep is noticed after it.
    wait = "import pathlib, time\npathlib.Path(run_dir, 'metrics.csv').touch()\nfor _ in range(1200): time.sleep(0.1)"
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("run_dir: str = None  # where", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(wait),
        ]
    )
    nbformat.write(nb, tmp_path / "waits.ipynb")
    folder = tmp_path / "run"
    with start(tmp_path / "waits.ipynb", "--run-dir", folder) as process:
        _, errors = stop_in_training(process, folder, signal.SIGTERM)
    assert process.returncode == 143, errors
    executed = folder / "waits.ipynb"
    assert errors.splitlines()[-1] == f"codeq: waits.ipynb: stopped by SIGTERM; executed so far: {executed}"
    assert executed.exists()


def test_ctrl_c_that_is_ignored_is_not_forwarded_and_no_signal_to_a_kernel_that_has_ended(monkeypatch):
    def ended(*_):
        raise ProcessLookupError

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(os, "kill", ended)
    try:
        with notebook_engine._forwarded(1234) as received:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel listens to ports")
def test_no_other_process_can_take_the_place_where_the_kernel_listens(tmp_path, monkeypatch):
    tagged = nbformat.v4.new_code_cell("x: int = 1  # a number", metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[tagged, nbformat.v4.new_code_cell("print('begun')")])
    nbformat.write(nb, tmp_path / "short.ipynb")
    with ExitStack() as stack:  # other processes have taken all ports since they were chosen
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname() for _ in range(5)]
        chosen = Mock(**{"socket.return_value.getsockname.side_effect": taken})
        monkeypatch.setattr("jupyter_client.connect.socket", chosen)
        executed = run_notebook(str(tmp_path / "short.ipynb"), run_dir=tmp_path / "out")
    assert "begun" in executed.read_text()


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.exhaustive),
    ],
)
def test_a_training_in_a_notebook_saves_itself_and_is_resumed_without_a_trace(tmp_path, notebook, number, status):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with start(notebook, "--run-dir", whole) as process:
        assert process.wait(timeout=300) == 0
    with start(notebook, "--run-dir", cut) as process:
        _, errors = stop_in_training(process, cut, number)
    assert process.returncode == status, errors
    assert errors.splitlines()[-1].startswith("codeq: ")
    assert errors.splitlines()[-1].endswith(f"the state is saved, resume with: codeq train --resume {cut}")
    assert "Traceback" not in errors
    (shown,) = [
        o for cell in nbformat.read(cut / notebook.name, 4).cells for o in cell.get("outputs", []) if "ename" in o
    ]
    assert shown["traceback"] == [shown["evalue"]]
    assert Run.open(cut).status == "preempted"
    assert len(Run.open(cut).history) < 60
    with start(notebook, "-p", "resume", cut) as process:
        assert process.wait(timeout=300) == 0
    assert Run.open(cut).status == "done"
    for name in ("metrics.csv", "layers.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    states = [Run.open(folder).load_model().state_dict() for folder in (whole, cut)]
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
