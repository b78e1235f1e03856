"""The controller against values computed by hand and against a simulated plant that knows nothing of codeq."""

import math

import pytest
from cases import each

from codeq.config.target import TargetConfig
from codeq.training.controller import TargetController


def controller(target=0.01, reach=0.5, proportional=2.0, integral=0.0):
    return TargetController(target, reach, proportional, integral)


def test_the_plan_is_half_a_cosine_in_decades():
    steered = controller()
    steered.update(0.0, 1.0)
    quarter = 2 * (1 - math.cos(math.pi / 4)) / 2  # decades fallen at a quarter of the way
    times = (0.0, 0.125, 0.25, 0.375, 0.5, 0.9)
    expected = (1, 10**-quarter, 0.1, 10 ** (quarter - 2), 0.01, 0.01)
    assert [steered.plan(time) for time in times] == pytest.approx(expected)


def test_proportional_and_integral_parts_by_hand():
    steered = controller(proportional=2.0, integral=8.0)
    assert steered.update(0.0, 1.0) == 1.0
    # At 0.25 the plan is 0.1. Error log 2: 2 log 2 + 8 · 0.25 log 2 = 4 log 2.
    assert steered.update(0.25, 0.2) == pytest.approx(16.0)
    # At 0.5 the plan is 0.01. Error -log 2: -2 log 2 + 8 · (0.25 - 0.25) log 2.
    assert steered.update(0.5, 0.005) == pytest.approx(0.25)


def test_at_the_limit_the_integral_stops():
    steered = controller(proportional=2.0, integral=1000.0)
    steered.update(0.0, 1.0)
    for time in (0.6, 0.7, 0.8, 0.9):
        assert steered.update(time, 1.0) == pytest.approx(100.0)
    assert steered.accumulated == 0.0
    assert steered.update(0.901, 0.005) < 1.0  # nothing was wound up: λ falls at once


def test_a_network_of_zeros_lowers_lambda_to_the_limit():
    steered = controller()
    steered.update(0.0, 1.0)
    assert steered.update(0.5, 0.0) == pytest.approx(0.01)


def test_a_restored_controller_continues_the_same():
    steered, copy = controller(integral=5.0), controller(integral=5.0)
    steered.update(0.0, 1.0)
    steered.update(0.2, 0.3)
    copy.load_state_dict(steered.state_dict())
    assert copy == steered
    assert copy.update(0.3, 0.2) == steered.update(0.3, 0.2)


class Plant:
    """Layers whose logit is moved by Adam between λ and the data, behind bits and a share of weights that follow.

    The data pull the logits up, in each layer with another strength, 1 in the middle; λ = 1 pulls down with `ratio`
    times the logit. Beyond saturation a logit moves by the learning rate, however large λ is, as under Adam.
    """

    LAYERS = 12

    def __init__(self, steps: int, rate: float, ratio: float, momentum: float = 0.9):
        self.steps, self.rate, self.ratio, self.momentum, self.step = steps, rate, ratio, momentum, 0
        self.logits, self.velocities = [3.0] * self.LAYERS, [0.0] * self.LAYERS

    def figure(self) -> float:
        total = 0.0
        for logit in self.logits:
            reach = math.tanh(abs(logit))
            kept = math.erfc(2.2 * (1 - reach) / math.sqrt(2))  # weights of a normal distribution above d / 2
            total += round(2 + 6 * reach) / 32 * kept
        return total / self.LAYERS

    def advance(self, factor: float) -> None:
        rate = self.rate * (1 + math.cos(math.pi * self.step / self.steps)) / 2
        for layer in range(self.LAYERS):
            down, up = factor * self.ratio * self.logits[layer], 10 ** (layer / (self.LAYERS - 1) - 0.5)
            force = (down - up) / (abs(down) + up)
            self.velocities[layer] = self.momentum * self.velocities[layer] + (1 - self.momentum) * force
            self.logits[layer] -= rate * self.velocities[layer]
        self.step += 1


@each("target", [0.03, 0.06, 0.12])
@each(("rate", "ratio"), [(0.01, 0.5), (0.02, 0.5), (0.02, 0.1), (0.01, 5.0)])
def test_a_simulated_training_ends_at_the_target_without_falling_far_below_it(target, rate, ratio):
    defaults = TargetConfig(relative_bops=target)
    steered = TargetController(target, defaults.reach, defaults.proportional, defaults.integral)
    steps, plant, factor, seen = 900, Plant(900, rate, ratio), 1.0, []
    for step in range(steps):
        if step % 4 == 0:
            seen.append(plant.figure())
            factor = steered.update(step / steps, seen[-1])
        plant.advance(factor)
    assert plant.figure() == pytest.approx(target, rel=0.05)
    assert min(seen) > 0.85 * target
