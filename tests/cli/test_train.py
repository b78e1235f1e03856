import logging
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from codeq import ExperimentConfig, Run, run_experiment
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.training.resuming import find_resumable

pytestmark = pytest.mark.usefixtures("without_figures")

MLP = {"model": "mlp", "dataset": "digits", "epochs": 2, "batch_size": 256, "device": "cpu"}


@pytest.fixture
def first() -> Run:
    """A short run on digits with a chosen folder."""
    return run_experiment(ExperimentConfig("first", **MLP, seed=3, run_dir="outputs/study/seed=3"))


def test_the_configuration_of_a_run_repeats_it_in_a_new_folder_to_the_byte(first, tmp_path, capsys):
    assert main(["train", "--config", "outputs/study/seed=3/config.yaml"]) == 0
    (again,) = Run.list("outputs/first")
    assert str(again.folder) in capsys.readouterr().out
    for name in ("metrics.csv", "layers.csv"):
        assert (again.folder / name).read_bytes() == (first.folder / name).read_bytes()
    states = [run.load_model().state_dict() for run in (first, again)]
    assert all((states[1][key] == value).all() for key, value in states[0].items())
    assert again.config.to_dict() == first.config.to_dict() | {"run_dir": None}

    # With changes on top, from any folder that has the files of a run, and repeated from the repetition.
    copy = again.folder.rename(tmp_path / "copied")
    assert (
        main(["train", "--config", f"{copy}/config.yaml", "--set", "seed=4", "epochs=1", "run_dir=outputs/other"]) == 0
    )
    other = Run.open("outputs/other")
    assert (other.config.seed, other.config.epochs, other.config.batch_size) == (4, 1, 256)
    assert (other.history["train/ce_loss"] != first.history["train/ce_loss"][:1]).all()


def test_latest_names_the_configuration_too(monkeypatch):
    run, trained = Run.create(ExperimentConfig("x", **MLP, seed=3, run_dir="outputs/study/seed=3")), []
    monkeypatch.setattr("codeq.trainer.run_experiment", lambda config, **_: trained.append(config) or run)
    for reference in ("latest", "study/seed=3", "eed=3"):
        assert main(["train", "--config", f"{reference}/config.yaml", "--device", "cpu"]) == 0
    assert [(config.seed, config.run_dir) for config in trained] == [(3, None)] * 3


