import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from codeq.export import verdict as module
from codeq.export.verdict import Comparison, Verdict, read_verdicts, record, remove


def a_verdict(format_name, file):
    return Verdict(format_name, file, 1, "step-1.pt", False, "PyTorch", 1, Comparison(0, 0, 0, 1, 1, 1), {}, {})


def test_exports_side_by_side_keep_the_verdicts_of_all(tmp_path, monkeypatch):
    made, folder = tmp_path / "made", tmp_path / "exports"
    made.mkdir()
    folder.mkdir()

    def slow_read(path):
        found = read_verdicts(path)
        time.sleep(0.05)  # the others would write here
        return found

    monkeypatch.setattr(module, "read_verdicts", slow_read)

    def export(name):
        (made / name).write_text(name)
        record(folder, a_verdict(name, name), [made / name])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(export, "abcd"))
        assert sorted(entry["format"] for entry in read_verdicts(folder)) == [*"abcd"]
        list(pool.map(lambda name: remove(folder, name, [name]), "ab"))
    assert sorted(entry["format"] for entry in read_verdicts(folder)) == [*"cd"]
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "c", "d", "verdict.json"]


def test_nothing_is_made_where_nothing_was_exported(tmp_path):
    remove(tmp_path / "exports", "onnx", ["model.onnx"])
    assert not list(tmp_path.iterdir())


def test_a_kill_leaves_no_verdict_on_another_file(tmp_path, monkeypatch):
    made, folder = tmp_path / "made", tmp_path / "exports"
    made.mkdir()
    folder.mkdir()
    for name in "ab":
        (made / name).write_text("old")
        record(folder, a_verdict(name, name), [made / name])
    write, unlink = module.write_atomically, Path.unlink

    def killed_write(path, data):
        if b"step-2.pt" in data:
            raise KeyboardInterrupt
        write(path, data)

    def killed_unlink(path, missing_ok=False):
        unlink(path, missing_ok)
        if path.name == "b":
            raise KeyboardInterrupt

    (made / "a").write_text("new")
    monkeypatch.setattr(module, "write_atomically", killed_write)
    with pytest.raises(KeyboardInterrupt):
        record(folder, replace(a_verdict("a", "a"), checkpoint="step-2.pt"), [made / "a"])
    assert (folder / "a").read_text() == "new"
    assert [entry["format"] for entry in read_verdicts(folder)] == ["b"]
    monkeypatch.setattr(Path, "unlink", killed_unlink)
    with pytest.raises(KeyboardInterrupt):
        remove(folder, "b", ["b"])
    assert not (folder / "b").exists()
    assert read_verdicts(folder) == []


def test_a_copy_that_fails_leaves_the_earlier_files_and_their_verdict(tmp_path, monkeypatch):
    made, folder = tmp_path / "made", tmp_path / "exports"
    made.mkdir()
    folder.mkdir()
    files = [made / "a.onnx", made / "a.data"]
    for path in files:
        path.write_text("old")
    record(folder, a_verdict("a", "a.onnx"), files)
    before, copyfile = read_verdicts(folder), module.shutil.copyfile

    def full(source, target):
        if source.name == "a.data":
            raise OSError(28, "No space left on device")
        copyfile(source, target)

    for path in files:
        path.write_text("new")
    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        record(folder, replace(a_verdict("a", "a.onnx"), checkpoint="step-2.pt"), files)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "a.data", "a.onnx", "verdict.json"]
    assert [(folder / path.name).read_text() for path in files] == ["old", "old"]
    assert read_verdicts(folder) == before
