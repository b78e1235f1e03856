import json
import math

import pytest

from codeq.common.errors import CodeqError
from codeq.studies.expand import draw, expand, make_trial
from codeq.studies.files import config_file, log_file
from codeq.studies.parts import Range, Sample
from codeq.studies.study import make_study
from codeq.studies.tasks import write_index

DZ = "optimizer.param_groups.dz.weight_decay"


def names(**content):
    return [member.name for member in expand(make_study({"name": "s", "base": "b.yaml", **content}))]


def test_every_combination_is_a_member_with_a_readable_name():
    variants = {"l2": {"theta_regularizer": "l2"}, "decoupled": {"theta_regularizer": "decoupled"}}
    assert names(grid={DZ: [0.003, 3e-5]}, variants=variants, seeds=[0, 7]) == [
        "l2,dz.weight_decay=0.003,seed=0",
        "l2,dz.weight_decay=0.003,seed=7",
        "l2,dz.weight_decay=3e-05,seed=0",
        "l2,dz.weight_decay=3e-05,seed=7",
        "decoupled,dz.weight_decay=0.003,seed=0",
        "decoupled,dz.weight_decay=0.003,seed=7",
        "decoupled,dz.weight_decay=3e-05,seed=0",
        "decoupled,dz.weight_decay=3e-05,seed=7",
    ]


def test_changes_apply_in_order_set_variant_grid_seed():
    content = {"name": "s", "base": "b.yaml", "set": {"epochs": 3}, "variants": {"v": {"quantizer.name": "deadzone"}}}
    (member,) = expand(make_study({**content, "grid": {"quantizer.kwargs.max_bits": [4]}, "seeds": [1]}))
    assert list(member.changes.items()) == [
        ("epochs", 3), ("quantizer.name", "deadzone"), ("quantizer.kwargs.max_bits", 4), ("seed", 1)
    ]  # fmt: skip
    assert member.varied == {"quantizer.name": "deadzone", "quantizer.kwargs.max_bits": 4, "seed": 1}
    assert member.variant == "v"


def test_names_stay_when_the_study_grows():
    before = names(grid={DZ: [0.1]}, seeds=[0], variants={"a": {}})
    after = names(grid={DZ: [0.2, 0.1]}, seeds=[1, 0, 2], variants={"b": {"epochs": 2}, "a": {}})
    assert set(before) < set(after)
    assert len(set(after)) == 12


def test_a_study_without_variation_has_one_member():
    assert names() == ["base"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False, None], ["x=true", "x=false", "x=null"]),
        ([1, 2.5, -3], ["x=1", "x=2.5", "x=-3"]),
        (["cosine"], ["x=cosine"]),
    ],
)
def test_plain_values_stand_in_names_in_full(values, expected):
    assert names(grid={"x": values}) == expected


def test_other_values_get_a_hash_so_that_names_stay_apart_and_safe():
    values = ["a/b", "a\\b", "../..", "x" * 300, [{"name": "group_lasso", "lambda": 1}], [{"name": "group_lasso"}], []]
    found = names(grid={"loss_terms": values})
    assert len({name.casefold() for name in found}) == len(values)
    for name in found:
        assert not set(name) & set('/\\:*?"<>| \n'), name
        assert len(name) < 130
        assert not name.startswith((".", "-"))
    assert found[4].startswith("loss_terms=group_lasso-")


def test_names_that_differ_in_case_alone_are_told_apart():
    found = names(grid={"x": ["Adam", "adam", "ADAM"]})
    assert len({name.casefold() for name in found}) == 3
    assert found[:2] == names(grid={"x": ["Adam", "adam"]})  # a value that is added renames none
    assert found[:1] == names(grid={"x": ["Adam"]})


def test_a_member_keeps_its_name_when_one_of_other_case_is_put_before_it_or_instead():
    def study(values):
        return make_study({"name": "s", "base": "b.yaml", "grid": {"x": values}})

    (first,) = expand(study(["Adam"]))
    write_index(study(["Adam"]), [first])
    added, kept = expand(study(["adam", "Adam"]))
    assert kept == first
    assert added.name.startswith("x=adam-")
    write_index(study(["adam", "Adam"]), [added, kept])
    assert expand(study(["adam"])) == [added]
    assert expand(study(["Adam", "adam"])) == [kept, added]


def test_keys_of_the_same_short_name_are_written_in_full():
    found = names(grid={"loss_terms.0.schedule.kwargs.delay": [1], "loss_terms.1.schedule.kwargs.delay": [2]})
    assert found == ["loss_terms.0.schedule.kwargs.delay=1,loss_terms.1.schedule.kwargs.delay=2"]


