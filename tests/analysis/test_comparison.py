import re
from pathlib import Path

import numpy as np
import pytest
from run_tables import record, written_run

from codeq import ExperimentConfig, Run
from codeq.analysis import common_layers, differing_settings, distinct_names
from codeq.analysis.comparison import mean_over_seeds
from codeq.analysis.tables import summary_table
from codeq.common.errors import CodeqError

LASSO = {"name": "group_lasso", "lambda": 0.1}


def test_settings_that_differ_are_listed_and_name_the_runs(tmp_path):
    a = written_run(tmp_path / "a", lr=0.1, loss_terms=[LASSO], seed=0)
    b = written_run(tmp_path / "b", lr=0.1, loss_terms=[LASSO | {"lambda": 0.2}], seed=0)
    c = written_run(tmp_path / "c", lr=0.1, loss_terms=[LASSO | {"lambda": 0.2}], seed=1)
    table = differing_settings([a, b, c])
    assert list(table.columns) == ["a", "b", "c"]
    assert table.loc["loss_terms.0.lambda"].tolist() == ["0.1", "0.2", "0.2"]
    assert table.loc["seed"].tolist() == ["0", "0", "1"]
    assert len(table) == 2  # neither the names and folders, nor what is equal
    assert distinct_names([a, b, c]) == ["lambda=0.1, seed=0", "lambda=0.2, seed=0", "lambda=0.2, seed=1"]
    assert distinct_names([a, b]) == ["lambda=0.1", "lambda=0.2"]


def test_runs_without_a_difference_and_unreadable_ones_have_names_too(tmp_path):
    one, twin, damaged = (written_run(tmp_path / name) for name in ("one", "twin", "damaged"))
    assert distinct_names([one, twin]) == ["one", "twin"]
    assert not len(differing_settings([one, twin]))
    assert distinct_names([]) == []
    (damaged.folder / "config.yaml").write_text("[")
    assert set(differing_settings([one, damaged])["damaged"]) == {"?"}
    assert len(set(distinct_names([one, twin, damaged]))) == 3


def test_runs_that_have_little_in_common_are_named_by_their_folders(tmp_path):
    twins = [written_run(tmp_path / f"s{seed}", (0.5,), seed=seed, status="done") for seed in (0, 1)]
    other = ExperimentConfig.from_yaml(Path(__file__).parents[2] / "configs" / "kill_channels_resnet20.yaml")
    foreign = Run.create(other.override({"run_dir": str(tmp_path / "foreign")}))
    record(foreign, (0.5,) * other.epochs)
    foreign.set_status("done")
    assert len(differing_settings([twins[0], foreign])) > 10
    assert distinct_names([twins[0], foreign]) == ["s0", "foreign"]
    group, _ = mean_over_seeds([*twins, foreign])["run"]
    assert group.endswith("(2 seeds)")
    assert "s0" not in group


def test_an_unreadable_configuration_leaves_the_names_of_other_runs_as_they_are(tmp_path):
    damaged, *others = (written_run(tmp_path / f"r{k}", lr=0.1 * (k or 3)) for k in range(3))
    (damaged.folder / "config.yaml").write_text("[")
    assert distinct_names([damaged, *others]) == ["lr=?", "lr=0.1", "lr=0.2"]


def test_an_unreadable_configuration_leaves_the_name_of_a_group_as_it_is(tmp_path):
    runs = [written_run(tmp_path / f"s{seed}", (0.5,), seed=seed, status="done") for seed in (0, 1)]
    damaged = written_run(tmp_path / "damaged", (0.5,), status="done")
    (damaged.folder / "config.yaml").write_text("[")
    assert mean_over_seeds([*runs, damaged])["run"].tolist() == ["s0 (2 seeds)", "damaged"]
    assert distinct_names([runs[0], damaged]) == ["s0", "damaged"]


def test_runs_that_differ_in_the_seed_are_one_point_with_a_spread(tmp_path):
    seeds = [
        written_run(tmp_path / f"s{seed}", (accuracy,), seed=seed, status="done")
        for seed, accuracy in enumerate((0.5, 0.7))
    ]
    other = written_run(tmp_path / "other", (0.9,), lr=0.1, status="done")
    begun = written_run(tmp_path / "begun", ())
    table = mean_over_seeds([seeds[0], other, begun, seeds[1]])
    assert table["run"].tolist() == ["lr=0.001 (2 seeds)", "lr=0.1"]
    assert table["accuracy"].tolist() == pytest.approx([0.6, 0.9])
    assert table["accuracy_std"].tolist() == pytest.approx([0.02**0.5, float("nan")], nan_ok=True)  # √(2 · 0.1²)
    assert table["unstructured_bops"].tolist() == pytest.approx([1 / 20, 1 / 20])
    assert mean_over_seeds([other])["run"].tolist() == ["other"]
    with pytest.raises(CodeqError, match="no epoch has been evaluated"):
        mean_over_seeds([begun])


