import json
import math

import pandas as pd
import pytest

import codeq.config.yaml
from codeq import ExperimentConfig
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.runs import settings as run_settings
from codeq.studies import collect
from codeq.studies.analysis import read_results
from codeq.studies.attempts import begin
from codeq.studies.groups import group_labels, repetitions, varied_keys
from codeq.studies.progress import survey
from codeq.studies.query import where
from codeq.studies.results import read_again, read_metrics, read_runs

METRICS = "epoch,eval/accuracy,train/ce_loss,compression/unstructured_bops_ratio\n"


def make_run(folder, status="done", rows=((0, 0.5, 1.5, 4.0), (1, 0.7, 1.0, 5.0), (2, 0.6, 0.5, 8.0)), **settings):
    folder.mkdir(parents=True)
    settings = {"epochs": max(len(rows), 1), **settings}
    ExperimentConfig(name=f"a/{folder.name}", run_dir=str(folder), **settings).to_yaml(folder / "config.yaml")
    content = {"status": status, "message": "", "host": "gone", "pid": 1}
    (folder / "status.json").write_text(json.dumps(content))
    (folder / "metrics.csv").write_text(METRICS + "".join(",".join(map(str, row)) + "\n" for row in rows))


def test_a_glob_gives_a_row_a_run_and_the_keys_that_differ(tmp_path):
    make_run(tmp_path / "outputs/s/a", seed=0, lr_dz=0.1)
    make_run(tmp_path / "outputs/s/b", seed=1, lr_dz=0.1, status="diverged")
    table = collect("outputs/s/*")
    assert list(table.columns) == [
        "run", "status", "reason", "seed", "epoch", "eval/accuracy", "train/ce_loss",
        "compression/unstructured_bops_ratio", "best/eval/accuracy", "best/chosen_by", "folder",
    ]  # fmt: skip
    assert table["run"].tolist() == ["a", "b"]
    assert table["status"].tolist() == ["done", "diverged"]
    assert table["seed"].tolist() == [0, 1]
    assert table["eval/accuracy"].tolist() == [0.6, 0.6]
    assert table["best/eval/accuracy"].tolist() == [0.7, 0.7]
    assert table["epoch"].tolist() == [2, 2]
    assert collect(tmp_path / "outputs" / "s").equals(table)


def test_nested_keys_keep_their_dotted_names_and_lists_become_json(tmp_path):
    make_run(tmp_path / "s/a", quantizer_kwargs={"max_bits": 4}, loss_terms=[{"name": "group_lasso"}])
    make_run(tmp_path / "s/b", quantizer_kwargs={"max_bits": 6})
    table = collect(tmp_path / "s/*")
    assert table["quantizer.kwargs.max_bits"].tolist() == [4, 6]
    assert json.loads(table["loss_terms"][0])[0]["name"] == "group_lasso"
    assert json.loads(table["loss_terms"][1]) == []


def test_arguments_that_a_run_leaves_out_have_their_defaults(tmp_path):
    for seed, kwargs in enumerate(({}, {}, {"max_bits": 8}, {"max_bits": 8})):
        make_run(tmp_path / f"s/{seed}", seed=seed, quantizer_kwargs=kwargs)
    table = collect(tmp_path / "s/*")
    assert [name for name in table.columns if name.startswith("quantizer")] == []
    assert varied_keys(table) == []
    make_run(tmp_path / "s/four", seed=0, quantizer_kwargs={"max_bits": 4})
    assert collect(tmp_path / "s/*")["quantizer.kwargs.max_bits"].tolist() == [8, 8, 8, 8, 4]
    found = where(
        pd.DataFrame(read_runs(sorted((tmp_path / "s").iterdir()), constant=True)), "quantizer.kwargs.max_bits == 8"
    )
    assert found["run"].tolist() == ["0", "1", "2", "3"]


def test_members_of_a_variant_without_an_argument_have_its_default(tmp_path):
    members = {}
    for variant, kwargs in {"default": {}, "four": {"max_bits": 4}}.items():
        make_run(tmp_path / "s" / variant, quantizer_kwargs=kwargs)
        varied = {f"quantizer.kwargs.{key}": value for key, value in kwargs.items()}
        members[variant] = {"variant": variant, "varied": varied}
    (tmp_path / "s/.study").mkdir()
    (tmp_path / "s/.study/members.json").write_text(json.dumps({"members": members}))
    assert collect(tmp_path / "s")["quantizer.kwargs.max_bits"].tolist() == [8, 4]


