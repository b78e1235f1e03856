"""Settings of layers in `WhatIf`, as plain values without a widget."""

import pytest

from codeq.analysis.requantize import Setting
from codeq.widgets.settings import TRAINED, Settings

LAYERS = {"b": Setting(0.4, 8), "a": Setting(0.2, 4), "uniform": Setting(None, 6)}


@pytest.fixture
def settings():
    settings = Settings()
    settings.select(list(LAYERS), LAYERS)
    return settings


def test_nothing_differs_from_the_trained_settings_at_first(settings):
    assert settings.key == TRAINED
    assert settings.mean_dead_zone == pytest.approx(0.3)
    assert settings.mean_bits == 6


def test_several_movements_of_a_slider_scale_the_settings_of_the_selection(settings):
    for mean in (0.9, 0.0, 0.15):  # a way over the limits loses nothing
        settings.scale_dead_zones(mean)
    assert settings.dead_zone == pytest.approx({"b": 0.2, "a": 0.1})
    settings.scale_bits(8, 2, 8)
    settings.scale_bits(3, 2, 8)
    assert settings.bits == {"b": 4, "a": 2, "uniform": 3}


def test_a_new_selection_scales_the_present_settings(settings):
    settings.scale_dead_zones(0.15)
    settings.select(["a"], LAYERS)
    assert settings.mean_dead_zone == pytest.approx(0.1)
    settings.scale_dead_zones(0.5)
    assert settings.dead_zone == pytest.approx({"b": 0.2, "a": 0.5})


def test_what_is_moved_back_is_as_trained(settings):
    settings.scale_dead_zones(0.9)
    settings.scale_bits(3, 2, 8)
    settings.scale_dead_zones(0.3)
    settings.scale_bits(6, 2, 8)
    assert settings.key == TRAINED
    settings.select(["a"], LAYERS)
    settings.scale_bits(5, 2, 8)
    settings.select(list(LAYERS), LAYERS)
    settings.scale_bits(2, 2, 8)
    settings.scale_bits(settings.mean_bits, 2, 8)
    assert settings.key == ((), (("a", 5),))
    settings.select(["a"], LAYERS)
    settings.scale_bits(4, 2, 8)
    assert settings.key == TRAINED


def test_a_slider_of_two_digits_returns_to_the_trained_dead_zone(settings):
    trained = {"a": Setting(0.4629, 4)}
    for zone in (0.3, 0.46):
        settings.select(["a"], trained)
        settings.scale_dead_zones(zone)
    assert settings.key == TRAINED
    settings.scale_dead_zones(0.47)
    assert settings.dead_zone == {"a": 0.47}


def test_trained_values_of_a_replacement_do_not_differ(settings):
    settings.replace({"a": 0.2, "b": 0.404}, {"a": 4, "b": 3})  # a dead-zone beside the trained one stays as it is
    settings.select(list(LAYERS), LAYERS)
    assert settings.key == ((("b", 0.404),), (("b", 3),))


def test_layers_without_a_dead_zone_have_no_mean(settings):
    settings.select(["uniform"], LAYERS)
    assert (settings.mean_dead_zone, settings.mean_bits) == (None, 6)


def test_the_key_does_not_depend_on_the_order_of_changes(settings):
    other = Settings()
    settings.replace({"a": 0.1, "b": 0.2}, {"b": 3, "a": 4})
    other.replace({"b": 0.2, "a": 0.1}, {"a": 4, "b": 3})
    assert settings.key == other.key


def test_another_thread_keeps_the_dictionary_it_has_read(settings):
    before = settings.dead_zone
    settings.scale_dead_zones(0.1)
    assert before == {}


def test_settings_that_no_layer_of_another_network_has_are_dropped(settings):
    settings.replace({"a": 0.1, "b": 0.2}, {"b": 3, "a": 5})
    settings.select(["a"], {"a": Setting(None, 4)})
    assert settings.key == ((), (("a", 5),))
    settings.scale_bits(6, 2, 8)
    assert settings.key == ((), (("a", 6),))
