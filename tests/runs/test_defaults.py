import torch

from codeq.quantizer import QUANTIZERS
from codeq.runs.defaults import with_defaults
from codeq.runs.settings import without_seeds


def quantized(name="deadzone", **kwargs):
    return {"seed": 0, "quantizer": {"name": name, "kwargs": kwargs}}


def test_arguments_that_one_run_gives_have_their_defaults_in_the_others():
    runs = [quantized(max_bits=6), quantized(init_bit_logit=1.0), {"quantizer": None}, {}]
    first, second, *rest = with_defaults(runs)
    assert first["quantizer"]["kwargs"] == {"max_bits": 6, "init_bit_logit": 3.0}
    assert second["quantizer"]["kwargs"] == {"max_bits": 8, "init_bit_logit": 1.0}
    assert rest == runs[2:]
    assert runs[0] == quantized(max_bits=6)  # as it was


def content(model, theta, optimizer, second, loss, schedule):
    """A configuration with these arguments of its parts."""
    return {
        "model": "vit",
        "model_kwargs": model,
        "theta_schedule": {"name": "cosine_anneal", "kwargs": theta},
        "optimizer": {"type": "adamw", "kwargs": optimizer, "theta": {"type": "sgd", "kwargs": second}},
        "loss_terms": [
            {"name": "group_lasso_blocks", "kwargs": loss, "schedule": {"name": "cosine_anneal", "kwargs": schedule}}
        ],
    }


def test_parts_of_each_kind_are_completed_from_their_registries():
    given = [{"patch_size": 4}, {"delay": 5}, {"betas": [0.8, 0.9]}, {"dampening": 1}, {"block_size": 8}, {"delay": 5}]
    # Tuples are lists, as files have them.
    defaults = [
        {"patch_size": 16}, {"delay": 0}, {"betas": [0.9, 0.999]}, {"dampening": 0}, {"block_size": 4}, {"delay": 0},
    ]  # fmt: skip
    assert with_defaults([content(*given), content(*({} for _ in given))])[1] == content(*defaults)


def test_what_is_not_known_stays_as_it_is(monkeypatch):
    class Odd:
        def __init__(self, kind=torch.float32, required=..., bits=2):
            pass

    monkeypatch.setitem(QUANTIZERS, "odd", Odd)
    gives = quantized("odd", kind="x", required=1, bits=3, other=4)
    assert with_defaults([gives, quantized("odd")])[1] == quantized("odd", bits=2)
    for other in (
        quantized("not registered"),
        quantized(["no name"]),
        {"quantizer": {"kwargs": 3}},
        {"quantizer": "x"},
    ):
        assert with_defaults([gives, other])[1] == other
    # Chosen by codeq where it is not given.
    given, default = ({"optimizer": {"type": "sgd", "kwargs": kwargs}} for kwargs in ({"nesterov": True}, {}))
    assert with_defaults([given, default])[1] == default


def test_runs_that_train_alike_have_the_same_settings():
    given, default = without_seeds([quantized(max_bits=8), quantized()])
    assert given == default
