"""The moving average of the weights keeps the zeros that proximal steps make."""

import pytest
import torch
from cases import each
from torch import nn

from codeq import ExperimentConfig, run_experiment
from codeq.quantizer.layers import latent_weight, named_layers
from codeq.runs.checkpoints import load_checkpoint
from codeq.training.averaging import MovingAverage

TERM = {"name": "coupled_group_lasso", "lambda": 1.0, "kwargs": {"by_size": True}, "step": "proximal"}


@each(("keep_zeros", "expected"), [(False, [3.75, 2.125, 3.0]), (True, [3.75, 1.0, 0.0])])
def test_zeros_of_the_model_are_zeros_of_the_average_where_they_are_kept(keep_zeros, expected):
    model = nn.Linear(3, 1, bias=False)
    average = MovingAverage(model, 0.75, keep_zeros)
    for values in ([1.0, 2.0, 3.0], [5.0, 0.0, 7.0], [9.0, 4.0, 0.0]):
        model.weight.data = torch.tensor([values])
        average.update_parameters(model)
    assert average.module.weight.tolist() == [expected]


def test_values_of_frozen_parameters_are_copied():
    model = nn.Linear(1, 1)
    average = MovingAverage(model, 0.75, keep_zeros=False)
    model.weight.data, model.bias.data = torch.tensor([[4.0]]), torch.tensor([8.0])
    before = average.module.weight.item()
    average.copy_from(model, {id(model.bias)})
    assert (average.module.weight.item(), average.module.bias.item()) == (before, 8.0)


def test_complex_weights_have_a_mean():
    model = nn.ParameterList([torch.zeros(1, dtype=torch.complex64)])
    average = MovingAverage(model, 0.75, keep_zeros=False)
    for value in (1 + 1j, 5 - 3j):
        model[0].data.fill_(value)
        average.update_parameters(model)
    assert average.module[0].item() == 0.75 * (1 + 1j) + 0.25 * (5 - 3j)


@each("decay", [0.9, 0.95, 0.9995, 0.9999])
def test_what_has_no_mean_is_that_of_the_model(decay):
    model = nn.BatchNorm1d(2)
    model.register_buffer("index", torch.arange(64))
    model.register_buffer("active", torch.tensor(True))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf, -torch.inf, torch.inf]))
    average = MovingAverage(model, decay, keep_zeros=False)
    average.update_parameters(model)
    model.running_mean.fill_(1.0)
    model.num_batches_tracked.fill_(7)
    model.active.fill_(False)
    model.mask.copy_(torch.tensor([0.0, -torch.inf, 1.0, 2.0]))
    for _ in range(2):
        average.update_parameters(model)
    averaged = average.module
    torch.testing.assert_close(averaged.running_mean, torch.full((2,), 1 - decay**2))
    for name in ("index", "active", "mask", "num_batches_tracked"):
        assert torch.equal(averaged.get_buffer(name), model.get_buffer(name)), name


@pytest.mark.usefixtures("without_figures")
def test_channels_that_a_proximal_step_kills_are_dead_in_the_average(tmp_path):
    run = run_experiment(
        ExperimentConfig(
            "x", model="lenet5", dataset="synthetic", quantizer=None, epochs=2, batch_size=64, lr=0.005, device="cpu",
            ema=0.9, loss_terms=[TERM], run_dir=str(tmp_path / "run"),
        )
    )  # fmt: skip
    trained, averaged = run.load_model(), dict(named_layers(run.load_model()))
    trained.load_state_dict(load_checkpoint(run.folder / "checkpoints")[0]["trained_model"])
    zeros = {name: latent_weight(layer) == 0 for name, layer in named_layers(trained)}
    assert 0.02 < torch.cat([zero.flatten() for zero in zeros.values()]).float().mean() < 0.98
    for name, zero in zeros.items():
        torch.testing.assert_close(latent_weight(averaged[name]) == 0, zero)
    assert run.history["layers/fc1/structured_pruning"].iloc[-1] > 0
