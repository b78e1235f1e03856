"""A resumed training keeps the checkpoints that have taught it."""

import pytest

from codeq import ExperimentConfig, Run, run_experiment
from codeq.common.errors import CodeqError
from codeq.runs.checkpoints import load_checkpoint, save_checkpoint
from codeq.training.interruption import Preempted
from codeq.training.recording import Recorder
from codeq.training.resuming import resuming_command

pytestmark = pytest.mark.usefixtures("without_figures")


def config(name, **settings):
    defaults = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 256, "device": "cpu"}
    return ExperimentConfig(name, run_dir=f"outputs/{name}", quantizer=None, **(defaults | settings))


def pupil(name="pupil", teacher="outputs/teacher"):
    return config(name, epochs=2, distillation={"teacher": teacher, "alpha": 0.9})


@pytest.fixture
def teacher():
    return run_experiment(config("teacher"))


@pytest.fixture
def interrupted(teacher, monkeypatch):
    """The folder of a training that was interrupted after its first epoch."""
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_must_stop", lambda self: self.training.loop.epoch == 1)
        with pytest.raises(Preempted):
            run_experiment(pupil())
    return "outputs/pupil"


def train_on(run):
    """Give a run a checkpoint with other weights, as its training would."""
    state, entry = load_checkpoint(run.checkpoints)
    state["model"] = {name: -tensor for name, tensor in state["model"].items()}
    save_checkpoint(run.checkpoints, state, epoch=entry.epoch + 1, step=entry.step + 1, accuracy=1.0)


def losses(run):
    return run.history["train/distillation_loss"].tolist()


def test_the_checkpoint_that_taught_teaches_the_rest_even_in_another_folder(teacher, interrupted, tmp_path):
    whole = run_experiment(pupil("whole"))
    train_on(teacher)
    teacher.folder.rename(tmp_path / "outputs" / "moved")
    moved = pupil(teacher="outputs/moved")
    words = resuming_command(Run.open(interrupted), moved)
    assert words.endswith("--set distillation.teacher=outputs/moved")
    assert losses(run_experiment(moved, resume=interrupted)) == losses(whole)


def test_a_checkpoint_that_is_gone_is_refused_with_what_to_do(teacher, interrupted):
    for _ in range(2):
        train_on(teacher)
    gone = (
        r"^distillation\.teacher='outputs/teacher' no longer has .* this training, step-\d+\.pt of epoch 1 .*; there "
        r"now: step-.*\. Restore its folder checkpoints, or name .* --set distillation\.teacher=.*start this .* anew"
    )
    with pytest.raises(CodeqError, match=gone):
        run_experiment(pupil(), resume=interrupted)
    assert Run.open(interrupted).status == "preempted"


def test_another_number_of_teachers_is_refused(interrupted):
    with pytest.raises(CodeqError, match="names 2 runs, but 1 have taught this training"):
        run_experiment(pupil(teacher=["outputs/teacher"] * 2), resume=interrupted)


def test_other_settings_of_the_distillation_are_still_refused(interrupted):
    changed = pupil().override({"distillation.temperature": 2.0})
    with pytest.raises(CodeqError, match=r"distillation\.temperature=4\.0 instead of 2\.0: a resumed run keeps"):
        run_experiment(changed, resume=interrupted)


def test_runs_of_earlier_versions_resume_with_a_warning_from_the_same_folder_alone(interrupted, caplog):
    folder = Run.open(interrupted).checkpoints
    state, entry = load_checkpoint(folder)
    del state["teachers"]
    save_checkpoint(folder, state, epoch=entry.epoch, step=entry.step, accuracy=entry.accuracy)
    with pytest.raises(CodeqError, match=r"distillation\.teacher='outputs/teacher' instead of 'outputs/moved'"):
        run_experiment(pupil(teacher="outputs/moved"), resume=interrupted)
    assert run_experiment(pupil(), resume=interrupted).status == "done"
    assert "does not record which checkpoint of its teacher has taught it" in caplog.text
    assert load_checkpoint(folder)[0]["teachers"]
