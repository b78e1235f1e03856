import json
import time

import ipywidgets
import pytest

from codeq.common.errors import CodeqError
from codeq.studies.attempts import begin
from codeq.studies.files import index_file, journal_file
from codeq.widgets import StudyStatus, study_status


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "outputs" / "s"
    (root / ".study").mkdir(parents=True)
    members = {name: {"variant": None, "varied": {}} for name in ("one", "<two>")}
    (root / ".study" / "members.json").write_text(json.dumps({"name": "s", "members": members}))
    for name in members:
        (root / name).mkdir()
        (root / name / "config.yaml").write_text("epochs: 4\n")
    return root


def finish(root, name, state, reason=""):
    begin(root / ".study" / "attempts" / name, 1).record(state=state, reason=reason)


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_table_refreshes_until_no_member_is_left(folder, monkeypatch):
    monkeypatch.setattr(study_status, "REFRESH_EVERY", 0.01)
    status = StudyStatus("outputs/s")
    assert "2 members: 2 pending" in status.html.value
    rows = "".join(f"{epoch},0.5,4.0\n" for epoch in range(4))
    (folder / "one" / "metrics.csv").write_text(f"epoch,eval/accuracy,compression/unstructured_bops_ratio\n{rows}")
    finish(folder, "one", "done")
    shown = ("1 done, 1 pending", "4/4", "50.00 %", "25.00 %")
    wait_for(lambda: all(text in status.html.value for text in shown))
    (folder / ".study" / "logs").mkdir()
    (folder / ".study" / "logs" / "<two>.log").write_text("no disk")
    finish(folder, "<two>", "failed", "no <disk>")
    wait_for(lambda: not status._thread.is_alive())
    assert "1 done, 1 failed" in status.html.value
    assert "&lt;two&gt;" in status.html.value
    assert "no &lt;disk&gt;" in status.html.value
    assert status.html.value.endswith("log: outputs/s/.study/logs/&lt;two&gt;.log")
    assert "<two>" not in status.html.value


def test_updates_can_be_stopped_and_refreshed_by_hand(folder, monkeypatch):
    monkeypatch.setattr(study_status, "REFRESH_EVERY", 0.01)
    status = StudyStatus("outputs/s")
    status.stop.click()
    wait_for(lambda: not status._thread.is_alive())
    finish(folder, "one", "done")
    time.sleep(0.05)
    assert "2 pending" in status.html.value
    status.refresh.click()
    assert "1 done, 1 pending" in status.html.value
    assert status._thread.is_alive()
    status.stop.click()
    wait_for(lambda: not status._thread.is_alive())


def test_a_finished_study_is_not_followed(folder):
    for name in ("one", "<two>"):
        finish(folder, name, "done")
    assert StudyStatus(folder)._thread is None


def test_a_search_is_followed_from_one_round_to_the_next(folder, monkeypatch):
    monkeypatch.setattr(study_status, "REFRESH_EVERY", 0.01)
    journal_file(folder).touch()
    for name in ("one", "<two>"):
        finish(folder, name, "done")
    status = StudyStatus(folder)
    wait_for(lambda: not status._thread.is_alive())  # if no other round begins
    monkeypatch.setattr(study_status, "BETWEEN_ROUNDS", 1_000_000)
    status.refresh.click()
    index = json.loads(index_file(folder).read_text())
    index["members"]["three"] = {"variant": None, "varied": {}}
    index_file(folder).write_text(json.dumps(index))
    (folder / "three").mkdir()
    (folder / "three" / "config.yaml").write_text("epochs: 4\n")
    wait_for(lambda: "2 done, 1 pending" in status.html.value)
    finish(folder, "three", "done")
    wait_for(lambda: "3 done" in status.html.value)
    assert status._thread.is_alive()
    status.close()
    wait_for(lambda: not status._thread.is_alive())


def test_a_closed_table_is_not_read_anew_and_leaves_nothing_open(folder, monkeypatch):
    monkeypatch.setattr(study_status, "REFRESH_EVERY", 0.01)
    before = {*ipywidgets.Widget.get_manager_state()["state"]}
    status = StudyStatus(folder)
    assert status._thread.is_alive()
    status.close()
    wait_for(lambda: not status._thread.is_alive())
    assert {*ipywidgets.Widget.get_manager_state()["state"]} == before
    status.close()


def test_another_folder_is_an_error(tmp_path):
    with pytest.raises(CodeqError, match="is not the folder of a study that has begun"):
        StudyStatus(tmp_path)


def test_a_study_that_was_moved_is_said_to_be_stale_and_followed_again_when_it_is_back(folder, monkeypatch):
    monkeypatch.setattr(study_status, "REFRESH_EVERY", 0.01)
    status = StudyStatus("outputs/s")
    folder.rename(folder.with_name("moved"))
    wait_for(lambda: not status._thread.is_alive())
    status.refresh.click()
    assert status.html.value.count("Not updated: ") == 1
    assert "2 pending" in status.html.value
    folder.with_name("moved").rename(folder)
    status.refresh.click()
    assert "Not updated" not in status.html.value
    assert status._thread.is_alive()
    status.stop.click()