def test_long_names_are_cut_and_stay_apart():
    grid = {f"some.quite_long_key_number_{i}": [1, 2] for i in range(8)}
    found = names(grid=grid)
    assert len(set(found)) == 256
    assert max(map(len, found)) <= 120


@pytest.mark.parametrize("letter", ["a", "ä", "模", "𠀀"])
def test_names_of_wide_letters_fit_into_those_of_files_and_stay_apart(letter, tmp_path):
    found = [name for n in range(50, 130) for name in names(grid={letter * n: ["x", "X"]})]
    assert len({name.casefold() for name in found}) == 160
    for name in found:
        for path in (config_file(tmp_path, name), log_file(tmp_path, name), tmp_path / f"{name}.999"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def test_a_study_whose_name_is_too_long_for_a_folder_is_refused():
    study = {"base": "b.yaml", "seeds": [0]}
    assert make_study({**study, "name": "模" * 80})
    with pytest.raises(CodeqError, match="must be at most 255 bytes"):
        make_study({**study, "name": "𠀀" * 80})


def sample(n, **ranges):
    return draw(Sample(n=n, ranges={key: Range(**bounds) for key, bounds in ranges.items()}))


def test_draws_stay_when_there_are_more_of_them_or_more_ranges():
    few = sample(5, lr={"low": 1e-4, "high": 1e-1, "log": True})
    assert sample(9, lr={"low": 1e-4, "high": 1e-1, "log": True})[:5] == few
    both = sample(5, lr={"low": 1e-4, "high": 1e-1, "log": True}, other={"low": 0, "high": 1.0})
    assert [one["lr"] for one in both] == [one["lr"] for one in few]


def test_logarithmic_draws_fill_each_decade_alike():
    values = [one["lr"] for one in sample(900, lr={"low": 1e-4, "high": 1e-1, "log": True})]
    decades = [sum(math.floor(math.log10(value)) == k for value in values) for k in (-4, -3, -2)]
    assert all(250 < count < 350 for count in decades)  # 300 expected, standard deviation 14
    assert min(values) >= 1e-4
    assert max(values) <= 1e-1
    assert all(value == float(f"{value:.4g}") for value in values)


def test_even_draws_have_the_mean_of_the_range():
    values = [one["x"] for one in sample(900, x={"low": -1.0, "high": 3.0})]
    assert abs(sum(values) / len(values) - 1.0) < 0.15  # standard error 4 / sqrt(12 * 900) = 0.04


def test_integers_are_drawn_between_integers_each_once():
    values = [one["bits"] for one in sample(7, bits={"low": 2, "high": 8})]
    assert sorted(values) == [2, 3, 4, 5, 6, 7, 8]
    assert all(type(value) is int for value in values)
    assert json.dumps(values[0]).isdecimal()


def test_more_draws_than_values_are_refused():
    with pytest.raises(CodeqError, match=r"sample\.n=8: the ranges have too few different values; 7"):
        sample(8, bits={"low": 2, "high": 8})


def test_another_seed_draws_other_values():
    ranges = {"x": Range(low=0.0, high=1.0)}
    assert draw(Sample(n=3, ranges=ranges, seed=1)) != draw(Sample(n=3, ranges=ranges))


def test_a_seed_in_braces_is_the_members():
    keys = {"init_from": "outputs/float/seed={seed}", "distillation": {"teacher": "t{seed}", "alpha": 0.5}}
    study = {"name": "s", "base": "b.yaml", "set": keys}
    members = expand(make_study({**study, "seeds": [0, 12]}))
    assert [member.name for member in members] == ["seed=0", "seed=12"]
    assert members[1].changes["init_from"] == "outputs/float/seed=12"
    assert members[1].changes["distillation"] == {"teacher": "t12", "alpha": 0.5}
    assert expand(make_study(study))[0].changes["init_from"] == "outputs/float/seed={seed}"
    given = expand(make_study({**study, "set": {**keys, "seed": 3, "imports": ["p{seed}.py"]}}))[0].changes
    assert (given["init_from"], given["imports"]) == ("outputs/float/seed=3", ["p3.py"])
    variants = expand(make_study({**study, "variants": {"a": {"seed": 1}, "b": {"seed": 2}}}))
    assert [member.changes["init_from"] for member in variants] == [f"outputs/float/seed={seed}" for seed in (1, 2)]
    search = {"ranges": {"lr": {"low": 0.1, "high": 1.0}}, "trials": 2}
    searched = make_study({**study, "set": {**keys, "seed": 5}, "search": search})
    assert make_trial(searched, {"lr": 0.5}).changes["init_from"] == "outputs/float/seed=5"
