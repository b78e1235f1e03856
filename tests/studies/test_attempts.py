import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from cases import small_files

from codeq.common.errors import CodeqError
from codeq.runs import processes
from codeq.runs.processes import Process
from codeq.studies import attempts
from codeq.studies.attempts import Attempt, LostClaim, begin, file_system_time, is_live, latest


def elsewhere(process: Process) -> Process:
    return replace(process, host="another-machine")


def test_only_one_of_two_begins_an_attempt(tmp_path):
    assert begin(tmp_path, 1) is not None
    assert begin(tmp_path, 1) is None
    assert latest(tmp_path).number == 1
    assert begin(tmp_path, 2) is not None
    assert latest(tmp_path).number == 2


def test_nothing_has_been_attempted_in_an_empty_or_missing_folder(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None


def test_a_record_reads_back(tmp_path):
    claim = begin(tmp_path, 1, rows=3)
    claim.record(state="died", reason="killed")
    found = latest(tmp_path)
    assert (found.number, found.rows, found.state, found.reason) == (1, 3, "died", "killed")
    assert found.watcher == Process.of(os.getpid())
    assert found.watcher.pid == os.getpid()


def test_missing_and_foreign_keys_of_another_version_are_no_obstacle(tmp_path):
    claim = begin(tmp_path, 2)
    watcher = vars(claim.attempt.watcher)
    stored = json.loads(claim.path.read_text())
    stored |= {"state": "done", "new_key": [1], "watcher": watcher | {"new_key": 2}, "worker": {"pid": 3}}
    claim.path.write_text(json.dumps(stored))
    found = latest(tmp_path)
    assert (found.number, found.state, found.watcher, found.worker) == (2, "done", claim.attempt.watcher, None)
    (tmp_path / "0003.json").write_text("{}")
    assert latest(tmp_path) == Attempt(3)


@pytest.mark.parametrize("value", [[1], {"pid": "1"}, None])
def test_fields_of_another_type_are_no_obstacle(tmp_path, value):
    claim = begin(tmp_path, 1)
    stored = json.loads(claim.path.read_text())
    for key in stored:
        claim.path.write_text(json.dumps(stored | {key: value}))
        assert latest(tmp_path) == replace(claim.attempt, **{key: getattr(Attempt(1), key)})
    parts = stored["watcher"]
    claim.path.write_text(json.dumps(stored | {"watcher": parts | {"pid": str(parts["pid"])}}))
    assert latest(tmp_path).watcher is None


def test_a_full_disk_is_one_message_with_the_file(tmp_path):
    claim = begin(tmp_path, 1)
    with small_files(8), pytest.raises(CodeqError, match=r"0001\.json cannot be written: File too large"):
        claim.record(state="done")
    assert latest(tmp_path).state == ""


def test_this_process_is_alive_and_an_ended_one_is_not(tmp_path):
    claim = begin(tmp_path, 1)
    assert is_live(tmp_path, latest(tmp_path), now=1e12)  # on this machine the process counts, not the clock
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    process = Process.of(child.pid)
    child.wait()
    claim.record(watcher=process)
    assert not is_live(tmp_path, latest(tmp_path), now=0.0)


def test_a_member_lives_as_long_as_either_of_its_processes(tmp_path):
    claim = begin(tmp_path, 1)
    gone = replace(Process.of(os.getpid()), started="1")
    claim.record(watcher=gone, worker=Process.of(os.getpid()))
    assert is_live(tmp_path, latest(tmp_path), now=1e12)


def test_on_another_machine_the_heartbeat_counts(tmp_path):
    claim = begin(tmp_path, 1)
    claim.record(watcher=elsewhere(claim.attempt.watcher))
    now = file_system_time(tmp_path)
    assert is_live(tmp_path, latest(tmp_path), now)
    assert is_live(tmp_path, latest(tmp_path), now + 80)
    assert not is_live(tmp_path, latest(tmp_path), now + 120)


def test_where_no_start_time_tells_processes_apart_the_heartbeat_counts(tmp_path, monkeypatch):
    """As in records of earlier versions on macOS: after a restart another program may have the number."""
    monkeypatch.setattr(processes, "_namespace", lambda: "")
    monkeypatch.setattr(processes, "_start_time", lambda _: "")
    begin(tmp_path, 1)
    now = file_system_time(tmp_path)
    assert is_live(tmp_path, latest(tmp_path), now)
    assert not is_live(tmp_path, latest(tmp_path), now + 120)


def test_an_attempt_whose_file_is_being_written_is_live_for_a_while(tmp_path):
    (tmp_path / "0001.json").touch()
    now = file_system_time(tmp_path)
    assert latest(tmp_path).number == 1
    assert is_live(tmp_path, latest(tmp_path), now)
    assert not is_live(tmp_path, latest(tmp_path), now + 120)


def test_a_heartbeat_renews_the_file_when_it_is_due(tmp_path, monkeypatch):
    claim = begin(tmp_path, 1)
    os.utime(claim.path, (0, 0))
    claim.beat()
    assert claim.path.stat().st_mtime == 0
    monkeypatch.setattr(attempts, "BEAT", 0.0)
    claim.beat()
    assert abs(claim.path.stat().st_mtime - file_system_time(tmp_path)) < 20


def test_a_process_that_was_given_up_notices(tmp_path, monkeypatch):
    claim = begin(tmp_path, 1)
    begin(tmp_path, 2)
    monkeypatch.setattr(attempts, "BEAT", 0.0)
    with pytest.raises(LostClaim):
        claim.beat()


def test_the_clock_of_the_file_system_leaves_nothing_behind(tmp_path):
    assert abs(file_system_time(tmp_path) - time.time()) < 60
    assert not list(tmp_path.iterdir())
    assert abs(file_system_time(tmp_path / "missing") - time.time()) < 60


def take_all(root, members, seed, barrier):
    """Run every member that is not done, as a sweep does: begin the next attempt, work, record the end."""
    from codeq.studies.watching import Task, claim_member

    members = list(members)
    random.Random(seed).shuffle(members)
    barrier.wait()
    for member in members:
        claim = claim_member(Task(root, member, [], []))
        if claim is not None:
            with open(root / "ran.log", "a") as log:
                log.write(f"{member}\n")
            (root / member).mkdir()
            (root / member / "metrics.csv").touch()
            claim.record(state="done")


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_200_members_and_two_processes_no_member_runs_twice(tmp_path, seeds):
    members = [f"seed={i}" for i in range(200)]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=take_all, args=(tmp_path, members, seed, barrier)) for seed in seeds]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted((tmp_path / "ran.log").read_text().split()) == sorted(members)
    records = sorted((tmp_path / ".study" / "attempts").glob("*/*.json"))
    assert len(records) == 200
    assert {json.loads(path.read_text())["state"] for path in records} == {"done"}
