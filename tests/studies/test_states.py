import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from cases import each

from codeq.runs import Run
from codeq.runs.status import StatusFile
from codeq.studies.attempts import begin
from codeq.studies.states import judge, read_state


def write_status(study, member, status, message="", host=None, pid=None, updated=""):
    folder = study / member
    folder.mkdir(parents=True, exist_ok=True)
    content = {"status": status, "message": message, "host": host or socket.gethostname(), "pid": pid or os.getpid()}
    content["updated"] = updated
    (folder / "status.json").write_text(json.dumps(content))


def state(study, member="m"):
    found = read_state(study, member, now=1e12)  # no heartbeat is young by then
    return found.state, found.reason


def attempt(study, **changes):
    claim = begin(study / ".study" / "attempts" / "m", 1)
    claim.record(**changes)
    return claim


def ended_process():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    return child.pid


def test_a_member_that_never_began_is_pending(tmp_path):
    assert state(tmp_path) == ("pending", "")


@pytest.mark.parametrize("status", ["done", "failed", "diverged", "degenerate", "preempted"])
def test_a_run_that_no_sweep_started_tells_its_own_status(tmp_path, status):
    write_status(tmp_path, "m", status, "why")
    assert state(tmp_path) == (status, "why")


def test_a_run_started_by_hand_runs_as_long_as_its_process(tmp_path):
    write_status(tmp_path, "m", "running")
    assert state(tmp_path)[0] == "running"
    write_status(tmp_path, "m", "running", pid=ended_process())
    assert state(tmp_path)[0] == "died"
    write_status(tmp_path, "m", "running", host="another-machine", pid=1)
    assert state(tmp_path)[0] == "running"


@pytest.mark.parametrize("status", ["done", "running", "preempted"])
@pytest.mark.parametrize("recorded", ["failed", "died", "pruned"])
def test_a_run_that_was_resumed_by_hand_tells_its_own_status(tmp_path, recorded, status):
    attempt(tmp_path, state=recorded, reason="why", ended=1_700_000_000.5)
    write_status(tmp_path, "m", status, updated="2023-11-14T22:13:20+00:00")  # half a second before
    assert state(tmp_path) == (recorded, "why")
    write_status(tmp_path, "m", status, updated="2023-11-14T22:13:21+00:00")
    assert state(tmp_path) == (status, "")
    write_status(tmp_path, "m", status, updated="damaged")
    assert state(tmp_path) == (recorded, "why")


@pytest.mark.parametrize("ended", ["x", [], {}, None])
def test_an_end_of_another_form_is_unknown(tmp_path, ended):
    attempt(tmp_path, state="failed", reason="why", ended=ended)
    write_status(tmp_path, "m", "done", updated="2023-11-14T22:13:20+00:00")
    assert state(tmp_path) == ("failed", "why")


def test_a_run_that_is_done_is_done_whatever_the_clock_of_the_machine_that_began_it_says(tmp_path):
    claim = attempt(tmp_path, state="preempted", reason="why", ended=1_700_000_300.0)  # five minutes ahead
    claim.record(watcher=replace(claim.attempt.watcher, host="another-machine"))
    write_status(tmp_path, "m", "done", updated="2023-11-14T22:13:21+00:00")
    assert state(tmp_path) == ("done", "")
    write_status(tmp_path, "m", "preempted", updated="2023-11-14T22:13:21+00:00")
    assert state(tmp_path) == ("preempted", "why")
    claim.record(state="failed", notebook=True)  # of a notebook, after its training
    write_status(tmp_path, "m", "done", updated="2023-11-14T22:13:21+00:00")
    assert state(tmp_path) == ("failed", "why")


def test_a_run_of_another_machine_that_wrote_nothing_for_a_day_has_died(tmp_path):
    write_status(tmp_path, "m", "running", host="another-machine")
    path = tmp_path / "m" / "status.json"
    for hours, expected in ((23, "running"), (25, "died")):
        os.utime(path, (time.time() - 3600 * hours,) * 2)
        found = state(tmp_path)
        assert (found[0], found[1].startswith("on another-machine, ")) == (expected, True)
        assert Run(tmp_path / "m").status == expected
    (tmp_path / "m" / "metrics.csv").touch()
    assert state(tmp_path)[0] == "running"


def test_an_attempt_under_way_is_running_whatever_the_run_said_before(tmp_path):
    write_status(tmp_path, "m", "preempted", "asked to stop")
    attempt(tmp_path)
    assert state(tmp_path) == ("running", "")


def test_what_was_recorded_at_the_end_of_an_attempt_counts(tmp_path):
    write_status(tmp_path, "m", "running", pid=ended_process())
    attempt(tmp_path, state="died", reason="killed by SIGKILL")
    assert state(tmp_path) == ("died", "killed by SIGKILL")


