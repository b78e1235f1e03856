import pytest

from codeq import ExperimentConfig, Run
from codeq.cli.each_run import for_each_run
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.runs.checkpoints import checkpoint_entry


@pytest.fixture
def study(tmp_path):
    """Three runs, none of which has a checkpoint."""
    for name in "abc":
        config = ExperimentConfig("x", model="mlp", dataset="synthetic", run_dir=f"outputs/study/{name}")
        Run.create(config).set_status("done")


@pytest.mark.usefixtures("study")
def test_runs_after_a_refused_one_have_their_turn_and_all_reasons_come_at_the_end():
    seen, reasons = [], {"a": "it is bad", "c": "it is worse"}

    def act(run):
        seen.append(run.folder.name)
        if run.folder.name in reasons:
            raise CodeqError(reasons[run.folder.name])

    with pytest.raises(CodeqError, match=r"^a: it is bad\nc: it is worse$"):
        for_each_run(["study"], act)
    assert seen == ["a", "b", "c"]
    reasons["c"] = "it is bad"
    with pytest.raises(CodeqError, match=r"^a, c: it is bad$"):
        for_each_run(["study"], act)
    reasons.clear()
    for_each_run(["study"], act)


@pytest.mark.usefixtures("study")
def test_the_reasons_so_far_are_printed_where_ctrl_c_ends_the_loop(capsys):
    def act(run):
        raise CodeqError("it is bad") if run.folder.name == "a" else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for_each_run(["study"], act)
    assert "a: it is bad" in capsys.readouterr().err


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("command", [["compact"], ["calibrate"], ["export", "--to", "packed"]])
def test_each_command_names_all_runs_that_it_refuses(command, capsys):
    assert main([*command[:1], "study", *command[1:]]) == 2
    printed = capsys.readouterr().err
    assert all(f"{name}: " in printed for name in "abc"), printed


@pytest.mark.usefixtures("study")
def test_runs_after_one_whose_files_cannot_be_read_have_their_turn(capsys, monkeypatch):
    def read(folder, checkpoint):
        if folder.parent.name == "a":
            raise PermissionError(13, "Permission denied", "images.bin")
        return checkpoint_entry(folder, checkpoint)

    monkeypatch.setattr("codeq.analysis.calibrate_run.checkpoint_entry", read)
    assert main(["calibrate", "study"]) == 2
    printed = capsys.readouterr().err
    assert "a: images.bin: Permission denied\n" in printed
    assert all(f"\n{name}: " in printed for name in "bc"), printed


@pytest.mark.usefixtures("study")
def test_an_option_that_no_run_can_have_is_named_once(capsys):
    assert main(["export", "study", "--to", "qdq", "--tolerance", "1"]) == 2
    assert capsys.readouterr().err.count("tolerance=1.0") == 1
