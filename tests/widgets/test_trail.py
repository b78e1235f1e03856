from codeq.widgets.trail import Trail, TriedPoint


class Filling(dict):
    """Measured settings to which another thread adds one while they are read."""

    def items(self):
        self["new"] = TriedPoint("new", 0.02, 0.8)
        return super().items()


def test_a_setting_that_is_measured_meanwhile_is_shown_by_the_next_update():
    trail, tried = Trail(print), Filling(trained=TriedPoint("as trained", 0.04, 0.9))
    trail.update(tried, "trained")
    assert [label for label, _ in trail.points.options] == ["–", "1: 90.00%"]
    trail.update({"trained": tried["trained"], "new": TriedPoint("new", 0.02, 0.8)}, "new")
    assert trail.points.index == 2
