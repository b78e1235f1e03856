"""The controller against values computed by hand and against a simulated plant that knows nothing of codeq."""

import math

import pytest

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
    """A logit moved by Adam between λ and the data, behind bits and a share of weights that follow from it.

    The data pull the logit up with a strength of 1; λ = 1 is a pull downwards that is weaker by `ratio`. Beyond
    saturation the logit moves by the learning rate, however large λ is, as under Adam.
    """

    def __init__(self, steps: int, rate: float, ratio: float, momentum: float = 0.9):
        self.steps, self.rate, self.ratio, self.momentum = steps, rate, ratio, momentum
        self.logit, self.velocity, self.step = 3.0, 0.0, 0

    def figure(self) -> float:
        reach = math.tanh(abs(self.logit))
        bits = round(2 + 6 * reach)
        kept = math.erfc(2.2 * (1 - reach) / math.sqrt(2))  # weights of a normal distribution above d / 2
        return bits / 32 * kept

    def advance(self, factor: float) -> None:
        down, up = factor * self.ratio * self.logit, 1.0
        self.velocity = self.momentum * self.velocity + (1 - self.momentum) * (down - up) / (down + up)
        rate = self.rate * (1 + math.cos(math.pi * self.step / self.steps)) / 2
        self.logit -= rate * self.velocity
        self.step += 1


@pytest.mark.parametrize("target", [0.03, 0.06, 0.12])
@pytest.mark.parametrize(("rate", "ratio"), [(0.007, 0.5), (0.02, 0.5), (0.01, 0.1), (0.01, 5.0)])
def test_a_simulated_training_ends_at_the_target_without_falling_below_it(target, rate, ratio):
    steps, plant = 900, Plant(900, rate, ratio)
    steered = TargetController(target, **GAINS)
    factor, seen = 1.0, []
    for step in range(steps):
        if step % 4 == 0:
            seen.append(plant.figure())
            factor = steered.update(step / steps, seen[-1])
        plant.advance(factor)
    assert plant.figure() == pytest.approx(target, rel=0.05)
    assert min(seen) > 0.85 * target


GAINS = {"reach": 0.7, "proportional": 20.0, "integral": 100.0}