@pytest.mark.parametrize(("rank", "speaks"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_alone_warns_and_describes_the_run(monkeypatch, caplog, capsys, rank, speaks):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = Run.create(ExperimentConfig("x", **MLP, run_dir="outputs/x"))
    monkeypatch.setattr("codeq.trainer.run_experiment", lambda *_, **__: run)

    def find(path):
        logging.getLogger("codeq.config.own_parts").warning("warned")
        return find_resumable(path)

    monkeypatch.setattr("codeq.training.resuming.find_resumable", find)
    assert main(["train", "--resume", "x"]) == 0
    assert bool(caplog.messages) == bool(capsys.readouterr().out) == speaks


def test_a_folder_is_no_configuration(capsys):
    run = Run.create(ExperimentConfig("x", **MLP, run_dir="outputs/study/seed=3"))
    for folder in ("outputs/study/seed=3", str(run.folder)):
        assert main(["train", "--config", folder]) == 2
        message = capsys.readouterr().err
        assert message == f"codeq: '{folder}' is a folder: must be a YAML file, or RUN/config.yaml to repeat a run\n"


def test_an_empty_name_after_resume_starts_no_other_training(capsys):
    for arguments in (["--config", "configs/quick_mlp_digits.yaml"], []):
        assert main(["train", *arguments, "--resume", ""]) == 2
        assert "the name of a run is empty" in capsys.readouterr().err


def test_a_configuration_beside_other_files_keeps_its_folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()  # of another program
    (tmp_path / "mine.yaml").write_text("model: mlp\nrun_dir: outputs/mine\n")
    assert ExperimentConfig.from_yaml(tmp_path / "mine.yaml").run_dir == "outputs/mine"


def spy(monkeypatch, seen: list[Run]) -> None:
    """Replace the work of the commands by noting the runs that they were given."""

    def note(run, *_, **__):
        seen.append(run)
        return SimpleNamespace(
            proof=SimpleNamespace(
                masked_macs=0,
                compacted_macs=0,
                inputs=0,
                max_error=0,
                flipped=0,
                masked_accuracy=0,
                compacted_accuracy=0,
            ),
            report=SimpleNamespace(assumes="", unknown=[], notes=[]),
            gains=SimpleNamespace(to_string=lambda **_: ""),
            cut=None,
            folder="",
        )

    monkeypatch.setattr("codeq.analysis.compact_run.compact_run", note)
    monkeypatch.setattr("codeq.analysis.figures.planned_figures", lambda run, *_, **__: seen.append(run) or {})
    monkeypatch.setattr(
        "codeq.runs.listing.run_row", lambda run: seen.append(run) or {"run": "", "status": "", "reason": ""}
    )
    monkeypatch.setattr("codeq.trainer.run_experiment", lambda _, resume: seen.append(find_resumable(resume).run))
    monkeypatch.setattr("codeq.runs.listing.describe_run", lambda _: "")
    monkeypatch.setattr("codeq.analysis.network.run_notes", lambda _: ())


@pytest.mark.parametrize("command", [["plot"], ["compact"], ["runs"], ["train", "--resume"]])
def test_all_commands_take_the_same_forms(tmp_path, monkeypatch, capsys, command):
    made = {name: Run.create(ExperimentConfig(name, **MLP, run_dir=f"outputs/study/{name}")) for name in ("a1", "b2")}
    alone = Run.create(ExperimentConfig("alone", **MLP, run_dir="outputs/other/alone"))
    for run, day in ((made["a1"], 1), (made["b2"], 3), (alone, 2)):
        (run.folder / "status.json").write_text(f'{{"status": "done", "started": "2026-01-0{day}T00:00:00+00:00"}}')
    seen: list[Run] = []
    spy(monkeypatch, seen)
    forms = ["outputs/study/a1", "outputs/other", "outputs/other/*", "latest", "a1", "study/b2"]
    for reference in forms:
        assert main([*command, reference]) == 0, capsys.readouterr().err
    assert [run.folder.name for run in seen] == ["a1", "alone", "alone", "b2", "a1", "b2"]
    assert main([*command, "study/"]) == (2 if command[0] == "train" else 0)
    assert [run.folder.name for run in seen[6:]] == ([] if command[0] == "train" else ["a1", "b2"])
    capsys.readouterr()
    assert main([*command, "aloen"]) == 2
    assert capsys.readouterr().err.startswith("codeq: no run is named 'aloen'. Did you mean 'alone'?")


def test_a_checkpoint_of_a_named_run_is_resumed():
    Run.create(ExperimentConfig("x", **MLP, run_dir="outputs/study/a1"))
    found = find_resumable("latest/checkpoints/step-8.pt")
    assert (found.run.folder.name, found.checkpoint, found.path.name) == ("a1", "step-8.pt", "step-8.pt")
    assert found.path.parent.parent == found.run.folder
    assert find_resumable("a1").path == found.run.folder
    with pytest.raises(CodeqError, match="no run is named 'b'"):
        find_resumable("b/checkpoints/step-8.pt")


# A shell's background jobs start with Ctrl-C ignored.
IN_TERMINAL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from codeq.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_and_the_printed_command_resumes(tmp_path, capsys):
    config = ExperimentConfig("x", **MLP | {"epochs": 20, "batch_size": 32}, run_dir=str(tmp_path / "a run"))
    config.to_yaml(tmp_path / "x.yaml")
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, "train", "--config", str(tmp_path / "x.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert any("2/20" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    (message,) = [line for line in errors.splitlines() if "codeq" in line]
    assert message.startswith("codeq: interrupted; the state is saved, resume with: codeq train --resume '")
    run = Run.open(tmp_path / "a run")
    epochs = len(run.history)
    assert (run.status, 2 <= epochs < 20) == ("preempted", True)

    command = shlex.split(message.partition("resume with: codeq ")[2])
    assert main([*command, "--set", "viz_interval=1000"]) == 0
    assert "resuming at epoch" in capsys.readouterr().out
    assert (run.status, len(run.history)) == ("done", 20)
