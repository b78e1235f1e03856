import json
import os
from pathlib import Path

import pytest

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.runs import folders
from codeq.runs.references import find_config, find_run, find_runs
from codeq.studies import collect


def make(path: Path, second: int = 0) -> Path:
    """A run folder that started at this second."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("epochs: 1\n")
    started = f"2026-11-21T12:00:{second:02}+00:00"
    (path / "status.json").write_text(json.dumps({"status": "done", "started": started}))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory is the project's folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def outputs(tmp_path) -> Path:
    """Two runs of a notebook, a study of three members, and a newer run outside of `outputs`."""
    outputs = tmp_path / "outputs"
    make(outputs / "debug_run" / "20261121-120000_debug_run", 1)
    make(outputs / "debug_run" / "20261122-120000_debug_run", 5)
    for number, member in enumerate(("seed=0", "seed=1", "seed=10")):
        make(outputs / "lambda-dz" / member, 2 + number)
    make(tmp_path / "save_temp" / "20261123-120000_wide", 9)
    return outputs


def names(runs) -> list[str]:
    return ["/".join(run.folder.parts[-2:]) for run in runs]


FIRST, SECOND = "debug_run/20261121-120000_debug_run", "debug_run/20261122-120000_debug_run"
MEMBERS = ["lambda-dz/seed=0", "lambda-dz/seed=1", "lambda-dz/seed=10"]


@pytest.mark.parametrize(
    ("references", "found"),
    [
        (None, [SECOND]),
        ("latest", [SECOND]),
        ("lambda-dz/latest", [MEMBERS[2]]),
        ("outputs/lambda-dz/latest", [MEMBERS[2]]),
        ("save_temp/latest", ["save_temp/20261123-120000_wide"]),
        ("save_temp/wide", ["save_temp/20261123-120000_wide"]),
        ("1121", [FIRST]),
        ("debug_run/20261121", [FIRST]),
        ("outputs/debug_run/20261121", [FIRST]),
        ("20261121-120000_debug_run", [FIRST]),
        ("lambda-dz/seed=1", [MEMBERS[1]]),  # complete, though seed=10 contains it
        ("seed=1", [MEMBERS[1]]),
        ("dz/seed=10", [MEMBERS[2]]),
        ("=10", [MEMBERS[2]]),
        ("lambda-dz", MEMBERS),
        ("outputs/lambda-dz/", MEMBERS),
        (Path("outputs/lambda-dz/seed=0"), MEMBERS[:1]),
        ("lambda-dz/*", MEMBERS),
        ("outputs/*/seed=1*", MEMBERS[1:]),
        ("outputs/lambda-dz/seed=0/**", MEMBERS[:1]),  # any number of folders, also none
        ("outputs", [FIRST, *MEMBERS, SECOND]),
        (["seed=10", "1121", "lambda-dz"], [MEMBERS[2], FIRST, *MEMBERS[:2]]),
        ("latest seed=0", [SECOND, MEMBERS[0]]),
        ("outputs/lambda-dz/seed=0 lambda-dz/seed=0/", MEMBERS[:1]),
    ],
)
def test_forms(outputs, references, found):
    assert names(find_runs(references)) == found


def test_the_runs_of_a_glob_are_in_the_order_in_which_they_started(outputs):
    make(outputs / "slurm" / "x_10000", 8)
    make(outputs / "slurm" / "x_9999", 7)
    make(outputs / "array" / "x_20000", 6)
    order = ["array/x_20000", "slurm/x_9999", "slurm/x_10000"]
    assert names(find_runs("*/x_*")) == order
    assert names(find_runs("outputs/**/x_*")) == order
    assert collect("outputs/*/x_*")["run"].tolist() == order
    assert collect("outputs/slurm")["run"].tolist() == ["x_9999", "x_10000"]


def test_a_name_with_a_space(outputs):
    make(outputs / "with space")
    assert names(find_runs("outputs/with space")) == ["outputs/with space"]
    assert names(find_runs("'outputs/with space' seed=0")) == ["outputs/with space", MEMBERS[0]]


def test_abandoned_attempts_of_a_study_are_left_out(outputs):
    make(outputs / "lambda-dz" / ".study" / "aside" / "seed=1.1", 8)
    make(outputs / "lambda-dz" / ".study" / "aside" / "seed=1", 9)
    assert names([find_run(), find_run("seed=1"), *find_runs("lambda-dz")]) == [SECOND, MEMBERS[1], *MEMBERS]
    assert names(find_runs("lambda-dz/.study/aside")) == ["aside/seed=1.1", "aside/seed=1"]


@pytest.mark.parametrize("name", ["latest", "seed=1", "12*"])
def test_a_folder_of_that_literal_name_wins(outputs, tmp_path, name):
    literal = make(tmp_path / name)
    assert find_run(name).folder == literal
    assert [run.folder for run in find_runs([name])] == [literal]


def test_brackets_in_the_names_of_folders_are_no_globs(outputs, tmp_path, monkeypatch):
    for number, name in enumerate(("lr1", "lr[1]")):
        make(outputs / name / "seed=0", number)
    for references in ("outputs/lr[1]", "outputs/lr[1]/*", outputs / "lr[1]/seed=*"):
        assert [run.folder for run in find_runs(references)] == [outputs / "lr[1]" / "seed=0"]
        assert collect(references)["folder"].tolist() == [str(outputs / "lr[1]" / "seed=0")]
    assert names(find_runs("outputs/lr[12]/*")) == ["lr1/seed=0"]  # there is no such folder
    home = tmp_path / "a [new] project"
    run = make(home / "outputs" / "s" / "seed=0")
    monkeypatch.chdir(home)
    monkeypatch.setenv("CODEQ_HOME", str(home))
    for references in ("outputs/s/*", "s/*", "outputs/**/seed=0", "outputs/s/seed=0/**", home / "outputs/s/*"):
        assert [found.folder for found in find_runs([references])] == [run]
        if references != "s/*":  # globs of `collect` start at the project's folder
            assert collect(references)["folder"].tolist() == [str(run)]


def test_the_working_directory_comes_first(outputs, tmp_path, monkeypatch):
    here = make(tmp_path / "elsewhere" / "outputs" / "lambda-dz" / "seed=0")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_run("outputs/lambda-dz/seed=0").folder == here
    assert find_run("lambda-dz/seed=0").folder == outputs / "lambda-dz" / "seed=0"
    (tmp_path / "elsewhere" / "lambda-dz").mkdir()  # which holds no run
    assert names(find_runs("lambda-dz")) == MEMBERS
    monkeypatch.chdir(outputs / "lambda-dz")
    assert find_run("seed=1").folder == outputs / "lambda-dz" / "seed=1"


def test_the_newest_is_the_one_that_started_last_whatever_its_state(outputs):
    content = {"status": "failed", "started": "2027-01-01T00:00:00+00:00"}
    (outputs / "lambda-dz" / "seed=1" / "status.json").write_text(json.dumps(content))
    os.utime(outputs / "lambda-dz" / "seed=1", (0, 0))
    assert names([find_run()]) == [MEMBERS[1]]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("debug", rf"^'debug' names 2 runs, give one of them: {FIRST}, {SECOND}$"),
        ("seed=", r"'seed=' names 3 runs.*: lambda-dz/seed=0, lambda-dz/seed=1, lambda-dz/seed=10$"),
        ("save_temp/narrow", r"no run is named 'save_temp/narrow'\. The newest runs in \S+/save_temp: \S+_wide$"),
        (
            "debug_rum",
            r"no run is named 'debug_rum'\. Did you mean 'debug_run'\? The newest runs in \S+: debug_",
        ),
        ("sede=10", r"Did you mean 'seed=10'\?"),
        ("lates", r"Did you mean 'latest'\?"),
        ("", "^the name of a run is empty"),
        (f"outputs/{FIRST}/config.yaml", r"\S+config\.yaml is a file; a run is a folder\. The newest .*: debug_run/"),
        (f"outputs/{FIRST}/config.yml", r"no run is named .* The newest runs in \S+/outputs: debug_run/"),
        ("lambda-dx/seed=0", r"Did you mean 'lambda-dz/seed=0'\?"),
        ("nowhere/latest", r"no run is named 'nowhere/latest'"),
        ("/nowhere/at/all", r"no run is named '/nowhere/at/all'"),
        ("outputs/x*", r"^'outputs/x\*' matches no run folder$"),
        ("empty", r"empty holds no run \(no config\.yaml in it or below it\)"),
        ("empty/latest", r"'empty/latest' names no run: there is none in \S+empty$"),
        ("only_config", r"only_config holds no run \(a config\.yaml, but no status\.json\)"),
        ("x" * 300, "has a component of more than 255 bytes"),
    ],
)
def test_what_names_no_run_or_several(outputs, tmp_path, reference, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "only_config").mkdir()
    (tmp_path / "only_config" / "config.yaml").write_text("epochs: 1\n")
    for find in (find_run, lambda one: find_runs([one])):
        with pytest.raises(CodeqError, match=message):
            find(reference)


def test_one_run_is_meant_where_a_folder_holds_one(outputs):
    assert names([find_run("save_temp")]) == ["save_temp/20261123-120000_wide"]
    for reference in ("lambda-dz", "outputs/lambda-dz/*"):
        with pytest.raises(CodeqError, match=rf"^'{reference}' names 3 runs".replace("*", r"\*")):
            find_run(reference)


def test_many_candidates_are_cut(tmp_path):
    for number in range(20):
        make(tmp_path / "outputs" / f"run{number:02}")
    with pytest.raises(CodeqError, match=r"'run' names 20 runs, .*: run00, .*, run07 and 12 more$"):
        find_run("run")


def test_without_a_run_the_error_says_how_to_get_one():
    for references in (None, "latest", ["anything"]):
        with pytest.raises(CodeqError, match=r"no run: there is none in \S+outputs yet: `codeq notebook debug_run`"):
            find_runs(references)


@pytest.mark.parametrize(
    ("references", "message"), [([], "at least one run"), ("outputs/'tiny", "No closing quotation")]
)
def test_no_reference_and_an_open_quote(references, message):
    with pytest.raises(CodeqError, match=message):
        find_runs(references)


@pytest.mark.parametrize("reference", ["/", "~", "..", "~/**", "/**/seed=1", "/../*/**", "~/latest"])
def test_a_home_folder_and_what_contains_it_are_not_searched(outputs, tmp_path, monkeypatch, reference):
    """Neither by a name, nor by a glob, nor in a table of results."""
    home = tmp_path / "user"
    make(home / "project" / "outputs" / "x" / "seed=1")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "project")
    monkeypatch.setattr(folders.os, "walk", lambda root: pytest.fail(f"searches {root}"))
    monkeypatch.setattr(folders.glob, "glob", lambda pattern, **_: pytest.fail(f"searches {pattern}"))
    for find in (find_run, find_runs, collect):
        if find != collect or "latest" not in reference:
            with pytest.raises(CodeqError, match="holds more than runs and is not searched: name"):
                find(reference)


def test_a_search_visits_a_limited_number_of_folders_without_runs(outputs, monkeypatch):
    monkeypatch.setattr(folders, "MAX_OTHER_FOLDERS", 6)
    assert len(find_runs("outputs")) == 5  # three folders without a run
    for number in range(5):
        (outputs / f"photos{number}").mkdir()
    with pytest.raises(
        CodeqError, match=r"^'\S+outputs' has more than 6 folders without a run: name a folder of runs$"
    ):
        find_runs("outputs")


def test_the_name_of_a_run_is_no_configuration(outputs):
    assert find_config("latest/config.yaml") == outputs / SECOND / "config.yaml"
    for name in ("latest", FIRST, "seed=1"):
        with pytest.raises(
            CodeqError, match=rf"{name}/config\.yaml repeats that run .* `codeq train --resume {name}` resumes it$"
        ):
            find_config(name)
    with pytest.raises(CodeqError, match=r"'two words/config\.yaml' repeats .* `codeq train --resume 'two words'`"):
        find_config("two words")
    assert find_config("missing.yaml") == Path("missing.yaml")  # the reader says that there is none


@pytest.mark.parametrize("name", ["", "save_temp", "outputs", "lambda-dz", "debug_run", "empty"])
def test_a_configuration_that_a_folder_lacks_is_not_that_of_a_run_in_it(outputs, tmp_path, name):
    """Neither of the only one, as in `save_temp`, nor of one of several."""
    (tmp_path / "empty").mkdir()
    file = Path(name, "config.yaml")
    assert find_config(file) == file
    with pytest.raises(CodeqError, match=r"config\.yaml cannot be read: No such file"):
        ExperimentConfig.from_yaml(find_config(file))


def test_the_configuration_of_a_run_is_found_by_every_name_of_it(outputs, tmp_path):
    for name in ("lambda-dz/seed=1", "outputs/lambda-dz/seed=1", "seed=1", "lambda-dz/*=1"):
        assert find_config(f"{name}/config.yaml").resolve() == outputs / MEMBERS[1] / "config.yaml"
    assert find_config("save_temp/latest/config.yaml").parent.name == "20261123-120000_wide"


def test_what_names_no_run_is_refused_by_name(outputs):
    for wrong, shown in ((3, "3"), ([3], "3"), (True, "True")):
        with pytest.raises(CodeqError, match=f"path={shown}: must be text or a pathlib.Path"):
            find_runs(wrong)