def test_a_mapping_that_is_empty_in_some_runs_is_no_setting_of_its_own(tmp_path):
    for name, arguments in {"a": "{}", "b": "{threshold: 0.5}"}.items():
        make_run(tmp_path / "s" / name)
        config = tmp_path / "s" / name / "config.yaml"
        config.write_text(f"model: mlp\nquantizer:\n  name: of the user\n  kwargs: {arguments}\n")
    table = collect(tmp_path / "s/*")
    assert varied_keys(table) == ["quantizer.kwargs.threshold"]
    assert group_labels(table, varied_keys(table)) == ["threshold=none", "threshold=0.5"]


def test_runs_of_several_folders_are_named_with_them(tmp_path):
    make_run(tmp_path / "s/one/a")
    make_run(tmp_path / "s/two/a")
    assert collect(tmp_path / "s/*/a")["run"].tolist() == ["one/a", "two/a"]


def test_runs_that_start_from_the_runs_of_their_seeds_differ_in_the_seed_alone(tmp_path):
    for seed in (1, 10):
        make_run(tmp_path / f"s/{seed}", seed=seed, init_from=f"outputs/float/seed={seed}")
    table = collect(tmp_path / "s/*")
    assert "init_from" not in table
    assert group_labels(table, varied_keys(table)) == ["all", "all"]
    make_run(tmp_path / "s/other", seed=1, init_from="outputs/better/seed=1")
    table = collect(tmp_path / "s/*")
    assert group_labels(table, varied_keys(table)) == [
        "init_from=outputs/float/seed={seed}", "init_from=outputs/float/seed={seed}",
        "init_from=outputs/better/seed={seed}",
    ]  # fmt: skip


def test_runs_that_share_networks_of_one_seed_differ_in_the_seed_alone(tmp_path):
    shared = {"init_from": "outputs/float/seed=0", "distillation": {"teacher": ["float/seed=0", "float/seed=1"]}}
    for seed in (0, 1, 2):
        make_run(tmp_path / f"s/{seed}", seed=seed, **shared)
    table = collect(tmp_path / "s/*")
    assert group_labels(table, varied_keys(table)) == ["all"] * 3
    for seed in (0, 1, 2):  # from their own networks, with one teacher
        make_run(tmp_path / f"s/own-{seed}", seed=seed, init_from=f"outputs/float/seed={seed}", distillation=None)
        make_run(tmp_path / f"s/x-{seed}", seed=seed, init_from=f"y/seed={seed}", distillation={"teacher": "t/seed=2"})
    table = collect(tmp_path / "s/*")
    assert len(set(group_labels(table, varied_keys(table)))) == 3


def test_keys_that_decide_nothing_divide_no_groups(tmp_path):
    for seed in (0, 1, 2):
        where = {"viz_interval": seed + 1, "workers": seed, "use_compile": seed == 0}
        make_run(tmp_path / f"s/{seed}", seed=seed, init_from="outputs/float/seed=0", **where)
    table = collect(tmp_path / "s/*")
    assert list(table.columns)[:5] == ["run", "status", "reason", "seed", "epoch"]
    assert group_labels(table, varied_keys(table)) == ["all"] * 3
    make_run(tmp_path / "s/other", seed=0, init_from="outputs/float/seed=0", workers=7)
    assert repetitions(collect(tmp_path / "s/*")) == ["other", "", "", ""]
    for name, folder in (("default", "data"), ("absolute", str(tmp_path / "data"))):  # the same images
        make_run(tmp_path / f"s/{name}", seed=3, init_from="outputs/float/seed=0", data_dir=folder)
    assert group_labels(table := collect(tmp_path / "s/*"), varied_keys(table)) == ["all"] * 6
    # Other folders may hold other images, and other files a model of the same name.
    for name, key, value in (("images", "data_dir", "/b"), ("parts", "imports", ["json"])):
        make_run(tmp_path / f"s/{name}", seed=0, init_from="outputs/float/seed=0", **{key: value})
    table = collect(tmp_path / "s/*")
    assert {"data_dir", "imports"} <= {*table.columns}
    assert len(set(group_labels(table, varied_keys(table)))) == 3


def test_a_study_tells_the_values_in_force_and_how_members_ended(tmp_path):
    study = tmp_path / "outputs/s"
    make_run(study / "l2,seed=0", theta_regularizer="l2")
    make_run(study / "plain,seed=0", status="running", rows=())
    varied = {"l2,seed=0": {"theta_regularizer": "l2", "seed": 0}, "plain,seed=0": {"seed": 0}, "waiting": {"seed": 1}}
    members = {name: {"variant": name.split(",")[0], "varied": keys} for name, keys in varied.items()}
    (study / ".study").mkdir()
    (study / ".study/members.json").write_text(json.dumps({"name": "s", "members": members}))
    begin(study / ".study/attempts/plain,seed=0", 1).record(state="died", reason="killed by SIGKILL")
    table = collect("outputs/s")
    assert table["run"].tolist() == ["l2,seed=0", "plain,seed=0"]
    assert table["variant"].tolist() == ["l2", "plain"]
    assert table["status"].tolist() == ["done", "died"]
    assert table["reason"].tolist() == ["", "killed by SIGKILL"]
    assert table["theta_regularizer"].tolist() == ["l2", "l2"]  # the second one's is the default of the constructor
    assert table["seed"].tolist() == [0, 0]
    assert math.isnan(table["eval/accuracy"][1])


