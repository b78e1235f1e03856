from pathlib import Path

import pytest

from codeq.common import paths


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


@pytest.mark.parametrize("path", ["~/runs", Path("~/runs")])
def test_the_tilde_is_the_users_home(path):
    assert paths.resolve(path) == Path.home() / "runs"
