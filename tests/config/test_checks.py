"""Names, arguments and combinations that only registries know."""

import functools
from typing import Any

import pytest
import torch
from cases import each
from torch import nn

from codeq.common.errors import CodeqError
from codeq.common.registry import Named
from codeq.config import ExperimentConfig
from codeq.models import MODELS
from codeq.optimizers import OPTIMIZERS
from codeq.quantizer import QUANTIZERS
from codeq.schedules import SCHEDULES, cosine_anneal, linear_warmup
from codeq.sparsity import LOSSES, coupled_group_lasso, group_lasso, group_lasso_blocks, group_lasso_channels


def message(**settings):
    with pytest.raises(CodeqError) as caught:
        ExperimentConfig("x", **settings)
    return str(caught.value).removeprefix("ExperimentConfig: ")


@each(
    ("settings", "line"),
    [
        ({"model": "resnt20"}, "model='resnt20': model 'resnt20' is unknown. Did you mean 'resnet20'?"),
        ({"model": "own:mine"}, "import 'own' failed: ModuleNotFoundError: No module named 'own'"),
        ({"dataset": "cifar1O"}, "dataset='cifar1O': dataset 'cifar1O' is unknown. Did you mean 'cifar10'?"),
        (
            {"quantizer": "deadzon"},
            "quantizer.name='deadzon': quantizer 'deadzon' is unknown. Did you mean 'deadzone'?",
        ),
        ({"sparsity_fn": "l1_kernel"}, "loss_terms.0.name='l1_kernel': loss 'l1_kernel' is unknown. Did you mean"),
        (
            {"quantizer_kwargs": {"max_bit": 4}},
            "quantizer.kwargs: quantizer 'deadzone' has no argument 'max_bit'. Did you mean 'max_bits'?",
        ),
        ({"quantizer_kwargs": {"max_bits": 99}}, "quantizer.kwargs: max_bits=99: must be an integer from 2 to 16"),
        ({"quantizer_kwargs": {"learnable_bit": "no"}}, "quantizer.kwargs: learnable_bit='no': must be true or false"),
        ({"quantizer_kwargs": {"learnable_bit": 1}}, "quantizer.kwargs: learnable_bit=1: must be true or false"),
        ({"quantizer_kwargs": {"init_bit_logit": "3"}}, "quantizer.kwargs: init_bit_logit='3': must be a number"),
        ({"quantizer_kwargs": {"init_bit_logit": True}}, "quantizer.kwargs: init_bit_logit=True: must be a number"),
        ({"model_kwargs": {"num_classes": 10}}, "model_kwargs: num_classes is a key of the configuration itself"),
        ({"model_kwargs": {"shortcuts": "B"}}, "model_kwargs: model 'resnet20' has no argument 'shortcuts'. Did you"),
        ({"model_kwargs": {"shortcut": "C"}}, "model_kwargs: shortcut='C': must be one of A, B"),
        ({"model_kwargs": {"": 1}}, "model_kwargs: model 'resnet20' has no argument ''."),
        (
            {"quantizer_kwargs": {"init_bit_logit": float("nan")}},
            "quantizer.kwargs: init_bit_logit=nan: must be finite",
        ),
        ({"quantizer_kwargs": {"max_bits": 8.0}}, "quantizer.kwargs: max_bits=8.0: must be an integer"),
        ({"quantizer_kwargs": {"max_bits": True}}, "quantizer.kwargs: max_bits=True: must be an integer"),
        (
            {"quantizer_kwargs": {"scale": "learn"}},
            "quantizer.kwargs: scale='learn': must be one of absmax, learned, held",
        ),
        ({"seed": 2**64}, "seed=18446744073709551616: must be at most 18446744073709551615"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"epochs": 10**30}, "epochs=1000000000000000000000000000000: must be at most 2147483647"),
        ({"epochs": 10**5000}, "epochs=<int"),
        ({"batch_size": 2**31}, "batch_size=2147483648: must be at most 2147483647"),
        ({"img_size": 0}, "img_size=0: must be at least 1"),
        ({"lr": 10**400}, "optimizer.param_groups.base.lr=1000"),
        ({"wandb_project": 3}, "wandb_project=3: must be text (quotes make text of it in YAML)"),
        ({"data_dir": "a\0b"}, "data_dir='a\\x00b': must not contain a NUL character"),
        ({"run_dir": "\ud800"}, "run_dir='\\ud800': "),
        ({"num_classes": 11}, "num_classes=11: data set 'cifar10' has 10 classes; num_classes can be left out"),
        ({"device": "gpu"}, "device='gpu': device 'gpu' is unknown. Allowed: cpu"),
        (
            {"optimizer": {"type": "adam", "param_groups": {"dz": {"momentum": 0.9}}}},
            "optimizer.param_groups: dz.momentum=0.9: adam has no momentum, sgd has",
        ),
        (
            {"optimizer": {"param_groups": {"base": {"nesterov": True}}}},
            "optimizer.param_groups: base.nesterov=True: adamw has no nesterov, sgd has",
        ),
        (
            {"optimizer": {"type": "sgd", "param_groups": {"base": {"nesterov": True}}}},
            "optimizer: optimizer 'sgd' cannot be made: ValueError: Nesterov momentum requires a momentum",
        ),
        (
            {
                "optimizer": {
                    "type": "sgd",
                    "kwargs": {"nesterov": True},
                    "param_groups": {"base": {"momentum": 0.9, "nesterov": False}},
                }
            },
            "optimizer: nesterov is in kwargs and in param_groups.base: give only one of them",
        ),
        (
            {"lr_scheduler": "one_cycle", "epochs": 20},
            "lr_scheduler_kwargs: warmup=0: one_cycle needs a number of epochs from 1 to epochs - 1 = 19",
        ),
        (
            {"lr_scheduler": "one_cycle", "epochs": 20, "lr_scheduler_kwargs": {"warmup": 20}},
            "lr_scheduler_kwargs: warmup=20: one_cycle needs a number of epochs from 1 to epochs - 1 = 19",
        ),
        (
            {"lr_scheduler": "one_cycle", "epochs": 1, "lr_scheduler_kwargs": {"warmup": 1}},
            "lr_scheduler_kwargs: one_cycle needs at least two epochs",
        ),
        ({"theta_schedule": {"name": "ramp"}}, "theta_schedule.name='ramp': schedule 'ramp' is unknown."),
        (
            {"theta_schedule": {"name": "linear_warmup", "kwargs": {"delay": -1, "ramp": 1}}},
            "theta_schedule.kwargs: delay=-1: must be at least 0",
        ),
    ],
)
def test_refused(settings, line):
    text = message(**settings)
    assert text.startswith(line)
    assert "\n" not in text


