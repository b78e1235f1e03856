"""Parts of a run that no new process knows: whoever registered them, and however."""

import sys

import numpy as np
import pytest
import torch
from own_parts import PARTS, forget_imports

from codeq import DATASETS, MODELS, OPTIMIZERS, QUANTIZERS, ExperimentConfig, import_parts
from codeq.common.imports import VARIABLE
from codeq.config.session_parts import session_parts
from codeq.data import register_dataset


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """What a test registers and imports is gone after it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv(VARIABLE, "")
    for registry in (DATASETS, OPTIMIZERS, QUANTIZERS):
        monkeypatch.setitem(registry, "mine", print)
        monkeypatch.delitem(registry, "mine")
    forget_imports()
    yield
    forget_imports()
    sys.modules.pop("helpers", None)
    sys.modules.pop("my_parts", None)


def test_codeq_knows_its_parts_in_every_process():
    for model in ("resnet20", "timm:resnet26"):
        term = {"name": "coupled_group_lasso", "schedule": {"name": "linear_warmup", "kwargs": {"delay": 1, "ramp": 1}}}
        assert session_parts(ExperimentConfig("x", model=model, loss_terms=[term], dataset="digits"), []) == []


def test_a_part_of_codeq_that_was_replaced_and_put_back_is_its_own_again(monkeypatch):
    config = ExperimentConfig("x", model="mlp")
    with monkeypatch.context() as patch:
        patch.setitem(MODELS, "mlp", lambda num_classes: MODELS["lenet5"](num_classes=num_classes))
        assert session_parts(config, []) == ["model 'mlp'"]
    assert session_parts(config, []) == []


def test_the_one_who_registers_counts_not_the_module_of_what_is_registered():
    register_dataset("mine", (np.zeros((40, 8, 8)), np.arange(40) % 2))
    OPTIMIZERS["mine"], QUANTIZERS["mine"] = torch.optim.SGD, QUANTIZERS["uniform"]
    config = ExperimentConfig("x", model="mlp", dataset="mine", optimizer={"type": "mine"}, quantizer={"name": "mine"})
    assert session_parts(config, []) == ["dataset 'mine'", "quantizer 'mine'", "optimizer 'mine'"]


def test_an_import_registers_for_every_process_that_makes_it(tmp_path):
    (tmp_path / "helpers.py").write_text(PARTS)
    (tmp_path / "my_parts.py").write_text("import helpers\n")
    import_parts(str(tmp_path / "my_parts.py"))
    config = ExperimentConfig("x", model="my_net", loss_terms=[{"name": "my_loss"}])
    assert session_parts(config, [str(tmp_path / "my_parts.py")]) == []
    assert session_parts(config, ["helpers"]) == []
    assert session_parts(config, []) == ["model 'my_net'", "loss 'my_loss'"]


def test_a_module_that_was_imported_before_is_known_where_it_is_listed(tmp_path):
    (tmp_path / "my_parts.py").write_text(PARTS)
    import my_parts

    assert MODELS["my_net"] is my_parts.MyNet
    config = ExperimentConfig("x", model="my_net")
    assert session_parts(config, []) == ["model 'my_net'"]
    assert session_parts(config, ["some/where/my_parts.py"]) == []
