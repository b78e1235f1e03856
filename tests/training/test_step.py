from contextlib import nullcontext

import pytest
import torch

from codeq import OPTIMIZERS, ExperimentConfig, run_experiment, trainer
from codeq.common.errors import CodeqError
from codeq.training.building import SYNC_INTERVAL, _build_guard, _build_steps
from codeq.training.distributed import Ranks
from codeq.training.step import ReplayedSteps

pytestmark = pytest.mark.usefixtures("without_figures")


class FakeCuda:
    """As much of `torch.cuda` as replays need: while a graph is captured, `launch` adds to it and computes nothing."""

    def __init__(self):
        self.capturing, self.captures = None, 0
        cuda = self

        class Stream:
            def wait_stream(self, other):
                pass

        class CUDAGraph:
            def capture_begin(self, **_):
                assert cuda.capturing is None
                cuda.capturing, self.kernels = self, []
                cuda.captures += 1

            def capture_end(self):
                assert cuda.capturing is self
                cuda.capturing = None

            def replay(self):
                for kernel in self.kernels:
                    kernel()

        self.Stream, self.CUDAGraph = Stream, CUDAGraph
        self.current_stream, self.graph_pool_handle = Stream, object

    def stream(self, _):
        return nullcontext()

    def launch(self, kernel):
        if self.capturing is None:
            kernel()
        else:
            self.capturing.kernels.append(kernel)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name in ("Stream", "CUDAGraph", "current_stream", "graph_pool_handle", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


def adam() -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def test_every_batch_counts_once_and_an_epoch_records_a_shape_once(cuda):
    steps, optimizer, sums = ReplayedSteps(torch.device("cpu")), adam(), torch.zeros(2)
    expected = torch.zeros(2)

    def step(x, y):
        rate = epoch + 1  # of Python: recorded
        cuda.launch(lambda: sums.add_(torch.stack([rate * x.sum(), y.sum()])))

    for epoch in range(3):
        steps.use_settings(optimizer)
        for size in (4, 4, 4, 2):
            x, y = torch.randn(size), torch.randn(size)
            steps.run(step, x, y)
            expected += torch.stack([(epoch + 1) * x.sum(), y.sum()])
    torch.testing.assert_close(sums, expected)
    assert cuda.captures == 1 + 2 + 2  # in the first epoch the first batch of each shape runs directly
    assert optimizer.param_groups[0]["capturable"]


@pytest.mark.parametrize(("optimizer", "captures"), [("adam", 1), ("sgd", 3)])
def test_a_rate_of_every_batch_is_read_from_the_device_or_recorded_anew(cuda, optimizer, captures):
    weight, steps = torch.zeros(1, requires_grad=True), ReplayedSteps(torch.device("cpu"))
    chosen = torch.optim.Adam([weight]) if optimizer == "adam" else torch.optim.SGD([weight], fused=False)
    steps.use_settings(chosen)
    total, kinds = torch.zeros(()), set()

    def step(x, y):
        rate = chosen.param_groups[0]["lr"]
        kinds.add(type(rate))
        cuda.launch(lambda: total.add_(rate * x.sum()))

    for rate in (1.0, 2.0, 2.0, 0.5, 3.0):
        chosen.param_groups[0]["lr"] = rate
        steps.run(step, torch.ones(4), torch.ones(4))
        assert chosen.param_groups[0]["lr"] == rate  # a number, as checkpoints keep it
    assert total == 4 * 8.5
    assert cuda.captures == captures
    assert kinds == {torch.Tensor if optimizer == "adam" else float}  # also in the first step, which is not recorded


def test_nothing_is_read_while_a_step_is_recorded(cuda):
    weight, gpu = torch.zeros(1, requires_grad=True), Ranks(device=torch.device("cuda"))
    direct, replayed = _build_steps(False, gpu), _build_steps(True, gpu)
    assert isinstance(replayed, ReplayedSteps)
    fused, unfused = torch.optim.Adam([weight], fused=True), torch.optim.RAdam([weight])
    pairs = [(fused, direct), (fused, replayed), (unfused, direct), (unfused, replayed)]
    intervals = [_build_guard(gpu, optimizer, steps).sync_interval for optimizer, steps in pairs]
    assert intervals == [SYNC_INTERVAL, SYNC_INTERVAL, 1, SYNC_INTERVAL]
    assert _build_guard(Ranks(), fused, direct).sync_interval == 1


@pytest.mark.parametrize(("error", "raised"), [(RuntimeError("sync"), CodeqError), (ValueError("own"), ValueError)])
def test_a_recording_that_fails_is_ended(cuda, error, raised):
    steps, calls = ReplayedSteps(torch.device("cpu")), []

    def step(x, y):
        calls.append(1)
        if len(calls) == 2:
            raise error

    steps.run(step, torch.ones(4), torch.ones(4))
    with pytest.raises(raised, match="set cuda_graph: false. sync" if raised is CodeqError else "own"):
        steps.run(step, torch.ones(4), torch.ones(4))
    assert cuda.capturing is None


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


SETTINGS: list[dict] = [
    {},
    {"amp": "bf16"},
    {"optimizer": {"type": "sgd"}},
    {"optimizer": {"type": "sgd", "kwargs": {"fused": False}}},
    {"optimizer": {"type": "adamw", "kwargs": {"foreach": True}}},
    {"use_compile": True},
    {"lr_schedule_unit": "step", "lr_scheduler_kwargs": {"warmup": 1}},
    {
        "lr_schedule_unit": "step",
        "optimizer": {
            "type": "sgd",
            "theta": {"type": "adamw"},
            "param_groups": {"base": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "decay_norms_and_biases": False}},
        },
        "freeze_last": {"bit": 1},
    },
    {"target": {"relative_bops": 0.1}, "loss_terms": [], "lr_schedule_unit": "step"},
]


@GPU
@pytest.mark.parametrize("settings", SETTINGS)
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


@GPU
@pytest.mark.parametrize("graph", [False, True])
def test_a_training_is_resumed_with_the_other_kind_of_steps(tmp_path, monkeypatch, graph):
    monkeypatch.setitem(OPTIMIZERS, "radam", torch.optim.RAdam)
    settings = {"optimizer": {"type": "radam"}, "epochs": 2}
    whole = run_experiment(config(tmp_path / "whole", cuda_graph=graph, **settings))
    with monkeypatch.context() as patch:
        evaluate, left = trainer.evaluate, iter([1])

        def once(*parts):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return evaluate(*parts)

        patch.setattr(trainer, "evaluate", once)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config(tmp_path / "run", cuda_graph=graph, **settings))
    resumed = run_experiment(config(tmp_path / "run", cuda_graph=not graph, **settings), resume=tmp_path / "run")
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
