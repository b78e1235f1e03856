import json
import shutil

import pytest
import torch
from torch import nn

from codeq import ExperimentConfig, Run
from codeq.common.errors import CodeqError
from codeq.common.paths import project_home
from codeq.models import MODELS
from codeq.quantizer import QUANTIZERS
from codeq.runs.status import write_status
from codeq.schedules import SCHEDULES
from codeq.sparsity import LOSSES
from codeq.studies import checks
from codeq.studies.attempts import begin
from codeq.studies.checks import Mistakes, check
from codeq.studies.expand import expand
from codeq.studies.files import attempts_folder
from codeq.studies.study import make_study
from codeq.studies.tasks import write_index
from codeq.training.objective import Objective

BASE = "model: mlp\ndataset: synthetic\nepochs: 3\ndevice: cpu\nquantizer: {name: deadzone}\n"


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)

    def make(**content):
        study = make_study({"name": "s", "base": str(tmp_path / "base.yaml"), **content})
        members = expand(study)
        return check(study, members, {member.name for member in members}, lambda *_: {})

    return make


def test_every_member_gets_its_configuration_and_folder(plan, tmp_path):
    configs = plan(set={"epochs": 2}, grid={"quantizer.kwargs.max_bits": [4, 6]}, seeds=[3]).configs
    config = configs["quantizer.max_bits=6,seed=3"]
    assert (config.epochs, config.seed, config.quantizer.kwargs["max_bits"]) == (2, 3, 6)
    assert config.run_dir == str(tmp_path / "outputs" / "s" / "quantizer.max_bits=6,seed=3")
    assert config.name == "s/quantizer.max_bits=6,seed=3"


def test_the_seed_in_a_text_is_that_of_the_base_where_the_study_gives_none(plan, tmp_path):
    assert plan(set={"wandb_project": "p{seed}"}).configs["base"].wandb_project == "p0"
    (tmp_path / "base.yaml").write_text(f"{BASE}seed: 7\n")
    assert plan(set={"wandb_project": "p{seed}"}).configs["base"].wandb_project == "p7"
    assert plan(set={"wandb_project": "p{seed}"}, seeds=[3]).configs["seed=3"].wandb_project == "p3"


def test_mistakes_of_all_members_are_reported_once_each_with_their_numbers(plan):
    with pytest.raises(CodeqError) as caught:
        plan(grid={"epochs": [1, 0], "batch_sise": [4]}, seeds=[0, 1])
    text = str(caught.value)
    assert "study s has 2 mistakes" in text
    assert text.count("epochs=0: must be at least 1") == 1
    assert "[2 of 4 members, first epochs=0,batch_sise=4,seed=0]" in text
    assert "batch_sise=4: unknown key. Did you mean 'batch_size'?" in text
    assert "[all members]" in text


def test_a_message_of_several_lines_is_one_mistake_and_a_list_is_several():
    mistakes = Mistakes()
    mistakes.add(CodeqError("Net fails in training mode: EinopsError: x\n Input shape: [2]"), "a")
    mistakes.add(CodeqError("override: epochs=0: must be at least 1"), "a")
    mistakes.add(CodeqError("override has 2 problems:\n  epochs=0: must be at least 1\n  lr=-1: must be above 0"), "b")
    assert str(mistakes.report("study s", 2)).splitlines() == [
        "study s has 3 mistakes:",
        "  Net fails in training mode: EinopsError: x Input shape: [2]  [1 of 2 members, first a]",
        "  epochs=0: must be at least 1  [all members]",
        "  lr=-1: must be above 0  [1 of 2 members, first b]",
    ]


def test_a_wrong_value_in_the_last_member_alone_is_found(plan):
    with pytest.raises(CodeqError, match=r"epochs=-1: must be at least 1  \[1 of 3 members, first epochs=-1\]"):
        plan(grid={"epochs": [1, 2, -1]})


def test_what_only_the_network_knows_is_found_too(plan):
    with pytest.raises(CodeqError, match=r"'fc9'.*\[1 of 2 members, first quantizer.exclude_layers=fc9-"):
        plan(grid={"quantizer.exclude_layers": [[], ["fc9"]]})


