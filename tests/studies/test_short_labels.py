import json

from codeq.studies.short_labels import short_labels


def labels(*values):
    return short_labels([json.dumps(value) if isinstance(value, list | dict) else value for value in values], str)


def test_parts_of_configurations_are_called_by_their_names_and_what_differs():
    terms = [[{"name": "l1", "lambda": weight}, {"name": "group_lasso", "lambda": 2}] for weight in (1, 3)]
    assert labels(*terms, []) == ["l1+group_lasso(lambda=1)", "l1+group_lasso(lambda=3)", "[]"]
    terms[1][1]["lambda"] = 5
    assert labels(*terms) == ["l1+group_lasso(0.lambda=1, 1.lambda=2)", "l1+group_lasso(0.lambda=3, 1.lambda=5)"]


def test_a_setting_that_only_one_of_them_has_is_a_difference():
    default, wide = {"name": "uniform", "kwargs": {}}, {"name": "uniform", "kwargs": {"bitwidth": 8}}
    assert labels(default, wide, wide) == ["uniform(kwargs={})", *["uniform(bitwidth=8)"] * 2]


def test_other_values_stay_as_they_are():
    assert labels(["conv1", "bn"], "[odd", "{text}", 3, None) == ['["conv1", "bn"]', "[odd", "{text}", "3", "None"]


def test_different_values_never_share_a_label():
    assert labels({"name": "uniform"}, "uniform") == ['{"name": "uniform"}', "uniform"]
