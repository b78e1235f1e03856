"""Coefficient schedules: the values of the contract, their edges, and their names."""

import math

import pytest
from cases import each

from codeq.common.errors import CodeqError
from codeq.common.registry import Named
from codeq.schedules import SCHEDULES, constant, cosine_anneal, linear_warmup, window

TOTAL = 100
EVERY_KIND = [constant(0.3), linear_warmup(delay=5, ramp=0), linear_warmup(delay=20, ramp=30), cosine_anneal(delay=10)]


@each("epoch", [0, 1, 0.5, 99, 100, 1000])
@each("value", [0.0, 1, 0.25, 1e-4])
def test_constant_is_its_value_at_every_epoch(value: float, epoch: float) -> None:
    coefficient = constant(value)(epoch, TOTAL)
    assert coefficient == value
    assert isinstance(coefficient, float)


def test_constant_is_one_by_default() -> None:
    assert constant()(7, TOTAL) == 1.0


@each(
    ("epoch", "expected"),
    [(0, 0.0), (49, 0.0), (50, 0.0), (51, 0.05), (55, 0.25), (60, 0.5), (69, 0.95), (70, 1.0), (71, 1.0), (299, 1.0)],
)
def test_linear_warmup_waits_then_ramps_then_stays(epoch: int, expected: float) -> None:
    assert linear_warmup(50, 20)(epoch, 300) == pytest.approx(expected, abs=1e-15)


@each(("epoch", "expected"), [(50.0, 0.0), (50.5, 0.025), (52.25, 0.1125), (69.999, 0.99995), (70.0001, 1.0)])
def test_linear_warmup_takes_fractional_epochs(epoch: float, expected: float) -> None:
    assert linear_warmup(50, 20)(epoch, 300) == pytest.approx(expected, abs=1e-12)


def test_linear_warmup_takes_fractional_arguments() -> None:
    schedule = linear_warmup(delay=0.5, ramp=2.5)
    assert [schedule(epoch, 10) for epoch in (0, 0.5, 1, 3, 4)] == [0.0, 0.0, pytest.approx(0.2), 1.0, 1.0]


@each(("delay", "epoch", "expected"), [(0, 0, 0.0), (0, 1, 1.0), (50, 50, 0.0), (50, 50.001, 1.0), (50, 51, 1.0)])
def test_a_ramp_of_zero_is_a_step_after_the_delay(delay: int, epoch: float, expected: float) -> None:
    assert linear_warmup(delay=delay, ramp=0)(epoch, 300) == expected


def test_linear_warmup_does_not_depend_on_the_number_of_epochs() -> None:
    schedule = linear_warmup(3, 4)
    assert {schedule(5, total) for total in (0, 1, 5, 10, 300)} == {0.5}


@each(
    ("delay", "epoch", "expected"),
    [
        (0, 0, 0.0),
        (0, 50, 0.5),
        (0, 100, 1.0),
        (50, 0, 0.0),
        (50, 50, 0.0),
        (50, 75, 0.5),
        (50, 100, 1.0),
        (0, 25, 0.5 - math.sqrt(0.125)),
        (0, 100 / 3, 0.25),
        (40, 80, 0.75),
    ],
)
def test_cosine_anneal_follows_half_a_cosine(delay: int, epoch: float, expected: float) -> None:
    assert cosine_anneal(delay)(epoch, TOTAL) == pytest.approx(expected, abs=1e-14)


@each("delay", [0, 12.5, 50, 99])
def test_cosine_anneal_agrees_with_the_cosine_formula(delay: float) -> None:
    schedule = cosine_anneal(delay)
    for step in range(401):
        epoch = step / 4
        progress = max(0.0, (epoch - delay) / (TOTAL - delay))
        assert schedule(epoch, TOTAL) == pytest.approx((1 - math.cos(math.pi * progress)) / 2, abs=1e-14)


def test_cosine_anneal_is_exact_at_its_start_middle_and_end() -> None:
    assert [cosine_anneal()(epoch, TOTAL) for epoch in (0, 50, 100)] == [0.0, 0.5, 1.0]
    assert [cosine_anneal(50)(epoch, TOTAL) for epoch in (50, 75, 100)] == [0.0, 0.5, 1.0]


def test_cosine_anneal_has_no_delay_by_default() -> None:
    assert cosine_anneal() == cosine_anneal(delay=0)


@each("epoch", [100, 100.5, 150, 10_000])
@each("schedule", [cosine_anneal(), cosine_anneal(50), cosine_anneal(99), linear_warmup(50, 50)])
def test_a_schedule_stays_at_one_beyond_the_last_epoch(schedule: Named, epoch: float) -> None:
    assert schedule(epoch, TOTAL) == 1.0


@each("delay", [TOTAL, TOTAL + 1, 10 * TOTAL])
@each("make", [cosine_anneal, lambda delay: linear_warmup(delay, 5)])
def test_a_delay_of_the_whole_training_never_starts(make: type, delay: int) -> None:
    schedule = make(delay)
    assert {schedule(epoch, TOTAL) for epoch in range(TOTAL + 1)} == {0.0}


