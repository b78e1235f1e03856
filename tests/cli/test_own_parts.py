import os
import re
import shutil
import sys

import pytest
from own_parts import EXPERIMENT, PARTS, forget_imports

from codeq import MODELS, ExperimentConfig, Run
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.common.imports import VARIABLE, import_parts, requested_imports
from codeq.config.own_parts import import_own_parts
from codeq.studies.checks import Mistakes, Plan, configurations
from codeq.studies.expand import expand
from codeq.studies.states import read_state
from codeq.studies.study import make_study
from codeq.studies.tasks import make_task

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture(autouse=True)
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(VARIABLE, "")
    forget_imports()
    (tmp_path / "my_parts.py").write_text(PARTS)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    yield
    forget_imports()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run of the user's parts."""
    home = tmp_path_factory.mktemp("home")
    (home / "my_parts.py").write_text(PARTS)
    (home / "mine.yaml").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEQ_HOME", str(home))
        patch.setenv(VARIABLE, "")
        forget_imports()
        assert main(["train", "--config", str(home / "mine.yaml")]) == 0
        forget_imports()
    return home / "outputs" / "mine"


@pytest.fixture
def run(trained, tmp_path):
    """The same run, in a process that has not imported its parts."""
    return Run.open(shutil.copytree(trained, tmp_path / "outputs" / "mine"))


@pytest.mark.slow
def test_every_command_works_with_the_import(run, capsys):
    assert (run.folder / "imports" / "my_parts.py").read_text() == PARTS
    given = ["--import", "my_parts.py"]
    assert main(["plot", str(run.folder), *given]) == 0
    printed = capsys.readouterr().out
    assert "weight_histogram" in printed
    assert "my_net" not in printed
    forget_imports()
    assert main(["compact", *given, str(run.folder)]) == 0
    assert "0 predictions flipped" in capsys.readouterr().out
    forget_imports()
    assert main(["runs", *given]) == 0
    forget_imports()
    assert main(["train", "--resume", str(run.folder), *given]) == 0


@pytest.mark.slow
def test_a_run_without_its_parts_is_listed_drawn_from_its_tables_and_says_what_to_import(run, capsys):
    capsys.readouterr()
    assert main(["runs"]) == 0
    assert re.search(r"^outputs/mine +done +1/1 ", capsys.readouterr().out, re.MULTILINE)
    assert main(["plot", str(run.folder)]) == 0
    printed = capsys.readouterr().out
    assert "my parts are imported" not in printed
    for name in ("accuracy_curve", "channel_liveness", "per_layer_channels"):
        assert (run.folder / "plots" / f"{name}.png").exists()
    assert "--import my_parts.py" in printed
    for command in (["compact", str(run.folder)], ["train", "--resume", str(run.folder)]):
        assert main(command) == 2
        assert "This run uses parts that are not imported: add --import my_parts.py" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("files", [True, False])
def test_opening_a_run_executes_nothing_that_lies_in_its_folder(run, tmp_path, monkeypatch, files):
    """A hostile run names its own copy; also one without the other files of a run, opened from inside its folder."""
    hostile = "import pathlib; pathlib.Path({!r}).write_text('executed')\n".format(str(tmp_path / "trace"))
    for path in (run.folder / "imports" / "my_parts.py", run.folder / "my_parts.py", run.folder / "evil.py"):
        path.write_text(hostile)
    (tmp_path / "my_parts.py").unlink()
    named = "- imports/my_parts.py\n- outputs/mine/imports/my_parts.py\n- imports.my_parts\n- evil"
    text = (run.folder / "config.yaml").read_text().replace("- my_parts.py", named)
    (run.folder / "config.yaml").write_text(text.replace("model: my_net", "model: evil:build"))
    if not files:
        for name in ("status.json", "environment.json", "metrics.csv"):
            (run.folder / name).unlink()
        shutil.rmtree(run.folder / "checkpoints")
    monkeypatch.chdir(run.folder)
    with pytest.raises(CodeqError, match="evil has not been imported"):
        Run.open(run.folder).config  # noqa: B018
    with pytest.raises(CodeqError):
        Run.open(run.folder).load_model()
    for command in ("plot", "compact", "runs"):
        main([command, str(run.folder)])
    assert main(["train", "--resume", str(run.folder)]) == 2
    if files:
        assert main(["train", "--config", str(run.folder / "config.yaml"), "--set", "run_dir=outputs/again"]) == 2
    assert not (tmp_path / "trace").exists()


