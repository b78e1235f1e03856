import json
import logging
import os
from pathlib import Path

import pytest
import torch
from cases import small_files

from codeq.common.errors import CodeqError
from codeq.runs import checkpoints
from codeq.runs.checkpoints import (
    checkpoint_entry,
    go_back_to,
    load_checkpoint,
    read_manifest,
    save_checkpoint,
)


def save(folder: Path, epoch: int, accuracy: float) -> None:
    state = {"model": {"w": torch.full((3,), float(epoch))}, "num_classes": 10}
    save_checkpoint(folder, state, epoch=epoch, step=10 * (epoch + 1), accuracy=accuracy)


@pytest.fixture
def folder(tmp_path):
    for epoch, accuracy in enumerate([0.5, 0.9, 0.7, 0.8]):
        save(tmp_path, epoch, accuracy)
    return tmp_path


def test_last_and_best_are_the_epochs_they_say(folder):
    state, entry = load_checkpoint(folder)
    assert (entry.epoch, entry.step, entry.accuracy) == (3, 40, 0.8)
    assert state["model"]["w"].tolist() == [3.0, 3.0, 3.0]
    state, entry = load_checkpoint(folder, "best")
    assert entry.epoch == 1
    assert state["model"]["w"].tolist() == [1.0, 1.0, 1.0]


def test_of_equal_accuracies_the_first_is_the_best(tmp_path):
    for epoch in range(3):
        save(tmp_path, epoch, 0.5)
    assert read_manifest(tmp_path)["best"].epoch == 0


def test_only_files_that_the_manifest_names_are_kept(folder):
    assert {p.name for p in folder.iterdir()} == {"step-20.pt", "step-30.pt", "step-40.pt", "manifest.json"}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(folder, caplog, damage):
    path = folder / "step-40.pt"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[:-7], "flipped": data, "emptied": b"", "removed": b""}[damage])
    if damage == "removed":
        path.unlink()
    with caplog.at_level(logging.WARNING):
        state, entry = load_checkpoint(folder)
    assert entry.epoch == 2
    assert state["model"]["w"].tolist() == [2.0, 2.0, 2.0]
    assert "step-40.pt" in caplog.text
    assert "step-30.pt" in caplog.text
    said = list(caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert (checkpoint_entry(folder).file, checkpoint_entry(folder, "best").file) == ("step-30.pt", "step-20.pt")
    assert caplog.messages == said


def test_no_intact_checkpoint_is_an_error_that_names_all_candidates(folder):
    for name in ("step-40.pt", "step-30.pt"):
        (folder / name).write_bytes(b"")
    with pytest.raises(CodeqError, match=r"step-40\.pt.*step-30\.pt"):
        load_checkpoint(folder)
    with pytest.raises(CodeqError, match="no intact checkpoint: "):
        checkpoint_entry(folder)


def test_a_damaged_best_checkpoint_is_never_replaced_by_another(folder):
    (folder / "step-20.pt").write_bytes(b"x")
    with pytest.raises(CodeqError, match=r"step-20\.pt"):
        load_checkpoint(folder, "best")


def test_no_checkpoint_yet_and_a_wrong_role_are_clear_errors(tmp_path):
    with pytest.raises(CodeqError, match="no checkpoint yet"):
        load_checkpoint(tmp_path)
    with pytest.raises(CodeqError, match="'last' or 'best'"):
        load_checkpoint(tmp_path, "newest")
    with pytest.raises(CodeqError, match=r"checkpoints does not exist: the run has no .* or they were removed"):
        load_checkpoint(tmp_path / "checkpoints")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"last": {"file": "x"}}'])
def test_a_damaged_manifest_is_a_clear_error(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CodeqError, match=r"manifest\.json is damaged"):
        load_checkpoint(folder)


def test_reading_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    save_checkpoint(tmp_path, {"model": Evil()}, epoch=0, step=1, accuracy=0.0)
    with pytest.raises(CodeqError, match=r"step-1\.pt holds more than tensors and plain values"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_the_manifest_is_written_after_the_file_it_names(tmp_path, monkeypatch):
    save(tmp_path, 0, 0.5)
    before = (tmp_path / "manifest.json").read_text()
    real = os.replace

    def fail_at_manifest(source, target):
        if str(target).endswith("manifest.json"):
            raise OSError("power cut")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_at_manifest)
    with pytest.raises(CodeqError, match=r"step-20.pt cannot be written: power cut; step-10.pt of epoch 1 remains"):
        save(tmp_path, 1, 0.9)
    assert (tmp_path / "manifest.json").read_text() == before
    assert load_checkpoint(tmp_path)[1].epoch == 0


