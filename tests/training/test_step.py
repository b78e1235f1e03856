import pytest
import torch

from codeq import ExperimentConfig, run_experiment
from codeq.common.errors import CodeqError
from codeq.training.step import ReplayedSteps

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TERMS = [
    {"name": "coupled_group_lasso", "lambda": 0.1, "step": "proximal"},
    {
        "name": "group_lasso_channels",
        "lambda": 1e-4,
        "schedule": {"name": "linear_warmup", "kwargs": {"delay": 0, "ramp": 3}},
    },
]


def config(folder, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "epochs": 3, "batch_size": 100, "loss_terms": TERMS, "deterministic": True}
    return ExperimentConfig("tiny", run_dir=str(folder), **(defaults | settings))


@GPU
@pytest.mark.parametrize("settings", [{}, {"amp": "bf16"}, {"optimizer": {"type": "sgd"}}, {"use_compile": True}])
def test_replayed_steps_train_like_direct_ones(tmp_path, settings):
    direct, replayed = (
        run_experiment(config(tmp_path / str(graph), cuda_graph=graph, **settings)).history for graph in (False, True)
    )
    for column in ("train/ce_loss", "train/theta_loss", "train/accuracy", "eval/loss", "sparsity/unstructured"):
        assert replayed[column].tolist() == pytest.approx(direct[column].tolist(), rel=1e-3)


@GPU
def test_a_replayed_training_resumes_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    whole = run_experiment(config(tmp_path / "whole", cuda_graph=True))
    stopped = config(tmp_path / "run", cuda_graph=True, checkpoint_interval=2)
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(ReplayedSteps, "run", lambda self, step, x, y: run(self, step, x, y, steps))
        with pytest.raises(KeyboardInterrupt):
            run_experiment(stopped)
    resumed = run_experiment(stopped, resume=tmp_path / "run")
    assert resumed.history["train/ce_loss"].tolist() == pytest.approx(whole.history["train/ce_loss"].tolist(), rel=1e-3)


def run(replayed, step, x, y, steps, real=ReplayedSteps.run):
    steps.append(1)
    if len(steps) == 10:
        raise KeyboardInterrupt
    real(replayed, step, x, y)


@GPU
def test_a_step_that_waits_for_the_gpu_is_refused_by_name(tmp_path):
    def waiting(model):
        return sum(p.square().sum() for p in model.parameters()) * float(next(model.parameters()).sum().sign())

    with pytest.raises(CodeqError, match="cannot be recorded as a CUDA graph, set cuda_graph: false"):
        run_experiment(config(tmp_path / "run", loss_terms=[{"name": "waiting", "function": waiting}], cuda_graph=True))


@GPU
def test_a_diverging_batch_is_found_in_a_replay(tmp_path):
    with pytest.raises(CodeqError, match="the loss is not finite in epoch 1, batch"):
        run_experiment(config(tmp_path / "run", cuda_graph=True, lr=1e30, epochs=1))
