"""Watchers of members whose process is a few lines of Python instead of a training."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from codeq.common.errors import CodeqError
from codeq.studies import attempts, watching
from codeq.studies.attempts import Claim, begin, latest
from codeq.studies.files import index_file, replace
from codeq.studies.pruning import Pruning
from codeq.studies.states import read_state
from codeq.studies.watching import Task, Watcher, count_rows

WRITE_STATUS = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def status(name, message=""):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"status": name, "message": message, "host": "here", "pid": os.getpid()}
    (folder / "status.json").write_text(json.dumps(content))
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "manifest.json").touch()
def work():
    for _ in range(600):
        time.sleep(0.1)  # a signal just before a sleep is noticed after it
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Return a function that runs a member made of the given code."""

    def run(code, stop=lambda: False, resume=("resume",), **settings):
        monkeypatch.setattr(watching, "COMMAND", (sys.executable, "-c", WRITE_STATUS + code, str(tmp_path / "m")))
        Watcher(Task(tmp_path, "m", ["start"], list(resume), **settings), stop).run()
        return latest(tmp_path / ".study" / "attempts" / "m")

    return run


def test_a_member_that_ends_well_is_done(play, tmp_path):
    found = play("print('hello'); status('done')", environment={"WORD": "x"})
    assert (found.number, found.state, found.reason) == (1, "done", "")
    assert "hello" in (tmp_path / ".study" / "logs" / "m.log").read_text()
    assert found.worker.pid != found.watcher.pid == os.getpid()
    assert 0 < found.started < found.ended <= time.time()


def test_the_environment_reaches_the_member(play, tmp_path):
    play("print(os.environ['OMP_NUM_THREADS'])", environment={"OMP_NUM_THREADS": "7"})
    assert (tmp_path / ".study" / "logs" / "m.log").read_text() == "7\n"


def test_a_member_killed_by_a_signal_has_died_and_starts_again(play):
    found = play("status('running'); os.kill(os.getpid(), signal.SIGKILL)")
    assert (found.state, found.reason) == ("died", "killed by SIGKILL, often for lack of memory")
    found = play("assert sys.argv[2:] == ['resume']; status('done')")
    assert (found.number, found.state) == (2, "done")
    assert play("raise SystemExit(5)").number == 2  # what is done does not run again


def test_the_epochs_of_a_run_that_is_resumed_are_not_of_the_attempt(play, tmp_path):
    play("status('preempted'); sys.exit(143)")
    (tmp_path / "m" / "metrics.csv").write_text("epoch\n0\n1\n")
    assert play("status('done')").rows == 2


def test_a_mistake_that_the_command_line_reports_is_the_reason(play):
    found = play("print('noise'); print('codeq: lr=0: must be\\n  above 0', file=sys.stderr); sys.exit(2)")
    assert (found.state, found.reason) == ("misconfigured", "lr=0: must be above 0")


def test_a_notebook_that_raises_has_failed_and_one_that_is_refused_was_misconfigured(play):
    refused = play("print('codeq: t.ipynb: no data'); sys.exit(2)", notebook=True, resume=())
    assert (refused.state, refused.reason) == ("misconfigured", "t.ipynb: no data")
    raised = "folder.mkdir(); (folder / 't.ipynb').touch(); print('codeq: cell 2 failed'); sys.exit(2)"
    assert play(raised, notebook=True, resume=(), retried=1).state == "failed"
    assert play(raised, notebook=True, resume=(), retried=2).state == "failed"  # with the earlier one put aside


def test_a_resumption_of_a_notebook_that_is_refused_was_misconfigured(play):
    play("status('preempted'); sys.exit(143)", notebook=True)
    assert play("print('codeq: no data'); sys.exit(2)", notebook=True).state == "misconfigured"


