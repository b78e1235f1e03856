"""Engines with members of a few lines of Python, and with a stand-in for the commands of Slurm."""

import os
import pickle
import stat
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit

from codeq.common.errors import CodeqError
from codeq.studies import engines, watching
from codeq.studies.attempts import begin, latest
from codeq.studies.engines import Engine, Job, thread_limits
from codeq.studies.files import attempts_folder
from codeq.studies.parts import Executor
from codeq.studies.states import read_state
from codeq.studies.watching import Task

MEMBER = """
import os, pathlib, signal, sys, time
log = pathlib.Path(sys.argv[1], "log"); name = sys.argv[2]
def write(word):
    with open(log, "a") as file:
        file.write(f"{word} {name} {os.environ.get('PLACE')}\\n")
def stop(*_):
    write("saved"); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
write("start")
until = time.monotonic() + 60
while log.read_text().count("start ") < int(sys.argv[4]) and time.monotonic() < until:
    time.sleep(0.05)
until = time.monotonic() + float(sys.argv[3])
while time.monotonic() < until:
    time.sleep(0.05)  # a signal just before a sleep is noticed after it
write("end")
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "COMMAND", (sys.executable, "-c", MEMBER, str(tmp_path)))

    def engine(count, seconds, workers, together=1, **executor):
        """Make an engine of members that take `seconds` from when `together` of them have started."""
        arguments = (str(seconds), str(together))
        tasks = [Task(tmp_path, f"m{i}", [f"m{i}", *arguments], [], environment=thread_limits(1)) for i in range(count)]
        slots = [{"PLACE": str(place)} for place in range(workers)]
        return Engine(Executor(**executor), tasks, workers, slots, "token")

    return engine


def lines(tmp_path):
    return [line.split() for line in (tmp_path / "log").read_text().splitlines()]


def test_as_many_members_run_at_a_time_as_there_are_workers_each_in_its_place(make, tmp_path):
    make(6, 0.2, workers=2, together=2).run()
    running, most, places = set(), 0, []
    for word, name, place in lines(tmp_path):
        (running.add if word == "start" else running.discard)(name)
        most = max(most, len(running))
        places.append(place)
    assert most == 2
    assert set(places) == {"0", "1"}
    assert all(latest(tmp_path / f".study/attempts/m{i}").state == "done" for i in range(6))


def test_a_stopped_engine_lets_its_members_save_and_starts_no_more(make, tmp_path):
    engine = make(5, 60, workers=2)
    work = threading.Thread(target=engine.run)
    work.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() or len(lines(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    engine.stop()
    work.join(60)
    assert not work.is_alive()
    assert sorted(word for word, *_ in lines(tmp_path)) == ["saved", "saved", "start", "start"]
    states = [read_state(tmp_path, f"m{i}", 0).state for i in range(5)]
    assert sorted(states) == ["pending", "pending", "pending", "preempted", "preempted"]
    assert not list((tmp_path / ".study" / "stops").iterdir())


def test_what_goes_wrong_around_a_member_does_not_stop_the_others(make, tmp_path):
    engine = make(3, 0, workers=1)
    (tmp_path / ".study" / "attempts").mkdir(parents=True)
    (tmp_path / ".study" / "attempts" / "m1").write_text("in the way")
    engine.run()
    assert [problem.split(":")[0] for problem in engine.problems] == ["m1"]
    assert latest(tmp_path / ".study/attempts/m2").state == "done"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put an `sbatch` that takes note of its script on the path, and an `srun` that submitit looks for."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in {
        "sbatch": f"cp $1 {tmp_path}/script\necho Submitted batch job 42",
        "srun": "",
        "sacct": "",
    }.items():
        path = commands / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "script"


def test_slurm_gets_one_array_with_the_limits_of_the_study(make, slurm):
    engine = make(3, 0, 2, name="slurm", partition="gpu", time=90, gpus_per_run=1, memory_gb=8, account="lab")
    with (executor := engine._submitit("slurm")).batch():
        jobs = [executor.submit(Job("token"), task) for task in engine.tasks]
    assert [job.job_id for job in jobs] == ["42_0", "42_1", "42_2"]
    script = slurm.read_text()
    for flag in (
        "--array=0-2%2", "--time=90", "--partition=gpu", "--gpus-per-node=1", "--mem=8GB", "--account=lab",
        "--cpus-per-task=1", "--signal=USR2@120", "--requeue",
    ):  # fmt: skip
        assert f"#SBATCH {flag}\n" in script, script


def test_without_slurm_its_executor_is_refused(make, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(CodeqError, match="executor slurm: Could not detect"):
        make(1, 0, 1, name="slurm")._submitit("slurm")


class QueuedJob:
    """Job of a cluster that runs its function, or fails with `error` instead, when it is looked at the third time."""

    def __init__(self, function, task, error):
        self.function, self.task, self.error = function, task, error
        self.looks, self.cancelled = 0, False

    def done(self):
        self.looks += 1
        if self.looks == 3 and not (self.error or self.cancelled):
            self.function(self.task)
        return self.looks >= 3

    def cancel(self):
        self.cancelled = True

    def exception(self):
        return self.error


@pytest.fixture
def queue(monkeypatch):
    """Replace Slurm by a queue, and return the list of its jobs and the errors of members outside of them."""
    jobs, errors = [], {}

    def submit(function, task):
        jobs.append(QueuedJob(function, task, errors.get(task.member)))
        return jobs[-1]

    executor = SimpleNamespace(batch=nullcontext, submit=submit)
    monkeypatch.setattr(Engine, "_submitit", lambda *_: executor)
    monkeypatch.setattr(engines, "LOOK_EVERY", 0.01)
    return SimpleNamespace(jobs=jobs, errors=errors)


def retry(engine):
    """Let all members of an engine have failed once, and this start retry them."""
    for task in engine.tasks:
        begin(attempts_folder(task.study, task.member), 1).record(state="failed", reason="the first time")
    engine.tasks = [replace(task, retried=1) for task in engine.tasks]
    return engine


def test_a_failure_that_is_retried_on_a_cluster_does_not_count_as_the_end_of_its_job(make, queue, tmp_path):
    retry(make(2, 0, 2, name="slurm")).run()
    found = [latest(tmp_path / f".study/attempts/m{i}") for i in range(2)]
    assert [(attempt.number, attempt.state) for attempt in found] == [(2, "done"), (2, "done")]


def test_a_failure_of_the_retry_is_the_end_of_its_member(make, queue, tmp_path, monkeypatch):
    monkeypatch.setattr(QueuedJob, "done", lambda _: False)  # the cluster notices it later
    engine = retry(make(1, 0, 1, name="slurm"))
    begin(attempts_folder(tmp_path, "m0"), 2).record(state="failed", reason="again")
    engine.run()  # ends


def test_the_error_of_a_job_that_never_began_its_member_is_a_problem(make, queue, tmp_path):
    queue.errors["m1"] = RuntimeError("Job 42_1 has not produced any output\nbash: python: command not found\n")
    engine = make(3, 0, 3, name="slurm")
    engine.run()
    assert engine.problems == ["m1: bash: python: command not found"]
    found = [latest(tmp_path / f".study/attempts/m{i}") for i in range(3)]
    assert [attempt and attempt.state for attempt in found] == ["done", None, "done"]


def exception_of_job(folder, *, trace=None, output=""):
    """Return the error that submitit makes of a job whose function raised, or that left nothing but its output."""
    job = submitit.LocalJob(folder, "42")
    job.paths.folder.mkdir()
    job.paths.stdout.write_text(output)
    if trace:
        job.paths.result_pickle.write_bytes(pickle.dumps(("error", trace)))
    job._results_timeout_s = 0
    return job.exception()


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ({"trace": "Traceback (most recent call last):\n  File\nOSError: disk full\n"}, "OSError: disk full"),
        ({"output": "slurmstepd: error: no memory\n\n"}, "slurmstepd: error: no memory"),
        ({"output": "\n"}, "No error stream produced. Look at stdout: "),
    ],
)
def test_the_last_line_of_an_error_of_submitit_is_not_the_name_of_its_log_file(make, queue, tmp_path, left, words):
    queue.errors["m0"] = exception_of_job(tmp_path / "jobs", **left)
    engine = make(1, 0, 1, name="slurm")
    engine.run()
    (problem,) = engine.problems
    assert problem.startswith(f"m0: {words}")


def test_a_stopped_start_cancels_the_jobs_of_members_that_it_retries(make, queue, monkeypatch):
    engine = retry(make(2, 0, 2, name="slurm"))
    monkeypatch.setattr(QueuedJob, "done", lambda _: engine.stop())  # after the first look
    engine.run()
    assert [job.cancelled for job in queue.jobs] == [True, True]
    assert engine.problems == []


def test_a_requeued_job_looks_at_the_files_again(tmp_path, monkeypatch):
    """Before a time limit submitit calls `checkpoint`, which stops the member and puts an equal job into the queue."""
    monkeypatch.setattr(watching, "COMMAND", (sys.executable, "-c", MEMBER, str(tmp_path)))
    task, job = Task(tmp_path, "m", ["m", "60", "1"], []), Job("token")
    again = []

    def warn():
        deadline = time.monotonic() + 60
        while not (tmp_path / "log").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        again.append(job.checkpoint(task))

    warning = threading.Thread(target=warn)
    warning.start()
    job(task)
    warning.join(60)
    assert latest(tmp_path / ".study/attempts/m").state == "preempted"
    assert again[0].args == (task,)
    assert again[0].function.token == "token"


def test_jobs_that_save_nothing_new_stop_after_a_few(tmp_path, monkeypatch):
    steps = iter([0, 0, 0, 7, 7, 7, 7, 7, 7, 7])  # before and after each job
    monkeypatch.setattr(engines, "last_step", lambda _: next(steps))
    monkeypatch.setattr(engines, "Watcher", lambda *_: SimpleNamespace(run=lambda: None, interrupt=lambda: None))
    task, job, idle = Task(tmp_path, "m", [], []), Job("token"), []
    for _ in range(4):
        job(task)
        job = job.checkpoint(task).function
        idle.append(job.idle)
    assert idle == [1, 0, 1, 2]
    job(task)
    with pytest.raises(CodeqError, match=r"3 jobs in a row .*: executor\.time is too short"):
        job.checkpoint(task)


def test_a_notebook_without_checkpoints_may_save_its_state_in_another_way(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "Watcher", lambda *_: SimpleNamespace(run=lambda: None, interrupt=lambda: None))
    task, job = Task(tmp_path, "m", [], [], notebook=True), Job("token", 2)
    job(task)
    assert job.checkpoint(task).function.idle == 0
