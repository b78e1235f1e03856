"""Places of the members of a study, on a machine with several GPUs or a cluster, and the lines beside a round."""

import pytest
import torch
from cases import each

from codeq import ExperimentConfig
from codeq.studies.checks import Plan
from codeq.studies.files import log_file
from codeq.studies.progress import Row
from codeq.studies.rounds import Places, advise, describe_places, find_places
from codeq.studies.states import MemberState
from codeq.studies.study import make_study


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def gpus(devices, **content):
    study = make_study({"name": "s", "base": "b.yaml", **content})
    plan = Plan({str(k): ExperimentConfig("x", device=device) for k, device in enumerate(devices)})
    places = find_places(study, None, 2, plan)
    assert len(places.slots) == places.workers
    return [slot.get("CUDA_VISIBLE_DEVICES") for slot in places.slots]


@each(
    ("devices", "found"),
    [
        ((None, "cuda"), ["0", "1"]),
        (("cpu", "cuda"), ["0", "1"]),
        (("cpu", "cpu"), [None]),
        (("cuda:1", "cuda:1"), [None]),  # which is not there where one other GPU is visible
        (("cuda:0", "cuda"), [None]),
    ],
)
def test_each_place_has_a_gpu_unless_members_use_none_or_name_one(devices, found):
    assert gpus(devices) == found


def test_submitit_which_hides_all_gpus_from_its_jobs_leaves_members_those_that_this_process_sees(monkeypatch):
    here = {"executor": {"name": "submitit-local"}}
    assert gpus((None, "cuda"), **here) == ["0", "1"]
    for devices in (("cuda:1", None), ("cpu", "cpu")):
        assert gpus(devices, **here) == ["0,1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    assert gpus(("cuda:1", "cuda:1"), **here) == ["3,2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # as it is then
    assert gpus((None, None), **here) == [""]


def test_the_device_of_notebooks_is_a_parameter():
    notebook = {"base": None, "notebook": "full_training"}
    assert gpus((), **notebook) == ["0", "1"]
    for devices, found in (
        (["cuda:1"], [None]),
        (["cpu", "cuda:0"], [None]),
        (["cpu"], [None]),
        (["cpu", "cuda"], ["0", "1"]),
    ):
        assert gpus((), **notebook, grid={"device": devices}) == found
        assert gpus((), **notebook, variants={str(k): {"device": name} for k, name in enumerate(devices)}) == found
    assert gpus((), **notebook, set={"device": "cuda:1"}) == [None]


@each(
    ("given", "cpus_per_run", "threads"),
    [("", None, 4), ("3", None, 3), ("3,1", None, 3), ("64", None, 4), ("few", None, 4), ("0", None, 4), ("3", 2, 2)],
)
def test_threads_of_a_member_are_at_most_those_that_the_environment_allows(monkeypatch, given, cpus_per_run, threads):
    monkeypatch.setattr("codeq.studies.rounds._cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    study = make_study({"name": "s", "base": "b.yaml", "executor": {"workers": 2, "cpus_per_run": cpus_per_run}})
    assert find_places(study, None, 2, Plan({})).threads == threads


@each(
    ("executor", "line"),
    [
        ({"name": "local"}, "3 to run, 2 at a time with 4 threads each, executor local via direct"),
        ({"name": "slurm"}, "executor slurm via direct, no GPU asked for, time limit 1 d 0 h"),
        ({"name": "slurm", "gpus_per_run": 0, "time": "01:30:00"}, "no GPU asked for, time limit 1 h 30 min"),
        ({"name": "slurm", "gpus_per_run": 1, "time": 20}, "1 GPU each, time limit 20 min 0 s"),
        ({"name": "slurm", "gpus_per_run": 2}, "2 GPUs each, time limit 1 d 0 h"),
    ],
)
def test_what_members_ask_a_cluster_for_is_said_before_they_are_submitted(executor, line):
    study = make_study({"name": "s", "base": "b.yaml", "executor": executor})
    assert describe_places(study, Places(2, 4, [{}, {}]), 3).endswith(line)


def test_the_logs_of_failed_members_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path))
    study, lines = make_study({"name": "s", "base": "b.yaml"}), []
    states = {"a": "done", "b": "failed", "c": "died", "d": "diverged", "e": "misconfigured", "f": "degenerate"}
    rows = [Row(name, MemberState(state, "", None)) for name, state in states.items()]
    log_file(study.folder, "a").parent.mkdir(parents=True)
    for name in "abcde":  # the last one ended before it printed anything
        log_file(study.folder, name).touch()
    advise(lines.append, study, rows[:1], "codeq sweep s.yaml", stopped=False)
    assert lines == []
    advise(lines.append, study, rows[:2], "codeq sweep s.yaml", stopped=False)
    assert lines[0] == "log: outputs/s/.study/logs/b.log"
    lines.clear()
    advise(lines.append, study, rows, "codeq sweep s.yaml", stopped=False)
    logs = ", ".join(f"outputs/s/.study/logs/{name}.log" for name in "bcd")
    assert lines[0] == f"logs: {logs} and 1 more"