def test_lists_are_shown_in_their_letters(tmp_path):
    for name in ("a", "模"):
        make_run(tmp_path / f"s/{name}", quantizer={"name": "deadzone", "exclude_layers": [name]})
    assert sorted(collect(tmp_path / "s/*")["quantizer.exclude_layers"]) == ['["a"]', '["模"]']


def test_a_key_that_one_variant_sets_shows_the_own_seed_of_the_others(tmp_path):
    study, members = tmp_path / "outputs/s", {}
    for variant, seed in ((variant, seed) for variant in ("mixed", "channels") for seed in (1, 10)):
        varied = {"seed": seed, "distillation.teacher": "float/seed=0"}
        teacher = varied["distillation.teacher"] if variant == "channels" else f"float/seed={seed}"
        make_run(study / f"{variant},seed={seed}", seed=seed, distillation={"teacher": teacher})
        kept = varied if variant == "channels" else {"seed": seed}
        members[f"{variant},seed={seed}"] = {"variant": variant, "varied": kept}
    (study / ".study").mkdir()
    (study / ".study/members.json").write_text(json.dumps({"name": "s", "members": members}))
    table = collect("outputs/s")
    assert table["distillation.teacher"].tolist() == ["float/seed={seed}"] * 2 + ["float/seed=0"] * 2
    assert group_labels(table, varied_keys(table)) == ["mixed", "mixed", "channels", "channels"]


def test_a_parameter_with_the_name_of_a_metric_keeps_its_values(tmp_path):
    """The notebook `debug_run` has a parameter `lr`, and ``metrics.csv`` a column of that name."""
    members = {}
    for seed in (0, 1):
        for lr in (0.1, 0.01):
            name = f"lr={lr},seed={seed}"
            make_run(tmp_path / "s" / name, seed=seed)
            table = tmp_path / "s" / name / "metrics.csv"
            table.write_text(table.read_text().replace("train/ce_loss", "lr"))
            members[name] = {"variant": None, "varied": {"lr": lr, "seed": seed}}
    (tmp_path / "s" / ".study").mkdir()
    (tmp_path / "s" / ".study" / "members.json").write_text(json.dumps({"members": members}))
    table = collect(tmp_path / "s")
    assert table["lr"].tolist() == [0.1, 0.01, 0.1, 0.01]
    assert group_labels(table, varied_keys(table)) == ["lr=0.1", "lr=0.01"] * 2
    assert read_again(table)["lr"].tolist() == [0.1, 0.01, 0.1, 0.01]


