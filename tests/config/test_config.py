"""`ExperimentConfig`: its defaults, the YAML form, round trips, changes, and all problems at once."""

import copy
import dataclasses
import inspect
import pickle
from pathlib import Path

import pytest
import torch
from cases import each
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.config.aliases import ALIASES
from codeq.config.optimizer import OptimizerConfig, ParamGroup, ParamGroups
from codeq.config.parts import LossTerm, QuantizerConfig, ScheduleConfig
from codeq.config.yaml import dump_yaml
from codeq.schedules import constant, linear_warmup
from codeq.sparsity import group_lasso_blocks, group_lasso_channels

YAML = (Path(__file__).parent / "promised.yaml").read_text()


def load(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return ExperimentConfig.from_yaml(path)


def test_defaults_are_the_papers():
    config = ExperimentConfig(name="x")
    values = {
        "name": "x",
        "model": "resnet20",
        "num_classes": 10,
        "dataset": "cifar10",
        "batch_size": 512,
        "num_workers": 2,
        "epochs": 300,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "lr_scheduler": "cosine",
        "quantizer_kwargs": {
            "max_bits": 8,
            "init_bit_logit": 3.0,
            "init_deadzone_logit": 3.0,
            "learnable_bit": True,
            "learnable_deadzone": True,
        },
        "exclude_layers": ["conv1", "bn", "linear"],
        "lr_dz": 1e-3,
        "lr_bit": 1e-3,
        "weight_decay_dz": 0.01,
        "weight_decay_bit": 0.01,
        "sparsity_fn": None,
        "sparsity_schedule": constant(1.0),
        "device": None,
        "wandb_project": "codeq",
        "viz_interval": 25,
        "theta_regularizer": "l2",
        "seed": 0,
        "loss_terms": [],
        "use_compile": False,
        "img_size": 32,
    }
    assert {name: getattr(config, name) for name in values} == values
    assert (config.quantizer.name, config.optimizer.type) == ("deadzone", "adamw")


def test_exclusions_depend_on_the_model():
    assert ExperimentConfig("x", model="resnet110").exclude_layers == ["conv1", "bn", "linear"]
    assert ExperimentConfig("x", model="mlp").exclude_layers == []


@each(("model", "expected"), [("resnet20", ["conv1", "bn", "linear"]), ("mlp", [])])
def test_a_quantizer_as_an_object_has_the_same_defaults_as_a_mapping(model, expected):
    quantizer = QuantizerConfig(name="uniform", kwargs={"bitwidth": 4})
    for config in (
        ExperimentConfig("x", model=model, quantizer=quantizer),
        ExperimentConfig.from_dict({"model": model, "quantizer": quantizer}),
        ExperimentConfig("x", model=model).override({"quantizer": quantizer}),
    ):
        assert config.exclude_layers == expected
    quantizer = QuantizerConfig(name="deadzone", exclude_layers=[])
    assert ExperimentConfig("x", model=model, quantizer=quantizer).exclude_layers == []
    assert ExperimentConfig("x", quantizer=QuantizerConfig(name="deadzone"), exclude_layers=["bn"]).exclude_layers == [
        "bn"
    ]


def test_yaml_form(tmp_path):
    config = load(tmp_path, YAML)
    assert config == ExperimentConfig(
        "resnet20_deadzone8b_e300_lr0.001",
        batch_size=128,
        device="mps",
        wandb_project="CoDeQ experiments",
        num_workers=4,
        output_dir="save_temp",
        quantizer_kwargs={
            "fixed_bit_val": 8,
            "max_bits": 8,
            "init_deadzone_logit": 3.0,
            "init_bit_logit": 3.0,
            "learnable_bit": True,
            "learnable_deadzone": True,
        },
        exclude_layers=["bn"],
        weight_decay_dz=2.5,
        weight_decay_bit=0.0,
        theta_regularizer="decoupled",
        loss_terms=[
            LossTerm(
                name="group_lasso",
                kwargs={"lambda_linear": 0.1, "lambda_conv": 0.1},
                schedule=ScheduleConfig(name="linear_warmup", kwargs={"delay": 50, "ramp": 50}),
            )
        ],
    )
    assert config.loss_terms[0].step == "gradient"
    assert config.loss_terms[0].detach_quantizer is False
    assert config.sparsity_schedule == linear_warmup(50, 50)


def test_yaml_defaults(tmp_path):
    config = load(tmp_path, "model: mlp\n")
    assert config.quantizer is None
    assert config.quantizer_kwargs is config.exclude_layers is config.sparsity_fn is None
    assert config.loss_terms == []
    assert config.theta_regularizer == "decoupled"
    assert config.name == "mlp_baseline_e300_lr0.001"
    assert load(tmp_path, "model: mlp\nquantizer: null\n") == config
    quantized = load(tmp_path, "name: q\nquantizer: {name: uniform}\ntheta_regularizer: l2\n")
    assert (quantized.exclude_layers, quantized.quantizer_kwargs) == (["conv1", "bn", "linear"], {})
    assert (quantized.name, quantized.theta_regularizer) == ("q", "l2")


@pytest.mark.parametrize("text", ["1e-3", "1.e-3", ".001", "1", "5."])
def test_yaml_numbers(tmp_path, text):
    config = load(tmp_path, f"optimizer: {{param_groups: {{base: {{lr: {text}}}}}}}\n")
    assert config.lr == float(text)
    assert type(config.lr) is float


def test_yaml_no_is_no_flag(tmp_path):
    with pytest.raises(CodeqError, match="deterministic='no': must be true or false"):
        load(tmp_path, "deterministic: no\n")


def test_yaml_has_no_aliases(tmp_path):
    with pytest.raises(CodeqError) as caught:
        load(tmp_path, "".join(f"{name}: 1\n" for name in ALIASES))
    for name, path in ALIASES.items():
        assert f"{name}=1: unknown key. Did you mean {path!r}?" in str(caught.value)


def test_yaml_problems_name_the_file(tmp_path):
    with pytest.raises(CodeqError, match=r"experiment.yaml has 2 problems:\n  epochs=0: .*\n  model_name="):
        load(tmp_path, "epochs: 0\nmodel_name: mlp\n")


def test_yaml_is_looked_for_here_and_in_the_project(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.yaml").write_text("name: project")
    here = tmp_path / "notebooks"
    here.mkdir()
    monkeypatch.chdir(here)
    assert ExperimentConfig.from_yaml("configs/a.yaml").name == "project"
    (here / "a.yaml").write_text("name: here")
    assert ExperimentConfig.from_yaml("a.yaml").name == "here"
    (here / "bb.yaml").touch()
    with pytest.raises(CodeqError) as caught:
        ExperimentConfig.from_yaml("b.yaml")
    assert str(caught.value) == (
        f"{tmp_path / 'b.yaml'} cannot be read: No such file or directory, nor is there {here / 'b.yaml'}. "
        "Did you mean 'bb.yaml'?"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CodeqError, match=r"b\.yaml cannot be read: No such file or directory\. Did"):
        ExperimentConfig.from_yaml("b.yaml")


def test_all_problems_come_at_once():
    with pytest.raises(CodeqError) as caught:
        ExperimentConfig(
            name=3,
            model="resnet21",
            batch_size=True,
            epochs="8",
            device="gpu",
            use_compile=2,
            viz_interval=0,
            lr=0.0,
            weight_decay_dz=-1.0,
            exclude_layers="bn",
            quantizer={"name": "deadzon", "kwarg": {}},
            loss_terms=[{"name": "group_lasso_blocks", "kwargs": {"blocks": 3}}, {"name": "l1", "lamda": 3}],
            sparsity_schedule=linear_warmup(1, 1),
            epoch=3,
        )
    first, *lines = str(caught.value).split("\n  ")
    assert first == f"ExperimentConfig has {len(lines)} problems:"
    assert [line.split("=")[0].split(":")[0] for line in lines] == [
        "sparsity_schedule",
        "name",
        "model",
        "epochs",
        "batch_size",
        "device",
        "use_compile",
        "viz_interval",
        "quantizer.name",
        "quantizer.exclude_layers",
        "quantizer.kwarg",
        "optimizer.param_groups.base.lr",
        "optimizer.param_groups.dz.weight_decay",
        "loss_terms.0.kwargs",
        "loss_terms.1.name",
        "loss_terms.1.lamda",
        "epoch",
    ]


names = st.text(min_size=1) | st.sampled_from(["1e-3", "no", "null", "0o7", "own:x"])
terms = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["group_lasso", "group_lasso_channels", "coupled_group_lasso", "own:f"])},
        optional={
            "lambda": st.floats(0, 1e300),
            "schedule": st.sampled_from(
                [
                    {"name": "own:s"},
                    {"name": "cosine_anneal"},
                    {"name": "linear_warmup", "kwargs": {"delay": 1, "ramp": 0}},
                ]
            ),
            "detach_quantizer": st.booleans(),
        },
    ),
    max_size=3,
)
settings = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "model": st.sampled_from(["resnet20", "mlp"]),
        "dataset": st.sampled_from(["cifar100", "digits", "imagefolder"]),
        "data_dir": st.none() | names,
        "epochs": st.integers(1, 2**31 - 1),
        "workers": st.integers(0, 2**31 - 1),
        "device": st.sampled_from([None, "cpu", "cuda:1", "mps"]),
        "use_compile": st.sampled_from([0, 1, True, False]),
        "run_dir": st.none() | names,
        "theta_regularizer": st.sampled_from(["l2", "decoupled"]),
        "quantizer": st.sampled_from(
            [
                None,
                {"name": "uniform", "kwargs": {"bitwidth": 3}},
                {"name": "deadzone", "kwargs": {"init_bit_logit": 1e-30, "learnable_bit": False}},
                {"name": "deadzone", "exclude_layers": ["*.conv1", "no", "1e-3"]},
            ]
        ),
        "optimizer": st.fixed_dictionaries(
            {"type": st.just("sgd")},
            optional={
                "param_groups": st.fixed_dictionaries(
                    {},
                    optional={
                        "base": st.fixed_dictionaries(
                            {"lr": st.floats(1e-300, 1e300)}, optional={"momentum": st.just(0.9)}
                        ),
                        "dz": st.none() | st.fixed_dictionaries({"weight_decay": st.floats(0, 1e300)}),
                    },
                )
            },
        ),
        "loss_terms": terms,
    },
)