def test_networks_that_no_training_could_count_are_found(plan, monkeypatch):
    class Silent(nn.Module):  # does not say its bits
        def forward(self, w):
            return w

    class Branching(nn.Module):  # computes something else for batches of another size
        def __init__(self, num_classes):
            super().__init__()
            self.fc = nn.Linear(3 * 32 * 32, num_classes)

        def forward(self, x):
            logits = self.fc(x.flatten(1))
            return logits if len(x) < 3 else logits.relu()

    monkeypatch.setitem(QUANTIZERS, "silent", Silent)
    monkeypatch.setitem(MODELS, "branching", Branching)
    with pytest.raises(CodeqError) as caught:
        plan(
            variants={
                "size": {"img_size": 16},
                "bits": {"quantizer": {"name": "silent"}},
                "tracing": {"model": "branching"},
                "good": {},
            }
        )
    text = str(caught.value)
    assert "study s has 3 mistakes" in text, text
    assert "quantizer Silent has no get_bitwidth()" in text
    assert all(f"[1 of 4 members, first {name}]" in text for name in ("size", "bits", "tracing"))


def test_targets_that_cannot_be_reached_are_found_unless_the_member_has_begun(plan, tmp_path):
    targets = [{"relative_bops": 0.1}, {"relative_bops": 0.3}, {"bytes": 0.0625}, {"mean_bits": 1}]
    with pytest.raises(CodeqError) as caught:
        plan(grid={"target": targets[:3]})
    text = str(caught.value)
    assert text.count("of 3 members") == 2
    assert "target.relative_bops=0.3: must be below 0.2" in text  # 8 of 32 bits, and nearly all weights
    assert "target.bytes=0.0625: must be above 0.0625, what remains" in text  # 2 of 32 bits
    with pytest.raises(CodeqError, match="mean_bits=1: must be above 2"):
        plan(grid={"target": targets[3:]})
    with pytest.raises(CodeqError, match="no λ lowers this figure"):
        plan(
            set={
                "target": targets[0],
                "optimizer.param_groups": {"dz": {"weight_decay": 0}, "bit": {"weight_decay": 0}},
            }
        )
    run = tmp_path / "outputs" / "s" / "seed=0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "manifest.json").write_text("{}")
    assert plan(set={"target": targets[1]}, seeds=[0]).configs


def test_batches_validation_images_and_teachers_are_tried(plan):
    with pytest.raises(CodeqError) as caught:
        plan(variants={
            "teacher": {"distillation": {"teacher": "outputs/nowhere"}},
            "validation": {"validation": 0.999},
            "batch": {"model": "resnet20", "batch_size": 511, "quantizer": None, "img_size": 4},
        })  # fmt: skip
    text = str(caught.value)
    assert "study s has 3 mistakes" in text, text
    assert "distillation.teacher='outputs/nowhere'" in text


def test_losses_and_schedules_of_the_user_are_tried(plan, monkeypatch):
    monkeypatch.setitem(LOSSES, "norms", lambda model: torch.stack([p.norm() for p in model.parameters()]))
    monkeypatch.setitem(SCHEDULES, "falling", lambda: lambda epoch, _: 1.5 - epoch)
    falling = {"schedule": {"name": "falling"}}
    with pytest.raises(CodeqError) as caught:
        plan(
            grid={"epochs": [1, 3]},
            variants={
                "loss": {"loss_terms": [{"name": "norms"}]},
                "schedule": {"loss_terms": [{"name": "group_lasso"} | falling]},
                "theta": {"theta_schedule": falling["schedule"]},
            },
        )
    text = str(caught.value)
    assert "study s has 3 mistakes" in text, text
    assert "sparsity term 'norms' returned a tensor of shape" in text
    assert "sparsity term 'group_lasso' is -0.5 in epoch 3 of 3" in text
    assert "the regularizer on theta is -0.5 in epoch 3 of 3" in text


def test_augmentation_that_the_images_are_too_small_for_is_found(plan):
    with pytest.raises(
        CodeqError, match=r"cutout=40: images .* 32×32 pixels  \[1 of 2 members, first augmentation.cutout=40\]"
    ):
        plan(set={"augmentation": {"randaugment": 1}}, grid={"augmentation.cutout": [8, 40]})


def test_missing_data_are_found(plan, tmp_path):
    with pytest.raises(CodeqError, match=r"does not exist  \[all members\]"):
        plan(set={"dataset": "imagefolder", "data_dir": str(tmp_path / "none")}, seeds=[0, 1])