def test_failures_start_again_on_request_alone_and_only_the_one_seen(play):
    assert play("raise RuntimeError('broken')").reason == "RuntimeError: broken"
    assert play("status('done')").number == 1
    assert play("status('done')", retried=2).number == 1  # another start has tried again meanwhile
    found = play("status('done')", retried=1)
    assert (found.number, found.state) == (2, "done")


def test_an_old_status_is_not_taken_for_a_new_one(play):
    play("status('preempted', 'asked to stop'); sys.exit(143)")
    found = play("print('codeq: no module'); sys.exit(2)")
    assert (found.state, found.reason) == ("misconfigured", "no module")


def test_a_run_that_cannot_be_resumed_is_put_aside(play, tmp_path):
    play("status('preempted'); sys.exit(143)", resume=())
    (tmp_path / "m" / "result").touch()
    (tmp_path / "m" / "metrics.csv").write_text("epoch\n0\n1\n")
    found = play("assert sys.argv[2:] == ['start']; status('done')", resume=())
    assert (found.number, found.state, found.rows) == (2, "done", 0)
    assert not (tmp_path / "m" / "result").exists()
    assert (tmp_path / ".study" / "aside" / "m.2" / "result").is_file()


def test_a_run_killed_before_its_first_checkpoint_starts_again(play, tmp_path):
    play("folder.mkdir(); (folder / 'status.json').write_text('{}'); os.kill(os.getpid(), signal.SIGKILL)")
    found = play("assert sys.argv[2:] == ['start']; status('done')")
    assert (found.number, found.state) == (2, "done")
    assert (tmp_path / ".study" / "aside" / "m.2" / "status.json").is_file()


def test_a_request_to_stop_reaches_the_member_which_saves_itself(play, tmp_path):
    code = """
def save(*_):
    status("preempted", "the state is saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
status("running")
work()
"""
    found = play(code, stop=(tmp_path / "m" / "checkpoints" / "manifest.json").exists)
    assert (found.state, found.reason) == ("preempted", "the state is saved")


def write_member(study, name, course, state="done"):
    (study / name).mkdir(parents=True, exist_ok=True)
    lines = [
        "eval/accuracy,compression/unstructured_bops_ratio",
        *(f"{accuracy},{1 / bops}" for accuracy, bops in course),
    ]
    (study / name / "metrics.csv").write_text("\n".join(lines) + "\n")
    if state:
        begin(study / ".study" / "attempts" / name, 1).record(state=state)
    else:  # the record of a member whose watcher was killed before it could write one
        (study / name / "status.json").write_text(
            json.dumps({"status": "done", "message": "", "host": "here", "pid": 1})
        )


def test_a_hopeless_member_is_stopped_and_not_resumed(play, tmp_path):
    names = [f"other{i}" for i in range(4)]
    replace(index_file(tmp_path), json.dumps({"members": {name: {} for name in [*names, "m"]}}))
    for name in names:
        write_member(tmp_path, name, [(0.2, 0.2), (0.5, 0.1), (0.9, 0.05)], state="" if name == "other0" else "done")
    code = """
def save(*_):
    status("preempted", "the state is saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
status("running")
table = folder / "metrics.csv"
table.write_text("eval/accuracy,compression/unstructured_bops_ratio\\n0.1,4\\n")
time.sleep(0.5)  # the first epoch counts for nobody
with open(table, "a") as file:
    file.write("0.4,5\\n")
work()
"""
    rule = Pruning(after=2, constraint={})
    found = play(code, pruning=rule)
    medians = "medians of 4 members: 50.00 % and 10.00 %"
    assert (found.state, found.reason) == (
        "pruned", f"pruned after epoch 2 at 40.00 % and 20.00 % of the BOPs; {medians}"
    )  # fmt: skip
    assert play("status('done')", pruning=rule).number == 1  # pruned members are not resumed


def test_nothing_starts_after_a_request_to_stop(play):
    assert play("status('done')", stop=lambda: True) is None


