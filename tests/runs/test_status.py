import json
import os
import re
import shutil
import socket
import time

import pytest
from cases import each, small_files

from codeq import ExperimentConfig
from codeq.common.errors import CodeqError
from codeq.runs import Run, status
from codeq.runs.listing import run_row
from codeq.runs.status import current_status, read_status, write_status
from codeq.studies.states import read_states


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "[1, 2]", "3", '"done"', "{", "{}", '{"status": null}', '{"status": 3}', "\x80\x81"]
)
def test_a_damaged_file_counts_as_died_and_is_named(tmp_path, text):
    (tmp_path / "status.json").write_bytes(text.encode("latin-1"))
    run = Run(tmp_path)
    assert run.status == "died"
    assert run.message == f"{tmp_path / 'status.json'} is damaged"
    assert "died" in repr(run)


def test_a_folder_that_was_removed_since_the_run_was_opened_is_named_as_that(tmp_path):
    run = Run.create(ExperimentConfig("tiny", run_dir=str(tmp_path / "run")))
    shutil.rmtree(run.folder)
    assert (run.status, run.message) == ("died", f"{run.folder} no longer exists")
    with pytest.raises(CodeqError, match=f"^{re.escape(run.message)}$"):
        run.load_model()


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


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux")
@pytest.mark.parametrize("changed", [{}, {"namespace": "earlier boot"}, {"process_started": "1"}])
def test_a_later_process_of_the_same_number_is_not_taken_for_that_of_the_run(tmp_path, changed):
    """After a reboot, or in a container that was started again, some process often has the number."""
    write_status(tmp_path, "running", new=True)
    content = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps(content | changed))
    assert Run(tmp_path).status == ("died" if changed else "running")
    del content["namespace"], content["process_started"]  # as written by an earlier version
    (tmp_path / "status.json").write_text(json.dumps(content))
    assert Run(tmp_path).status == "running"
    (tmp_path / "status.json").write_text(json.dumps(content | {"host": "another-machine"} | changed))
    assert Run(tmp_path).status == "running"


@each("pid", [0, -1, 2**31, 2**80])
def test_a_run_without_a_process_id_has_died(tmp_path, pid):
    assert current_status(tmp_path, status.StatusFile("running", host=socket.gethostname(), pid=pid)) == "died"


def test_a_run_of_another_machine_is_listed_with_that_machine_and_the_time_of_its_last_file(tmp_path):
    write_status(tmp_path, "running", new=True)
    assert Run(tmp_path).message == ""
    content = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps(content | {"host": "gpu7"}))
    (tmp_path / "metrics.csv").touch()
    (tmp_path / "report.html").touch()  # nothing of the training
    for name, hours in (("status.json", 50), ("metrics.csv", 3)):
        os.utime(tmp_path / name, (time.time() - hours * 3600 - 60,) * 2)
    reason = "on gpu7, which is not checked from here; last written 3 h ago"
    row = run_row(Run(tmp_path))
    assert (row["status"], row["reason"]) == ("running", reason)
    (found,) = read_states([tmp_path])
    assert (found.state, found.reason) == ("running", reason)
    (tmp_path / "status.json").write_text(json.dumps(content | {"host": "gpu7", "status": "failed", "message": "why"}))
    assert Run(tmp_path).message == "why"


def test_a_full_disk_is_one_message_and_the_status_stays(tmp_path):
    write_status(tmp_path, "running", new=True)
    with small_files(8), pytest.raises(CodeqError, match=r"status\.json cannot be written: File too large"):
        write_status(tmp_path, "done")
    assert read_status(tmp_path).status == "running"