def test_a_done_run_whose_table_lacks_its_last_epoch_is_in_no_mean(tmp_path):
    runs = [written_run(tmp_path / f"s{seed}", (0.2, 0.5 + seed / 10), seed=seed, status="done") for seed in range(3)]
    table = runs[2].folder / "metrics.csv"
    table.write_text("".join(table.read_text().splitlines(True)[:-1]))
    means = mean_over_seeds(runs)
    assert (means["seeds"].tolist(), means["accuracy"].tolist()) == ([2], pytest.approx([0.55]))
    row = summary_table(runs).iloc[2]
    assert (row["epochs"], row["message"]) == (1, "done, but metrics.csv has 1 of 2 epochs")
    assert row[["accuracy", "accuracy_best", "best_epoch", "unstructured_bops"]].isna().all()


def test_runs_that_leave_an_argument_to_its_default_are_one_point_with_those_that_give_it(tmp_path):
    given = ({}, {"quantizer_kwargs": {"max_bits": 8}, "model_kwargs": {"patch_size": 16}})
    common = {"status": "done", "model": "vit", "quantizer": "deadzone"}
    runs = [written_run(tmp_path / f"s{k}", (0.5,), seed=k, **common, **more) for k, more in enumerate(given)]
    assert mean_over_seeds(runs)["run"].tolist() == ["s0 (2 seeds)"]
    assert differing_settings(runs).index.tolist() == ["seed"]
    other = written_run(tmp_path / "other", (0.5,), **common, quantizer_kwargs={"max_bits": 4})
    assert differing_settings([*runs, other]).loc["quantizer.kwargs.max_bits"].tolist() == ["8", "8", "4"]


def test_runs_that_start_from_the_runs_of_their_seeds_are_one_point(tmp_path):
    runs = [
        written_run(tmp_path / f"s{k}", (0.5,), seed=k, status="done", init_from=f"outputs/float/seed={k}")
        for k in (1, 10)
    ]
    assert mean_over_seeds(runs)["run"].tolist() == ["s1 (2 seeds)"]
    assert differing_settings(runs).index.tolist() == ["seed"]
    assert distinct_names(runs) == ["seed=1", "seed=10"]
    other = written_run(tmp_path / "other", (0.5,), seed=1, status="done", init_from="outputs/float/seed=10")
    assert len(mean_over_seeds([*runs, other])) == 2


def test_keys_that_decide_nothing_divide_no_groups_and_name_runs_last(tmp_path):
    runs = [
        written_run(tmp_path / f"{lr}-{k}", (0.5,), seed=k, lr=lr, status="done", workers=10 * lr + k)
        for lr in (1, 2)
        for k in (0, 1)
    ]
    assert mean_over_seeds(runs)["run"].tolist() == ["lr=1 (2 seeds)", "lr=2 (2 seeds)"]
    assert "workers" in differing_settings(runs).index
    twin = written_run(tmp_path / "twin", (0.5,), lr=1, workers=9, status="done")
    assert distinct_names([runs[0], twin]) == ["workers=10", "workers=9"]


def test_the_same_teachers_of_all_seeds_are_nobodys_own(tmp_path):
    shared = {"teacher": ["outputs/float/seed=0", "outputs/float/seed=1"], "alpha": 0.5}
    runs = [
        written_run(
            tmp_path / f"s{k}", (0.5,), seed=k, status="done", init_from=f"outputs/float/seed={k}", distillation=shared
        )
        for k in range(3)
    ]
    assert mean_over_seeds(runs)["run"].tolist() == ["s0 (3 seeds)"]
    assert differing_settings(runs).index.tolist() == ["seed"]


def test_runs_that_share_a_network_of_one_seed_are_one_point(tmp_path):
    runs = [
        written_run(tmp_path / f"s{k}", (0.5,), seed=k, status="done", init_from="outputs/float/seed=0")
        for k in (0, 1, 2)
    ]
    assert mean_over_seeds(runs)["run"].tolist() == ["s0 (3 seeds)"]
    assert differing_settings(runs).index.tolist() == ["seed"]


