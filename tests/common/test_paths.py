import errno
import multiprocessing
import os
from pathlib import Path

import pytest
from cases import each

from codeq import ExperimentConfig, Run, import_parts, run_experiment
from codeq.analysis import find_run
from codeq.common import paths
from codeq.common.errors import CodeqError
from codeq.export import load_packed
from codeq.studies import collect
from codeq.studies.study import read_study

TAKE_A_PATH = [
    Run.open, Run.list, find_run, collect, import_parts, paths.resolve, paths.look_up, load_packed, read_study,
    ExperimentConfig.from_yaml, ExperimentConfig("tiny").to_yaml,
    lambda path: run_experiment(ExperimentConfig("tiny"), resume=path),
]  # fmt: skip


@each("function", TAKE_A_PATH)
def test_what_is_no_path_is_refused_by_name(function):
    run = Run(Path("outputs/demo"))
    for value, shown in ((3, "3"), (["a"], r"\['a'\]"), (run, r"Run\('outputs/demo', .*\)")):
        with pytest.raises(CodeqError, match=f"^path={shown}: must be text or a pathlib.Path$"):
            function(value)


def test_relative_paths_start_at_codeq_home_never_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert paths.resolve("outputs/x") == tmp_path / "outputs" / "x"
    assert paths.resolve(tmp_path / "y") == tmp_path / "y"


def test_without_codeq_home_it_is_the_checkout(monkeypatch):
    monkeypatch.delenv("CODEQ_HOME", raising=False)
    assert (paths.project_home() / "pyproject.toml").is_file()
    assert paths.project_home() == Path(paths.__file__).parents[2]


def test_nor_does_a_checkout_need_a_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("CODEQ_HOME", raising=False)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert paths.project_home() == paths.CHECKOUT
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", ["~/runs", Path("~/runs")])
def test_the_tilde_is_the_users_home(path):
    assert paths.resolve(path) == Path.home() / "runs"


@each(
    ("path", "message"),
    [
        ("a\0b", "null character"),
        ("outputs/" + "x" * 256, r"^path 'outputs/x{192}…' has a component of more than 255 bytes$"),
        ("λ" * 128, "255 bytes"),
        ("~no-such-user-here/runs", "no such user"),
    ],
)
def test_a_path_that_no_file_system_accepts_is_refused_by_name(path, message):
    with pytest.raises(CodeqError, match=message):
        paths.resolve(path)


def test_a_project_of_an_unknown_user_is_named(monkeypatch):
    monkeypatch.setenv("CODEQ_HOME", "~no-such-user-here/project")
    with pytest.raises(CodeqError, match=r"^CODEQ_HOME '~no-such-user-here/project': no such user$"):
        paths.resolve("outputs")


def test_a_folder_below_a_file_names_the_file(tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(CodeqError, match=rf"because {tmp_path / 'file'} is a file"):
            paths.make_folder(folder)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_system_refuses_is_one_message_with_the_path(number):
    with pytest.raises(CodeqError, match=f"^here cannot be written: {os.strerror(number)}$"), paths.writing("here"):
        raise OSError(number, os.strerror(number), "somewhere")


def test_a_new_file_is_never_an_old_one(tmp_path):
    path = tmp_path / "a" / "b.yaml"
    paths.write_new_file(path, "model: λ")
    with pytest.raises(CodeqError, match=r"b\.yaml exists"):
        paths.write_new_file(path, "other")
    assert path.read_text("utf-8") == "model: λ"


def claim(folder, name, times):
    made = [paths.make_new_folder(folder / "folders", "same") for _ in range(times)]
    files = [paths.write_numbered_file(folder / "files", "same", ".txt", f"{name} {k}") for k in range(times)]
    for path in made:
        (path / "owner").write_text(name)
    return [str(path) for path in (*made, *files)]


def test_processes_that_claim_the_same_name_get_folders_and_files_of_their_own(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        claimed = pool.starmap(claim, [(tmp_path, name, 20) for name in "abc"])
    assert len({path for part in claimed for path in part}) == 3 * 40
    texts = {path.read_text() for path in (tmp_path / "files").iterdir()}
    assert texts == {f"{name} {k}" for name in "abc" for k in range(20)}
    owners = [path.read_text() for path in (tmp_path / "folders").glob("*/owner")]
    assert sorted(owners) == sorted("abc" * 20)
