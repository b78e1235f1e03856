"""Calls in turn on a clock that only they advance: every duration and ratio is known."""

import pytest

from codeq.common import timing


class Clock:
    def __init__(self, monkeypatch):
        self.now, self.order = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def call(self, name, *durations):
        def run():
            self.order.append(name)
            self.now += durations[min(self.order.count(name), len(durations)) - 1]

        return run


def test_calls_take_turns_and_ratios_are_those_of_the_rounds(monkeypatch):
    clock = Clock(monkeypatch)
    times = timing.time_in_turns({"a": clock.call("a", 2.0, 4.0, 6.0), "b": clock.call("b", 1.0, 1.0, 12.0)})
    assert clock.order == ["a", "b"] * 3  # the budget is used, but three rounds are the least
    assert times["a"].median == 4
    assert times["a"].iqr == 2
    assert times["b"].ratios(times["a"]) == [2, 4, 0.5]


def test_short_calls_run_seven_rounds_of_a_fiftieth_of_a_second(monkeypatch):
    clock = Clock(monkeypatch)
    times = timing.time_in_turns({"a": clock.call("a", 0.0105), "b": clock.call("b", 0.03)})
    assert [len(turn) for turn in times["a"].rounds] == [2] * 7
    assert [len(turn) for turn in times["b"].rounds] == [1] * 7
    assert times["a"].ratios(times["b"]) == pytest.approx([30 / 10.5] * 7)
