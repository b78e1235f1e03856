"""Log keys of the sparsity terms never collide with each other or with other figures."""

import re
from pathlib import Path

import pytest
import torch

from codeq import ExperimentConfig
from codeq.common.errors import CodeqError
from codeq.config.term_names import RESERVED, term_names
from codeq.sparsity import LOSSES
from codeq.training import reporting


def zero(model):
    return torch.zeros(())


@pytest.mark.parametrize("name", [*sorted(RESERVED), "group_lasso_coeff", "group_lasso_2", "group_lasso_2_coeff"])
def test_a_loss_that_would_overwrite_another_figure_is_refused(name, monkeypatch):
    monkeypatch.setitem(LOSSES, name, zero)
    terms = [{"name": "group_lasso"}, {"name": "group_lasso"}, {"name": name}]
    with pytest.raises(CodeqError, match=f"loss_terms: loss '{name}' would overwrite train/{name}"):
        ExperimentConfig("x", loss_terms=terms)
    with pytest.raises(CodeqError, match="would overwrite train/"):
        ExperimentConfig("x", loss_terms=terms[::-1])


def test_a_loss_whose_coefficient_would_overwrite_a_loss():
    with pytest.raises(CodeqError, match="loss 'sparsity' would overwrite train/sparsity_coeff"):
        term_names(["sparsity"])


def test_other_names_are_legal(monkeypatch):
    monkeypatch.setitem(LOSSES, "accuracy_loss", zero)
    assert ExperimentConfig("x", sparsity_fn="accuracy_loss")
    assert (
        ExperimentConfig("x", loss_terms=[{"name": "accuracy", "function": zero}]).loss_terms[0].name == "own:accuracy"
    )
    assert term_names(["a", "b", "a", "a"]) == ["a", "b", "a_2", "a_3"]


def test_every_figure_in_the_source_of_the_training_is_reserved():
    source = Path(reporting.__file__).read_text(encoding="utf-8")
    keys = re.findall(r'"train/(\w+)"', source)
    assert len(keys) >= 6
    assert set(keys) <= RESERVED