@hypothesis_settings(max_examples=25)
@given(settings)
def test_round_trip(tmp_path_factory, content):
    config = ExperimentConfig.from_dict(content)
    plain = config.to_dict()
    assert ExperimentConfig.from_dict(plain) == config
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    config.to_yaml(path)
    again = ExperimentConfig.from_yaml(path)
    assert again == config
    assert repr(again.to_dict()) == repr(plain)
    assert config.override({}) == config


def test_round_trip_keeps_what_is_in_force():
    config = ExperimentConfig("x")
    plain = config.to_dict()
    assert list(plain) == [field.name for field in dataclasses.fields(config)]
    assert ExperimentConfig.from_dict(plain) == config
    for key in ("theta_regularizer", "quantizer"):
        assert ExperimentConfig.from_dict({k: v for k, v in plain.items() if k != key}) != config


def test_plain_values_share_nothing_with_the_configuration():
    patterns = ["conv1"]
    config = ExperimentConfig("x", exclude_layers=patterns)
    patterns.append("bn")
    config.to_dict()["quantizer"]["exclude_layers"].append("linear")
    assert config.exclude_layers == ["conv1"]


def own_loss(model):
    return torch.zeros(())


def own_schedule(epoch, total_epochs):
    return 1.0


def test_own_callables_are_written_by_name_and_must_be_given_again(tmp_path):
    config = ExperimentConfig("x", sparsity_fn=own_loss, sparsity_schedule=own_schedule)
    config.to_yaml(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "name: own:own_loss" in text
    assert "name: own:own_schedule" in text
    loaded = ExperimentConfig.from_yaml(tmp_path / "config.yaml")
    assert loaded == config  # so that a run can be read, and a resumed one compared
    assert loaded.override({"epochs": 3}).epochs == 3
    for name in ("sparsity_fn", "sparsity_schedule"):
        with pytest.raises(CodeqError, match="pass it again"):
            getattr(loaded, name)


@pytest.mark.parametrize(
    "settings",
    [{}, {"sparsity_fn": group_lasso_blocks(2)}, {"sparsity_fn": own_loss, "sparsity_schedule": linear_warmup(1, 1)}],
)
def test_copies(settings):
    config = ExperimentConfig("x", **settings)
    for same in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), dataclasses.replace(config)):
        assert same == config
        assert same.sparsity_fn == config.sparsity_fn
    changed = dataclasses.replace(config, epochs=5, name="y")
    assert (changed.epochs, changed.name, changed.sparsity_fn) == (5, "y", config.sparsity_fn)
    with pytest.raises(CodeqError, match="epochs=0"):
        dataclasses.replace(config, epochs=0)


