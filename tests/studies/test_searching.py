"""Searches from the command line, with an engine that writes run folders instead of training."""

import builtins
import json
import shutil
import signal

import pytest

from codeq.cli.main import main
from codeq.config import ExperimentConfig
from codeq.runs.status import write_status
from codeq.studies import collect, rounds
from codeq.studies.attempts import begin, latest
from codeq.studies.engines import Engine
from codeq.studies.files import attempts_folder, config_file, journal_file
from codeq.studies.trials import Trials

BASE = "model: mlp\ndataset: synthetic\nepochs: 3\ndevice: cpu\nvalidation: 0.2\nquantizer: {name: deadzone}\n"
LR = "optimizer.param_groups.base.lr"
SEARCH = {"ranges": {LR: {"low": 0.001, "high": 1.0, "log": True}}, "trials": 5}


@pytest.fixture
def file(tmp_path):
    def write(base=BASE, **content):
        (tmp_path / "base.yaml").write_text(base)
        study = {"name": "s", "base": str(tmp_path / "base.yaml"), "search": SEARCH, "executor": {"workers": 2}}
        path = tmp_path / "s.yaml"
        path.write_text(json.dumps({**study, **content}))
        return str(path)

    return write


class Trainer:
    """Stands for the engine: the learning rate is the accuracy, its square the relative BOPs."""

    def __init__(self):
        self.rounds, self.states, self.tasks = [], {}, []

    @property
    def begun(self):
        return [member for names in self.rounds for member in names]

    def __call__(self, engine):
        self.rounds.append([task.member for task in engine.tasks])
        self.tasks += engine.tasks
        for task in engine.tasks:
            last = latest(attempts_folder(task.study, task.member))
            claim = begin(attempts_folder(task.study, task.member), last.number + 1 if last else 1)
            state = self.states.get(len(self.begun) - len(engine.tasks) + engine.tasks.index(task), "done")
            config = ExperimentConfig.from_yaml(config_file(task.study, task.member))
            task.run.mkdir(parents=True, exist_ok=True)
            if not (task.run / "config.yaml").exists():
                config.to_yaml(task.run / "config.yaml")
            lr = config.lr
            head = "epoch,eval/accuracy,test/accuracy,compression/unstructured_bops_ratio"
            rows = "".join(f"{epoch},{lr},0.0,{1 / lr**2}\n" for epoch in range(config.epochs))
            (task.run / "metrics.csv").write_text(f"{head}\n{rows}")
            write_status(task.run, state)
            claim.record(state=state, reason="")
            if state == "preempted":
                signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def trainer(monkeypatch):
    one = Trainer()
    monkeypatch.setattr(Engine, "run", lambda engine: one(engine))  # noqa: PLW0108 - a method, so that it is bound
    monkeypatch.setattr(rounds, "estimate", lambda *_: 2.0)
    return one


def run(*arguments):
    """Run a command and return its exit status."""
    try:
        return main(["sweep", *arguments])
    except SystemExit as ended:
        return ended.code


def test_trials_run_in_rounds_and_their_results_are_told(file, trainer, tmp_path, capsys):
    assert run(file()) == 0
    printed = capsys.readouterr().out
    assert "search s in outputs/s: 5 trials" in printed
    assert "5 to run, 2 at a time" in printed
    assert [len(names) for names in trainer.rounds] == [2, 2, 1]
    table = collect("outputs/s")
    assert len(table) == 5
    assert list(table[LR]) == list(table["eval/accuracy"])
    # Accuracy and BOPs grow together, so that every trial is on the front.
    assert printed.count(", relative BOPs ") == 5
    best = table.loc[table[LR].idxmax()]
    assert f"{best['run']}: accuracy {best[LR]:.2%}, relative BOPs {best[LR] ** 2:.2%}" in printed
    assert run(file(), "--status") == 0
    assert "5 members: 5 done" in capsys.readouterr().out
    assert run(file()) == 0
    assert len(trainer.rounds) == 3
    assert run(file(search={**SEARCH, "trials": 7})) == 0  # more trials continue
    assert len(collect("outputs/s")) == 7


def test_a_constraint_is_kept(file, trainer, capsys):
    assert run(file(search={**SEARCH, "trials": 12, "constraint": {"relative_bops": 0.04}})) == 0
    printed = capsys.readouterr().out
    rates = collect("outputs/s")[LR]
    assert rates.max() > 0.2  # some violate it
    assert f"base.lr={rates[rates <= 0.2].max():g}: accuracy" in printed.partition("best trial")[2]


def test_an_interrupted_search_resumes_its_trials_before_it_asks_for_more(file, trainer, capsys):
    trainer.states = {3: "preempted"}
    assert run(file()) == 1
    assert "stopped; to continue: codeq sweep" in capsys.readouterr().out
    assert len(trainer.rounds) == 2
    interrupted = trainer.rounds[1][1]
    trainer.states = {}
    assert run(file()) == 0
    assert trainer.rounds[2][0] == interrupted
    assert len(collect("outputs/s")) == 5
    assert trainer.begun.count(interrupted) == 2


def test_a_trial_whose_run_was_removed_is_trained_again(file, trainer, tmp_path, capsys):
    assert run(file()) == 0
    removed = trainer.rounds[0][0]
    shutil.rmtree(tmp_path / "outputs" / "s" / removed)
    before = len(trainer.rounds)
    assert run(file()) == 0
    assert trainer.rounds[before:] == [[removed]]
    assert "nan" not in capsys.readouterr().out
    assert len(collect("outputs/s")) == 5