@each(
    ("term", "line"),
    [
        ({"kwargs": {"lambda_con": 1.0}}, "kwargs: loss 'group_lasso' has no argument 'lambda_con'. Did you mean"),
        ({"kwargs": {"lambda_conv": "1"}}, "kwargs: lambda_conv='1': must be a number"),
        ({"kwargs": {"lambda_conv": float("inf")}}, "kwargs: lambda_conv=inf: must be finite"),
        ({"kwargs": {"weights": [1, 2]}}, "kwargs: weights=[1, 2]: must be a mapping"),
        ({"kwargs": {"weights": {"fc1": "high"}}}, "kwargs: weights.fc1='high': must be a number"),
        ({"kwargs": {"weights": {"fc1": True}}}, "kwargs: weights.fc1=True: must be a number"),
        (
            {"name": "group_lasso_blocks", "kwargs": {"block_size": 0.5}},
            "kwargs: block_size=0.5: must be an integer",
        ),
        (
            {"schedule": {"name": "cosine_anneal", "kwargs": {"delay": float("nan")}}},
            "schedule.kwargs: delay=nan: must be finite",
        ),
        (
            {"schedule": {"name": "linear_warmup", "kwargs": {"delay": 1, "ramp": -1}}},
            "schedule.kwargs: ramp=-1: must be at least 0 (epochs)",
        ),
        ({"schedule": {"name": "constant", "kwargs": {"value": -1}}}, "schedule.kwargs: value=-1: must be at least 0"),
        ({"name": "coupled_group_lasso", "kwargs": {"classifier": "on"}}, "kwargs: classifier='on': must be true or"),
        (
            {"step": "proximal"},
            "step='proximal': loss 'group_lasso' has no proximal step. Losses with one: coupled",
        ),
        ({"schedule": {"name": "linear"}}, "schedule.name='linear': schedule 'linear' is unknown. Did you mean"),
        (
            {"schedule": {"name": "linear_warmup"}},
            "schedule.kwargs: schedule 'linear_warmup' needs the argument 'delay'",
        ),
        (
            {"schedule": {"name": "linear_warmup", "kwargs": {"delay": -1, "ramp": 0}}},
            "schedule.kwargs: delay=-1: must be at least 0 (epochs)",
        ),
        (
            {"schedule": {"name": "linear_warmup", "kwargs": {"delay": "5", "ramp": 0}}},
            "schedule.kwargs: delay='5': must be a number",
        ),
        ({"schedule": {"name": "constant", "kwargs": {"value": "1"}}}, "schedule.kwargs: value='1': must be a number"),
        (
            {"name": "own:f", "kwargs": {"a": 1}},
            "kwargs: 'own:f' is a callable of your own: bind its arguments yourself",
        ),
        ({"name": "own:f", "step": "proximal"}, "step='proximal': loss 'own:f' has no proximal step."),
        (
            {"kwargs": {"weights": {1: 2.0}}},
            "kwargs: weights={1: 2.0}: must be text, a number, true, false, null, or lists or mappings of them, whose "
            "keys are text (in quotes in YAML",
        ),
        ({"kwargs": {"weights": {"conv1": [1j]}}}, "kwargs: weights={'conv1': [1j]}: must be text, a number"),
    ],
)
def test_refused_loss_terms(term, line):
    text = message(loss_terms=[{"name": "group_lasso"} | term])
    assert text.startswith(f"loss_terms.0.{line}")
    assert "\n" not in text


