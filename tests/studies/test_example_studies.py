"""The studies in configs/studies/: every member is valid, and the lines at the top say what a reader needs."""

from pathlib import Path

from cases import each

from codeq.studies.checks import Mistakes, configurations
from codeq.studies.expand import expand, make_trial
from codeq.studies.study import read_study

FOLDER = Path(__file__).parents[2] / "configs" / "studies"
MEMBERS = {
    "quick": 4,
    "lambda_dz": 24,
    "losses": 15,
    "losses_digits": 18,
    "digits_lambda": 12,
    "delay_ramp": 27,
    "mlp_dead_zone_group_lasso": 18,
    "tinyvit": 9,
    "channel_strengths": 4,
    "channel_strengths_recovered": 3,
}
MEMBERS["search_mlp"] = 2  # at the lower and at the upper bounds
MEMBERS |= {
    "table2_paper": 18,
    "table2_laptop_float": 3,
    "table2_laptop_recovered": 3,
    "table2_laptop": 9,
    "table2_smoke_float": 3,
    "table2_smoke": 9,
}


def test_these_are_all():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(MEMBERS)


@each("name", MEMBERS)
def test_every_member_is_valid(name):
    path = FOLDER / f"{name}.yaml"
    study, mistakes = read_study(path), Mistakes()
    # Relative paths of a base start in the working directory or the project; a test has a project of its own.
    base = FOLDER.parents[1] / study.base
    from dataclasses import replace

    study = replace(study, base=str(base))
    members = expand(study)
    if study.search:
        assert study.search.trials > 10, "the first ten trials are random, so that the search would never begin"
        ranges = study.search.ranges.items()
        members = [make_trial(study, {key: getattr(bounds, end) for key, bounds in ranges}) for end in ("low", "high")]
    assert len(members) == MEMBERS[name]
    configs = configurations(study, members, mistakes)
    assert not mistakes
    assert len({str(config) for config in configs.values()}) == MEMBERS[name]
    head = path.read_text().split("\n\n")[0]
    assert "# What: " in head
    assert f"# Command: codeq sweep configs/studies/{name}.yaml" in head
    assert "# Wall time: " in head