def test_a_configuration_records_its_imports(tmp_path, capsys):
    config = ExperimentConfig.from_yaml(tmp_path / "mine.yaml")
    assert config.imports == ["my_parts.py"]
    forget_imports()
    config = ExperimentConfig("x", model="my_parts:build", dataset="synthetic", imports=["my_parts.py"])
    assert config.imports == ["my_parts.py"]
    assert config.override({"model": "my_net"}).imports == ["my_parts.py"]
    forget_imports()
    monkey = ExperimentConfig("x", model="my_parts:build", dataset="synthetic")  # a module of the project
    assert monkey.imports == ["my_parts"]


def test_a_configuration_in_a_script_makes_its_imports(tmp_path, capsys):
    (tmp_path / "other.py").write_text("print('imported')")
    made = [
        lambda: ExperimentConfig.from_dict({"model": "mlp", "imports": ["other.py"]}),
        lambda: ExperimentConfig("x", imports=[tmp_path / "other.py"]),
        lambda: ExperimentConfig("x").override({"imports": ("other.py",)}),
        lambda: ExperimentConfig("x").override({"imports": [tmp_path / "other.py"]}),
        lambda: ExperimentConfig.from_yaml("mine.yaml").override({"imports.0": tmp_path / "other.py"}),
    ]
    for make in made:
        forget_imports()
        assert make().imports == ["other.py"]
        assert capsys.readouterr().out.splitlines()[-1] == "imported"
    forget_imports()
    assert ExperimentConfig.from_dict({"model": "mlp", "imports": ["other.py"]}, trusted=False).imports == ["other.py"]
    assert not capsys.readouterr().out


def test_a_mistake_in_an_import_ends_the_command_before_anything(tmp_path, capsys):
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), "--import", "my_part.py"]) == 2
    assert "my_part.py': there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("value", ["my_parts.py", "null"])
def test_imports_that_are_no_list_are_named_beside_an_import_of_the_command_line(tmp_path, capsys, value):
    given = ["--set", f"imports={value}", "--import", str(tmp_path / "my_parts.py")]
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), *given]) == 2
    shown = "None" if value == "null" else repr(value)
    assert f"imports={shown}: must be" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["checkpoints", "metrics.csv", "status.json"])
def test_the_imports_of_a_file_beside_others_are_made(tmp_path, name):
    (tmp_path / name).write_text("")  # as of another program
    config = ExperimentConfig.from_yaml(tmp_path / "mine.yaml")
    assert (config.model, config.run_dir) == ("my_net", "outputs/mine")


@pytest.mark.parametrize("name", ["environment.json", "status.json"])
def test_the_imports_in_the_configuration_of_a_run_are_not_made(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(CodeqError, match=r"(?s)model='my_net'.*This run uses parts that are not imported"):
        ExperimentConfig.from_yaml((tmp_path / "mine.yaml").rename(tmp_path / "config.yaml"))


def test_a_missing_import_that_has_replaced_a_part_of_codeq_is_named(tmp_path, caplog):
    (tmp_path / "replaced.py").write_text("from codeq import MODELS\n")
    run = Run.create(ExperimentConfig("x", model="mlp", imports=["replaced.py"], run_dir="outputs/x"))
    assert run.config.model == "mlp"
    assert not caplog.messages
    forget_imports()
    assert [run.config.model, run.config.model] == ["mlp"] * 2
    message = "a run was made with parts that are not imported, and may differ without them: add --import replaced.py"
    assert caplog.messages == [message]


def test_what_the_environment_lists_is_imported_by_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "my_parts.py"))
    assert main(["runs"]) == 0
    assert "my parts are imported" in capsys.readouterr().out
    forget_imports()
    monkeypatch.setenv(VARIABLE, "gone.py")
    assert main(["runs"]) == 2
    assert "CODEQ_IMPORTS: import '" in capsys.readouterr().err


def test_an_override_replaces_the_imports(tmp_path):
    (tmp_path / "other.py").write_text("from my_parts import build\ndef make(num_classes): ...\n")
    config = ExperimentConfig.from_yaml(tmp_path / "mine.yaml")
    assert config.override({"imports": ["other.py"]}).imports == ["other.py"]
    assert config.override({"imports": []}).imports == []
    assert config.override({"imports": [], "model": "other:make"}).imports == []
    forget_imports()
    config = ExperimentConfig.from_yaml(tmp_path / "mine.yaml")
    assert config.override({"model": "other:make"}).imports == ["my_parts.py", "other"]