@pytest.mark.parametrize("notebook", [True, False])
def test_an_attempt_says_whether_it_executes_a_notebook(play, notebook):
    assert play("status('done')", notebook=notebook).notebook is notebook


def test_a_member_under_way_elsewhere_is_left_alone(play, tmp_path):
    begin(tmp_path / ".study" / "attempts" / "m", 1)
    found = play("status('done')")
    assert (found.number, found.state) == (1, "")


def test_a_watcher_that_was_given_up_kills_its_member(play, tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "BEAT", 0.0)
    folder = tmp_path / ".study" / "attempts" / "m"

    def take_over():
        while not ((found := latest(folder)) and found.worker):
            time.sleep(0.05)
        begin(folder, 2)

    threading.Thread(target=take_over, daemon=True).start()
    started = time.monotonic()
    found = play("work()")
    assert time.monotonic() - started < 50
    assert (found.number, found.state) == (2, "")
    assert json.loads((folder / "0001.json").read_text())["state"] == ""


def test_an_error_before_the_process_is_the_end_of_the_attempt(play, tmp_path, monkeypatch):
    play("status('preempted'); sys.exit(143)", resume=())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(watching.shutil, "move", full)
        with pytest.raises(OSError, match="No space left"):
            play("status('done')", resume=())
    found = read_state(tmp_path, "m", 0)
    assert (found.number, found.state) == (2, "died")
    assert found.reason == "OSError: [Errno 28] No space left on device"
    assert play("status('done')", resume=()).number == 3


@pytest.mark.parametrize("method", ["record", "beat"])
def test_an_error_beside_the_process_ends_it_and_the_attempt(play, tmp_path, monkeypatch, method):
    working = getattr(Claim, method)

    def fail(claim, **changes):
        if method == "beat" or "worker" in changes:
            raise CodeqError("0001.json cannot be written")
        working(claim, **changes)

    monkeypatch.setattr(Claim, method, fail)
    with pytest.raises(CodeqError, match="cannot be written"):
        play("sys.stdin.read(); status('preempted', 'saved'); sys.exit(143)")
    assert json.loads((tmp_path / "m" / "status.json").read_text())["status"] == "preempted"  # before the error
    found = read_state(tmp_path, "m", 0)
    assert (found.state, found.reason) == ("died", "CodeqError: 0001.json cannot be written")


def test_an_end_that_could_not_be_written_is_tried_once_more(play, tmp_path, monkeypatch):
    refused = []

    def fail_once(path, text):
        if json.loads(text)["state"] and not refused:
            refused.append(path)
            raise CodeqError("0001.json cannot be written")
        replace(path, text)

    monkeypatch.setattr(attempts, "replace", fail_once)
    with pytest.raises(CodeqError, match="cannot be written"):
        play("status('done')", notebook=True)
    assert latest(tmp_path / ".study" / "attempts" / "m").state == "done"


def test_an_error_that_no_record_can_be_written_of_is_raised(play, tmp_path, monkeypatch):
    working = Claim.record

    def fail(claim, **changes):
        if "started" not in changes:
            raise CodeqError(f"{', '.join(changes)} cannot be written")
        working(claim, **changes)

    monkeypatch.setattr(Claim, "record", fail)
    with pytest.raises(CodeqError, match="worker cannot be written"):
        play("sys.stdin.read()")
    assert latest(tmp_path / ".study" / "attempts" / "m").state == ""


def test_a_member_stops_when_its_watcher_is_gone():
    code = "from codeq.studies import member; import threading, time; "
    code += "threading.Thread(target=member._stop_with_watcher, daemon=True).start(); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    process.stdin.close()
    assert process.wait(300) == -signal.SIGTERM


def test_rows_are_counted_without_the_header(tmp_path):
    assert count_rows(tmp_path) == 0
    (tmp_path / "metrics.csv").write_text("epoch,eval/accuracy\n0,0.5\n1,0.6\n")
    assert count_rows(tmp_path) == 2
