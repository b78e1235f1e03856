"""Warnings of settings that do not suit the length of a training, or have no effect beside others."""

from __future__ import annotations

import logging

from codeq.config import ExperimentConfig
from codeq.config.parts import AugmentationConfig, LrSchedulerKwargs

logger = logging.getLogger(__name__)

FIRST_WEIGHTS = 0.05  # largest share of the first weights in a moving average without a warning


def warn_of_settings(config: ExperimentConfig, batches: int) -> None:
    """Warn of what is as long as the training, and of what has no effect; all are legal.

    Parameters
    ----------
    config : ExperimentConfig
        The experiment.
    batches : int
        Of an epoch.
    """
    _warn_of_lengths(config, batches)
    course = config.lr_scheduler_kwargs
    if config.lr_scheduler != "step" and (course.step_size, course.gamma) != (None, LrSchedulerKwargs.gamma):
        logger.warning(
            "lr_scheduler_kwargs: step_size and gamma have no effect, because lr_scheduler is %s", config.lr_scheduler
        )
    if config.label_smoothing and config.distillation and config.distillation.alpha == 1:
        logger.warning(
            "label_smoothing=%s has no effect: with distillation.alpha=1 no label is used", config.label_smoothing
        )
    more = config.augmentation
    if more and not more.randaugment and more.magnitude != AugmentationConfig.magnitude:
        logger.warning("augmentation.magnitude=%s has no effect, because randaugment is 0", more.magnitude)
    for number, term in enumerate(config.loss_terms):
        if term.detach_quantizer and term.step == "proximal":
            logger.warning(
                "loss_terms.%d.detach_quantizer has no effect: proximal steps change the weights alone", number
            )


def _warn_of_lengths(config: ExperimentConfig, batches: int) -> None:
    updates = config.epochs * batches - 1  # of the average, which begins as the weights after the first batch
    if config.ema and updates and (share := config.ema**updates) > FIRST_WEIGHTS:
        logger.warning(
            "ema=%s is too long for %d batches: the weights after the first one are %.0f %% of the average; with %.4g "
            "they are %.0f %%",
            config.ema, updates + 1, 100 * share, FIRST_WEIGHTS ** (1 / updates), 100 * FIRST_WEIGHTS,
        )  # fmt: skip
    if (warmup := config.lr_scheduler_kwargs.warmup) >= config.epochs > 1:
        logger.warning(
            "lr_scheduler_kwargs.warmup=%s: the learning rates never reach their values in %s epochs",
            warmup, config.epochs,
        )  # fmt: skip
