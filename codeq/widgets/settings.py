"""Dead-zones and bit-widths that were set in `WhatIf`, for all layers or some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codeq.analysis.requantize import Setting
from codeq.widgets.scaling import scale_to_mean

# Dead-zones and bits of the layers that differ from the trained ones, sorted by layer.
Key = tuple[tuple[tuple[str, float], ...], tuple[tuple[str, int], ...]]
TRAINED: Key = ((), ())
ROUNDING = 1e-9  # between the position of a slider and the number that it stands for


class Settings:
    """Settings of layers that differ from the trained ones.

    Several layers are set together by their mean: their settings are scaled by one factor, within the limits, so that
    the layers keep their differences. A mean as it was shown at first gives them back their settings of then, and a
    layer whose setting is the trained one again no longer differs.

    Attributes
    ----------
    dead_zone : dict of str to float
        ``d / (2 R)`` by layer. The dictionary is replaced, never changed: another thread may read it.
    bits : dict of str to int
        Bit-width by layer, replaced as well.

    Examples
    --------
    >>> settings = Settings()
    >>> settings.select(["a", "b"], {"a": Setting(0.1, 4), "b": Setting(0.3, 8)})
    >>> settings.mean_dead_zone, settings.mean_bits
    (0.2, 6)
    >>> settings.scale_dead_zones(0.1)
    >>> {name: round(zone, 2) for name, zone in settings.dead_zone.items()}
    {'a': 0.05, 'b': 0.15}
    >>> settings.scale_dead_zones(0.2)
    >>> settings.dead_zone
    {}
    """

    def __init__(self) -> None:
        self.dead_zone: dict[str, float] = {}
        self.bits: dict[str, int] = {}
        self._trained: Mapping[str, Setting] = {}
        self._zones_before: dict[str, float | None] = {}
        self._bits_before: dict[str, int] = {}

    @property
    def key(self) -> Key:
        """The settings as a hashable value."""
        return tuple(sorted(self.dead_zone.items())), tuple(sorted(self.bits.items()))

    def replace(self, dead_zone: Mapping[str, float], bits: Mapping[str, int]) -> None:
        """Replace all settings by others; layers must be selected again."""
        self.dead_zone, self.bits = dict(dead_zone), dict(bits)

    def select(self, names: Sequence[str], trained: Mapping[str, Setting]) -> None:
        """Select the layers that are scaled, from their present settings, until the next call.

        Parameters
        ----------
        names : sequence of str
            At least one layer.
        trained : mapping of str to Setting
            Trained settings of all layers. Present settings that equal them, or that no layer has, are dropped: the
            folder of a run may hold another network by now.
        """
        self._trained = trained
        self.dead_zone = {
            name: zone
            for name, zone in self.dead_zone.items()
            if name in trained and trained[name].dead_zone not in (None, zone)
        }
        self.bits = self._without_trained_bits({name: bits for name, bits in self.bits.items() if name in trained})
        self._zones_before = {name: self.dead_zone.get(name, trained[name].dead_zone) for name in names}
        self._bits_before = {name: self.bits.get(name, trained[name].bits) for name in names}

    @property
    def mean_dead_zone(self) -> float | None:
        """Mean dead-zone of the selected layers, to two digits; `None` if none of them has one."""
        known = [zone for zone in self._zones_before.values() if zone is not None]
        return round(sum(known) / len(known), 2) if known else None

    @property
    def mean_bits(self) -> int:
        """Mean bit-width of the selected layers, rounded."""
        return round(sum(self._bits_before.values()) / len(self._bits_before))

    def scale_dead_zones(self, mean: float) -> None:
        """Give the dead-zones of the selected layers this mean, in 0 … 1."""
        known = {name: zone for name, zone in self._zones_before.items() if zone is not None}
        if not _same(mean, self.mean_dead_zone):
            known = dict(zip(known, scale_to_mean(list(known.values()), mean, 0, 1), strict=True))
        self.dead_zone = {
            name: zone for name, zone in (self.dead_zone | known).items() if not self._is_trained_zone(name, zone)
        }

    def scale_bits(self, mean: float, low: int, high: int) -> None:
        """Give the bit-widths of the selected layers this mean, in `low` … `high`, and round them."""
        bits = self._bits_before
        if mean != self.mean_bits:
            scaled = scale_to_mean(list(bits.values()), mean, low, high)
            bits = dict(zip(bits, map(round, scaled), strict=True))
        self.bits = self._without_trained_bits(self.bits | bits)

    def _is_trained_zone(self, name: str, zone: float) -> bool:
        """Return whether a dead-zone is the trained one; a slider returns to its two digits only."""
        trained = self._trained[name].dead_zone
        return trained is not None and (_same(zone, trained) or _same(zone, round(trained, 2)))

    def _without_trained_bits(self, bits: Mapping[str, int]) -> dict[str, int]:
        return {name: width for name, width in bits.items() if width != self._trained[name].bits}


def _same(zone: float, other: float | None) -> bool:
    return other is not None and abs(zone - other) < ROUNDING
