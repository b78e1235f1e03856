from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import Doubling
from torch import nn
from torch.nn.utils import parametrize

from codeq import ExperimentConfig, Run, run_experiment
from codeq.common.errors import CodeqError
from codeq.data import load_dataset
from codeq.runs.checkpoints import CheckpointEntry, load_checkpoint, save_checkpoint
from codeq.runs.status import write_status
from codeq.training.distillation import Teacher, load_teacher
from codeq.training.objective import Objective
from codeq.training.sources import source_warnings, start_warning

pytestmark = pytest.mark.usefixtures("without_figures")

X = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 3])


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).double()


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_of_the_softened_predictions(temperature):
    student, teacher = net(0), net(1)
    p = softmax(teacher(X).detach().numpy() / temperature)
    q = softmax(student(X).detach().numpy() / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert Teacher([teacher], 0.5, temperature).loss(student(X), teacher(X)).item() == pytest.approx(expected)


def test_it_takes_its_share_of_the_cross_entropys_place():
    student, teacher = net(0), Teacher([net(1)], 0.3, 2.0)
    plain = nn.functional.cross_entropy(student(X), Y).item()
    _, parts = Objective(student, [], [], teacher=teacher).backward(student, X, Y, [])
    imitation = 0.3 * teacher.loss(student(X), teacher.models[0](X)).item()
    assert parts.to_dict() == pytest.approx(
        {"cross-entropy": 0.7 * plain, "distillation": imitation, "theta regularizer": 0.0}
    )
    assert all(p.grad is None for p in teacher.models[0].parameters())


def test_both_parts_have_the_weight_of_the_batch():
    whole, part = (
        Objective(net(0), [], [], teacher=Teacher([net(1)], 0.3, 2.0)).backward(net(0), X, Y, [], **weight)[1].to_dict()
        for weight in ({}, {"weight": 0.4})
    )
    assert part == pytest.approx({name: 0.4 * value for name, value in whole.items()})


def test_student_and_teachers_see_the_same_images_where_they_overwrite_their_inputs():
    torch.manual_seed(0)
    student, *models = (Doubling(48).double() for _ in range(3))
    q, *both = (softmax(model(X.clone()).detach().numpy()) for model in (student, *models))
    p = softmax(np.log(both).mean(0))
    _, parts = Objective(student, [], [], teacher=Teacher(models, 0.3, 1.0)).backward(student, X.clone(), Y, [])
    assert parts.to_dict()["distillation"] == pytest.approx(0.3 * (p * np.log(p / q)).sum(1).mean())
    assert parts.to_dict()["cross-entropy"] == pytest.approx(-0.7 * np.log(q[range(5), Y.numpy()]).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_several_teachers_are_the_geometric_mean_of_their_predictions(temperature):
    student, *teachers = net(0), net(1), net(2), net(3)
    mean = np.prod([softmax(one(X).detach().numpy() / temperature) for one in teachers], axis=0) ** (1 / 3)
    p, q = mean / mean.sum(1, keepdims=True), softmax(student(X).detach().numpy() / temperature)
    teacher = Teacher(teachers, 0.5, temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert teacher.loss(student(X), teacher.predict(X)).item() == pytest.approx(expected)


def test_the_mean_over_teachers_is_not_rounded_to_their_format():
    def constant(value):
        return lambda _: torch.tensor([[value]], dtype=torch.bfloat16)

    assert Teacher([constant(256.0), constant(254.0), constant(256.0)], 0.5, 1.0).predict(X).item() == pytest.approx(
        766 / 3
    )


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    assert Teacher([net(0)], 1.0, 4.0).loss(net(0)(X), net(0)(X)).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_teacher_computes_in_the_students_format_and_the_loss_in_float32(bfloat16):
    formats = []
    student, teacher = net(0).float(), net(1).float()
    teacher.register_forward_hook(lambda _, __, output: formats.append(output.dtype))
    objective = Objective(student, [], [], teacher=Teacher([teacher], 0.5, 2.0), bfloat16=bfloat16)
    _, parts = objective.backward(student, X.float(), Y, [])
    assert formats == [torch.bfloat16 if bfloat16 else torch.float32]
    assert parts.values.dtype == torch.float32
    assert not any(p.requires_grad and p.grad is not None for p in teacher.parameters())


# --- teachers are runs ------------------------------------------------------------------------------------------------


def config(name, **settings):
    defaults = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 256, "device": "cpu"}
    return ExperimentConfig(name, run_dir=f"outputs/{name}", **(defaults | settings))


def images(**changes):
    """Stand-in for the data set of a student, by default with the images of the teachers here."""
    dataset = load_dataset("synthetic")
    known = {name: getattr(dataset, name) for name in ("name", "classes", "num_classes", "input_size", "mean", "std")}
    return SimpleNamespace(**(known | changes))


def test_a_run_teaches_another(tmp_path):
    teacher = run_experiment(config("teacher", epochs=2))
    pupil = run_experiment(config("pupil", distillation={"teacher": "outputs/teacher", "alpha": 0.9}))
    row = pupil.history.iloc[0]
    assert row["train/distillation_loss"] > 0
    assert "train/distillation_loss" not in teacher.history
    assert Run.open(pupil.folder).config.distillation.temperature == 4.0


def test_runs_teach_together_and_each_is_checked():
    for seed in (0, 1):
        run_experiment(config(f"teacher{seed}", seed=seed))
    both = ["outputs/teacher0", "outputs/teacher1"]
    pupil = run_experiment(config("pupil", distillation={"teacher": both}))
    assert Run.open(pupil.folder).config.distillation.teachers == both
    one = run_experiment(config("other", distillation={"teacher": both[0]}))
    losses = [run.history["train/distillation_loss"][0] for run in (pupil, one)]
    assert losses[0] != losses[1]
    with pytest.raises(CodeqError, match=r"distillation\.teacher='outputs/teatcher': .* holds no run"):
        run_experiment(config("wrong", distillation={"teacher": [*both, "outputs/teatcher"]}))
    write_status(pupil.folder, "diverged")
    doubtful = config("next", distillation={"teacher": [both[0], "outputs/pupil"]})
    assert [text.partition(" is ")[0] for text in source_warnings(doubtful)] == ["distillation.teacher='outputs/pupil'"]


def test_quantized_teachers_are_quantized_once_and_predict_the_same():
    run = run_experiment(config("teacher", quantizer_kwargs={"init_bit_logit": 0.5}))
    settings = config("pupil", distillation={"teacher": "outputs/teacher"}).distillation
    teacher = load_teacher(settings, images(), torch.device("cpu"))
    assert not any(parametrize.is_parametrized(module) for module in teacher.models[0].modules())
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher.predict(x), run.load_model()(x))


@pytest.mark.parametrize(("validation", "teaching"), [(None, "last"), (0.2, "best")])
def test_test_images_do_not_choose_the_epoch_that_teaches(validation, teaching):
    run = run_experiment(config("teacher", validation=validation, quantizer=None))
    state, entry = load_checkpoint(run.folder / "checkpoints")
    state["model"] = {name: -tensor for name, tensor in state["model"].items()}
    save_checkpoint(run.folder / "checkpoints", state, epoch=1, step=entry.step + 1, accuracy=0.0)
    settings, x = config("pupil", distillation={"teacher": "outputs/teacher"}).distillation, torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        found = load_teacher(settings, images(), torch.device("cpu")).predict(x)
        expected = {name: run.load_model(name)(x) for name in ("last", "best")}
    assert not torch.allclose(expected["last"], expected["best"])
    torch.testing.assert_close(found, expected[teaching])


class Answers(torch.nn.Module):
    """A teacher with this output, or this error."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, _x):
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (AssertionError("Input height"), r"cannot take \(3, 32, 32\): Input height"),
        (torch.zeros(10), r"returns \[10\]: must be logits \[1, 10\]"),
        ((1, 2), "returns a tuple: must be logits"),
        (torch.full((1, 10), float("nan")), "returns logits that are not finite"),
    ],
)
def test_teachers_that_refuse_the_images_or_return_something_else_are_clear_errors(monkeypatch, output, message):
    Run.create(config("teacher"))
    settings = config("pupil", distillation={"teacher": "outputs/teacher"}).distillation
    monkeypatch.setattr(Run, "load_model", lambda *_: Answers(output))
    entry = CheckpointEntry("step-1.pt", "", 0, 1, None)
    with pytest.raises(CodeqError, match=message):
        load_teacher(settings, images(), torch.device("cpu"), [entry])


def test_teachers_that_do_not_fit_are_clear_errors(tmp_path):
    run_experiment(config("teacher"))
    settings = config("pupil", distillation={"teacher": "outputs/teacher"}).distillation
    with pytest.raises(CodeqError, match="has 10 classes, the data set 7"):
        load_teacher(settings, images(num_classes=7), torch.device("cpu"))
    with pytest.raises(CodeqError, match=r"teacher='outputs/teacher' cannot take \(3, 8, 8\)"):
        load_teacher(settings, images(input_size=(3, 8, 8)), torch.device("cpu"))
    with pytest.raises(CodeqError, match=r"^distillation\.teacher='outputs/teatcher': .* holds no run"):
        run_experiment(config("other", distillation={"teacher": "outputs/teatcher"}))
    assert not (tmp_path / "outputs" / "other").exists()


def test_a_teacher_whose_weights_are_not_finite_is_refused_by_name_before_the_training(tmp_path):
    teacher = run_experiment(config("teacher"))
    checkpoints = teacher.folder / "checkpoints"
    state, entry = load_checkpoint(checkpoints)
    broken = next(name for name in state["model"] if name.endswith("weight.original"))
    state["model"][broken][0, 0] = float("inf")
    save_checkpoint(checkpoints, state, epoch=1, step=entry.step + 1, accuracy=1.0)
    with pytest.raises(CodeqError, match=rf"teacher='outputs/teacher': {broken} of step-.*\.pt has .* not finite"):
        run_experiment(config("pupil", distillation={"teacher": "outputs/teacher"}))
    assert not (tmp_path / "outputs" / "pupil").exists()


def test_a_teacher_of_images_of_another_size_or_data_set_is_noticed():
    run = run_experiment(config("teacher", model="resnet20", img_size=8, quantizer=None))
    settings = config("pupil", distillation={"teacher": "outputs/teacher"}).distillation
    with pytest.raises(CodeqError, match=r"was trained on images of \(3, 8, 8\), the data set has \(3, 12, 12\)"):
        load_teacher(settings, images(input_size=(3, 12, 12)), torch.device("cpu"))
    pupil = config("pupil", distillation={"teacher": str(run.folder)}, dataset="digits")
    assert "was trained on dataset 'synthetic', not on 'digits'" in " ".join(source_warnings(pupil))
    assert source_warnings(pupil.override({"dataset": "synthetic"})) == []


def test_starting_points_and_teachers_that_are_not_done_are_named(tmp_path):
    for name in ("begun", "diverged"):
        Run.create(config(name))
    write_status(tmp_path / "outputs" / "diverged", "diverged")
    pupil = config("pupil", init_from="outputs/begun", distillation={"teacher": "outputs/diverged"})
    assert source_warnings(pupil) == [
        "init_from='outputs/begun' is a run that is not done (running): its checkpoints may be early ones",
        "distillation.teacher='outputs/diverged' is a run that is not done (diverged): its checkpoints may be "
        "early ones. If its training goes on, it deletes the checkpoint that teaches, and this training cannot be "
        "resumed after an interruption: let the teacher finish first, or copy its folder",
    ]
    assert source_warnings(config("other", init_from="outputs/begun/checkpoints/step-2.pt")) == []


def test_classes_in_another_order_are_refused_and_other_names_where_the_data_set_is_the_same():
    run = run_experiment(config("teacher"))
    settings = config("pupil", distillation={"teacher": "outputs/teacher"}).distillation
    classes = images().classes
    turned, renamed = classes[::-1], tuple(f"class {name}" for name in classes)
    for changes in ({"classes": turned}, {"classes": turned, "name": "other"}, {"classes": renamed}):
        with pytest.raises(CodeqError, match=r"teacher='outputs/teacher' was trained on the classes .* in this order"):
            load_teacher(settings, images(**changes), torch.device("cpu"))
    load_teacher(settings, images(classes=renamed, name="other"), torch.device("cpu"))
    state, entry = load_checkpoint(run.checkpoints)
    del state["classes"]
    save_checkpoint(run.checkpoints, state, epoch=1, step=entry.step + 1, accuracy=1.0)
    load_teacher(settings, images(classes=turned), torch.device("cpu"))


def test_a_teacher_sees_images_normalized_as_its_own():
    run = run_experiment(config("teacher", quantizer=None))
    settings = config("pupil", distillation={"teacher": "outputs/teacher"}).distillation
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels, own = torch.rand(4, 3, 32, 32), images()
    theirs, ours = (((pixels - m[:, None, None]) / s[:, None, None]) for m, s in ((own.mean, own.std), (mean, std)))
    teacher = load_teacher(settings, images(mean=mean, std=std), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(teacher.predict(ours), run.load_model()(theirs), rtol=1e-4, atol=1e-4)
    begun = config("next", init_from="outputs/teacher")
    assert start_warning(begun, own) == ""
    assert "was trained on images normalized by the mean [" in start_warning(begun, images(mean=mean, std=std / 2))
    assert start_warning(config("new"), own) == ""


def test_a_teacher_of_an_earlier_version_and_another_folder_is_named(tmp_path):
    Run.create(config("teacher", dataset="imagefolder", data_dir="data/a"))
    for folder, warned in (("data/a", False), ("data/b", True)):
        pupil = config("pupil", dataset="imagefolder", data_dir=folder, distillation={"teacher": "outputs/teacher"})
        assert any("was trained on images of" in text for text in source_warnings(pupil)) == warned
