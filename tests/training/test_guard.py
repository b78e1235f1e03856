import math

import pytest
import torch
from cases import each
from emulated_device import DEVICE, Emulation
from torch import nn

from codeq import ExperimentConfig, run_experiment
from codeq.common.errors import CodeqError
from codeq.training.guard import Diverged, FiniteGuard
from codeq.training.objective import LossParts
from codeq.training.paired_optimizer import PairedOptimizer

NAMES = ("cross-entropy", "theta regularizer", "lasso")


def parts(*values):
    return LossParts(NAMES, torch.tensor(values))


def sgd():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def watch(guard, optimizer, parts, epoch, batch, device="cpu"):
    guard.watch(optimizer, parts, epoch, torch.full((), batch, device=device))
    guard.check_regularly(epoch, batch + 1)


@each("bad", [math.nan, math.inf, -math.inf])
@each("part", [0, 1, 2])
def test_whatever_part_is_not_finite_stops_at_once_and_is_named_with_its_place(bad, part):
    guard, values = FiniteGuard(sync_interval=1), [0.5, 0.25, 2.0]
    watch(guard, sgd(), parts(*values), epoch=6, batch=0)
    values[part] = bad
    shown = ", ".join(f"{name} = {value:g}" for name, value in zip(NAMES, values, strict=True))
    with pytest.raises(Diverged) as raised:
        watch(guard, sgd(), parts(*values), epoch=6, batch=1)
    assert str(raised.value) == f"the loss is not finite in epoch 7, batch 2: {shown}"
    assert isinstance(raised.value, CodeqError)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


@each("kind", OPTIMIZERS)
def test_a_bad_batch_between_two_looks_changes_no_weight_and_is_reported_at_the_next_look(kind):
    weight = nn.Parameter(torch.ones(4))
    optimizer = OPTIMIZERS[kind]([weight])
    guard = FiniteGuard(sync_interval=3)
    good, bad = parts(1.0, 0.0, 0.0), parts(1.0, 0.0, math.nan)
    weight.grad = torch.full((4,), math.nan)
    watch(guard, optimizer, bad, epoch=0, batch=0)
    optimizer.step()
    assert weight.tolist() == [1, 1, 1, 1]
    weight.grad = torch.ones(4)
    watch(guard, optimizer, good, epoch=0, batch=1)
    with pytest.raises(Diverged, match=r"epoch 1, batch 1: .*lasso = nan"):
        watch(guard, optimizer, good, epoch=0, batch=2)


@each("kind", OPTIMIZERS)
def test_good_batches_are_stepped_as_without_the_guard(kind):
    weights = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizers = [OPTIMIZERS[kind]([weight]) for weight in weights]
    guard = FiniteGuard(sync_interval=3)
    for step in range(7):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.full((4,), 1.0 + step)
            if optimizer is optimizers[0]:
                watch(guard, optimizer, parts(1.0, 0.0, 0.0), epoch=0, batch=step)
            optimizer.step()
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.ones(4))


PLAIN = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=False),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=None),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "pair": lambda p: PairedOptimizer(OPTIMIZERS["sgd"](p), torch.optim.AdamW([torch.zeros(1)], lr=0.1, foreach=True)),
    "other pair": lambda p: PairedOptimizer(
        torch.optim.SGD(p, lr=0.1, foreach=True), OPTIMIZERS["adamw"]([torch.ones(1)])
    ),
}


@each("kind", PLAIN)
def test_optimizers_that_are_not_fused_step_after_good_batches_and_not_after_bad_ones(kind):
    weight, guard = nn.Parameter(torch.ones(4)), FiniteGuard(sync_interval=1)
    optimizer = PLAIN[kind]([weight])
    weight.grad = torch.ones(4)
    for batch in range(2):
        watch(guard, optimizer, parts(1.0, 0.0, 0.0), epoch=0, batch=batch)
        optimizer.step()
    assert (weight < 1).all()
    with pytest.raises(Diverged, match="batch 3"):
        watch(guard, optimizer, parts(1.0, 0.0, math.nan), epoch=0, batch=2)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("plain", "fused"),
    [
        ({"type": "sgd", "theta": {"kwargs": {"fused": False}}}, {"type": "sgd", "theta": {}}),
        pytest.param({"type": "sgd", "kwargs": {"fused": False}}, {"type": "sgd"}, marks=pytest.mark.slow),
        pytest.param({"type": "adamw", "kwargs": {"foreach": True}}, {"type": "adamw"}, marks=pytest.mark.slow),
        pytest.param({"type": "adam", "kwargs": {"fused": None}}, {"type": "adam"}, marks=pytest.mark.slow),
    ],
)
def test_whole_trainings_with_optimizers_that_are_not_fused(tmp_path, plain, fused):
    settings = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 128, "device": "cpu"}
    first, second = (
        run_experiment(ExperimentConfig("x", run_dir=str(tmp_path / name), optimizer=optimizer, **settings)).history
        for name, optimizer in (("plain", plain), ("fused", fused))
    )
    assert first["train/ce_loss"].tolist() == pytest.approx(second["train/ce_loss"].tolist(), rel=1e-3)


@pytest.mark.parametrize("good", [0, 1, 2])
def test_the_first_of_several_bad_batches_is_the_one_reported(good):
    guard, optimizer = FiniteGuard(sync_interval=50), sgd()
    for k, value in enumerate([1.0] * good + [math.inf, math.nan, 1.0]):
        watch(guard, optimizer, parts(value, 0.0, 0.0), epoch=2, batch=k)
    with pytest.raises(Diverged, match=rf"epoch 3, batch {good + 1}: cross-entropy = inf"):
        guard.check(epoch=2)


def test_a_good_epoch_passes_the_check_at_its_end():
    guard, optimizer = FiniteGuard(sync_interval=50), sgd()
    watch(guard, optimizer, parts(0.0, 0.0, 0.0), epoch=0, batch=0)
    guard.check(epoch=0)


def test_before_the_first_batch_there_is_nothing_to_report():
    FiniteGuard(sync_interval=50).check(epoch=0)


def test_watching_does_not_wait_for_the_device():
    with Emulation() as emulation:
        guard, values = FiniteGuard(sync_interval=50), torch.tensor([1.0, math.nan, 2.0]).to(DEVICE)
        good = torch.ones(3).to(DEVICE)
        with emulation.step():
            for batch in range(3):
                values_of_batch = good if batch == 0 else values
                watch(guard, sgd(), LossParts(NAMES, values_of_batch), epoch=0, batch=batch, device=DEVICE)
        with pytest.raises(Diverged, match="batch 2: cross-entropy = 1, theta regularizer = nan, lasso = 2"):
            guard.check(epoch=0)


def test_weights_that_a_step_has_spoiled_are_found_before_they_are_saved():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    FiniteGuard(1).check_weights(model, 0)
    with torch.no_grad():
        model[1].bias[0] = math.inf
    with pytest.raises(Diverged, match=r"^1\.bias is not finite after a step in epoch 3"):
        FiniteGuard(1).check_weights(model, 2)
