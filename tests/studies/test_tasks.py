import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from codeq import ExperimentConfig
from codeq.cli.notebook_parameters import Parameter
from codeq.common.errors import CodeqError
from codeq.studies import collect, tasks
from codeq.studies.checks import Plan
from codeq.studies.earlier import earlier_members
from codeq.studies.expand import Member
from codeq.studies.files import index_file, read_index, read_json, replace
from codeq.studies.states import MemberState
from codeq.studies.study import make_study
from codeq.studies.tasks import make_task, wandb_group, write_index


def test_members_share_a_group_and_tags_unless_the_user_has_chosen(monkeypatch):
    for name in ("WANDB_RUN_GROUP", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)
    study = make_study({"name": "lambda-dz", "base": "b.yaml"})
    plain, variant = Member("seed=0", None, {}, {}), Member("l2,seed=0", "l2", {}, {})
    assert wandb_group(study, plain) == {"WANDB_RUN_GROUP": "lambda-dz", "WANDB_TAGS": "lambda-dz"}
    assert wandb_group(study, variant) == {"WANDB_RUN_GROUP": "lambda-dz", "WANDB_TAGS": "lambda-dz,l2"}
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert wandb_group(study, variant) == {"WANDB_TAGS": "lambda-dz,l2"}


def test_names_too_long_for_tags_are_cut(monkeypatch):
    monkeypatch.delenv("WANDB_TAGS", raising=False)
    study, variant = make_study({"name": "s" * 80, "base": "b.yaml"}), Member("m", "v" * 65, {}, {})
    assert wandb_group(study, variant)["WANDB_TAGS"].split(",") == ["s" * 64, "v" * 64]


def test_a_group_in_the_file_env_is_the_choice_of_the_user(monkeypatch, tmp_path):
    for name in ("WANDB_RUN_GROUP", "WANDB_TAGS"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    (tmp_path / ".env").write_text("WANDB_RUN_GROUP=mine\n")
    study = make_study({"name": "lambda-dz", "base": "b.yaml"})
    assert wandb_group(study, Member("seed=0", None, {}, {})) == {"WANDB_TAGS": "lambda-dz"}


def test_a_member_resumes_with_the_configuration_of_the_study_as_it_is_now():
    study, member = make_study({"name": "s", "base": "b.yaml"}), Member("seed=0", None, {}, {})
    config = ExperimentConfig("s/seed=0", stop_degenerate=False, run_dir="outputs/s/seed=0")
    task = make_task(study, member, Plan({"seed=0": config}), MemberState("degenerate", "", None), threads=1)
    command, option, file, *resume = task.resume
    assert (command, option, resume) == ("train", "--config", ["--resume", str(study.folder / "seed=0")])
    assert ExperimentConfig.from_yaml(file) == config
    assert task.start == ["train", "--config", file]


def test_the_parameters_of_a_notebook_are_written_as_it_reads_them():
    class Reversed:
        def text(self, value):
            return str(value)[::-1]

        def accepts(self, value):
            return isinstance(value, str)

    study = make_study({"name": "s", "notebook": "own", "grid": {"augment": [False]}})
    member = Member("augment=false", None, {"augment": False}, {"augment": False})
    plan = Plan({}, {"augment": Reversed(), "resume": Reversed()})
    task = make_task(study, member, plan, MemberState("pending", "", None), threads=1)
    run = str(study.folder / member.name)
    assert task.start == ["notebook", "own", "--run-dir", run, "-p", "augment", "eslaF"]
    assert task.resume == ["notebook", "own", "-p", "augment", "eslaF", "-p", "resume", run]


def test_a_notebook_whose_parameter_resume_is_no_path_starts_again():
    study, member = make_study({"name": "s", "notebook": "own"}), Member("m", None, {}, {})
    plan = Plan({}, {"resume": Parameter("bool", "False", optional=False)})
    assert make_task(study, member, plan, MemberState("preempted", "", None), threads=1).resume == []


def test_several_processes_add_their_members_to_one_index(monkeypatch):
    def slow(path):
        found = read_index(path)
        time.sleep(0.02)
        return found

    monkeypatch.setattr(tasks, "read_index", slow)
    study = make_study({"name": "s", "base": "b.yaml"})
    members = [Member(f"trial={k}", None, {}, {}) for k in range(8)]
    with ThreadPoolExecutor(len(members)) as pool:  # a lock holds between two files that are open, also of one process
        list(pool.map(lambda member: write_index(study, [member]), members))
    assert read_json(index_file(study.folder))["members"].keys() == {member.name for member in members}


def test_the_index_of_a_study_that_adds_nothing_is_not_written(monkeypatch):
    study, member = make_study({"name": "s", "base": "b.yaml"}), Member("a", "v", {"lr": 0.1}, {})
    write_index(study, [member])
    monkeypatch.setattr(tasks, "locked", lambda *_, **__: pytest.fail("writes where nothing may be written"))
    write_index(study, [member])


@pytest.mark.parametrize("content", [{"name": "x"}, {"members": []}, {"members": "a"}, [], {"members": {}}])
def test_an_index_of_another_form_has_no_members(content):
    study = make_study({"name": "s", "base": "b.yaml"})
    replace(index_file(study.folder), json.dumps(content))
    assert read_index(study.folder) == {}
    assert earlier_members(study, []) == []
    with pytest.raises(CodeqError, match="holds no runs"):
        collect(study.folder)
    write_index(study, [Member("a", None, {}, {})])
    assert read_index(study.folder) == {"a": {"variant": None, "varied": {}}}


@pytest.mark.parametrize("entry", [3, None, [], {}, {"varied": [1], "variant": {}}])
def test_an_entry_of_another_form_is_a_member_of_which_nothing_is_known(entry):
    study = make_study({"name": "s", "base": "b.yaml"})
    replace(index_file(study.folder), json.dumps({"members": {"a": entry}}))
    assert read_index(study.folder) == {"a": {"variant": None, "varied": {}}}
