"""The notebook of a resumed run is replaced by one that has trained the run or has ended, never by a rejected start."""

import json

import pytest
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from codeq import ExperimentConfig, Run
from codeq.cli.notebooks import run_notebook
from codeq.common.errors import CodeqError

NAME = "training.ipynb"


def content(*sources, **metadata):
    empty = {"cell_type": "code", "metadata": metadata, "outputs": [], "execution_count": None}
    cells = [empty | {"source": source} for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4})


FIGURES = content("figures of the finished run")
EXECUTED = content("executed now", papermill={"start_time": "2026-11-21"})


def failed(name, message):
    return PapermillExecutionError(2, 4, "", name, message, [])


@pytest.fixture
def run(tmp_path):
    (tmp_path / NAME).write_text(content("resume: str = None  # a run", tags=["parameters"]))
    run = Run.create(ExperimentConfig("finished", run_dir="outputs/finished"))
    run.set_status("done")
    (run.folder / NAME).write_text(FIGURES)
    return run


@pytest.fixture
def resume(tmp_path, run, monkeypatch):
    """Resume the run by a notebook, of which papermill writes `text` and then raises `error`."""

    def resume(error, *, trained, text=EXECUTED):
        def execute(_, output, *__, **___):
            with open(output, "w") as file:
                file.write(text)
            if trained:
                run.set_status("running")
            if error:
                raise error

        monkeypatch.setattr("papermill.execute_notebook", execute)
        return run_notebook(str(tmp_path / NAME), {"resume": "finished"})

    return resume


def notebooks(run):
    return {path.name: path.read_text() for path in run.folder.glob("*.ipynb")}


def test_a_rejected_start_leaves_the_notebook_of_the_run(run, resume):
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(CodeqError, match=r"^training\.ipynb: was trained with epochs=1 instead of 3$"):
        resume(failed("CodeqError", "was trained with epochs=1 instead of 3"), trained=False)
    assert sorted(run.folder.rglob("*")) == before
    assert notebooks(run) == {NAME: FIGURES}


def test_a_rejected_start_leaves_no_notebook_in_a_run_that_has_none(run, resume):
    (run.folder / NAME).unlink()
    with pytest.raises(CodeqError, match=r"^training\.ipynb: epochs=0$"):
        resume(failed("CodeqError", "epochs=0"), trained=False)
    assert not notebooks(run)


@pytest.mark.parametrize("error", [failed("KeyError", "'gone'"), DeadKernelError("Kernel died")])
def test_what_failed_before_a_training_lies_beside_the_notebook_of_the_run(run, resume, error):
    with pytest.raises(CodeqError, match=r"finished/training-2\.ipynb$"):
        resume(error, trained=False)
    assert notebooks(run) == {NAME: FIGURES, "training-2.ipynb": EXECUTED}


@pytest.mark.parametrize("error", [failed("KeyboardInterrupt", ""), KeyboardInterrupt()])
def test_ctrl_c_before_a_training_leaves_the_notebook_of_the_run_alone(run, resume, error):
    with pytest.raises(KeyboardInterrupt):
        resume(error, trained=False)
    assert notebooks(run) == {NAME: FIGURES}


@pytest.mark.parametrize("error", [failed("CodeqError", "late"), failed("Preempted", "saved"), DeadKernelError("died")])
def test_a_notebook_that_has_trained_the_run_takes_its_place(run, resume, error):
    with pytest.raises(CodeqError) as raised:
        resume(error, trained=True)
    assert "training-2" not in str(raised.value)
    assert notebooks(run) == {NAME: EXECUTED}


@pytest.mark.parametrize("trained", [True, False])
def test_a_notebook_that_ended_well_takes_its_place(run, resume, trained):
    assert resume(None, trained=trained) == run.folder / NAME
    assert notebooks(run) == {NAME: EXECUTED}


@pytest.mark.parametrize("trained", [True, False])
def test_a_notebook_that_a_full_disk_has_cut_replaces_none(run, resume, trained):
    with pytest.raises(CodeqError, match=r"finished/training\.ipynb cannot be written: No space left on device$"):
        resume(OSError(28, "No space left on device"), trained=trained, text=EXECUTED[:20])
    assert notebooks(run) == {NAME: FIGURES}