@each("schedule", EVERY_KIND)
def test_every_schedule_is_a_monotone_float_between_zero_and_one(schedule: Named) -> None:
    values = [schedule(step / 4, TOTAL) for step in range(4 * TOTAL + 40)]
    assert all(isinstance(value, float) and 0.0 <= value <= 1.0 for value in values)
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("make", "kwargs", "argument"),
    [
        (linear_warmup, {"delay": -1, "ramp": 5}, "delay"),
        (linear_warmup, {"delay": 1, "ramp": -0.5}, "ramp"),
        (cosine_anneal, {"delay": -1}, "delay"),
    ],
)
def test_a_negative_number_of_epochs_is_an_error_that_names_it(make: type, kwargs: dict, argument: str) -> None:
    with pytest.raises(CodeqError, match=rf"{argument}={kwargs[argument]}: must be at least 0 \(epochs\)"):
        make(**kwargs)
    with pytest.raises(CodeqError, match=rf"{argument}='3': must be a number of at least 0 \(epochs\)"):
        make(**{**kwargs, argument: "3"})


@each(
    ("schedule", "name", "kwargs", "shown"),
    [
        (constant(0.5), "constant", {"value": 0.5}, "constant(value=0.5)"),
        (linear_warmup(50, ramp=20), "linear_warmup", {"delay": 50, "ramp": 20}, "linear_warmup(delay=50, ramp=20)"),
        (cosine_anneal(30), "cosine_anneal", {"delay": 30}, "cosine_anneal(delay=30)"),
        (cosine_anneal(), "cosine_anneal", {"delay": 0}, "cosine_anneal(delay=0)"),
        (window(2, stop=5), "window", {"start": 2, "stop": 5}, "window(start=2, stop=5)"),
    ],
)
def test_a_schedule_knows_its_name_and_arguments(schedule: Named, name: str, kwargs: dict, shown: str) -> None:
    assert schedule.name == name
    assert schedule.kwargs == kwargs
    assert repr(schedule) == shown


@each("schedule", [*EVERY_KIND, window(3, 7)])
def test_a_schedule_can_be_built_again_from_its_name_and_arguments(schedule: Named) -> None:
    again = SCHEDULES[schedule.name](**schedule.kwargs)
    assert again == schedule
    assert [again(epoch, TOTAL) for epoch in range(120)] == [schedule(epoch, TOTAL) for epoch in range(120)]


def test_schedules_with_other_arguments_are_not_equal() -> None:
    assert linear_warmup(1, 2) != linear_warmup(1, 3)
    assert constant(0) != cosine_anneal(0)


def test_a_window_is_open_from_its_start_to_just_before_its_stop() -> None:
    assert [window(1, 3.5)(epoch, TOTAL) for epoch in (0, 0.9, 1, 3, 3.5, 99)] == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("start", "stop", "name"),
    [
        (3, 3, "stop=3: must be after start=3"),
        (3, 2, "stop=2"),
        (-1, 2, "start=-1"),
        (1, "3", r"stop='3': must be a number of at least 0 \(epochs\)"),
        (1, None, "stop=None: must be a number"),
        (1, float("nan"), "stop=nan: must be at least 0"),
    ],
)
def test_a_window_has_a_length(start: float, stop: float, name: str) -> None:
    with pytest.raises(CodeqError, match=name):
        window(start, stop)


def test_users_find_four_schedules() -> None:
    assert sorted(SCHEDULES) == ["constant", "cosine_anneal", "linear_warmup", "window"]


@pytest.mark.parametrize("value", [-1, -1e-9, float("nan")])
def test_a_coefficient_is_at_least_zero(value: float) -> None:
    with pytest.raises(CodeqError, match=f"value={value}: must be at least 0$"):
        constant(value)


@each("value", [True, "1", None])
def test_numbers_are_neither_truth_values_nor_text(value: object) -> None:
    makes = {"value": constant, "delay": cosine_anneal, "ramp": lambda ramp: linear_warmup(0, ramp)}
    for name, make in makes.items():
        with pytest.raises(CodeqError, match=f"{name}={value!r}: must be a number of at least 0"):
            make(value)


def test_a_coefficient_is_finite() -> None:
    with pytest.raises(CodeqError, match=r"value=inf: must be finite"):
        constant(math.inf)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("linear_warm_up", "linear_warmup"), ("cosine", "cosine_anneal"), ("Constant", "constant")],
)
def test_a_misspelt_schedule_gets_a_suggestion(misspelt: str, meant: str) -> None:
    with pytest.raises(CodeqError, match=f"schedule '{misspelt}' is unknown. Did you mean '{meant}'") as error:
        SCHEDULES[misspelt]
    assert "Allowed: constant, cosine_anneal, linear_warmup" in str(error.value)


def test_a_name_like_no_schedule_gets_no_guess() -> None:
    with pytest.raises(CodeqError) as error:
        SCHEDULES["zzz"]
    assert "Did you mean" not in str(error.value)
