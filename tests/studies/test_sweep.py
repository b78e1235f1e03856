"""Whole studies: the command line as a user types it, with real trainings of a few seconds."""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from codeq.cli.main import main
from codeq.common import progress
from codeq.studies import collect
from codeq.studies.attempts import begin
from codeq.studies.files import replace
from codeq.studies.rounds import wandb_command

BASE = """\
model: mlp
dataset: digits
epochs: 2
batch_size: 256
device: cpu
viz_interval: 100
quantizer: {name: deadzone}
"""


def write(tmp_path, name="s", **content):
    (tmp_path / "base.yaml").write_text(BASE)
    content = {"name": name, "base": str(tmp_path / "base.yaml"), **content}
    path = tmp_path / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def codeq(*arguments, code=0):
    command = [sys.executable, "-m", "codeq", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def start(*arguments):
    command = [sys.executable, "-m", "codeq", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
    return found


def states(folder):
    table = collect(folder)
    return dict(zip(table["run"], table["status"], strict=True))


def fingerprints(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_one_command_uploads_what_all_members_recorded_offline(tmp_path):
    study = tmp_path / "a study"
    for member in ("seed=0", "seed=1"):
        (study / member / "wandb" / f"offline-run-20261121_120000-{member[-1]}").mkdir(parents=True)
    program, action, *paths = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {wandb_command(study)}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert (program, action) == ("wandb", "sync")
    assert paths == [f"{study}/seed={k}/wandb/offline-run-20261121_120000-{k}" for k in (0, 1)]
    assert wandb_command(study / "seed=0") == ""


class Full(io.StringIO):
    """Standard output on a full disk."""

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_mistakes_and_dry_runs_start_nothing(tmp_path, capsys, monkeypatch):
    path = str(write(tmp_path, grid={"epochs": [1, 0]}))
    assert main(["sweep", path]) == 2
    assert "epochs=0: must be at least 1" in capsys.readouterr().err
    path = str(write(tmp_path, grid={"epochs": [1, 2]}, executor={"workers": 3}))
    assert main(["sweep", path, "--dry-run", "--workers", "2", "--set", "batch_size=64"]) == 0
    printed = capsys.readouterr().out
    assert "2 to run, 2 at a time" in printed
    assert "time: about" in printed
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Full())
        assert main(["sweep", path, "--dry-run"]) == 2
    assert capsys.readouterr().err == "codeq: the output cannot be written: No space left on device\n"
    monkeypatch.setattr(progress, "NOTICEABLE", 0.0)
    assert main(["sweep", path, "--dry-run", "--workers", "5"]) == 0
    printed = capsys.readouterr()
    assert "2 to run, 2 at a time" in printed.out
    assert printed.err.startswith("checking 2 members ...\ntiming a training step of epochs=")
    with pytest.raises(SystemExit) as ended:
        main(["sweep", path, "--status"])
    assert ended.value.code == 1
    assert "2 members: 2 pending" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        with pytest.raises(SystemExit):
            main(["sweep", path, "--status"])
    table = terminal.buffer.getvalue()
    assert b"+--" in table
    assert b"??" not in table
    folder = tmp_path / "outputs" / "s"
    begin(folder / ".study/attempts/epochs=1", 1).record(state="failed", reason="no disk")
    replace(folder / ".study/logs/epochs=1.log", "no disk")
    with pytest.raises(SystemExit):
        main(["sweep", path, "--status"])
    assert capsys.readouterr().out.endswith("\nlog: outputs/s/.study/logs/epochs=1.log\n")
    shutil.rmtree(tmp_path / "outputs")
    alone = str(write(tmp_path, grid={"epochs": [1]}, executor={"workers": 3, "cpus_per_run": 1}))
    assert main(["sweep", alone, "--dry-run"]) == 0
    assert "1 to run, with 1 thread, executor" in capsys.readouterr().out
    assert main(["sweep", path, "--workers", "0"]) == 2
    assert not (tmp_path / "outputs").exists()


def test_the_command_that_continues_a_study_has_the_same_changes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("codeq.studies.sweep.run_round", lambda *_: ([], True))
    (tmp_path / "a folder").mkdir()
    path = write(tmp_path / "a folder", seeds=[0])
    assert started(path, "--workers", "2", "--set", "epochs=1", "wandb_project='2'") == 1
    printed = capsys.readouterr().out
    assert f"""to continue: codeq sweep '{path}' --workers 2 --set epochs=1 'wandb_project="2"'\n""" in printed


def started(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", *map(str, arguments)])
    return ended.value.code


@pytest.mark.slow
def test_eight_members_of_which_one_is_killed_and_one_diverges(tmp_path):
    folder = tmp_path / "outputs" / "s"
    lrs = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 1e-2]
    wrong = write(tmp_path, grid={"optimizer.param_groups.base.lr": [*lrs, -1]}, executor={"workers": 2})
    assert "must be above 0  [1 of 8 members, first base.lr=-1]" in codeq("sweep", wrong, code=2)
    assert not folder.exists()

    settings = {"epochs": 30}  # the first member is still training when it is killed
    path = write(tmp_path, set=settings, grid={"optimizer.param_groups.base.lr": [*lrs, 1e20]}, executor={"workers": 2})
    sweep = start("sweep", path)
    record = folder / ".study/attempts/base.lr=0.001/0001.json"
    # Killed in mid-training: its run folder is there, its end is not recorded.
    wait_for((folder / "base.lr=0.001/status.json").exists)
    os.kill(json.loads(record.read_text())["worker"]["pid"], signal.SIGKILL)
    printed, _ = sweep.communicate(timeout=900)
    assert sweep.returncode == 1, printed
    found = states(folder)
    assert found.pop("base.lr=0.001") == "died"
    assert found.pop("base.lr=1e+20") == "diverged"
    assert set(found.values()) == {"done"}
    assert len(found) == 6
    assert "killed by SIGKILL, often for lack of memory" in printed
    assert f"to continue: codeq sweep {path}" in printed

    before = {name: fingerprints(folder / name) for name in found}
    printed = codeq("sweep", path, code=1)
    assert "1 to run" in printed
    assert states(folder)["base.lr=0.001"] == "done"
    assert {name: fingerprints(folder / name) for name in found} == before
    assert "to start failed members again" in printed
    assert "8 members: 7 done, 1 diverged" in codeq("sweep", path, "--status", code=1)


@pytest.mark.exhaustive
def test_ctrl_c_saves_all_members_and_the_next_start_continues(tmp_path):
    folder = tmp_path / "outputs" / "s"
    path = write(tmp_path, set={"epochs": 40}, seeds=[0, 1], executor={"workers": 2})
    sweep = start("sweep", path)
    wait_for(lambda: all((folder / f"seed={seed}/metrics.csv").exists() for seed in (0, 1)))
    sweep.send_signal(signal.SIGINT)
    printed, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 1, printed
    assert states(folder) == {"seed=0": "preempted", "seed=1": "preempted"}
    assert f"to continue: codeq sweep {path}" in printed
    rows = {seed: (folder / f"seed={seed}/metrics.csv").read_text() for seed in (0, 1)}
    codeq("sweep", path)
    for seed, before in rows.items():
        after = (folder / f"seed={seed}/metrics.csv").read_text()
        assert after.startswith(before)
        assert after.count("\n") == 41


@pytest.mark.slow
def test_every_engine_gives_the_same_bytes(tmp_path):
    engines = {
        "direct": {"name": "local"},
        "submitit": {"name": "submitit-local"},
        "papermill": {"name": "local", "via": "papermill"},
    }
    found = {}
    for name, executor in engines.items():
        codeq("sweep", write(tmp_path, name, seeds=[3], executor={**executor, "cpus_per_run": 1}))
        run = tmp_path / "outputs" / name / "seed=3"
        found[name] = [(run / table).read_bytes() for table in ("metrics.csv", "layers.csv")]
    assert (tmp_path / "outputs/papermill/seed=3/full_training.ipynb").is_file()
    assert found["direct"] == found["submitit"] == found["papermill"]


@pytest.mark.exhaustive
def test_hopeless_trials_are_pruned_also_after_a_kill(tmp_path):
    folder = tmp_path / "outputs" / "s"
    # Low rates learn slowly: after two epochs the last three trials are behind the first four.
    ranges = {"optimizer.param_groups.base.lr": {"low": 1e-7, "high": 1e-2, "log": True}}
    search = {"trials": 7, "ranges": ranges, "constraint": {"accuracy": 0.999}, "prune_after": 2}
    settings = {"validation": 0.2, "epochs": 15, "batch_size": 128}
    path = write(tmp_path, search=search, set=settings, executor={"workers": 1, "cpus_per_run": 1})
    sweep = start("sweep", path)
    wait_for(lambda: len(list(folder.glob("*/summary.json"))) == 3, seconds=900)
    sweep.kill()
    sweep.communicate()
    wait_for(lambda: "running" not in states(folder).values())
    printed = codeq("sweep", path)
    table = collect(folder)
    assert table["status"].value_counts().to_dict() == {"done": 4, "pruned": 3}, printed
    pruned = table[table["status"] == "pruned"]
    assert pruned["epoch"].between(1, 13).all()  # 0-based
    assert pruned["reason"].str.contains("medians of 4 members").all()
    assert codeq("sweep", path).count("0 to run") == 1


@pytest.mark.exhaustive
def test_a_search_that_is_killed_resumes_its_trials(tmp_path):
    folder = tmp_path / "outputs" / "s"
    search = {"trials": 4, "ranges": {"optimizer.param_groups.base.lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
    settings = {"validation": 0.2, "epochs": 12, "batch_size": 32}
    path = write(tmp_path, search=search, set=settings, executor={"workers": 2, "cpus_per_run": 1})
    sweep = start("sweep", path)
    wait_for(lambda: len(list(folder.glob("*/metrics.csv"))) == 2)
    sweep.kill()
    sweep.communicate()
    first = wait_for(lambda: (found := states(folder)) and "running" not in found.values() and found)
    assert len(first) == 2
    assert "preempted" in first.values()
    printed = codeq("sweep", path)
    assert "4 members: 4 done" in printed
    table = collect(folder)
    assert set(first) < set(table["run"])
    assert set(table["best/chosen_by"]) == {"validation"}
    # The parts of the printed front that no other trial beats, by another computation.
    figures = {
        row["run"]: (row["eval/accuracy"], 1 / row["compression/unstructured_bops_ratio"])
        for _, row in table.iterrows()
    }
    front = {
        name for name, (accuracy, bops) in figures.items()
        if not any(a >= accuracy and b <= bops and (a, b) != (accuracy, bops) for a, b in figures.values())
    }  # fmt: skip
    assert {name for name in figures if f"  {name}: accuracy" in printed} == front
    for member in first:
        log = (folder / ".study" / "logs" / f"{member}.log").read_text()
        assert "resum" in log.lower() or first[member] == "done"
