import os
import threading

import pytest

from codeq.common.atomic import new_folder, write_atomically
from codeq.common.errors import CodeqError
from codeq.common.paths import LONGEST_NAME


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_may_have_the_longest_name(tmp_path):
    path = tmp_path / ("x" * LONGEST_NAME)
    write_atomically(path, b"all of it")
    assert path.read_bytes() == b"all of it"


def test_a_file_in_the_place_of_the_folder_stays_as_it_is(tmp_path):
    (tmp_path / "compacted").write_text("mine")
    with pytest.raises(CodeqError, match="compacted cannot be written"), new_folder(tmp_path / "compacted"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["compacted"]
    assert (tmp_path / "compacted").read_text() == "mine"


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "compacted"
    for number in ("1", "2"):
        with new_folder(target) as folder:
            (folder / number).touch()
            assert not (target / number).exists()
        assert [path.name for path in target.iterdir()] == [number]
    with pytest.raises(RuntimeError), new_folder(target) as folder:
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["2"]
    assert [path.name for path in tmp_path.iterdir()] == ["compacted"]


def test_two_writers_at_once_do_not_mix_their_files(tmp_path):
    target = tmp_path / "compacted"

    def write(number):
        for _ in range(20):
            with new_folder(target) as folder:
                for name in ("a", "b"):
                    (folder / name).write_text(str(number))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (target / "a").read_text() == (target / "b").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["compacted"]
