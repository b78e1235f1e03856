"""Operations of codeq on a GPU, checked by rule on an emulated one: see `emulated_device`.

Models, losses, quantizer options, evaluation, what-if and compaction run with real numbers on tensors that obey the
rules of Apple's GPU (no float64, a kernel in PyTorch's table); steps of a training also obey those of CUDA (the host
does not wait). Where a result is a number it has to be that of the CPU.
"""

import copy
import dataclasses
import itertools
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from emulated_device import DEVICE, Emulation, NotOnDevice, OnDevice, kernels
from PIL import Image
from torch import Tensor, nn

from codeq import Evaluator, ExperimentConfig, attach_weight_quantizers, run_experiment
from codeq.analysis.requantize import Requantizer
from codeq.analysis.sensitivity import sensitivity
from codeq.analysis.weights import latent_weights, sparsest_layer, weight_levels
from codeq.compaction import compact, prove
from codeq.data import FileSplit, StreamedDataset
from codeq.data.randaugment import randaugment
from codeq.graph.activations import attach_activation_quantizers
from codeq.metrics import exact_stats, ledger, storage_bytes, weight_codes
from codeq.models import MODELS, build_model
from codeq.quantizer.activations import named_activation_quantizers
from codeq.quantizer.attach import (
    collapsed_layers,
    detach_weight_quantizers,
    quantizer_parameters_detached,
    toggle_quantization,
)
from codeq.quantizer.calibration import calibrate
from codeq.quantizer.layers import latent_weight, named_layers
from codeq.sparsity import LOSSES, build_loss, supports_proximal
from codeq.training import objective

SIZE = (3, 8, 8)


@pytest.fixture
def device():
    with Emulation() as emulation:
        yield emulation


