import pytest

from codeq import ExperimentConfig
from codeq.training.building import build_training
from codeq.training.distributed import Ranks
from codeq.training.doubtful_settings import warn_of_settings


def config(**settings):
    defaults = {"dataset": "synthetic", "model": "mlp", "epochs": 2, "batch_size": 128, "device": "cpu"}
    return ExperimentConfig("tiny", **(defaults | settings))


PROXIMAL = {"name": "coupled_group_lasso", "lambda": 0.1, "step": "proximal"}
DOUBTFUL = [
    ({"lr_scheduler_kwargs": {"warmup": 5}}, "warmup=5: the learning rates never reach their values in 2 epochs"),
    ({"lr_scheduler_kwargs": {"step_size": 5}}, "step_size and gamma have no effect, because lr_scheduler is cosine"),
    ({"ema": 0.999}, "ema=0.999 is too long for 8 batches: the weights after the first one are 99 % of the average"),
    (
        {"label_smoothing": 0.1, "distillation": {"teacher": "t", "alpha": 1.0}},
        "label_smoothing=0.1 has no effect: with distillation.alpha=1 no label is used",
    ),
    ({"augmentation": {"magnitude": 5}}, "augmentation.magnitude=5 has no effect, because randaugment is 0"),
    (
        {"loss_terms": [PROXIMAL, PROXIMAL | {"detach_quantizer": True}]},
        "loss_terms.1.detach_quantizer has no effect: proximal steps change the weights alone",
    ),
]
FINE = [
    {"lr_scheduler_kwargs": {"warmup": 1}, "ema": 0.5},
    {"lr_scheduler": "step", "lr_scheduler_kwargs": {"step_size": 1}},
    {"label_smoothing": 0.1, "distillation": {"teacher": "t", "alpha": 0.9}},
    {"augmentation": {"randaugment": 1, "magnitude": 5}},
    {"augmentation": {"cutout": 4}},
    {"loss_terms": [PROXIMAL, PROXIMAL | {"step": "gradient", "detach_quantizer": True}]},
]


@pytest.mark.parametrize(("settings", "warning"), DOUBTFUL)
def test_what_has_no_effect_or_is_as_long_as_the_training_is_named(caplog, settings, warning):
    warn_of_settings(config(**settings), batches=4)
    assert [warning in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("settings", FINE)
def test_the_same_settings_where_they_count_are_not(caplog, settings):
    warn_of_settings(config(**settings), batches=4)
    assert not caplog.records


def test_a_training_warns_once_before_it_begins(caplog):
    build_training(config(ema=0.999), Ranks(), "float32", initialize=True)
    assert caplog.text.count("ema=0.999 is too long for 8 batches") == 1