def test_a_device_that_is_not_here_matters_to_members_that_run_here(plan):
    with pytest.raises(CodeqError, match="'cuda:7' is not on this machine"):
        plan(set={"device": "cuda:7"})
    assert plan(set={"device": "cuda:7"}, executor={"name": "slurm"}).configs


def test_a_full_disk_is_found(plan, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CodeqError, match=r"2 runs need about 0\.0 GB .* 0\.0 GB are free"):
        plan(seeds=[0, 1])


def test_the_need_of_disk_follows_from_the_parameters(plan):
    # 3072·120 + 120 + 120·84 + 84 + 84·10 + 10 weights and biases, and two logits for each of three layers
    numbers = 379_774 + 6
    assert plan().disk == 4 * 3 * 4 * numbers + 3e6


def test_a_finished_member_must_still_mean_the_same(plan, tmp_path):
    made = plan(seeds=[0]).configs["seed=0"]
    Run.create(made)
    plan(seeds=[0, 1])
    plan(seeds=[0], set={"wandb_project": "other"})  # says where it is logged, not what is computed
    shutil.copytree(tmp_path / "outputs" / "s", tmp_path / "outputs" / "copy")
    plan(name="copy", seeds=[0, 1])
    with pytest.raises(CodeqError, match=r"the study has changed: its run was made with epochs=3 and not 4"):
        plan(seeds=[0], set={"epochs": 4})
    with pytest.raises(CodeqError, match=r'exclude_layers=.* and not \["größer\*"\]'):
        plan(seeds=[0], set={"quantizer.exclude_layers": ["größer*"]})


def test_members_that_are_done_keep_their_images_and_imports(plan, tmp_path, monkeypatch):
    run = Run.create(plan(seeds=[0], set={"data_dir": "/a", "imports": ["json"]}).configs["seed=0"])
    plan(seeds=[0], set={"data_dir": "/b"})  # as it is resumed, which checks that they are the same
    run.set_status("done")
    plan(seeds=[0, 1], set={"data_dir": "/a/", "imports": ["json", "csv"]})
    with pytest.raises(CodeqError, match=r'made with data_dir="/a" and not null\. Give'):
        plan(seeds=[0, 1], set={"imports": ["json"]})
    monkeypatch.setenv("CODEQ_IMPORTS", "")  # as in another process
    with pytest.raises(CodeqError, match=r"its run used parts that are not imported: add --import json"):
        plan(seeds=[0, 1], set={"data_dir": "/a", "imports": ["csv"]})
    other = Run.create(plan(name="t", seeds=[0]).configs["seed=0"])
    other.set_status("done")
    plan(name="t", seeds=[0, 1], set={"data_dir": str(tmp_path / "data")})


@pytest.fixture
def ran(plan, tmp_path):
    """Makes the runs of a study, as a sweep does."""

    def make(**content):
        study = make_study({"name": "s", "base": str(tmp_path / "base.yaml"), **content})
        for config in plan(**content).configs.values():
            Run.create(config)
        write_index(study, expand(study))

    return make


def test_runs_of_an_earlier_version_of_the_study_differ_in_what_tables_show_alone(plan, ran):
    fixed = {"epochs": 4, "quantizer.exclude_layers": ["fc3"]}
    ran(set=fixed, grid={"batch_size": [8, 16]})
    plan(set=fixed, grid={"batch_size": [32]})
    plan(set=fixed, variants={"l2": {"theta_regularizer": "l2"}}, seeds=[1])
    plan(grid={"epochs": [5], "quantizer": [None]})
    with pytest.raises(CodeqError, match=r"made with epochs=4 and not 9.*\[2 of 3 members, first batch_size=8\]"):
        plan(set=fixed | {"epochs": 9}, grid={"batch_size": [32]})
    shutil.rmtree(project_home() / "outputs" / "s" / "batch_size=8")
    with pytest.raises(CodeqError, match=r"epochs=4 and not 3.*\[1 of 2 members, first batch_size=16\]"):
        plan(set=fixed | {"epochs": 3}, grid={"batch_size": [32]})
    shutil.rmtree(project_home() / "outputs" / "s" / "batch_size=16")
    plan(set={"epochs": 9}, grid={"batch_size": [32]})