def test_a_registered_name_for_another_function_is_a_contradiction():
    text = message(loss_terms=[{"name": "group_lasso", "function": own_loss}])
    assert "loss 'group_lasso' is another function: give only one of name and function" in text


def test_a_proximal_step_where_there_is_one():
    config = ExperimentConfig("x", loss_terms=[{"name": "coupled_group_lasso", "step": "proximal"}])
    assert config.loss_terms[0].step == "proximal"


def test_what_depends_on_a_wrong_name_is_not_reported_as_well():
    text = message(quantizer={"name": "deadzon", "kwargs": {"x": 1}}, model="resnet", model_kwargs={"y": 1})
    assert text.count("\n") == 2
    assert "'x'" not in text
    assert "'y'" not in text


def test_a_users_quantizer_may_raise_anything(monkeypatch):
    class Mine(nn.Module):
        def __init__(self, table: Any = None) -> None:
            raise KeyError(table)

    monkeypatch.setitem(QUANTIZERS, "mine", Mine)
    assert message(quantizer="mine") == "quantizer.kwargs: quantizer 'mine' cannot be made: KeyError: None"


def test_class_counts():
    assert ExperimentConfig("x", dataset="cifar100").num_classes == 100
    assert ExperimentConfig("x", dataset="cifar100", num_classes=100).num_classes == 100
    assert ExperimentConfig("x", dataset="imagefolder").num_classes is None
    assert ExperimentConfig("x", dataset="imagefolder", num_classes=3).num_classes == 3


def test_models_are_checked_without_being_made(monkeypatch):
    def mine(num_classes, width=1):
        raise AssertionError("made")

    monkeypatch.setitem(MODELS, "mine", mine)
    assert ExperimentConfig("x", model="mine", model_kwargs={"width": 2}).exclude_layers == []
    assert "must be a number" in message(model="mine", model_kwargs={"width": "2"})


def own_loss(model):
    return torch.zeros(())


class OwnSchedule:
    def __call__(self, epoch, total_epochs):  # noqa: ARG002
        return 0.5


def test_arguments_beside_a_function_that_has_others_are_a_contradiction():
    block = {"function": group_lasso_blocks(2), "kwargs": {"block_size": 8}}
    text = message(loss_terms=[block])
    made = "loss 'group_lasso_blocks' was made with {'block_size': 2}: give only one of them"
    assert f"loss_terms.0: kwargs={{'block_size': 8}}: {made}" in text
    ramp = {"function": linear_warmup(1, 2), "kwargs": {"delay": 3, "ramp": 2}}
    assert "was made with {'delay': 1, 'ramp': 2}" in message(theta_schedule=ramp)
    (term,) = ExperimentConfig("x", loss_terms=[block | {"kwargs": {"block_size": 2}}]).loss_terms
    assert term.kwargs == {"block_size": 2}
    (term,) = ExperimentConfig("x", loss_terms=[{"function": group_lasso, "kwargs": {"lambda_linear": 2.0}}]).loss_terms
    assert term.kwargs == {"lambda_linear": 2.0}


def test_registered_functions_are_recorded_by_name():
    config = ExperimentConfig("x", sparsity_fn=group_lasso_channels, sparsity_schedule=linear_warmup(1, 2))
    (term,) = config.loss_terms
    assert (term.name, term.kwargs, term.function) == ("group_lasso_channels", {}, None)
    assert (term.schedule.name, term.schedule.kwargs) == ("linear_warmup", {"delay": 1, "ramp": 2})
    assert term.schedule.function is None
    assert config.sparsity_fn is group_lasso_channels
    assert config.sparsity_schedule == linear_warmup(1, 2)


