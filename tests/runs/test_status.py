import ctypes
import json
import os
import socket
import sys
import types

import pytest
from cases import each, small_files

from codeq.common.errors import CodeqError
from codeq.runs import Run, status
from codeq.runs.status import current_status, process_exists, read_status, write_status


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "[1, 2]", "3", '"done"', "{", "{}", '{"status": null}', '{"status": 3}', "\x80\x81"]
)
def test_a_damaged_file_counts_as_died_and_is_named(tmp_path, text):
    (tmp_path / "status.json").write_bytes(text.encode("latin-1"))
    run = Run(tmp_path)
    assert run.status == "died"
    assert run.message == f"{tmp_path / 'status.json'} is damaged"
    assert "died" in repr(run)


@pytest.mark.parametrize("broken", ["status.json is a folder", "no file"])
def test_a_file_that_cannot_be_read_counts_as_died(tmp_path, broken):
    if broken.startswith("status"):
        (tmp_path / "status.json").mkdir()
    assert Run(tmp_path).status == "died"


def test_missing_and_foreign_keys_of_another_version_are_no_obstacle(tmp_path):
    (tmp_path / "status.json").write_text('{"status": "done", "started": 5, "pid": "x", "new_key": [1]}')
    assert read_status(tmp_path) == status.StatusFile(status="done")
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "host": socket.gethostname()}))
    assert Run(tmp_path).status == "died"


def test_a_damaged_status_is_repaired_by_the_next_one(tmp_path):
    (tmp_path / "status.json").write_text("null")
    write_status(tmp_path, "failed", "why")
    stored = json.loads((tmp_path / "status.json").read_text())
    assert (stored["status"], stored["message"], stored["pid"]) == ("failed", "why", os.getpid())
    assert stored["started"] == stored["updated"] > "2020"


def test_a_folder_is_claimed_once(tmp_path):
    write_status(tmp_path, "running", new=True)
    before = (tmp_path / "status.json").read_bytes()
    with pytest.raises(CodeqError, match="already holds a run"):
        write_status(tmp_path, "running", new=True)
    assert (tmp_path / "status.json").read_bytes() == before


def test_a_process_of_another_user_exists():
    assert process_exists(1)


@each("pid", [0, -1, 2**31, 2**80])
def test_what_is_no_process_id_does_not_exist(pid):
    assert not process_exists(pid)
    assert current_status(status.StatusFile("running", host=socket.gethostname(), pid=pid)) == "died"


@pytest.mark.parametrize(
    ("handle", "error", "code", "expected"), [(7, 0, 259, True), (7, 0, 0, False), (0, 5, 0, True), (0, 87, 0, False)]
)
def test_on_windows_no_signal_is_sent(monkeypatch, handle, error, code, expected):
    """Signal 0 of `os.kill` is Ctrl-C there: to ask would stop the training."""

    def answer(_, pointer):
        pointer._obj.value = code
        return 1

    def never(*_):
        raise AssertionError("a signal was sent")

    def open_process(*_):
        return handle

    kernel = types.SimpleNamespace(OpenProcess=open_process, GetExitCodeProcess=answer, CloseHandle=lambda _: 1)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", never)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    assert process_exists(1234) is expected


def test_a_full_disk_is_one_message_and_the_status_stays(tmp_path):
    write_status(tmp_path, "running", new=True)
    with small_files(8), pytest.raises(CodeqError, match=r"status\.json cannot be written: File too large"):
        write_status(tmp_path, "done")
    assert read_status(tmp_path).status == "running"