def test_notebooks_are_asked_about_their_parameters():
    def refuse(name, values):
        if values["lr"] > 1:
            raise CodeqError(f"{name}: lr={values['lr']}: too large")
        return {"lr": 1e-3, "resume": None}

    study = make_study({"name": "s", "notebook": "debug_run", "grid": {"lr": [0.1, 2.0]}})
    with pytest.raises(CodeqError, match=r"debug_run: lr=2\.0: too large  \[1 of 2 members, first lr=2\.0\]"):
        check(study, expand(study), set(), refuse)
    study = make_study({"name": "s", "notebook": "debug_run", "grid": {"lr": [0.1]}})
    assert set(check(study, expand(study), set(), refuse).parameters) == {"lr", "resume"}


@pytest.mark.parametrize("key", ["run", "status", "reason", "variant", "epoch", "folder", "group"])
def test_a_parameter_of_a_notebook_that_would_hide_a_column_of_the_table_is_refused(key):
    def known(_notebook, _changes):
        return {key: 1}

    grid = make_study({"name": "s", "notebook": "own", "grid": {key: [1, 2]}})
    variants = make_study({"name": "s", "notebook": "own", "variants": {"a": {key: 1}, "b": {key: 2}}})
    for study in (grid, variants):
        with pytest.raises(CodeqError, match=rf"{key}: a parameter that varies is a column of the study's table"):
            check(study, expand(study), set(), known)
    fixed = make_study({"name": "s", "notebook": "own", "set": {key: 1}, "seeds": [0]})
    assert set(check(fixed, expand(fixed), set(), known).parameters) == {key}


def test_a_seed_in_a_parameter_that_the_study_does_not_give_is_refused():
    def checked(**content):
        study = make_study({"name": "s", "notebook": "own", "set": {"init_from": "float/seed={seed}"}, **content})
        return check(study, expand(study), set(), lambda *_: {})

    with pytest.raises(CodeqError, match=r"init_from: the study gives no seed for \{seed\}\. Add one"):
        checked()
    checked(seeds=[0])


def test_notebooks_that_were_executed_with_other_parameters_are_refused():
    def plan(**content):
        study = make_study({"name": "s", "notebook": "debug_run", "seeds": [0], **content})
        return check(study, expand(study), set(), lambda *_: {})

    executed = project_home() / "outputs" / "s" / "seed=0" / "debug_run.ipynb"
    executed.parent.mkdir(parents=True)
    executed.write_text("")  # as while it is being started
    plan(set={"epochs": 2})
    parameters = {"seed": 0, "epochs": 2, "lr": 0.1, "names": [True], "run_dir": str(executed.parent), "resume": "x"}
    executed.write_text(json.dumps({"metadata": {"papermill": {"parameters": parameters}}}))
    plan(set={"epochs": 2, "lr": 0.1, "names": [True], "device": "cpu"})
    with pytest.raises(CodeqError, match=r"the study has changed: its run was made with epochs=2 and not 4; lr=0\.1"):
        plan(set={"epochs": 4, "lr": 0.2, "names": [True]})
    parameters["data"] = "模型"
    executed.write_text(json.dumps({"metadata": {"papermill": {"parameters": parameters}}}))
    with pytest.raises(CodeqError, match=r'data="模型" and not "größer"'):
        plan(set={"epochs": 2, "lr": 0.1, "names": [True], "data": "größer"})
    with pytest.raises(CodeqError, match=r"lr=0\.1 and not the notebook's default"):
        plan(set={"epochs": 2, "names": [True]})
    with pytest.raises(CodeqError, match=r"noise=the notebook's default and not 0\.5"):
        plan(set={"epochs": 2, "lr": 0.1, "names": [True], "noise": 0.5})
    with pytest.raises(CodeqError, match=r'names=\[true\] and not "\[true\]"'):
        plan(set={"epochs": 2, "lr": 0.1, "names": "[true]"})


