"""Registries: users add entries by decorator or assignment, and mistakes are told before anything runs."""

import pickle

import pytest
from cases import each

from codeq import LOSSES, MODELS, QUANTIZERS, SCHEDULES
from codeq.common.errors import CodeqError
from codeq.common.registry import Named, Registry, check_kwargs


@pytest.fixture
def colours():
    registry = Registry("colour")
    registry["red"], registry["green"] = (lambda: "#f00"), (lambda: "#0f0")
    return registry


def test_entries_come_by_decorator_and_by_assignment(colours):
    @colours.register("mix")
    def mix(a, b):
        return a + b

    assert colours["mix"] is mix
    assert mix(1, 2) == 3
    assert sorted(colours) == ["green", "mix", "red"]


def test_an_unknown_name_is_a_clear_error(colours):
    with pytest.raises(CodeqError, match=r"colour 'gren' is unknown\. Did you mean 'green'\? Allowed: green, red"):
        colours["gren"]


def test_asking_politely_raises_nothing(colours):
    assert colours.get("blue") is None
    assert "blue" not in colours
    assert "blue" not in sorted(colours), "a look-up must not add an entry"


@each("name", [None, 3, "", ("red",), len])
def test_a_name_that_is_no_text_is_refused_at_the_assignment(colours, name):
    for assign in (colours.__setitem__, lambda name, entry: colours.register(name)(entry)):
        with pytest.raises(CodeqError, match=r"is no name of a colour: must be text that is not empty"):
            assign(name, len)
    with pytest.raises(CodeqError, match="is no name of a colour"):
        colours.register(name)
    assert sorted(colours) == ["green", "red"]


@each(("entry", "shown"), [(None, "None"), ("#00f", "'#00f'"), ({}, "{}")])
def test_what_cannot_be_called_is_refused_at_the_assignment(colours, entry, shown):
    with pytest.raises(CodeqError, match=f"colour 'blue' = {shown}: must be a function or a class"):
        colours["blue"] = entry
    assert "blue" not in colours


@each("registry", [LOSSES, MODELS, QUANTIZERS, SCHEDULES])
def test_the_packages_registries_say_what_they_hold(registry):
    with pytest.raises(CodeqError, match=rf"{registry.kind} 'nonsense' is unknown.*Allowed: "):
        registry["nonsense"]


def test_named_callables_remember_how_to_make_them_again():
    one, same, other = (Named("scale", {"by": by}, lambda x, by=by: by * x) for by in (2, 2, 3))
    assert one(5) == 10
    assert repr(one) == "scale(by=2)"
    assert one == same
    assert one != other
    with pytest.raises(AttributeError):
        one.name = "other"
    assert pickle.loads(pickle.dumps(Named("length", {}, len)))("abc") == 3


def ramp(model, delay, steps=1, *, floor=0.0): ...


def test_all_wrong_arguments_are_told_at_once():
    with pytest.raises(CodeqError) as error:
        check_kwargs("schedule 'ramp'", ramp, {"delai": 1, "flor": 2, "zzz": 3}, given=1)
    assert str(error.value) == (
        "schedule 'ramp' has no argument 'delai'. Did you mean 'delay'? "
        "schedule 'ramp' has no argument 'flor'. Did you mean 'floor'? "
        "schedule 'ramp' has no argument 'zzz'. Allowed: delay, steps, floor"
    )


def test_a_missing_argument_is_told():
    with pytest.raises(CodeqError, match=r"schedule 'ramp' needs the argument 'delay'. Allowed: delay, steps, floor"):
        check_kwargs("schedule 'ramp'", ramp, {"steps": 2}, given=1)


def test_what_codeq_passes_itself_cannot_be_named():
    with pytest.raises(CodeqError, match="has no argument 'model'"):
        check_kwargs("schedule 'ramp'", ramp, {"model": 1, "delay": 2}, given=1)


@each("function", [lambda: 3, lambda *, model: model])
def test_a_function_that_does_not_take_what_codeq_passes_is_refused(function):
    with pytest.raises(CodeqError, match="loss 'f' takes 0 arguments by position, but is called with 1"):
        check_kwargs("loss 'f'", function, {}, given=1)
    check_kwargs("loss 'f'", lambda *args: args, {}, given=1)


def test_right_arguments_and_functions_that_take_any_pass():
    check_kwargs("schedule 'ramp'", ramp, {"delay": 1, "floor": 0.5}, given=1)
    check_kwargs("f", lambda **anything: anything, {"whatever": 1})