def test_a_removed_run_starts_again(tmp_path):
    attempt(tmp_path, state="done")
    assert state(tmp_path) == ("pending", "its run was removed")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / ".lock").touch()  # what `rm -r m/*` leaves
    assert state(tmp_path) == ("pending", "its run was removed")
    (tmp_path / "m" / "x.ipynb").touch()  # a notebook without a run leaves no status
    assert state(tmp_path) == ("done", "")


def gone(claim):
    claim.record(watcher=replace(claim.attempt.watcher, started="1"))


def test_where_the_watcher_is_gone_the_run_tells_how_it_ended(tmp_path):
    gone(attempt(tmp_path))
    assert state(tmp_path) == ("died", f"its processes on {socket.gethostname()} have ended")
    write_status(tmp_path, "m", "running", pid=ended_process())
    assert state(tmp_path)[0] == "died"
    write_status(tmp_path, "m", "done")
    assert state(tmp_path) == ("done", "")


def test_where_the_watcher_is_gone_a_notebook_has_died_though_its_training_is_done(tmp_path):
    write_status(tmp_path, "m", "done")
    claim = attempt(tmp_path, notebook=True)
    gone(claim)
    assert state(tmp_path) == ("died", "its training is done, not its notebook")
    claim.record(state="done")
    assert state(tmp_path) == ("done", "")
    gone(attempt(tmp_path / "other", notebook=True))
    write_status(tmp_path / "other", "m", "diverged", "why")
    assert state(tmp_path / "other") == ("diverged", "why")


def test_a_notebook_whose_training_was_finished_by_hand_after_its_sweep_was_killed_is_done(tmp_path):
    claim = attempt(tmp_path, notebook=True)
    gone(claim)
    os.utime(claim.path, (1_700_000_000, 1_700_000_000))  # 22:13:20 of that day
    write_status(tmp_path, "m", "done", updated="2023-11-14T22:14:50+00:00")  # its kernel may have lived until then
    assert state(tmp_path) == ("died", "its training is done, not its notebook")
    write_status(tmp_path, "m", "done", updated="2023-11-14T22:14:51+00:00")
    assert state(tmp_path) == ("done", "")


def test_a_run_that_was_resumed_by_hand_after_its_sweep_was_killed_is_running(tmp_path):
    claim = attempt(tmp_path)
    claim.record(worker=replace(claim.attempt.watcher, pid=ended_process()))
    gone(claim)
    os.utime(claim.path, (1_700_000_000, 1_700_000_000))  # 22:13:20 of that day
    after = "2023-11-14T22:13:21+00:00"
    write_status(tmp_path, "m", "running", updated=after)
    assert state(tmp_path) == ("running", "")
    write_status(tmp_path, "m", "running", updated=after, pid=ended_process())
    assert state(tmp_path)[0] == "died"
    write_status(tmp_path, "m", "running", updated="2023-11-14T22:13:19+00:00")  # by the kernel of its notebook
    assert state(tmp_path)[0] == "died"
    write_status(tmp_path, "m", "running", updated=after, host="another-machine")
    assert state(tmp_path)[0] == "died"
    write_status(tmp_path, "m", "running", updated=after)
    claim.record(worker=replace(claim.attempt.watcher, pid=os.getpid()))  # the number of a later process
    os.utime(claim.path, (1_700_000_000, 1_700_000_000))
    assert state(tmp_path)[0] == "died"


@each(
    ("code", "asked", "status", "notebook", "expected"),
    [
        (0, False, "done", False, ("done", "")),
        (0, False, None, True, ("done", "")),
        (2, False, None, False, ("misconfigured", "words")),
        (1, False, None, False, ("failed", "words")),
        (2, False, "diverged", False, ("diverged", "stored")),
        (2, False, "degenerate", False, ("degenerate", "stored")),
        (1, False, "failed", True, ("failed", "stored")),
        (143, False, "preempted", False, ("preempted", "stored")),
        (143, True, "preempted", True, ("preempted", "stored")),
        (-15, True, None, False, ("preempted", "stopped before there was anything new to save")),
        (-15, False, None, False, ("died", "killed by SIGTERM")),
        (-9, False, "running", False, ("died", "killed by SIGKILL, often for lack of memory")),
        (-9, False, None, False, ("died", "killed by SIGKILL, often for lack of memory")),
        (-11, False, "running", False, ("died", "killed by SIGSEGV")),
        (2, False, "running", True, ("died", "words")),  # the kernel was killed below papermill
        (-9, False, "done", False, ("done", "")),  # killed after the training was complete
        (2, False, "done", True, ("failed", "its training is done, its notebook failed: words")),
    ],
)
def test_the_end_of_a_process_is_judged(code, asked, status, notebook, expected):
    stored = StatusFile(status, "stored") if status else None
    assert judge(code, asked=asked, stored=stored, notebook=notebook, last_words="words") == expected


@pytest.mark.parametrize(("left", "state"), [(True, "failed"), (False, "misconfigured")])
def test_a_notebook_that_a_process_leaves_without_a_run_has_failed(left, state):
    assert judge(2, asked=False, stored=None, notebook=True, last_words="why", left=left) == (state, "why")
