"""The files in configs/ load, say what they are, and train; the guide to training names every key and runs."""

import json
import re
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import each

from codeq import DATASETS, LOSSES, MODELS, OPTIMIZERS, QUANTIZERS, SCHEDULES, ExperimentConfig, run_experiment
from codeq.config.schema import ExperimentSchema
from codeq.config.serialize import serialize
from codeq.config.yaml import dump_yaml
from codeq.models import build_model
from codeq.optimizers import lr_factor
from codeq.runs.settings import FREE_KEYS

FOLDER = Path(__file__).parent.parent / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
SLOW = {
    "deadzone_resnet18_imagenet",
    "deadzone_resnet50_imagenet",
    "deadzone_vit",
    "tinyvit_cifar10",
}  # more than 5 s for two steps
EXPECTED = {
    "baseline_no_sparsity",
    "baseline_resnet20",
    "block_lasso_bs4_cosine",
    "coupled_group_lasso",
    "deadzone_mlp",
    "deadzone_resnet18_imagenet",
    "deadzone_resnet20_4bit",
    "deadzone_resnet20_mixed",
    "deadzone_resnet20_mixed_decoupled",
    "deadzone_resnet50_imagenet",
    "deadzone_vit",
    "float_resnet20_adamw",
    "group_lasso_channels_delay50",
    "kill_channels_resnet20",
    "l1_kernel_delay50",
    "tinyvit_cifar10",
}

PROMISED = (Path(__file__).parent / "config" / "promised.yaml").read_text()


def by_name(path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])


every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_folder_holds_the_examples():
    assert {path.stem for path in FILES} >= EXPECTED


@every_file
def test_a_header_says_what_it_is_what_comes_out_and_how_to_run_it(path):
    header = path.read_text("utf-8").split("\n\n")[0]
    lines = dict(re.findall(r"^# (Purpose|Result|Command|Wall time): (.+)$", header, re.MULTILINE))
    assert list(lines) == ["Purpose", "Result", "Command", "Wall time"]
    assert lines["Command"] == f"codeq train --config configs/{path.name}"
    assert all(line.startswith("#") for line in header.splitlines())


@every_file
def test_a_file_loads_and_is_called_what_its_file_is_called(path):
    config = ExperimentConfig.from_yaml(path)
    assert config.name == path.stem.replace("_", "-")
    assert config.device is None


@every_file
def test_a_gradient_term_does_not_outweigh_the_cross_entropy(path):
    """At its full coefficient it starts below ln 10, the cross-entropy of ten classes before training."""
    config = ExperimentConfig.from_yaml(path)
    model = (
        build_model(config.model, 10, config.model_kwargs, quantizer=config.quantizer) if config.loss_terms else None
    )
    for term in config.loss_terms:
        if term.step == "gradient":
            with torch.no_grad():
                value = term.build(model, (3, config.img_size, config.img_size))(model).item()
            assert 0 < term.lambda_ * value < np.log(10) / 2


LONG = {
    "deadzone_resnet18_imagenet", "deadzone_resnet50_imagenet", "deadzone_vit", "deadzone_resnet20_mixed_decoupled",
    "tinyvit_cifar10", "coupled_group_lasso",
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.exhaustive if path.stem in LONG else pytest.mark.slow)
        for path in FILES
    ],
)
def test_a_file_trains(path, tmp_path):
    changes = {
        "dataset": "synthetic", "data_dir": None, "img_size": 32, "epochs": 1, "batch_size": 256, "device": "cpu",
        "pretrained": False, "run_dir": str(tmp_path / "run"),
    }  # fmt: skip
    config = ExperimentConfig.from_yaml(path)
    # Schedules are over before they begin in one epoch; here every term acts.
    terms = [
        {"name": t.name, "lambda": t.lambda_, "kwargs": t.kwargs, "step": t.step} | {"schedule": {"name": "constant"}}
        for t in config.loss_terms
    ]
    changes |= {"loss_terms": terms} | ({"model_kwargs.patch_size": 8} if config.model == "vit" else {})  # few tokens
    run = run_experiment(config.override(changes))
    assert run.status == "done"
    history = run.history.select_dtypes("number")
    assert len(history) == 1
    assert np.isfinite(history.to_numpy()).all()
    if terms:
        assert history["train/sparsity_loss"].item() > 0
        assert history["train/sparsity_coeff"].item() > 0


def test_the_promised_form_loads_as_it_is_printed(tmp_path):
    path = tmp_path / "promised.yaml"
    path.write_text(PROMISED, encoding="utf-8")
    config = ExperimentConfig.from_yaml(path)
    assert config.name == "resnet20_deadzone8b_e300_lr0.001"
    assert config.theta_regularizer == "decoupled"
    assert (config.device, config.workers, config.use_compile, config.save_dir) == ("mps", 4, False, "save_temp")
    assert (config.weight_decay_dz, config.weight_decay_bit) == (2.5, 0.0)
    assert config.loss_terms[0].kwargs == {"lambda_linear": 0.1, "lambda_conv": 0.1}
    assert config.loss_terms[0].schedule.build()(75, 300) == 0.5


