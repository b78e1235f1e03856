import subprocess
import sys

import pytest

from codeq import ExperimentConfig, run_experiment
from codeq.cli import main


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("codeq 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["notebook", "debug_rum"], "Did you mean 'debug_run'?"),
        (["notebook", "debug_run", "-p", "epoch", "5"], "Did you mean 'epochs'?"),
        (["notebook", "debug_run", "-p", "epochs", "five"], "epochs='five' must be of type int"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("codeq: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not captured.out


@pytest.mark.parametrize("arguments", [[], ["trian"], ["notebook"]])
def test_a_wrong_command_shows_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: codeq" in capsys.readouterr().err


def test_runs_are_listed_with_status_and_results(capsys, tmp_path):
    assert main(["runs"]) == 0
    assert "no runs" in capsys.readouterr().out
    settings = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 256}
    run = run_experiment(ExperimentConfig("first", **settings))
    run_experiment(ExperimentConfig("second", **settings)).set_status("failed", "on purpose")
    capsys.readouterr()
    assert main(["runs"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("done")
    assert f"accuracy {run.summary['accuracy_last']:.2%}" in first.replace("accuracy  ", "accuracy ")
    assert str(run.folder) in first
    assert second.startswith("failed")
    assert main(["runs", "outputs/second"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "codeq", "runs"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "no runs" in done.stdout
