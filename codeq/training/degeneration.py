"""Signs of a training that will not recover: accuracy at chance, dead layers, bits at the floor, a stuck loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError, listed
from codeq.common.modes import evaluation_mode
from codeq.common.task_loss import task_loss
from codeq.quantizer.functions import MIN_BITS
from codeq.quantizer.layers import reference_tensor

if TYPE_CHECKING:
    import pandas as pd

DEVIATIONS = 3.0  # standard errors above chance up to which an accuracy counts as chance
STUCK = 1e-3  # largest relative change of a loss that does not move
LEARNED = 0.9  # a loss below this fraction of its first value has moved before, and may have converged
MAX_NAMES = 5  # layers in a message


class Degenerate(CodeqError):
    """A training that will not recover, stopped because the configuration asks for it."""


@dataclass(frozen=True)
class Sign:
    """A sign of degeneration.

    Parameters
    ----------
    name : str
        ``chance``, ``disconnected``, ``stuck``, ``zero layers`` or ``bits``.
    text : str
        Observation and likely cause.
    fatal : bool
        Whether it ends a training with ``stop_degenerate``: dead layers beside a residual connection and a network of
        two bits can be what the training is for.
    """

    name: str
    text: str
    fatal: bool


def chance_accuracy(labels: Tensor) -> float:
    """Return the largest accuracy that is not better than chance: the share of the most frequent class + 3 σ.

    Parameters
    ----------
    labels : Tensor
        int64 `[N]`, of the evaluated images.

    Examples
    --------
    >>> import torch
    >>> round(chance_accuracy(torch.arange(10_000) % 10), 4)
    0.109
    """
    share = labels.bincount().max().item() / len(labels)
    return share + DEVIATIONS * math.sqrt(share * (1 - share) / len(labels))


def is_constant(model: nn.Module, input_size: tuple[int, int, int]) -> bool:
    """Return whether two inputs `(C, H, W)` = `input_size` that differ in every value have the same logits.

    Examples
    --------
    >>> linear = nn.Linear(4, 2)
    >>> is_constant(nn.Sequential(nn.Flatten(), linear), (1, 2, 2))
    False
    >>> _ = nn.init.zeros_(linear.weight)
    >>> is_constant(nn.Sequential(nn.Flatten(), linear), (1, 2, 2))
    True
    """
    ramp = torch.linspace(-2, 1.9, math.prod(input_size)).to(reference_tensor(model))
    with evaluation_mode(model):
        first, second = (model(values.view(1, *input_size)) for values in (ramp, -ramp))
    return torch.equal(first, second)


def find_signs(
    history: pd.DataFrame,
    layers: pd.DataFrame,
    chance: float,
    patience: int,
    *,
    learned_bits: bool,
    constant: Callable[[], bool] = lambda: True,
) -> list[Sign]:
    """Return the signs of degeneration after an epoch, fatal ones first.

    Parameters
    ----------
    history : DataFrame
        One row per epoch so far, with `eval/accuracy`, `train/accuracy` and `train/ce_loss`.
    layers : DataFrame
        The layers after the last epoch, see `codeq.metrics.layer_table.layer_table`.
    chance : float
        See `chance_accuracy`.
    patience : int
        Epochs after which an accuracy at chance or a loss that does not move counts.
    learned_bits : bool
        Whether the bit-widths are learned, so that the smallest one is a result.
    constant : callable
        Whether the network is (see `is_constant`), asked where its last layer computes nothing: another one may lead
        to the output beside it.
    """
    bits = layers.loc[layers["quantized"], "bits"]
    floor = learned_bits and len(bits) > 0 and bool((bits == MIN_BITS).all())
    dead = _sign_of_zero_layers(layers, constant)
    disconnected = bool(dead) and dead[0].fatal
    signs = [*dead, *_signs_of_epochs(history, chance, patience, disconnected=disconnected, floor=floor)]
    if floor:
        text = f"all quantized layers have {MIN_BITS} bits, the smallest number: lower the weight decay of bit"
        signs.append(Sign("bits", text, fatal=False))
    return sorted(signs, key=lambda sign: not sign.fatal)


def _sign_of_zero_layers(layers: pd.DataFrame, constant: Callable[[], bool]) -> list[Sign]:
    zero = layers.loc[layers["density"] == 0, "layer"].tolist()
    if not zero:
        return []
    names = listed(zero, MAX_NAMES)
    weaker = "lower the weight decay of dz or the lambda of the sparsity terms, or begin them later"
    if layers["structured_macs"].iloc[-1] == 0 and constant():
        text = f"no weight connects the input to the output, all weights of {names} are zero: {weaker}"
        return [Sign("disconnected", text, fatal=True)]
    return [Sign("zero layers", f"all weights of {names} are zero; if that is not wanted, {weaker}", fatal=False)]


def _signs_of_epochs(
    history: pd.DataFrame, chance: float, patience: int, *, disconnected: bool, floor: bool
) -> list[Sign]:
    """Return the signs in the last `patience` epochs; none before so many have passed."""
    recent, signs = history.tail(patience), []
    if len(recent) < patience:
        return []
    if chance < 1 and (recent["eval/accuracy"] <= chance).all():
        cause = _cause_of_chance(recent["train/accuracy"].iloc[-1], chance, disconnected, floor)
        text = f"the accuracy was not above chance ({chance:.1%}) in the last {patience} epochs: {cause}"
        signs.append(Sign("chance", text, fatal=True))
    loss = task_loss(history)
    compared = max(patience, 2)  # a single epoch shows no movement
    if len(loss) >= compared and _is_stuck(loss.tail(compared), loss.iloc[0]):
        text = (
            f"the loss has not moved in the last {compared} epochs: the learning rate is too small, or gradients vanish"
        )
        signs.append(Sign("stuck", text, fatal=True))
    return signs


def _cause_of_chance(train_accuracy: float, chance: float, disconnected: bool, floor: bool) -> str:
    if disconnected:
        return "the network is disconnected"
    if train_accuracy > 2 * chance:
        return (
            f"the training accuracy is {train_accuracy:.1%}, so the running statistics of BatchNorm do not fit the "
            "weights (recalibrate_batchnorm), or training and evaluation images differ"
        )
    if floor:
        return "the bit-widths are too small, lower the weight decay of bit"
    return "the learning rate is too large or too small, or the weights are quantized or pruned too strongly"


def _is_stuck(recent: pd.Series, first: float) -> bool:
    moved = recent.max() - recent.min() > STUCK * recent.max()
    return bool(not moved and recent.min() >= LEARNED * first > 0)  # a loss of 0 has nothing left to learn
