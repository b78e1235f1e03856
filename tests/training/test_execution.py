import pytest
import torch
from cases import each, needs_compiler
from torch import nn
from torch.nn.utils import parametrize

from codeq import attach_weight_quantizers
from codeq.common.errors import CodeqError
from codeq.models import CifarMLP
from codeq.training.execution import deterministic

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mode():
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@each("before", [(False, False), (True, False), (True, True)])
@each("wanted", [False, True])
def test_determinism_lasts_as_long_as_it_is_wanted_and_the_users_setting_comes_back(before, wanted):
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    try:
        with deterministic(wanted):
            assert mode() == ((True, False) if wanted else before)
        assert mode() == before
        with pytest.raises(RuntimeError), deterministic(wanted):
            raise RuntimeError
        assert mode() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_cannot_be_deterministic_is_one_clear_error():
    def step(error=None):
        with deterministic(True):
            if error:
                raise error
            torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))

    cublas = RuntimeError("with `torch.use_deterministic_algorithms(True)`, set CUBLAS_WORKSPACE_CONFIG=:4096:8")
    for error, reason in ((None, "put_ does not have"), (cublas, "with .* set CUBLAS_WORKSPACE_CONFIG")):
        with pytest.raises(CodeqError, match=rf"^deterministic=True: .*; set deterministic: false\. {reason}"):
            step(error)
    with pytest.raises(RuntimeError, match=r"^shapes differ"):
        step(RuntimeError("shapes differ"))


@pytest.mark.slow
@needs_compiler
def test_a_compiled_model_computes_the_same_with_cached_weights_and_trains():
    model = CifarMLP()
    attach_weight_quantizers(model, [], "deadzone", {})
    forward = torch.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        with parametrize.cached():
            logits = forward(X)
        torch.testing.assert_close(logits, model(X), rtol=1e-4, atol=1e-4)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()