@pytest.mark.parametrize("trains", [True, False])
def test_notebooks_that_are_done_keep_their_images(trains):
    def plan(**content):
        study = make_study({"name": "s", "notebook": "debug_run", "seeds": [0, 1], **content})
        return check(study, expand(study), {"seed=1"}, lambda *_: {})

    run = project_home() / "outputs" / "s" / "seed=0"
    run.mkdir(parents=True)
    parameters = {"seed": 0, "data_dir": "/a", "device": "cpu", "run_dir": str(run), "resume": str(run)}
    (run / "debug_run.ipynb").write_text(json.dumps({"metadata": {"papermill": {"parameters": parameters}}}))
    plan(set={"data_dir": "/b"})  # as it is resumed, which checks that they are the same
    if trains:
        write_status(run, "done")
    else:  # nothing of codeq
        begin(attempts_folder(run.parent, run.name), 1, notebook=True).record(state="done")
    plan(set={"data_dir": "/a/", "device": "cuda"})
    with pytest.raises(CodeqError, match=r'made with data_dir="/a" and not "/b"\. Give'):
        plan(set={"data_dir": "/b"})
    with pytest.raises(CodeqError, match=r'data_dir="/a" and not the notebook\'s default'):
        plan()


def test_the_base_itself_is_reported_with_its_file(tmp_path):
    (tmp_path / "bad.yaml").write_text("epochs: 0\n")
    study = make_study({"name": "s", "base": str(tmp_path / "bad.yaml")})
    with pytest.raises(CodeqError, match=r"bad\.yaml: epochs=0: must be at least 1"):
        check(study, expand(study), set(), lambda *_: {})


def test_the_notebook_of_a_name_with_a_dot_is_found():
    def plan(**content):
        study = make_study({"name": "s", "notebook": "own/train.v2", **content})
        return check(study, expand(study), set(), lambda *_: {})

    for seed in (0, 1):
        executed = project_home() / "outputs" / "s" / f"seed={seed}" / "train.v2.ipynb"
        executed.parent.mkdir(parents=True)
        executed.write_text(json.dumps({"metadata": {"papermill": {"parameters": {"seed": seed, "epochs": 2}}}}))
    study = make_study({"name": "s", "notebook": "own/train.v2", "seeds": [0, 1]})
    write_index(study, expand(study))
    plan(set={"epochs": 2}, seeds=[0])
    with pytest.raises(CodeqError, match=r"made with epochs=2 and not 4.*\[all members\]"):
        plan(set={"epochs": 4}, seeds=[0])


def test_time_is_estimated_from_a_step_of_the_training_itself(monkeypatch):
    from codeq.studies.timing import estimate

    settings = {"model": "mlp", "dataset": "synthetic", "batch_size": 64, "device": "cpu", "amp": "bf16"}
    terms = [
        {"name": "l1_kernel_sparsity", "lambda": 1e-4},
        {"name": "coupled_group_lasso", "lambda": 1e-4, "step": "proximal"},
    ]
    stepped = []
    monkeypatch.setattr(Objective, "proximal_steps", lambda objective, *_, **__: stepped.append(objective))
    assert 0 < estimate(ExperimentConfig.from_dict(settings | {"loss_terms": terms}), threads=1) < 60
    assert stepped
    assert all(objective.bfloat16 and len(objective.terms) == 2 for objective in stepped)


def test_initial_weights_that_do_not_fit_are_found_until_the_member_has_begun(plan, tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(CodeqError, match=r"'a\.pt' does not fit CifarMLP.*\[1 of 2 members, first init_from=a\.pt\]"):
        plan(grid={"init_from": [None, "a.pt"]})
    checkpoints = tmp_path / "outputs" / "s" / "init_from=a.pt" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "manifest.json").write_text("{}")
    plan(grid={"init_from": [None, "a.pt"]})


def test_quantizers_of_activations_take_part_in_the_check_of_a_target(plan):
    # 8-bit activations leave at most a quarter of the BOPs, less 32-bit inputs of the first layer.
    with pytest.raises(CodeqError, match=r"must be below 0\.0"):
        plan(set={"activations": {"bits": 8}, "target": {"relative_bops": 0.1}})
    assert plan(set={"activations": {"bits": 8}, "target": {"relative_bops": 0.02}}).configs
    assert plan(set={"target": {"relative_bops": 0.1}}).configs


def test_a_member_whose_target_steers_nothing_is_found_beside_one_that_does(plan):
    target, frozen = {"relative_bops": 0.1}, [{"dz": 1, "bit": 1}, {"dz": 3, "bit": 3}]
    with pytest.raises(CodeqError, match="no λ lowers this figure"):
        plan(set={"target": target}, grid={"freeze_last": frozen})
    assert plan(set={"target": target}, grid={"freeze_last": frozen[:1]}).configs
