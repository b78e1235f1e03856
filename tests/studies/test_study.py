import pytest
from cases import each

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.studies.study import make_study, read_study

COMPLETE = """\
name: lambda-dz
base: configs/deadzone_resnet20_mixed.yaml
set: {dataset: digits, epochs: 3}
grid:
  optimizer.param_groups.dz.weight_decay: [0.003, 0.03]
variants:
  l2: {theta_regularizer: l2}
  plain:
seeds: [0, 1, 2]
sample: {n: 4, ranges: {optimizer.param_groups.base.lr: {low: 1e-4, high: 1e-2, log: true}}}
executor: {name: local, workers: 2, via: direct}
"""


RANGE = {"lr": {"low": 0.001, "high": 1}}


def mistakes(**content):
    with pytest.raises(CodeqError) as caught:
        make_study({"name": "s", "base": "b.yaml", **content})
    return str(caught.value)


def test_a_complete_file_is_read(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(COMPLETE)
    study = read_study(path, {"epochs": 1, "batch_size": 64})
    assert study.set == {"dataset": "digits", "epochs": 1, "batch_size": 64}
    assert study.grid == {"optimizer.param_groups.dz.weight_decay": [0.003, 0.03]}
    assert study.variants == {"l2": {"theta_regularizer": "l2"}, "plain": {}}
    assert study.seeds == [0, 1, 2]
    assert study.sample.ranges["optimizer.param_groups.base.lr"].low == 1e-4
    assert (study.executor.name, study.executor.workers, study.via) == ("local", 2, "direct")
    assert study.folder == tmp_path / "outputs" / "lambda-dz"  # the fixture's CODEQ_HOME


def test_names_begin_with_letters_of_any_language(tmp_path):
    assert list(make_study({"name": "s", "base": "b.yaml", "variants": {"größe": {}, "été": {}}}).variants) == [
        "größe",
        "été",
    ]


def test_all_mistakes_are_reported_at_once_with_the_nearest_names():
    text = mistakes(variant={}, grid={"lr": []}, seeds=[0, 0], executor={"name": "slurn", "worker": 2})
    assert "study has 5 problems" in text
    assert "variant: unknown key. Did you mean 'variants'?" in text or "variant={}: unknown key. Did you mean" in text
    assert "'lr' has no values" in text
    assert "0 is given twice" in text
    assert "executor.name='slurn': must be one of" in text
    assert "Did you mean 'slurm'?" in text
    assert "Did you mean 'workers'?" in text


@each(
    ("content", "message"),
    [
        ({"name": "../up"}, "must be at most 80 letters"),
        ({"name": ".hidden"}, "must be at most 80 letters"),
        ({"base": None}, "either a base"),
        ({"notebook": "full_training"}, "either a base"),
        ({"set": {"run_dir": "x"}}, "'run_dir' is set by the sweep"),
        ({"grid": {"name": ["a"]}}, "'name' is set by the sweep"),
        ({"set": {"epochs": 1}, "grid": {"epochs": [1, 2]}}, "'epochs' stands in set, too"),
        ({"grid": {"seed": [1]}, "seeds": [1]}, "'seed' stands in grid, too"),
        ({"variants": {"a": {"lr": 1}}, "grid": {"lr": [1]}}, "'lr' stands in grid, too"),
        (
            {"variants": {"a": {"lr": 1}}, "sample": {"n": 1, "ranges": {"lr": {"low": 0, "high": 1}}}},
            "in variants, too",
        ),
        ({"variants": {"a": {}, "A": {}}}, "upper and lower case"),
        ({"set": {"a.b": 1}, "grid": {"a": [{"c": 1}]}}, "'a' replaces all of its keys, 'a.b' among them"),
        ({"set": {"a.b": 1}, "variants": {"x": {"a": None}}}, "'a' replaces all of its keys, 'a.b' among them"),
        ({"variants": {"x": {"a.b": 1}}, "grid": {"a": [{}]}}, "'a' replaces all of its keys, 'a.b' among them"),
        ({"variants": {"a/b": {}}}, "must be at most 80 letters"),
        ({"grid": {"lr": 0.1}}, "must be a list"),
        ({"grid": {"lr": [0.1, 0.1]}}, "'lr': 0.1 is given twice"),
        ({"seeds": 3}, "must be a list"),
        ({"seeds": [-1]}, "must be at least 0"),
        ({"sample": {"n": 0, "ranges": {"lr": {"low": 0, "high": 1}}}}, "must be at least 1"),
        ({"sample": {"n": 1, "ranges": {}}}, "at least one range"),
        ({"sample": {"n": 1, "ranges": {"lr": {"low": 1, "high": 1}}}}, "must be above low=1"),
        ({"sample": {"n": 1, "ranges": {"lr": {"low": 0, "high": 1, "log": True}}}}, "must begin above 0"),
        ({"sample": {"n": 1, "ranges": {"lr": {"low": "a", "high": 1}}}}, "must be a finite number"),
        ({"sample": {"n": 1, "ranges": {"lr": {"low": 0, "high": float("inf")}}}}, "must be a finite number"),
        ({"sample": {"n": 1, "ranges": {"lr": [0.1, 1]}}}, "sample.ranges.lr=[0.1, 1]: must be a mapping"),
        ({"sample": {"n": 1, "ranges": {"low": {"low": 0, "hi": 1}}}}, "hi=1: unknown key. Did you mean 'high'?"),
        ({"search": {"trials": 0, "ranges": RANGE}}, "must be at least 1"),
        ({"search": {"trials": 1, "ranges": {}}}, "at least one range"),
        ({"search": {"trials": 1, "ranges": RANGE, "constraint": {"relative_bops": 5}}}, "must be below 1"),
        ({"search": {"trials": 1, "ranges": RANGE, "constraint": {"bops": 0.5}}}, "relative_bops"),
        (
            {"search": {"trials": 1, "ranges": RANGE, "constraint": {"relative_bops": 0.5, "accuracy": 0.9}}},
            "must have one entry",
        ),
        ({"search": {"trials": 1, "ranges": {"seed": {"low": 0, "high": 9}}}}, "'seed' chooses the validation images"),
        ({"search": {"trials": 1, "ranges": {"validation": {"low": 0.1, "high": 0.2}}}}, "'validation' chooses"),
        ({"search": {"trials": 1, "ranges": {"run_dir": {"low": 0, "high": 9}}}}, "'run_dir' is set by the sweep"),
        ({"search": {"trials": 1, "ranges": RANGE}, "seeds": [0, 1]}, "cannot be combined with seeds"),
        ({"search": {"trials": 1, "ranges": RANGE}, "set": {"lr": 1}}, "'lr' stands in set, too"),
        (
            {"search": {"trials": 1, "ranges": RANGE}, "base": None, "notebook": "full_training"},
            "needs a base (a configuration), not a notebook",
        ),
        ({"executor": {"partition": "gpu"}}, "only the executor slurm takes it, not local"),
        ({"executor": {"name": "slurm", "time": "soon"}}, "must be minutes"),
        ({"executor": {"name": "slurm", "time": 4}}, "executor.time=4: must be at least 5 minutes"),
        ({"executor": {"name": "slurm", "time": "00:04:00"}}, "must be at least 5 minutes"),
        (
            {"base": None, "notebook": "debug_run", "executor": {"via": "direct"}},
            "a notebook is executed via papermill",
        ),
    ],
)
def test_a_mistake_is_named(content, message):
    assert message in mistakes(**content)


@each(("time", "minutes"), [(90, 90), ("01:30:00", 90), ("2-00:00:00", 2880), ("00:04:01", 5), (5, 5), (None, None)])
def test_time_limits_of_slurm_are_minutes(time, minutes):
    study = make_study({"name": "s", "base": "b.yaml", "executor": {"name": "slurm", "time": time, "partition": "gpu"}})
    assert study.executor.time == minutes
    assert study.executor.partition == "gpu"


def test_a_notebook_is_executed_via_papermill():
    assert make_study({"name": "s", "notebook": "full_training"}).via == "papermill"


def test_true_and_one_are_different_values():
    assert make_study({"name": "s", "base": "b.yaml", "grid": {"x": [True, 1]}}).grid == {"x": [True, 1]}


def test_keys_inside_of_others_may_be_set_after_them(tmp_path):
    content = {"set": {"a": {"c": 1}}, "variants": {"x": {"a.b": {}}}, "grid": {"a.b.d": [1]}, "name": "s", "base": "b"}
    assert make_study(content).grid == {"a.b.d": [1]}
    (tmp_path / "s.yaml").write_text("name: s\nbase: b\nset: {a.b: 1, ab: 2}\n")
    assert read_study(tmp_path / "s.yaml", {"a": 3}).set == {"a": 3, "ab": 2}


def test_changes_of_the_sections_of_a_study_do_not_go_to_its_members(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "name: s\nbase: b\nset: {a: 1}\nsearch: {trials: 2, ranges: {x: {low: 1, high: 2}}}\n"
    )
    study = read_study(tmp_path / "s.yaml", {"search.trials": 5, "executor.workers": 3, "b": 2})
    assert (study.search.trials, study.search.ranges["x"].high, study.executor.workers) == (5, 2, 3)
    assert study.set == {"a": 1, "b": 2}
    (tmp_path / "g.yaml").write_text("name: g\nbase: b\ngrid: {a.b: [1]}\nseeds: [0]\n")
    study = read_study(tmp_path / "g.yaml", {"grid.c.d": [3, 4], "seeds": [0, 1]})
    assert (study.grid, study.seeds, study.set) == ({"a.b": [1], "c.d": [3, 4]}, [0, 1], {})
    with pytest.raises(CodeqError, match=r"search\.trial=5: unknown key\. Did you mean 'trials'\?"):
        read_study(tmp_path / "s.yaml", {"search.trial": 5})
    with pytest.raises(CodeqError, match=r"seeds\.0=3: seeds is not a section with keys"):
        read_study(tmp_path / "g.yaml", {"seeds.0": 3})


def test_the_folder_of_a_study_is_not_its_file(tmp_path):
    (tmp_path / "outputs" / "mine" / ".study").mkdir(parents=True)
    with pytest.raises(CodeqError, match=r"mine is the folder of a study: this takes the YAML file"):
        read_study("outputs/mine")


def test_a_configuration_is_no_study_and_a_study_no_configuration(tmp_path):
    experiment, study = tmp_path / "my experiment.yaml", tmp_path / "my study.yaml"
    experiment.write_text("name: x\nmodel: mlp\n")
    study.write_text(f"name: s\nbase: {experiment}\nseeds: [0]\n")
    with pytest.raises(CodeqError, match=rf"not a study: `codeq train --config '{experiment}'` trains it"):
        read_study(experiment)
    with pytest.raises(CodeqError, match=rf"not a configuration .*: `codeq sweep '{study}'` runs its members"):
        ExperimentConfig.from_yaml(study)
