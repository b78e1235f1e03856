import re
import shlex
from pathlib import Path

import pytest

from codeq.cli.init import lay_out
from codeq.cli.main import main
from codeq.common import paths
from codeq.common.errors import CodeqError
from codeq.common.paths import CHECKOUT, MARKER, project_home, resolve


def test_the_workbench_has_all_notebooks_configurations_and_scripts(tmp_path, capsys):
    assert main(["init", str(tmp_path / "work")]) == 0
    assert f"cd {tmp_path / 'work'}" in capsys.readouterr().out
    made = {path.relative_to(tmp_path / "work") for path in (tmp_path / "work").rglob("*") if path.is_file()}
    kept = [path for folder in ("notebooks", "configs", "slurm") for path in (CHECKOUT / folder).rglob("*.*")]
    kept = [path for path in kept if ".ipynb_checkpoints" not in path.parts]
    assert made == {path.relative_to(CHECKOUT) for path in kept} | {Path(MARKER)}
    for path in made - {Path(MARKER)}:
        assert (tmp_path / "work" / path).read_bytes() == (CHECKOUT / path).read_bytes()
    logs = re.findall(r"^#SBATCH --output=(.+)/", (tmp_path / "work" / "slurm" / "train.sh").read_text(), re.MULTILINE)
    assert [(tmp_path / "work" / folder).is_dir() for folder in logs] == [True]  # Slurm does not create it


@pytest.mark.parametrize("below", [".", "notebooks", "outputs/deep/er"])
def test_it_is_the_project_of_all_that_starts_in_it(tmp_path, monkeypatch, below):
    work = lay_out(tmp_path / "work")
    (work / below).mkdir(parents=True, exist_ok=True)
    monkeypatch.delenv("CODEQ_HOME")
    monkeypatch.chdir(work / below)
    assert resolve("outputs/run") == work / "outputs" / "run"
    monkeypatch.chdir(tmp_path)
    assert project_home() == CHECKOUT
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path))
    monkeypatch.chdir(work)
    assert project_home() == tmp_path


def test_a_checkout_below_it_is_a_project_of_its_own(tmp_path, monkeypatch):
    checkout = lay_out(tmp_path) / "code" / "codeq"
    (checkout / "tests").mkdir(parents=True)
    monkeypatch.setattr(paths, "CHECKOUT", checkout)
    monkeypatch.delenv("CODEQ_HOME")
    monkeypatch.chdir(checkout / "tests")
    assert project_home() == checkout
    monkeypatch.chdir(tmp_path / "code")
    assert project_home() == tmp_path


def test_files_that_are_there_are_named_and_nothing_is_copied(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "debug_run.ipynb").write_text("mine")
    with pytest.raises(CodeqError, match=r"already has notebooks/debug_run\.ipynb; choose another folder"):
        lay_out(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["debug_run.ipynb"]


def test_a_folder_with_other_files_becomes_a_workbench(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    lay_out(tmp_path)
    assert (tmp_path / "configs" / "deadzone_mlp.yaml").is_file()


def test_the_first_command_is_one_of_the_shell_and_an_empty_name_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my work"]) == 0
    assert f"cd {shlex.quote(str(tmp_path / 'my work'))}\n" in capsys.readouterr().out
    assert main(["init", ""]) == 2
    assert "DIR is empty: must be a folder" in capsys.readouterr().err
    assert main(["init", "~no-such-user-here/work"]) == 2
    assert capsys.readouterr().err == "codeq: DIR '~no-such-user-here/work': no such user\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my work"]