def small_net() -> nn.Sequential:
    """Two convolutions with a BatchNorm between them, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, 4),
    )  # fmt: skip


QUANTIZERS = {
    "default": ("deadzone", {}), "nonzero": ("deadzone", {"absmax_over": "nonzero"}),
    "channel": ("deadzone", {"granularity": "channel"}),
    "channel, nonzero": ("deadzone", {"granularity": "channel", "absmax_over": "nonzero"}),
    "learned": ("deadzone", {"scale": "learned"}),
    "learned channel": ("deadzone", {"scale": "learned", "granularity": "channel"}),
    "fixed": ("deadzone", {"learnable_bit": False, "learnable_deadzone": False}),
    "affine": ("deadzone", {"grid": "affine"}),
    "affine, held channel": ("deadzone", {"grid": "affine", "scale": "held", "granularity": "channel"}),
    "uniform": ("uniform", {"bitwidth": 4}),
}  # fmt: skip


def quantized(options: str = "default") -> nn.Module:
    torch.manual_seed(0)
    net = small_net()
    attach_weight_quantizers(net, [], *QUANTIZERS[options])
    with torch.no_grad():
        latent_weight(net[0])[1] = 0
        latent_weight(net[3])[:, 2] = 0
    return net


def on_device(model: nn.Module) -> nn.Module:
    moved = copy.deepcopy(model).to(DEVICE)
    assert all(isinstance(tensor, OnDevice) for tensor in (*moved.parameters(), *moved.buffers()))
    return moved


def images(size: tuple[int, ...] = SIZE, number: int = 2) -> Tensor:
    return torch.rand(number, *size, generator=torch.Generator().manual_seed(1))


# The emulation itself: each rule is broken once.


BREACHES = {
    "float64": lambda x: x.double(), "made as float64": lambda x: torch.zeros(2, device=x.device, dtype=torch.double),
    "promoted": lambda x: x.to(torch.complex128), "no kernel": lambda x: torch.linalg.eigvals(x.reshape(2, 2)),
    "mixed": lambda x: x + torch.ones(4), "later": lambda x: torch.ones(4).to(x.device, non_blocking=True),
}  # fmt: skip
WAITS = {
    "item": lambda x: x.sum().item(), "nonzero": lambda x: x.nonzero(), "mask": lambda x: x[x > 0],
    "masked write": lambda x: x.index_put_((x > 0,), torch.zeros((), device=DEVICE)), "unique": lambda x: x.unique(),
    "to the CPU": lambda x: x.cpu(), "from the CPU": lambda x: x + torch.ones(4).to(x.device),
    "if": lambda x: 1 if x.sum() > 0 else 0,
}  # fmt: skip


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES)
def test_the_emulation_refuses_what_a_gpu_cannot_do(device, breach):
    with pytest.raises(NotOnDevice):
        breach(torch.rand(4).to(DEVICE))


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_the_emulation_refuses_to_wait_inside_a_step(device, wait):
    x = torch.rand(4).to(DEVICE)
    wait(x)
    with pytest.raises(NotOnDevice, match="wait"), device.step():
        wait(x)


def test_the_table_names_the_kernels():
    table = kernels()
    assert len(table) > 2000
    assert "MPS" in table["topk"] & table["add.Tensor"]
    assert "MPS" not in table["linalg_eig"]
    assert table["flatten.using_ints"] == {"CompositeImplicitAutograd"}


# Quantizers, losses and models.


@pytest.mark.parametrize("method", ["lsq", "percentile"])
def test_quantized_activations(device, method):
    here, x = quantized().eval(), images(number=8)
    attach_activation_quantizers(here, x, 4, method)
    net, moved = on_device(here), x.to(DEVICE)
    with device.step():
        net(moved).square().sum().backward()
    here(x).square().sum().backward()
    for p, q in zip(net.parameters(), here.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.allclose(p.grad.cpu(), q.grad, rtol=1e-3, atol=1e-3)
    calibrate(net, [moved])
    for (_, ours), (_, theirs) in zip(*map(named_activation_quantizers, (net, here)), strict=True):
        assert torch.allclose(ours.step.cpu(), theirs.step)


@pytest.mark.parametrize("options", QUANTIZERS)
def test_every_quantizer_option(device, options):
    here = quantized(options)
    net, x = on_device(here), images().to(DEVICE)
    with device.step():
        net(x).square().sum().backward()
    here(images()).square().sum().backward()
    for p, q in zip(net.parameters(), here.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.allclose(p.grad.cpu(), q.grad, rtol=1e-4, atol=1e-5)
    for (_, layer), (_, other) in zip(named_layers(net), named_layers(here), strict=True):
        assert np.array_equal(weight_codes(layer), weight_codes(other))
    assert storage_bytes(net) == storage_bytes(here)
    assert collapsed_layers(net) == collapsed_layers(here)
    toggle_quantization(net, enabled=False)
    detach_weight_quantizers(net)


@pytest.mark.parametrize("name", [*LOSSES])
def test_every_loss(device, name):
    here = quantized()
    net = on_device(here)
    loss = build_loss(name, {}, net, SIZE)
    loss(net)  # what a loss makes once and keeps
    with device.step():
        value = loss(net)
        value.backward()
        with quantizer_parameters_detached(net):
            loss(net).backward()
        if supports_proximal(name):
            loss.proximal_step(net, 1e-2)
    assert value.item() == pytest.approx(build_loss(name, {}, here, SIZE)(here).item(), rel=1e-5)


FAST_MODELS = {"resnet20": 8, "mlp": 32}
LARGE_MODELS = {"resnet44", "resnet56", "resnet110", "resnet18", "resnet50"}
SLOW_MODELS = [
    pytest.param(name, 32, marks=pytest.mark.exhaustive if name in LARGE_MODELS else pytest.mark.slow)
    for name in MODELS
    if name not in FAST_MODELS
]


@pytest.mark.parametrize(("name", "size"), [*FAST_MODELS.items(), *SLOW_MODELS])
def test_every_model_trains_and_is_evaluated(device, name, size):
    kwargs = {"patch_size": 4} if name == "vit" else {}
    config = ExperimentConfig("m", model=name)
    here = build_model(name, 10, kwargs, img_size=size, quantizer=config.quantizer)
    net, x, y = on_device(here), images((3, size, size)).to(DEVICE), torch.tensor([1, 2]).to(DEVICE)
    with device.step():
        nn.functional.cross_entropy(net(x), y).backward()
    result = Evaluator(net, (3, size, size)).evaluate(net, [(x.cpu(), y.cpu())])
    here.load_state_dict({key: value.cpu() for key, value in net.state_dict().items()})
    expected = Evaluator(here, (3, size, size)).evaluate(here, [(x.cpu(), y.cpu())])
    assert result.structured_stats == expected.structured_stats
    assert result.test_loss == pytest.approx(expected.test_loss, rel=1e-5)


# What is computed of a trained model.


@pytest.mark.parametrize("options", ["default", "learned channel", "uniform"])
def test_what_if_sensitivity_and_weights(device, options):
    here = quantized(options)
    net, batches = on_device(here), [(images(), torch.tensor([0, 3]))]
    deadzone = {"0": 0.3} if options != "uniform" else {}
    found, expected = (Requantizer(m, SIZE).evaluate(deadzone, {"3": 3}, batches) for m in (net, here))
    assert found.result.layers.equals(expected.result.layers)
    assert found.result.test_loss == pytest.approx(expected.result.test_loss, rel=1e-5)
    scans = [sensitivity(m, batches, bits=[3], dead_zones=[0.25], layers=["3"]) for m in (net, here)]
    assert scans[0].equals(scans[1])
    assert np.allclose(latent_weights(net, "0"), latent_weights(here, "0"))
    levels = [weight_levels(m, "0") for m in (net, here)]
    assert np.allclose(levels[0], levels[1])
    assert sparsest_layer(net) == sparsest_layer(here)


def test_accountings_and_compaction(device):
    here = quantized()
    net = on_device(here)
    assert ledger(net, SIZE).equals(ledger(here, SIZE))
    assert exact_stats(net, SIZE) == exact_stats(here, SIZE)
    report = compact(net, images().to(DEVICE))
    assert all(isinstance(p, OnDevice) for p in report.model.parameters())
    assert report.proof == compact(here, images()).proof
    small, large = (model.eval()(images().to(DEVICE)).cpu() for model in (report.model, net))
    assert torch.allclose(small, large, atol=1e-5)
    assert prove(net, report.model, [(images().to(DEVICE), torch.tensor([0, 3]).to(DEVICE))]).flipped == 0


# A whole training.


def test_batches_that_are_copied_to_the_device(device, tmp_path):
    """Those read from files, and where RandAugment applies which operation; a training copies those in memory."""
    for k in range(2):
        Image.new("RGB", (8, 8), (100 * k, 50, 0)).save(tmp_path / f"{k}.png")
    files = FileSplit.of([str(tmp_path / f"{k}.png") for k in range(2)], torch.tensor([0, 1]))
    read = dataclasses.replace(StreamedDataset.from_files("x", ("a", "b"), files, files, 8), workers=0)
    ((x, y),), ((u, v),) = read.test_batches(), read.to(DEVICE).test_batches()
    assert torch.allclose(x, u.cpu())
    assert torch.equal(y, v.cpu())
    pixels = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 2, 2)
    unchanged = torch.tensor([[0, 14]])  # the two signs of the identity
    assert torch.equal(randaugment(pixels.to(DEVICE), unchanged, 9).cpu(), pixels)


TRAININGS = {
    "coupled, proximal": {"loss_terms": [{"name": "coupled_group_lasso", "lambda": 0.1, "step": "proximal"}]},
    "detached": {"loss_terms": [{"name": "group_lasso", "lambda": 0.1, "detach_quantizer": True}]},
    "smoothing, decoupled": {"label_smoothing": 0.1, "theta_regularizer": "decoupled", "recalibrate_batchnorm": 1},
}


SLOW = {"detached", "smoothing, decoupled"}


@pytest.mark.parametrize(
    "options", [pytest.param(o, id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n, o in TRAININGS.items()]
)
def test_a_training(device, options, monkeypatch, tmp_path):
    monkeypatch.setattr("codeq.trainer.resolve_device", lambda _: DEVICE)
    supported = lambda: ["cpu", DEVICE.type]  # noqa: E731
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", supported)
    backward, proximal = objective.Objective.backward, objective.Objective.proximal_steps

    def in_step(method):
        calls = itertools.count()

        def call(*args, **kwargs):
            # The first step copies constants to the device, which stay there.
            with device.step() if next(calls) else nullcontext():
                return method(*args, **kwargs)

        return call

    monkeypatch.setattr(objective.Objective, "backward", in_step(backward))
    monkeypatch.setattr(objective.Objective, "proximal_steps", in_step(proximal))
    config = ExperimentConfig(
        "emulated", model="mlp", dataset="synthetic", epochs=2, batch_size=256, viz_interval=9,
        run_dir=str(tmp_path / "run"), **options,
    )  # fmt: skip
    run = run_experiment(config)
    assert len(run.history) == 2
    assert "_local_scalar_dense" in device.seen  # the device was used
