import time
from concurrent.futures import ThreadPoolExecutor

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