def test_frozen():
    config = ExperimentConfig("x")
    for name in ("epochs", "lr", "sparsity_fn", "epoch"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, 1)


def test_parts_may_be_dataclasses():
    groups = ParamGroups(base=ParamGroup(lr=0.1, momentum=0.9))
    config = ExperimentConfig("x", optimizer=OptimizerConfig(type="sgd", param_groups=groups))
    assert config.optimizer.param_groups == groups
    with pytest.raises(CodeqError, match=r"base\.lr=-1: must be above 0"):
        ExperimentConfig("x", optimizer=OptimizerConfig(param_groups=ParamGroups(base=ParamGroup(lr=-1))))


@each(
    ("changes", "expected"),
    [
        ({"epochs": 5, "seed": 1}, {"epochs": 5, "seed": 1}),
        ({"quantizer.kwargs.max_bits": 4}, {"quantizer_kwargs": {"max_bits": 4, "learnable_bit": True}}),
        ({"quantizer.exclude_layers": ["linear"]}, {"exclude_layers": ["linear"]}),
        ({"quantizer": None}, {"quantizer": None}),
        ({"quantizer": {"name": "uniform"}}, {"quantizer_kwargs": {}, "exclude_layers": ["conv1", "bn", "linear"]}),
        ({"optimizer.param_groups.dz.lr": 0.5}, {"lr_dz": 0.5, "lr_bit": 1e-3}),
        ({"optimizer.type": "sgd", "optimizer.param_groups.base.momentum": 0.9}, {"lr": 1e-3}),
        ({"model": "mlp"}, {"model": "mlp", "exclude_layers": []}),
        ({"dataset": "cifar100"}, {"num_classes": 100}),
        ({"dataset": "imagefolder"}, {"num_classes": None}),
        ({"data_dir": "images"}, {"data_dir": "images", "num_classes": 10}),
        ({"optimizer.param_groups.dz.lr": 0.5, "optimizer": {"type": "sgd"}}, {"lr_dz": 0.5}),
    ],
)
def test_override(changes, expected):
    config = ExperimentConfig("x", quantizer_kwargs={"max_bits": 8, "learnable_bit": True})
    before = config.to_dict()
    changed = config.override(changes)
    assert {name: getattr(changed, name) for name in expected} == expected
    assert changed.name == "x"
    assert config.to_dict() == before


