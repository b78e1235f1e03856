"""What a launcher of several processes says in the environment, and commands that it must not start."""

import pytest

from codeq.cli.main import main
from codeq.common.launch import environment_ranks


@pytest.fixture
def torchrun(monkeypatch):
    """Set the variables of the first of several processes."""

    def torchrun(world):
        names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        for name, value in names.items():
            monkeypatch.setenv(name, value)

    return torchrun


COMMANDS = [["sweep", "study.yaml"], ["reproduce", "table2"], ["notebook", "debug_run"]]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_command_that_starts_trainings_is_refused_in_several_processes(torchrun, tmp_path, capsys, arguments):
    torchrun("2")
    assert main(arguments) == 2
    message = (
        f"codeq: codeq {arguments[0]} starts trainings, and 2 processes (WORLD_SIZE=2) would start the same ones: "
    )
    assert capsys.readouterr().err.startswith(message)
    assert not list(tmp_path.iterdir())


def test_the_table_of_a_study_is_shown_everywhere(torchrun, tmp_path, capsys):
    (tmp_path / "study.yaml").write_text("name: lr\nbase: base.yaml\ngrid: {lr: [1.0e-3]}\n")
    torchrun("2")
    with pytest.raises(SystemExit):  # not all members are done
        main(["sweep", "study.yaml", "--status"])
    assert "1 member: 1 pending" in capsys.readouterr().out


def test_one_process_of_a_launcher_is_one_alone_and_so_are_the_trainings_that_inherit_its_variables(torchrun):
    torchrun("1")
    assert environment_ranks() == (0, 1)
