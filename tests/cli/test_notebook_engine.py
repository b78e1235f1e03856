"""Signals to the process that executes a notebook reach the training in its kernel."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from codeq import Run

CELL = """
from codeq import ExperimentConfig, run_experiment
settings = dict(model="mlp", dataset="synthetic", epochs=20, batch_size=64, device="cpu")
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
    assert len(Run.open(cut).history) < 20
    with start(notebook, "-p", "resume", cut) as process:
        assert process.wait(timeout=300) == 0
    assert Run.open(cut).status == "done"
    for name in ("metrics.csv", "layers.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    states = [Run.open(folder).load_model().state_dict() for folder in (whole, cut)]
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