def test_unfinished_runs_are_separate_points_named_with_their_status(tmp_path):
    seeds = [written_run(tmp_path / f"s{seed}", (0.5 + seed / 10,), seed=seed, status="done") for seed in (0, 2)]
    begun = written_run(tmp_path / "s1", (0.1,), seed=1, epochs=1)
    table = mean_over_seeds([begun, *seeds])
    assert table["run"].tolist() == ["s0 (2 seeds)", "s1 (running)"]
    assert table["accuracy"].tolist() == pytest.approx([0.6, 0.1])
    other = written_run(tmp_path / "other", (0.9,), lr=0.1, status="failed", epochs=1)
    table = mean_over_seeds([*seeds, begun, other])
    assert table["run"].tolist() == ["lr=0.001 (2 seeds)", "s1: lr=0.001 (running)", "lr=0.1 (failed)"]
    assert mean_over_seeds([other])["run"].tolist() == ["other (failed)"]


def test_repeats_of_a_seed_are_not_counted_as_seeds(tmp_path):
    twins = [written_run(tmp_path / name, (0.5,), status="done") for name in "ab"]
    table = mean_over_seeds(twins)
    assert table["run"].tolist() == ["a (2 runs of seed 0)"]
    assert table["seeds"].tolist() == [1]
    third = written_run(tmp_path / "c", (0.8,), seed=1, status="done")
    assert mean_over_seeds([*twins, third])["run"].tolist() == ["a (3 runs of 2 seeds)"]


def test_of_runs_of_one_seed_the_last_is_the_sample_whatever_their_order(tmp_path):
    runs = [
        written_run(tmp_path / name, (accuracy,), seed=seed, status="done")
        for name, accuracy, seed in (("a", 0.1, 0), ("b", 0.5, 0), ("c", 0.8, 1))
    ]
    for order in (runs, runs[::-1]):
        table = mean_over_seeds(order)
        assert table["accuracy"].tolist() == pytest.approx([0.65])
        assert table["accuracy_std"].tolist() == pytest.approx([0.045**0.5])  # √(2 · 0.15²)
    assert mean_over_seeds(runs[:2])["accuracy"].tolist() == [0.5]
    assert np.isnan(mean_over_seeds(runs[:2])["accuracy_std"].iloc[0])  # one seed has no spread
    text = (runs[0].folder / "config.yaml").read_text()
    for run in runs[:2]:
        (run.folder / "config.yaml").write_text(re.sub(r"^seed: .*\n", "", text, flags=re.MULTILINE))
    assert mean_over_seeds(runs[:2])["accuracy"].tolist() == pytest.approx([0.3])  # nobody knows whether they differ


def test_layers_of_all_runs_are_compared_in_the_order_of_the_first(tmp_path):
    one = written_run(tmp_path / "one", bits=4)
    other = written_run(tmp_path / "other", layers=("linear", "conv1", "conv2"))
    table, missing = common_layers([one, other], ["A", "B"])
    assert table["layer"].tolist() == ["conv1", "linear"] * 2
    assert table["run"].tolist() == ["A", "A", "B", "B"]
    assert table["bits"].tolist() == [4, 4, 8, 8]
    assert table["dead_filters"].tolist() == [0, 2 / 8, 1 / 8, 0]
    assert table["zero_weights"].tolist() == [0.25] * 4
    assert missing == 2
    wide = written_run(tmp_path / "wide", filters=16)
    assert [len(part) if k == 0 else part for k, part in enumerate(common_layers([one, wide], ["A", "B"]))] == [0, 3]
    with pytest.raises(CodeqError, match="no epoch has been recorded"):
        common_layers([one, written_run(tmp_path / "begun", accuracies=())], ["A", "B"])
    with pytest.raises(CodeqError, match="runs contains no run"):
        common_layers([], [])


def test_runs_with_and_without_validation_images_are_compared_on_the_test_images(tmp_path):
    runs = [written_run(tmp_path / name, (0.5, 0.9), status="done", lr=lr) for name, lr in (("a", 0.1), ("b", 0.2))]
    history = runs[1].history.assign(**{"test/accuracy": [0.4, 0.7]})
    history.to_csv(runs[1].folder / "metrics.csv", index=False)
    assert mean_over_seeds(runs)["accuracy"].tolist() == [0.9, 0.7]
