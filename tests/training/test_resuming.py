"""Killed at any moment and resumed, a run ends with the same bytes; what cannot be resumed is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cases import few

from codeq import OPTIMIZERS, ExperimentConfig, Run, run_experiment, trainer
from codeq.common.errors import CodeqError
from codeq.runs.checkpoints import load_checkpoint, read_manifest, save_checkpoint
from codeq.training.interruption import Interrupted, Preempted
from codeq.training.resuming import find_resumable, resuming_command, sole_writer
from codeq.training.step import DirectSteps

pytestmark = pytest.mark.usefixtures("without_figures")

COUPLED = {"name": "coupled_group_lasso", "lambda": 1.0, "step": "proximal"}


class Dropout(torch.nn.Module):
    """A model whose training draws random numbers all the time."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(3072, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5),
            torch.nn.Linear(16, num_classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.fixture(autouse=True)
def dropout_model(monkeypatch):
    from codeq import MODELS

    monkeypatch.setitem(MODELS, "dropout", Dropout)


def config(folder, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "dropout", "epochs": 3, "batch_size": 64, "device": "cpu"}
    defaults |= {"loss_terms": [COUPLED], "quantizer_kwargs": {"init_bit_logit": 0.7}}
    return ExperimentConfig("tiny", run_dir=str(folder), **(defaults | settings))


def evidence(folder) -> dict[str, object]:
    run = Run.open(folder)
    files = {name: (run.folder / name).read_bytes() for name in ("metrics.csv", "layers.csv")}
    states = {checkpoint: run.load_model(checkpoint).state_dict() for checkpoint in ("last", "best")}
    weights = {
        f"{checkpoint}/{k}": v.numpy().tobytes() for checkpoint, state in states.items() for k, v in state.items()
    }
    return files | weights | {"status": run.status, "best": run.summary["best_epoch"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from codeq import MODELS

    MODELS["dropout"] = Dropout
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(config(folder))
    found = evidence(folder)
    del MODELS["dropout"]
    return found


class Killed(BaseException):
    """Stands for a process that ends on the spot."""


def interrupt_after(batches, monkeypatch, act):
    """Let `act` happen inside the optimizer's step after so many whole batches."""
    left = iter(range(batches))
    step = torch.optim.AdamW.step

    def counting(optimizer, *args, **kwargs):
        done = step(optimizer, *args, **kwargs)
        trial = optimizer.param_groups[0]["params"][0].numel() == 1  # the check before the training
        if not trial and next(left, None) is None:
            act()
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", counting)


@pytest.mark.parametrize(
    ("batches", "number", "kind"),
    [
        (3, signal.SIGINT, Interrupted),
        *few(((batches, signal.SIGTERM, Preempted) for batches in (7, 0, 12, 3, 8, 21)), 2),
    ],
)
def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_bytes(
    tmp_path, monkeypatch, whole, ctrl_c, batches, number, kind
):
    with monkeypatch.context() as patch:
        sent = []
        interrupt_after(batches, patch, lambda: sent.append(1) or len(sent) > 1 or os.kill(os.getpid(), number))
        with pytest.raises(kind, match=r"; the state is saved, resume with: run_experiment\(config, resume='.*run'\)"):
            run_experiment(config(tmp_path / "run"))
    assert Run.open(tmp_path / "run").status == "preempted"
    run_experiment(config(tmp_path / "run"), resume=tmp_path / "run")
    assert evidence(tmp_path / "run") == whole


def test_a_second_ctrl_c_stops_at_once_and_the_run_resumes_from_its_last_checkpoint(
    tmp_path, monkeypatch, whole, ctrl_c
):
    with monkeypatch.context() as patch:
        interrupt_after(10, patch, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config(tmp_path / "run"))
    assert read_manifest(tmp_path / "run" / "checkpoints")["last"].step == 8  # that of the first epoch
    run_experiment(config(tmp_path / "run"), resume=tmp_path / "run")
    assert evidence(tmp_path / "run") == whole


RECIPE = {
    "ema": 0.9,
    "recalibrate_batchnorm": 2,
    "lr_schedule_unit": "step",
    "lr_scheduler": "one_cycle",
    "lr_scheduler_kwargs": {"warmup": 1},
    "theta_schedule": {"name": "linear_warmup", "kwargs": {"delay": 0, "ramp": 2}},
}


@pytest.mark.slow
@pytest.mark.parametrize(("regularizer", "batches"), few([("decoupled", 12), ("decoupled", 15), ("l2", 12)]))
def test_rates_per_step_averages_and_schedules_continue_to_the_byte(tmp_path, monkeypatch, regularizer, batches):
    recipe = RECIPE | {"theta_regularizer": regularizer}
    run_experiment(config(tmp_path / "whole", **recipe))
    with monkeypatch.context() as patch:
        # in batch 5 of 8 of the second epoch, or in its last one
        interrupt_after(batches, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            run_experiment(config(tmp_path / "run", **recipe))
    assert read_manifest(tmp_path / "run" / "checkpoints")["last"].step == batches + 1
    run_experiment(config(tmp_path / "run", **recipe), resume=tmp_path / "run")
    assert evidence(tmp_path / "run") == evidence(tmp_path / "whole")
    states = [load_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("run", "whole")]
    for key, value in states[0]["trained_model"].items():
        assert torch.equal(value, states[1]["trained_model"][key]), key


def test_a_checkpoint_from_before_a_key_existed_is_resumed_with_its_default(tmp_path, monkeypatch, whole):
    def forget(folder, state, **kwargs):
        del state["config"]["lr_schedule_unit"], state["config"]["ema"]
        save_checkpoint(folder, state, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("codeq.training.resuming.save_checkpoint", forget)
        interrupt_after(12, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            run_experiment(config(tmp_path / "run"))
    run_experiment(config(tmp_path / "run"), resume=tmp_path / "run")
    assert evidence(tmp_path / "run") == whole


@pytest.mark.slow
def test_a_training_of_replayed_steps_is_resumed_with_direct_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "radam", torch.optim.RAdam)
    settings = {"optimizer": {"type": "radam"}, "epochs": 2}
    run_experiment(config(tmp_path / "whole", **settings))

    def replayed(folder, state, **kwargs):
        for group in state["optimizer"]["param_groups"]:
            group["capturable"] = True
        save_checkpoint(folder, state, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("codeq.training.resuming.save_checkpoint", replayed)
        evaluate, left = trainer.evaluate, iter([1])

        def once(*parts):
            if next(left, None) is None:
                raise Killed
            return evaluate(*parts)

        patch.setattr(trainer, "evaluate", once)
        with pytest.raises(Killed):
            run_experiment(config(tmp_path / "run", **settings))
    restored = []
    monkeypatch.setattr(DirectSteps, "use_settings", lambda _, optimizer: restored.append(bool(optimizer.state)))
    run_experiment(config(tmp_path / "run", **settings), resume=tmp_path / "run")
    assert restored == [False, True]  # the settings decide where the restored state lies
    assert evidence(tmp_path / "run") == evidence(tmp_path / "whole")


def test_a_resumed_run_keeps_the_number_format_that_was_chosen_at_its_start(tmp_path, monkeypatch):
    has = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    run_experiment(config(tmp_path / "whole", amp="auto"))
    with monkeypatch.context() as patch:
        interrupt_after(12, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            run_experiment(config(tmp_path / "run", amp="auto"))
    has["avx512_bf16"] = False  # another machine
    run_experiment(config(tmp_path / "run", amp="auto"), resume=tmp_path / "run")
    assert evidence(tmp_path / "run") == evidence(tmp_path / "whole")


@pytest.mark.parametrize(("batches", "interval"), few([(11, 3), (23, 0), (2, 3), (11, 0), (23, 3), (2, 0)], 2))
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch, whole, batches, interval):
    def killed():
        raise Killed

    settings = config(tmp_path / "run", checkpoint_interval=interval)
    with monkeypatch.context() as patch:
        interrupt_after(batches, patch, killed)
        with pytest.raises(Killed):
            run_experiment(settings)
    step = read_manifest(tmp_path / "run" / "checkpoints")["last"].step
    assert step == (
        batches // 8 * 8 if not interval else max(batches // 8 * 8, batches // 8 * 8 + batches % 8 // 3 * 3)
    )
    run_experiment(settings, resume=tmp_path / "run")
    assert evidence(tmp_path / "run") == whole


def test_rows_after_the_checkpoint_are_taken_back(tmp_path, monkeypatch, whole):
    """A kill between the table's row and the checkpoint of one epoch must not write the row twice."""
    from codeq.training import resuming

    real = resuming.save_checkpoint

    def save(*args, **kwargs):
        if kwargs["step"] == 16:
            raise Killed
        real(*args, **kwargs)

    monkeypatch.setattr(resuming, "save_checkpoint", save)
    with pytest.raises(Killed):
        run_experiment(config(tmp_path / "run"))
    monkeypatch.setattr(resuming, "save_checkpoint", real)
    assert len(Run.open(tmp_path / "run").history) == 2
    run_experiment(config(tmp_path / "run"), resume=tmp_path / "run")
    assert evidence(tmp_path / "run") == whole


@pytest.mark.parametrize("damage", few(["flipped", "removed", "truncated", "emptied"]))
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch, whole, caplog, damage):
    with monkeypatch.context() as patch:
        interrupt_after(19, patch, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Preempted):
            run_experiment(config(tmp_path / "run"))
    path = tmp_path / "run" / "checkpoints" / read_manifest(tmp_path / "run" / "checkpoints")["last"].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= damage == "flipped"
    path.write_bytes({"truncated": data[:-7], "flipped": data, "emptied": b"", "removed": b""}[damage])
    if damage == "removed":
        path.unlink()
    run_experiment(config(tmp_path / "run"), resume=tmp_path / "run")
    assert "step-20.pt is" in caplog.text
    assert "using step-16.pt of epoch 2 instead" in caplog.text
    assert evidence(tmp_path / "run") == whole


def preempted(folder, monkeypatch, batches=11):
    with monkeypatch.context() as patch:
        interrupt_after(batches, patch, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Preempted):
            run_experiment(config(folder))
    return Run.open(folder)


def test_a_signal_in_the_last_batch_of_an_epoch_does_not_wait_for_the_evaluation(tmp_path, monkeypatch, whole, capsys):
    run = preempted(tmp_path / "run", monkeypatch, batches=15)
    last = read_manifest(run.folder / "checkpoints")["last"]
    assert (last.file, last.epoch, last.accuracy) == ("step-16-unevaluated.pt", 1, None)
    assert run.history["epoch"].tolist() == [0]
    run_experiment(config(run.folder), resume=run.folder)
    assert "resuming at epoch 2, evaluation\n" in capsys.readouterr().out
    assert evidence(run.folder) == whole


def test_an_older_checkpoint_can_be_chosen(tmp_path, monkeypatch, whole):
    preempted(tmp_path / "run", monkeypatch)
    run_experiment(config(tmp_path / "run"), resume=tmp_path / "run" / "checkpoints" / "step-8.pt")
    assert evidence(tmp_path / "run") == whole


def test_going_back_holds_even_if_the_run_is_killed_at_once(tmp_path, monkeypatch, whole):
    def killed():
        raise Killed

    run = preempted(tmp_path / "run", monkeypatch)
    with monkeypatch.context() as patch:
        interrupt_after(1, patch, killed)
        with pytest.raises(Killed):
            run_experiment(config(run.folder), resume=run.folder / "checkpoints" / "step-8.pt")
    assert read_manifest(run.folder / "checkpoints")["last"].step == 8
    run_experiment(config(run.folder), resume=run.folder)
    assert evidence(run.folder) == whole


def test_a_run_that_is_killed_while_it_goes_back_resumes_from_where_it_went(tmp_path, monkeypatch, whole):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:  # a signal in the second evaluation, so that the tables differ
        evaluate = trainer.evaluate
        signals = iter([0, signal.SIGUSR1])
        patch.setattr(trainer, "evaluate", lambda *a: (os.kill(os.getpid(), next(signals)), evaluate(*a))[1])
        with pytest.raises(Preempted):
            run_experiment(config(tmp_path / "run"))
    run = Run.open(tmp_path / "run")
    assert len(run.history) == 2
    with monkeypatch.context() as patch:
        truncate = os.truncate
        patch.setattr(os, "truncate", lambda path, size: (truncate(path, size), killed()))
        with pytest.raises(Killed):
            run_experiment(config(run.folder), resume=run.folder / "checkpoints" / "step-8.pt")
    run_experiment(config(run.folder), resume=run.folder)
    assert evidence(run.folder) == whole


def test_without_a_manifest_a_run_with_results_is_refused(tmp_path, monkeypatch):
    run = preempted(tmp_path / "run", monkeypatch)
    (run.folder / "checkpoints" / "manifest.json").unlink()
    before = run.history
    with pytest.raises(CodeqError, match=r"has results but no checkpoints/manifest\.json"):
        run_experiment(config(tmp_path / "run"), resume=run.folder)
    assert run.history.equals(before)


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path, monkeypatch):
    run = preempted(tmp_path / "run", monkeypatch)
    with pytest.raises(CodeqError, match=r"epochs=3 instead of 9; seed=0 instead of 5: a resumed run keeps its conf"):
        run_experiment(config(tmp_path / "run", epochs=9, seed=5), resume=run.folder)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, monkeypatch):
    run = preempted(tmp_path / "run", monkeypatch)
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 3", "epochs: 4"))
    with pytest.raises(CodeqError, match=r"step-12\.pt was written for epochs=3 instead of 4"):
        run_experiment(config(tmp_path / "run", epochs=4), resume=run.folder)


class WithoutNorm(Dropout):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.body[2] = torch.nn.Identity()


class PartlyFrozen(Dropout):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.body[1].bias.requires_grad_(False)


@pytest.mark.parametrize(
    ("edited", "reason"),
    [
        (WithoutNorm, r"today's WithoutNorm: Unexpected key\(s\) in state_dict: \"body\.2\.weight"),
        (PartlyFrozen, "today's PartlyFrozen: loaded state dict contains a parameter group"),
    ],
)
def test_a_model_whose_code_has_changed_is_refused_and_nothing_is_lost(tmp_path, monkeypatch, edited, reason):
    from codeq import MODELS

    run = preempted(tmp_path / "run", monkeypatch)
    monkeypatch.setitem(MODELS, "dropout", edited)
    with pytest.raises(CodeqError, match=rf"step-8\.pt does not fit {reason}"):
        run_experiment(config(tmp_path / "run"), resume=run.folder / "checkpoints" / "step-8.pt")
    assert (run.folder / "checkpoints" / "step-12.pt").exists()


def test_where_and_how_it_runs_may_change(tmp_path, monkeypatch, whole):
    run = preempted(tmp_path / "run", monkeypatch)
    run_experiment(config(tmp_path / "run", viz_interval=1, checkpoint_interval=5, workers=0), resume=run.folder)
    assert evidence(tmp_path / "run") == whole


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_beginning(tmp_path, monkeypatch, whole):
    from codeq.training import model_and_data, resuming

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(resuming, "save_checkpoint", killed)
        with pytest.raises(Killed):
            run_experiment(config(tmp_path / "run"))
    asked = []
    real = model_and_data.build_network
    settings = config(tmp_path / "run")
    object.__setattr__(settings, "pretrained", True)  # of a model that has no published weights
    monkeypatch.setattr(
        model_and_data, "build_network", lambda *a, **k: asked.append(k.pop("pretrained")) or real(*a, **k)
    )
    monkeypatch.setattr(resuming, "check_same_config", lambda *_: None)
    run_experiment(settings, resume=tmp_path / "run")
    assert evidence(tmp_path / "run") == whole
    assert asked == [True]


def test_a_checkpoint_of_another_version_is_refused_by_name(tmp_path, monkeypatch):
    run = preempted(tmp_path / "run", monkeypatch)
    folder = run.folder / "checkpoints"
    state, entry = load_checkpoint(folder)
    state["right"] = state.pop("num_correct")
    save_checkpoint(folder, state, epoch=entry.epoch, step=entry.step + 1, accuracy=None)
    with pytest.raises(CodeqError, match=r"step-13\.pt cannot be resumed: it has no 'num_correct'; another version"):
        run_experiment(config(tmp_path / "run"), resume=run.folder)


def test_the_configuration_in_a_message_is_cut(tmp_path, monkeypatch):
    run = preempted(tmp_path / "run", monkeypatch)
    settings = config(tmp_path / "run", loss_terms=[COUPLED] * 500)
    with pytest.raises(CodeqError, match="a resumed run keeps its configuration") as raised:
        run_experiment(settings, resume=run.folder)
    assert len(str(raised.value)) < 1000
    assert " instead of " in str(raised.value)


def test_lost_rows_are_told(tmp_path, monkeypatch):
    run = preempted(tmp_path / "run", monkeypatch)
    (run.folder / "layers.csv").write_text("epoch\n")
    later = (run.folder / "metrics.csv").read_text() + "of an epoch after the checkpoint"
    (run.folder / "metrics.csv").write_text(later)
    with pytest.raises(CodeqError, match=r"layers\.csv has 6 bytes, but \d+ at its checkpoint: rows are lost"):
        run_experiment(config(tmp_path / "run"), resume=run.folder)
    assert (run.folder / "metrics.csv").read_text() == later
    assert run.status == "preempted"


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    run = run_experiment(config(tmp_path / "run", epochs=1))
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    assert run_experiment(config(tmp_path / "run", epochs=1), resume=run.folder).folder == run.folder
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()} == before
    assert "nothing is left to resume" in capsys.readouterr().out


def test_a_folder_that_is_being_trained_is_refused(tmp_path, monkeypatch):
    run = preempted(tmp_path / "run", monkeypatch)
    with sole_writer(run), pytest.raises(CodeqError, match="is being trained by another process"):
        run_experiment(config(tmp_path / "run"), resume=run.folder)
    assert run.status == "preempted"


def test_runs_and_checkpoints_are_found_from_here_and_from_the_project(tmp_path, monkeypatch):
    run = run_experiment(config(tmp_path / "outputs" / "run", epochs=1))
    monkeypatch.chdir(tmp_path / "outputs")
    for path in ("run", "outputs/run", run.folder):
        assert find_resumable(path)[0].folder == run.folder
    assert find_resumable("run/checkpoints/step-8.pt")[1] == "step-8.pt"
    with pytest.raises(CodeqError, match="no run is named 'rum'"):
        find_resumable("rum")


SCRIPT = """
import sys
from codeq.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.exhaustive
def test_sigkill_in_another_process(tmp_path):
    """The real thing, once; `benchmarks/bench_kills.py` does it fifty times."""
    path = tmp_path / "config.yaml"
    path.write_text("model: mlp\ndataset: synthetic\nepochs: 15\nbatch_size: 64\nquantizer: {name: deadzone}\n")
    ends = {}
    for name in ("whole", "killed"):
        command = [sys.executable, "-c", SCRIPT, "train", "--config", str(path), "--set", f"run_dir={tmp_path / name}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if name == "killed":
            table = tmp_path / name / "metrics.csv"
            while not table.exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(0.2)
            process.kill()
            process.wait()
            assert Run.open(tmp_path / name).status == "died"
            resume = [sys.executable, "-c", SCRIPT, "train", "--resume", str(tmp_path / name)]
            process = subprocess.Popen(resume, stdout=subprocess.DEVNULL)
        assert process.wait() == 0
        ends[name] = evidence(tmp_path / name)
    assert ends["killed"] == ends["whole"]


def test_the_manifest_is_there_before_the_first_row(tmp_path, monkeypatch):
    def killed():
        raise Killed

    interrupt_after(0, monkeypatch, killed)
    with pytest.raises(Killed):
        run_experiment(config(tmp_path / "run"))
    manifest = json.loads(Path(tmp_path / "run" / "checkpoints" / "manifest.json").read_text())
    assert list(manifest) == ["last"]
    assert manifest["last"]["step"] == 0


def test_a_finished_run_is_not_taken_back_to_an_earlier_checkpoint(tmp_path):
    run = run_experiment(config(tmp_path / "run", epochs=1))
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    for name in ("step-0.pt", "step-99999.pt"):
        with pytest.raises(CodeqError, match=f"is done, so it is not resumed from {name}.*init_from"):
            run_experiment(config(tmp_path / "run", epochs=1), resume=run.folder / "checkpoints" / name)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()} == before


def test_the_command_that_resumes_names_the_imports_of_the_run_and_what_was_changed(tmp_path):
    run = Run.create(ExperimentConfig("x", run_dir=str(tmp_path / "a run"), imports=["colorsys", "cmd"]), "float32")
    command = f"codeq train --resume '{tmp_path}/a run' --import colorsys --import cmd"
    assert resuming_command(run, run.config) == command
    changed = run.config.override({"device": "cuda:1", "name": "8", "checkpoint_interval": 50, "wandb_mode": None})
    assert resuming_command(run, changed) == f"""{command} --set checkpoint_interval=50 device=cuda:1 'name="8"'"""


def test_a_run_with_parts_of_this_session_alone_is_resumed_by_a_call(tmp_path):
    own = Run.create(config(tmp_path / "own", dataset="digits"))
    call = f"run_experiment(config, resume={str(own.folder)!r}) in this session, or in a new one that has defined "
    assert resuming_command(own, own.config) == f"{call}model 'dropout' again"
    assert resuming_command(own, own.config.override({"imports": ["cmd"]})) == f"{call}model 'dropout' again"
    settings = {"model": "mlp", "dataset": "digits", "loss_terms": [], "distillation": {"teacher": str(own.folder)}}
    taught = Run.create(config(tmp_path / "taught", **settings))
    assert resuming_command(taught, taught.config).endswith("that has defined model 'dropout' again")
    by_function = ExperimentConfig("x", model="mlp", sparsity_fn=sum_of_weights)
    assert resuming_command(own, by_function).endswith("that has defined loss 'sum_of_weights' again")


def sum_of_weights(model):
    return sum(weight.abs().sum() for weight in model.parameters())
