"""Every kind of mistake gets its line: path, value, what is allowed, the nearest legal name."""

import pytest
from cases import each

from codeq.common.errors import CodeqError
from codeq.config.messages import validate
from codeq.config.optimizer import OptimizerConfig, ParamGroup, ParamGroups
from codeq.config.parts import LossTerm, QuantizerConfig, ScheduleConfig
from codeq.config.schema import ExperimentSchema
from codeq.config.serialize import keys


def message(content, schema=ExperimentSchema, aliases=None, found=()):
    if schema is ExperimentSchema:
        content = {"name": "x"} | content
    with pytest.raises(CodeqError) as caught:
        validate(schema, content, "here", aliases or {}, found)
    return str(caught.value)


@each(
    ("content", "line"),
    [
        ({"epochs": "8"}, "epochs='8': must be an integer"),
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"save_dir": ""}, "save_dir='': must not be empty"),
        ({"channels_last": 1}, "channels_last=1: must be true or false"),
        (
            {"lr_scheduler": "cosin"},
            "lr_scheduler='cosin': must be one of cosine, step, constant, one_cycle. Did you mean 'cosine'?",
        ),
        ({"lr_scheduler": None}, "lr_scheduler=None: must be one of cosine, step, constant"),
        ({"quantizer": "deadzone"}, "quantizer='deadzone': must be a mapping, e.g. `quantizer: {name: deadzone}`"),
        ({"distillation": "x"}, "distillation='x': must be a mapping, e.g. `distillation: {teacher: x}`"),
        ({"optimizer": "sgd"}, "optimizer='sgd': must be a mapping, e.g. `optimizer: {type: sgd}`"),
        ({"target": 0.03}, "target=0.03: must be a mapping, e.g. `target: {relative_bops: 0.03}`"),
        ({"activations": 8}, "activations=8: must be a mapping, e.g. `activations: {bits: 8}`"),
        ({"activations": True}, "activations=True: must be a mapping"),
        ({"loss_terms": ["l1"]}, "loss_terms.0='l1': must be a mapping, e.g. `{name: l1}`"),
        ({"quantizer": {}}, "quantizer.name: is missing"),
        (
            {"quantizer": {"name": "deadzone", "exclude_layers": "bn"}},
            "quantizer.exclude_layers='bn': must be a list, e.g. [bn]",
        ),
        (
            {"quantizer": {"name": "deadzone", "exclude_layers": ["bn", 3]}},
            "quantizer.exclude_layers.1=3: must be text",
        ),
        ({"optimizer": {"param_groups": {"base": {"lr": 0}}}}, "optimizer.param_groups.base.lr=0: must be above 0"),
        (
            {"optimizer": {"type": "sgd", "param_groups": {"base": {"momentum": 1.0}}}},
            "optimizer.param_groups.base.momentum=1.0: must be below 1",
        ),
        ({"loss_terms": {"name": "l1"}}, "loss_terms={'name': 'l1'}: must be a list"),
        (
            {"loss_terms": [{"name": "group_lasso", "lambda": float("nan")}]},
            "loss_terms.0.lambda=nan: must be finite",
        ),
        (
            {"loss_terms": [{"name": "group_lasso", "function": 3}]},
            "loss_terms.0.function=3: must be a function",
        ),
        ({"model_kwargs": [1]}, "model_kwargs=[1]: must be a mapping"),
        ({"model_kwargs": {1: 2}}, "model_kwargs.1=1: must be text"),
        (
            {"model_kwargs": {"shortcut": print}},
            f"model_kwargs: shortcut={print!r}: must be text, a number, true, false, null, or",
        ),
        ({3: 4}, "3: unknown key. Allowed: name, imports, model"),
        (
            {"optimizer": {"param_groups": {"bas": {}}}},
            "optimizer.param_groups.bas={}: unknown key. Did you mean 'base'? Allowed: base, dz, bit",
        ),
        (
            {"loss_terms": [{"name": "group_lasso", "schedule": {"nam": 1}}]},
            "loss_terms.0.schedule.nam=1: unknown key. Did you mean 'name'? Allowed: name, kwargs",
        ),
    ],
)
def test_one_line_says_all(content, line):
    text = message(content)
    assert text.startswith(f"here: {line}")
    assert "\n" not in text


def test_many_problems_come_together_in_the_order_of_the_keys():
    lines = message({"seed": -1, "epochs": 0, "epoch": 1}, found=["known already"]).split("\n")
    assert lines[:4] == [
        "here has 4 problems:",
        "  known already",
        "  epochs=0: must be at least 1",
        "  seed=-1: must be at least 0",
    ]
    assert lines[4].startswith("  epoch=1: unknown key. Did you mean 'epochs'?")


def test_problems_known_before_are_enough():
    assert message({}, found=["known already"]) == "here: known already"


def test_aliases_are_explained_or_allowed():
    elsewhere = message({"lr": 1}, aliases={"lr": "optimizer.param_groups.base.lr"})
    assert "unknown key. Did you mean 'optimizer.param_groups.base.lr'?" in elsewhere
    assert not elsewhere.endswith(", lr")
    here = message({"lr_decay": 1}, aliases={"lr_dz": "lr_dz"})
    assert "Did you mean 'lr_dz'?" in here
    assert here.endswith("loss_terms, lr_dz")


# Every way to mistype a word once: a letter missing, doubled, swapped with the next, or another one.
def _typos(word):
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        yield word[:i] + word[i] + word[i:]
        yield word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]
        yield word[:i] + ("x" if word[i] != "x" else "y") + word[i + 1 :]


PARTS = [ExperimentSchema, QuantizerConfig, OptimizerConfig, ParamGroups, ParamGroup, ScheduleConfig, LossTerm]


@pytest.mark.parametrize("part", PARTS)
def test_the_right_key_is_suggested(part):
    cases = {(key, typo) for key in keys(part) for typo in _typos(key) if typo and typo not in keys(part)}
    right = sum(f"{typo}=1: unknown key. Did you mean {key!r}?" in message({typo: 1}, part) for key, typo in cases)
    assert right / len(cases) >= 0.95