def test_papers_settings_are_the_defaults_of_the_constructor():
    """Apart from the excluded layers: the paper quantizes all of them."""
    mixed = ExperimentConfig.from_yaml(FOLDER / "deadzone_resnet20_mixed.yaml")
    assert mixed == ExperimentConfig(mixed.name, exclude_layers=[])
    plain = ExperimentConfig.from_yaml(FOLDER / "baseline_no_sparsity.yaml")
    assert plain == ExperimentConfig(plain.name)


@pytest.mark.parametrize("name", ["coupled_group_lasso", "kill_channels_resnet20"])
def test_channels_are_killed_at_the_strength_that_is_written_there(name):
    """The rule of docs/concepts.md, over the steps on CIFAR-10's 50,000 images."""
    config = ExperimentConfig.from_yaml(FOLDER / f"{name}.yaml")
    (term,) = config.loss_terms
    steps = -(-50_000 // config.batch_size)
    schedule = term.schedule.build()
    rates = [
        config.lr * lr_factor(epoch, config.epochs, "cosine") * schedule(epoch, config.epochs)
        for epoch in range(config.epochs)
    ]
    assert round(2**0.5 * term.lambda_ * steps * sum(rates), 1) == 1.1


@each(
    ("one", "other", "keys"),
    [
        ("deadzone_resnet20_mixed", "deadzone_resnet20_mixed_decoupled", {"theta_regularizer"}),
        ("deadzone_resnet20_mixed", "float_resnet20_adamw", {"theta_regularizer", "quantizer"}),
        ("baseline_no_sparsity", "group_lasso_channels_delay50", {"loss_terms"}),
        ("baseline_no_sparsity", "block_lasso_bs4_cosine", {"loss_terms"}),
        ("baseline_no_sparsity", "l1_kernel_delay50", {"loss_terms"}),
        ("baseline_no_sparsity", "coupled_group_lasso", {"loss_terms", "recalibrate_batchnorm"}),
    ],
)
def test_runs_to_compare_differ_in_one_thing(one, other, keys):
    first, second = (ExperimentConfig.from_yaml(FOLDER / f"{name}.yaml").to_dict() for name in (one, other))
    assert {key for key in first if first[key] != second[key]} == keys | {"name"}


# --- docs/training.md -------------------------------------------------------------------------------------------------

GUIDE = (FOLDER.parent / "docs" / "training.md").read_text("utf-8")
REGISTRIES = (MODELS, DATASETS, QUANTIZERS, LOSSES, SCHEDULES, OPTIMIZERS)
# Defaults that the schema cannot say: of a name that is made, and of what depends on the model.
SAID_OTHERWISE = {"name": "made of the settings", "quantizer.exclude_layers": "[]"}


def section(title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)[1]


def documented():
    """Key and default of every row in the tables of keys."""
    rows = re.findall(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", section("Configuration keys"), re.MULTILINE)
    return {key: default.strip("`") for key, default in rows}


def parts_of(hint):
    """The dataclasses inside an annotation."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from parts_of(argument)


def keys_of(schema, prefix=""):
    """Every dotted key of a schema with its default as YAML writes it; those of parts inside it, too."""
    hints = typing.get_type_hints(schema, include_extras=True)
    for f in fields(schema):
        if f.name == "function":  # no file can hold one
            continue
        key = prefix + f.name.removesuffix("_")
        part = next(parts_of(hints[f.name]), None)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if part is None or not is_dataclass(default):
            plain = "required" if default is MISSING else dump_yaml({"x": serialize(default)})[3:].strip()
            yield key, SAID_OTHERWISE.get(key, plain)
        if part is not None:
            yield from keys_of(part, f"{key}.0." if isinstance(default, list) else f"{key}.")


def test_the_guide_has_every_key_with_its_default_and_no_other():
    assert documented() == dict(keys_of(ExperimentSchema))


def test_the_guide_names_everything_registered():
    for registry in REGISTRIES:
        for name in registry:
            assert f"`{name}`" in GUIDE, f"{registry.kind} {name!r}"


def test_the_guide_says_what_a_resumed_run_may_change():
    (listed,) = re.findall(r"Only these keys may change: (.*?)\.\n", GUIDE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == FREE_KEYS


def test_the_guide_names_every_parameter_of_the_notebook():
    notebook = json.loads((FOLDER.parent / "notebooks" / "full_training.ipynb").read_text("utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    named = set(re.findall(r"`(\w+)`", section("The notebook `full_training`")))
    assert set(re.findall(r"^(\w+):", "".join(cell["source"]), re.MULTILINE)) <= named


@pytest.fixture
def registries_as_before():
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.usefixtures("registries_as_before")
def test_the_code_in_the_guide_runs_and_its_tables_have_every_column():
    names = {"__name__": "guide"}
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        exec(block, names)
    run = names["run"]
    assert run.status == "done"
    assert run.config.model == "two_convs"
    assert set(run.layers["bits"]) == {2}
    left = section("Files of a run")
    for column in [*run.history, *run.layers, "train/distillation_loss"]:
        shown = re.sub(r"^layers/.*/", "layers/<name>/", column)
        shown = {"train/l2_of_convs": "train/<term>", "train/l2_of_convs_coeff": "train/<term>_coeff"}.get(shown, shown)
        assert f"`{shown}`" in left, column
    written = {path.name for path in run.folder.iterdir()} | {
        path.name for path in run.folder.glob("checkpoints/*.json")
    }
    for name in written - {"plots", "checkpoints"}:
        assert name in left