def test_override_of_loss_terms():
    config = ExperimentConfig("x", loss_terms=[group_lasso_channels, own_loss])
    changed = config.override({"loss_terms.0.lambda": 0.5, "loss_terms.1.schedule.name": "cosine_anneal"})
    assert [term.lambda_ for term in changed.loss_terms] == [0.5, 1.0]
    assert changed.loss_terms[1].schedule.name == "cosine_anneal"
    assert changed.loss_terms[1].function is own_loss
    assert config.override({"loss_terms.0.name": "l1_kernel_sparsity"}).loss_terms[0].name == "l1_kernel_sparsity"


def test_override_of_a_part_that_is_not_there():
    config = ExperimentConfig.from_dict({}).override({"quantizer.name": "uniform", "quantizer.kwargs.bitwidth": 4})
    assert (config.quantizer.name, config.quantizer_kwargs) == ("uniform", {"bitwidth": 4})
    assert config.name == "resnet20_uniform4b_e300_lr0.001"  # a made-up name follows


@each(
    ("key", "hint"),
    [
        ("epoch", "'epochs'"),
        ("lr", "'optimizer.param_groups.base.lr'"),
        ("quantizer.kwarg.max_bits", "'kwargs'"),
        ("quantizer.kwargs.max_bit", "'max_bits'"),
        ("optimizer.param_groups.bas.lr", "'base'"),
        ("loss_terms.0.lamda", "'lambda'"),
        ("optimiser.type", "'optimizer'"),
    ],
)
def test_override_of_an_unknown_key(key, hint):
    config = ExperimentConfig("x", sparsity_fn="group_lasso")
    with pytest.raises(CodeqError) as caught:
        config.override({key: 4})
    assert str(caught.value).startswith("override")
    assert f"Did you mean {hint}?" in str(caught.value)


@each(
    ("changes", "message"),
    [
        ({"loss_terms.1.lambda": 1.0}, "loss_terms.1.lambda=1.0: loss_terms has 1 entries, counted from 0"),
        ({"epochs.x": 1}, "epochs.x=1: epochs is 300, so nothing in it can be set"),
        ({"dataset": "cifar100", "num_classes": 10}, "num_classes=10: data set 'cifar100' has 100 classes"),
        ({"epochs": 0, "epochs.x": 1, "seed": -1}, "override has 3 problems"),
    ],
)
def test_override_that_is_wrong(changes, message):
    with pytest.raises(CodeqError, match=message):
        ExperimentConfig("x", sparsity_fn="group_lasso").override(changes)


def test_help_lists_every_argument():
    parameters = inspect.signature(ExperimentConfig).parameters
    fields = [field.name for field in dataclasses.fields(ExperimentConfig)]
    assert list(parameters) == [*fields, *ALIASES]
    assert [name for name, p in parameters.items() if p.default is p.empty] == ["name"]
    documented = ExperimentConfig.__doc__
    assert all(name in documented for name in ALIASES)


def test_reading_several_losses():
    config = ExperimentConfig("x", loss_terms=[own_loss, group_lasso_channels])
    assert config.sparsity_fn is config.sparsity_schedule is None


def test_dumped_yaml_reads_like_the_form():
    text = dump_yaml(ExperimentConfig("x", sparsity_fn="group_lasso").to_dict())
    assert text.startswith("name: x\nimports: []\nmodel: resnet20\n")
    assert "- name: group_lasso\n  lambda: 1.0\n  kwargs: {}\n  schedule:\n    name: constant\n" in text