def test_the_list_of_runs_knows_how_members_ended_as_selections_do(tmp_path, capsys):
    """A pruned trial was asked to stop, so that its own files call it preempted."""
    make_run(tmp_path / "outputs/s/a", status="preempted")
    begin(tmp_path / "outputs/s/.study/attempts/a", 1).record(state="pruned", reason="pruned after epoch 3")
    make_run(tmp_path / "outputs/s/b")
    assert main(["runs"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["pruned", "done"]
    assert main(["runs", "--columns", "run", "status"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["pruned", "done"]


def test_no_runs_are_an_error(tmp_path):
    with pytest.raises(CodeqError, match="holds no runs"):
        collect(tmp_path / "nothing*")


DAMAGE = {
    "metrics.csv": [b"\xff\xfe\x00\n", b"", b"epoch,eval/accuracy\nx,y\n", b"a,b\n1,2\n", None],
    "status.json": [b"null", b"{", b"[1]", b"", b"\xff"],
    "config.yaml": [b"a: [\n", b"- 1\n", b"", b"\xff\xfe\x00"],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file in DAMAGE for content in DAMAGE[file]])
def test_a_damaged_run_costs_itself_alone(tmp_path, capsys, file, content):
    study = tmp_path / "outputs/s"
    for seed, name in enumerate(("good", "bad", "other")):
        make_run(study / name, seed=seed)
    (study / "bad" / file).unlink()
    if content is None:
        (study / "bad" / file).mkdir()
    else:
        (study / "bad" / file).write_bytes(content)
    table = collect("outputs/s").set_index("run")
    assert table.loc[["good", "other"], "eval/accuracy"].tolist() == [0.6, 0.6]
    assert table.loc[["good", "other"], "seed"].tolist() == [0, 2]
    assert "epochs" not in table  # which does not vary
    if content and content.startswith(b"\xff") and file != "status.json":
        assert f"{file} cannot be read" in table.loc["bad", "reason"]
    assert [row.accuracy for row in survey(study, ["good", "bad", "other"])][::2] == [0.6, 0.6]
    for arguments in ([], ["--where", "eval/accuracy > 0.5"], ["--json"]):
        assert main(["runs", *arguments]) == 0
        assert "good" in capsys.readouterr().out


def test_a_row_that_is_being_written_does_not_count(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_metrics(path) == {}
    path.write_text("epoch,eval/accuracy\n")
    assert read_metrics(path) == {}
    path.write_text("epoch,eval/accuracy\n0,0.5\n1,0.")
    assert read_metrics(path) == {
        "epoch": 0, "eval/accuracy": 0.5, "best/eval/accuracy": 0.5, "best/chosen_by": "test",
    }  # fmt: skip
    path.write_text("epoch,eval/accuracy\n0,nan\n1,0.25\n2,inf\n")
    assert read_metrics(path)["best/eval/accuracy"] == math.inf


def test_the_best_epoch_of_a_validation_split_has_its_test_accuracy_beside_it(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,eval/accuracy,test/accuracy\n0,nan,0.1\n1,0.75,0.7\n2,0.5,0.9\n")
    best = {key: value for key, value in read_metrics(path).items() if key.startswith("best/")}
    assert best == {"best/eval/accuracy": 0.75, "best/chosen_by": "validation", "best/test/accuracy": 0.7}


@pytest.mark.slow
def test_what_500_runs_share_is_parsed_once(tmp_path, monkeypatch):
    """Parsing every configuration as a whole would take 25 seconds."""
    rows = [(epoch, epoch / 300, 1.0, 4.0) for epoch in range(300)]
    for seed in range(500):
        make_run(tmp_path / "s" / f"seed={seed}", rows=rows, seed=seed)
    parsed: list[str] = []
    original = codeq.config.yaml.parse_yaml
    monkeypatch.setattr(
        codeq.config.yaml, "parse_yaml", lambda text, *more: parsed.append(text) or original(text, *more)
    )
    run_settings._part.cache_clear()
    table = collect(tmp_path / "s/*")
    assert len(parsed) < 500 * 3
    assert sum(map(len, parsed)) < 50 * len((tmp_path / "s" / "seed=0" / "config.yaml").read_text())
    assert len(table) == 500
    assert table["seed"].nunique() == 500


@pytest.mark.parametrize("lost", ["last row", "all rows", "file"])
def test_a_done_run_whose_table_lacks_epochs_has_no_result_and_a_reason(tmp_path, lost):
    for seed in (0, 1):
        make_run(tmp_path / f"s/{seed}", seed=seed)
    path = tmp_path / "s/1/metrics.csv"
    path.write_text("".join(path.read_text().splitlines(True)[:-1]) if lost == "last row" else "")
    if lost == "file":
        path.unlink()
    table = collect(tmp_path / "s/*")
    reason = f"done, but metrics.csv has {2 if lost == 'last row' else 0} of 3 epochs"
    assert table["reason"].tolist() == ["", reason]
    assert table["eval/accuracy"].notna().tolist() == [True, False]
    assert table["best/eval/accuracy"].notna().tolist() == [True, False]
    results = read_results(str(tmp_path / "s/*"))
    assert (results.summary["n"].tolist(), results.summary["mean"].tolist()) == ([1], [0.6])
    assert results.failed.to_numpy().tolist() == [["1", "done", reason]]
    assert results.curves["n"].tolist() == [1, 1, 1]
    row = survey(tmp_path / "s", ["1"])[0]  # also what a search records
    assert (math.isnan(row.accuracy), row.found.reason) == (True, reason)


def test_blank_lines_of_a_table_are_no_epochs(tmp_path):
    make_run(tmp_path / "s/a")
    path = tmp_path / "s/a/metrics.csv"
    path.write_text(path.read_text().replace("\n1,", "\n\n1,") + "\n\n")
    assert read_metrics(path)["epoch"] == 2


def test_of_a_run_that_is_not_done_the_epochs_so_far_count(tmp_path):
    make_run(tmp_path / "s/a", status="diverged", epochs=9)
    make_run(tmp_path / "s/b", epochs=3)
    (tmp_path / "s/b/config.yaml").write_text("model: mlp\n")  # of a version that wrote no epochs
    table = collect(tmp_path / "s/*")
    assert (table["reason"].tolist(), table["epoch"].tolist()) == (["", ""], [2, 2])