def test_made_by_a_registered_factory():
    config = ExperimentConfig("x", sparsity_fn=group_lasso_blocks(block_size=8), sparsity_schedule=cosine_anneal(3))
    assert (config.loss_terms[0].name, config.loss_terms[0].kwargs) == ("group_lasso_blocks", {"block_size": 8})
    assert config.sparsity_fn == group_lasso_blocks(block_size=8)


def test_a_loss_with_arguments_reads_back_as_one_callable():
    net = nn.Sequential(nn.Linear(3, 4))
    config = ExperimentConfig("x", loss_terms=[{"name": "group_lasso", "kwargs": {"lambda_linear": 2.0}}])
    assert torch.equal(config.sparsity_fn(net), group_lasso(net, lambda_linear=2.0))
    assert ExperimentConfig("x", sparsity_fn=config.sparsity_fn) == config


def test_a_factory_itself_stands_for_its_defaults():
    assert ExperimentConfig("x", sparsity_fn=coupled_group_lasso) == ExperimentConfig(
        "x", sparsity_fn="coupled_group_lasso"
    )


def test_coupled_groups_made_for_a_model_are_recorded_by_their_arguments():
    loss = coupled_group_lasso(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), classifier=True)
    (term,) = ExperimentConfig("x", sparsity_fn=loss).loss_terms
    assert term.name == "coupled_group_lasso"
    assert term.kwargs["classifier"] is True
    assert term.function is None


def test_registered_by_a_user(monkeypatch):
    monkeypatch.setitem(LOSSES, "mine", own_loss)
    assert ExperimentConfig("x", sparsity_fn=own_loss).loss_terms[0].name == "mine"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (own_loss, "own:own_loss"),
        (functools.partial(own_loss), "own:functools.partial(<function own_loss>)"),
        (Named("mine", {}, own_loss), "own:mine()"),
    ],
)
def test_own_callables_are_recorded_without_an_address(function, name):
    (term,) = ExperimentConfig("x", sparsity_fn=function).loss_terms
    assert (term.name, term.function) == (name, function)
    assert ExperimentConfig("x", sparsity_fn=function).sparsity_fn == function


def test_own_schedule():
    config = ExperimentConfig("x", sparsity_fn="group_lasso", sparsity_schedule=OwnSchedule())
    assert config.loss_terms[0].schedule.name.endswith("OwnSchedule object>")
    assert config.sparsity_schedule(0, 1) == 0.5


def test_callables_among_loss_terms():
    terms = [own_loss, {"name": "mine", "function": own_loss, "lambda": 2}, group_lasso_blocks(2)]
    first, second, third = ExperimentConfig("x", loss_terms=terms).loss_terms
    assert (first.name, second.name, third.name) == ("own:own_loss", "own:mine", "group_lasso_blocks")
    assert (second.function, second.lambda_, third.kwargs) == (own_loss, 2.0, {"block_size": 2})


def test_registries_know_nothing_own():
    assert not [name for registry in (LOSSES, SCHEDULES) for name in registry if name.startswith("own:")]


def test_a_decoupled_regularizer_needs_an_optimizer_with_weight_decay(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "rprop", torch.optim.Rprop)
    rprop = {"theta_regularizer": "decoupled", "optimizer": {"type": "rprop"}}
    refused = "optimizer: param_groups.dz.weight_decay=0.01: rprop has no weight_decay, adamw has"
    assert message(**rprop).startswith(refused)
    kept = ExperimentConfig("x", **rprop, weight_decay_dz=0.0, weight_decay_bit=0.0)
    assert kept.override({"optimizer.theta.type": "adamw", "optimizer.param_groups.dz.weight_decay": 0.1}).lr_dz == 1e-3
    assert ExperimentConfig("x", **(rprop | {"theta_regularizer": "l2"})).weight_decay_dz == 0.01
    assert ExperimentConfig("x", **rprop, quantizer=None).quantizer is None


def test_a_loss_of_the_model_is_made_for_inputs_of_the_configured_size():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(2 * 12 * 12, 2))
    config = ExperimentConfig("x", img_size=16, sparsity_fn="coupled_group_lasso")
    expected = coupled_group_lasso(net, input_size=(3, 16, 16))(net)
    assert torch.equal(config.sparsity_fn(net), expected)