def test_a_failed_member_is_retried_beside_one_whose_run_was_removed(file, trainer, tmp_path):
    trainer.states = {0: "failed"}
    assert run(file()) == 1
    failed, removed = trainer.rounds[0][0], trainer.rounds[1][0]
    shutil.rmtree(tmp_path / "outputs" / "s" / removed)
    trainer.states, trainer.tasks = {}, []
    assert run(file(), "--retry") == 0
    assert {task.member: task.retried for task in trainer.tasks} == {failed: 1, removed: None}


def test_failed_members_wait_for_retry_and_hopeless_ones_are_pruned(file, trainer, capsys):
    trainer.states = {0: "failed", 1: "degenerate", 2: "pruned", 3: "died"}
    assert run(file()) == 1
    printed = capsys.readouterr().out
    assert "5 members: 1 done, 1 died, 1 pruned, 1 degenerate, 1 failed" in printed
    assert "to start failed members again" in printed
    failed, degenerate, died = trainer.rounds[0][0], trainer.rounds[0][1], trainer.rounds[1][1]
    assert f"  {degenerate}: accuracy" not in printed
    trainer.states = {}
    before = len(trainer.rounds)
    assert run(file(search={**SEARCH, "prune_after": 2})) == 1  # a rule that can change meanwhile
    assert trainer.rounds[before:] == [[died]]
    assert run(file(), "--retry") == 0
    assert trainer.rounds[before + 1 :] == [[failed]]


def test_hopeless_members_stay_pruned_where_the_search_was_killed_before_it_recorded_them(
    file, trainer, monkeypatch, capsys
):
    trainer.states = {0: "failed", 1: "diverged"}
    path = file(search={**SEARCH, "trials": 2})
    with monkeypatch.context() as killed:
        killed.setattr(Trials, "tell", lambda *_: None)
        assert run(path) == 1
    failed, _ = trainer.begun
    trainer.states = {}
    capsys.readouterr()
    assert run(path, "--retry", "--dry-run") == 0
    assert "1 to run" in capsys.readouterr().out
    assert run(path, "--retry") == 0
    assert trainer.rounds[1:] == [[failed]]


def test_a_member_that_always_dies_is_begun_once_in_a_start(file, trainer):
    trainer.states = dict.fromkeys(range(100), "died")
    assert run(file()) == 1
    assert sorted(trainer.begun) == sorted(set(trainer.begun))
    assert len(trainer.begun) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base": BASE.replace("validation: 0.2\n", "")}, "chooses by validation images, never by the test images"),
        ({"set": {"init_from": "whole"}}, "but the validation images were training images of init_from='whole'"),
        (
            {"set": {"model": "resnet20", "dataset": "cifar10", "pretrained": True}},
            "but the validation images were training images of the ResNet-20 of this package",
        ),
        ({"search": {"ranges": {LR: {"low": -1, "high": 1.0}}, "trials": 2}}, "lr=-1"),
        ({"search": {"ranges": {"epoch": {"low": 1, "high": 2}}, "trials": 2}}, "Did you mean 'epochs'?"),
        ({"search": {**SEARCH, "prune_after": 3}}, "search.prune_after=3: must be below epochs=3"),
        ({"executor": {"name": "slurm"}}, "executor.workers: a search on Slurm needs it"),
    ],
)
def test_mistakes_are_found_before_the_start(file, trainer, tmp_path, capsys, content, message):
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.yaml").write_text(BASE.replace("validation: 0.2\n", ""))
    assert run(file(**content)) == 2
    assert message in capsys.readouterr().err
    assert run(file(), "--dry-run") == 0
    assert "time: about 35 s" in capsys.readouterr().out  # five times 3 epochs of 2 s and 8 s, two at a time
    assert run(file(), "--status") == 1
    assert not trainer.rounds
    assert not (tmp_path / "outputs").exists()


def test_looking_at_a_search_changes_no_file(file, trainer, tmp_path, capsys):
    assert run(file()) == 0
    study = tmp_path / "outputs" / "s"
    files = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert run(file(), "--status") == 0
    assert run(file(), "--dry-run") == 0
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == files


def test_a_search_whose_record_was_removed_finds_its_runs_again(file, trainer, tmp_path, capsys):
    assert run(file()) == 0
    journal, rounds = journal_file(tmp_path / "outputs" / "s"), len(trainer.rounds)
    journal.write_bytes(b"damaged\n" + journal.read_bytes())
    capsys.readouterr()
    assert run(file(), "--status") == 2
    assert "search.journal is damaged" in capsys.readouterr().err
    assert run(file()) == 2
    journal.unlink()
    assert run(file()) == 0
    assert len(trainer.rounds) == rounds


def test_a_changed_base_is_refused(file, trainer, capsys):
    assert run(file()) == 0
    assert run(file(set={"batch_size": 64})) == 2
    assert "the study has changed: its run was made with batch_size=" in capsys.readouterr().err


def test_without_optuna_nothing_starts(file, trainer, tmp_path, monkeypatch, capsys):
    path, original = file(), builtins.__import__

    def refuse(name, *rest):
        if name.split(".")[0] == "optuna":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert run(path) == 2
    assert "pip install 'codeq[search]'" in capsys.readouterr().err
    assert not journal_file(tmp_path / "outputs" / "s").exists()