def test_in_the_middle_of_an_epoch_a_checkpoint_is_the_last_and_never_the_best(folder):
    save_checkpoint(folder, {"model": {}}, epoch=4, step=45, accuracy=None)
    manifest = read_manifest(folder)
    assert {role: entry.step for role, entry in manifest.items()} == {"last": 45, "previous": 40, "best": 20}


def test_before_the_first_evaluation_there_is_no_best(tmp_path):
    save_checkpoint(tmp_path, {"model": {}}, epoch=0, step=0, accuracy=None)
    assert set(read_manifest(tmp_path)) == {"last"}
    with pytest.raises(CodeqError, match=r"no checkpoint yet \(no evaluation\)"):
        load_checkpoint(tmp_path, "best")


def test_any_file_of_the_manifest_can_be_asked_for_by_name(folder):
    assert load_checkpoint(folder, "step-30.pt")[1].epoch == 2
    with pytest.raises(CodeqError, match=r"no checkpoint 'step-10.pt': .* one of step-20.pt, step-30.pt, step-40.pt"):
        load_checkpoint(folder, "step-10.pt")


def test_going_back_forgets_what_came_later(folder):
    entry = read_manifest(folder)["previous"]
    go_back_to(folder, entry)
    manifest = read_manifest(folder)
    assert {role: e.file for role, e in manifest.items()} == {"last": "step-30.pt", "best": "step-20.pt"}
    assert sorted(path.name for path in folder.glob("*.pt")) == ["step-20.pt", "step-30.pt"]


def test_the_checkpoint_before_an_evaluation_precedes_that_after_it(tmp_path):
    save(tmp_path, 0, 0.5)
    state = {"model": {"w": torch.ones(3)}, "num_classes": 10}
    save_checkpoint(tmp_path, state, epoch=1, step=20, accuracy=None, before_evaluation=True)
    save(tmp_path, 1, 0.9)
    before = read_manifest(tmp_path)["previous"]
    assert (before.file, before.epoch) == ("step-20-unevaluated.pt", 1)
    go_back_to(tmp_path, before)
    assert {role: e.file for role, e in read_manifest(tmp_path).items()} == {"last": "step-20-unevaluated.pt"}
    save(tmp_path, 1, 0.9)
    go_back_to(tmp_path, read_manifest(tmp_path)["last"])
    roles = {"last": "step-20.pt", "previous": "step-20-unevaluated.pt", "best": "step-20.pt"}
    assert {role: e.file for role, e in read_manifest(tmp_path).items()} == roles


def test_a_full_disk_is_one_message_when_going_back(folder):
    with small_files(8), pytest.raises(CodeqError, match=r"manifest\.json cannot be written: File too large"):
        go_back_to(folder, read_manifest(folder)["previous"])
    assert load_checkpoint(folder)[1].step == 40


def test_going_back_behind_the_best_makes_the_one_left_the_best(tmp_path):
    for epoch, accuracy in enumerate([0.5, 0.9]):
        save(tmp_path, epoch, accuracy)
    go_back_to(tmp_path, read_manifest(tmp_path)["previous"])
    assert {role: e.epoch for role, e in read_manifest(tmp_path).items()} == {"last": 0, "best": 0}


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(folder, monkeypatch):
    before = (folder / "manifest.json").read_text()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CodeqError, match=r"step-50.pt cannot be written: .*No space left.*step-40.pt of epoch 4"):
        save(folder, 4, 0.95)
    monkeypatch.undo()
    assert (folder / "manifest.json").read_text() == before
    assert load_checkpoint(folder)[1].step == 40
    assert not list(folder.glob("*.tmp"))


def test_what_a_killed_writer_left_is_cleared_away(folder):
    (folder / ".step-50.pt.123.tmp").write_bytes(b"half of it")
    save(folder, 4, 0.95)
    assert not list(folder.glob(".*"))


def test_older_checkpoints_go_only_after_the_new_one_reads_back(folder, monkeypatch):
    def write_damaged(path, data):
        path.write_bytes(data[:-1] if path.suffix == ".pt" else data)

    monkeypatch.setattr(checkpoints, "write_atomically", write_damaged)
    with pytest.raises(CodeqError, match="reads back differently"):
        save(folder, 4, 0.95)
    assert load_checkpoint(folder)[1].step == 40


def test_the_manifest_is_plain_json(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {role: entry["file"] for role, entry in manifest.items()} == {
        "last": "step-40.pt",
        "previous": "step-30.pt",
        "best": "step-20.pt",
    }