def test_a_file_that_was_moved_takes_the_place_of_its_recorded_path(tmp_path, monkeypatch):
    content = {"model": "my_parts:build", "imports": ["my_parts.py", "of_a_stranger.py"], "run_dir": "outputs/mine"}
    (tmp_path / "of_a_stranger.py").write_text("raise AssertionError")
    assert main(["runs", "--import", "my_parts.py"]) == 0
    run = Run.create(ExperimentConfig.from_dict(content, trusted=False))
    forget_imports()
    (tmp_path / "moved").mkdir()
    (tmp_path / "my_parts.py").rename(tmp_path / "moved" / "my_parts.py")
    made = []
    monkeypatch.setattr(
        "codeq.trainer.run_experiment",
        lambda config, resume: made.append(config.recording_imports(requested_imports())),  # noqa: ARG005
    )
    monkeypatch.setattr("codeq.runs.listing.describe_run", lambda _: "")
    monkeypatch.setattr("codeq.analysis.network.run_notes", lambda _: ())
    given = ["train", "--config", str(run.folder / "config.yaml"), "--import", "moved/my_parts.py"]
    assert main(given) == 0
    assert main([*given, "--set", "imports=[]"]) == 0
    imports = [["moved/my_parts.py", "of_a_stranger.py"], ["moved/my_parts.py"]]
    assert [config.imports for config in made] == imports


def test_an_import_of_the_command_line_is_recorded(tmp_path):
    text = EXPERIMENT.replace("imports: [my_parts.py]\n", "")
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), "--import", str(tmp_path / "my_parts.py")]) == 0
    assert "imports:\n- my_parts.py\n" in (tmp_path / "outputs" / "mine" / "config.yaml").read_text()


def test_what_the_process_that_started_a_training_has_imported_is_recorded(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(EXPERIMENT.replace("imports: [my_parts.py]\n", ""))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "my_parts.py"))
    assert main(["train", "--config", str(tmp_path / "mine.yaml")]) == 0
    run = tmp_path / "outputs" / "mine"
    assert "imports:\n- my_parts.py\n" in (run / "config.yaml").read_text()
    assert (run / "imports" / "my_parts.py").read_text() == PARTS


def test_the_members_of_a_study_record_the_imports_of_its_start(tmp_path):
    text = EXPERIMENT.replace("imports: [my_parts.py]\n", "").replace("run_dir: outputs/mine\n", "")
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "more.py").write_text("")
    import_parts(str(tmp_path / "my_parts.py"))
    study = make_study({"name": "s", "base": "mine.yaml", "set": {"imports": ["more.py"]}, "seeds": [0]})
    (config,) = configurations(study, expand(study), Mistakes()).values()
    assert config.imports == ["my_parts.py", "more.py"]


def test_members_with_their_own_imports_get_no_others(tmp_path):
    text = EXPERIMENT.replace("[my_parts.py]", "[of_base.py]").replace("run_dir: outputs/mine\n", "")
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "of_base.py").write_text("")
    import_parts(str(tmp_path / "my_parts.py"))
    variants = {"plain": {}, "none": {"imports": []}}
    for name in ("a", "b"):  # of two files that register the same name, the second would win
        (tmp_path / f"parts_{name}.py").write_text("from codeq import MODELS\nMODELS['resnet8'] = lambda **_: None")
        variants[name] = {"imports": [f"parts_{name}.py"]}
    study = make_study({"name": "s", "base": "mine.yaml", "variants": variants, "seeds": [0]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "resnet8", lambda **_: None)
        for _ in range(2):  # the second round of a search begins like the first
            configs = configurations(study, expand(study), Mistakes())
            assert [config.imports for config in configs.values()] == [
                ["my_parts.py", "of_base.py"], ["my_parts.py"], ["my_parts.py", "parts_a.py"],
                ["my_parts.py", "parts_b.py"],
            ]  # fmt: skip
    for member in expand(study):
        task = make_task(study, member, Plan(configs), read_state(study.folder, member.name, 0.0), 1)
        made = task.environment[VARIABLE].split(os.pathsep)
        assert made == [str(tmp_path / name) for name in configs[member.name].imports]


def test_a_file_is_recorded_by_its_shortest_path_and_not_as_a_module(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv(VARIABLE, "../my_parts.py")  # as in a kernel
    config = ExperimentConfig.from_dict(import_own_parts({"model": "my_parts:build"}))
    assert config.recording_imports(requested_imports()).imports == ["my_parts.py"]


def test_the_paper_s_table_is_continued_with_the_same_imports(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("codeq.studies.reproduction.reproduce", lambda *wish: found.append(wish) or True)
    assert main(["reproduce", "table2", "--import", "my_parts.py"]) == 0
    ((_, _, options),) = found
    assert options.imports == ["my_parts.py"]
