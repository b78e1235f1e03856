import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from codeq import attach_weight_quantizers
from codeq.models import CifarMLP
from codeq.training.execution import Autocast, deterministic, training_forward

CPU = torch.device("cpu")
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_determinism_lasts_as_long_as_it_is_wanted(before, wanted):
    torch.use_deterministic_algorithms(before)
    try:
        with deterministic(wanted):
            assert torch.are_deterministic_algorithms_enabled() == (wanted or before)
        assert torch.are_deterministic_algorithms_enabled() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_without_options_training_calls_the_model_itself():
    model = CifarMLP()
    assert training_forward(model, CPU, use_compile=False, amp=False) is model


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_parameters():
    model = CifarMLP()
    attach_weight_quantizers(model, [], "deadzone", {})
    forward = training_forward(model, CPU, use_compile=False, amp=True)
    logits = forward(X)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(X), rtol=0.05, atol=0.05)
    logits.float().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    assert isinstance(forward, Autocast)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same_with_cached_weights_and_trains():
    model = CifarMLP()
    attach_weight_quantizers(model, [], "deadzone", {})
    forward = training_forward(model, CPU, use_compile=True, amp=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        with parametrize.cached():
            logits = forward(X)
        torch.testing.assert_close(logits, model(X), rtol=1e-4, atol=1e-4)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()
