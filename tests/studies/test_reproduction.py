"""``codeq reproduce table2``: stages of the studies, records of runs, verdicts, and the page of stored results."""

import inspect
import itertools
import json
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cases import each

from codeq import ExperimentConfig
from codeq.analysis.compact_run import compact_run
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.runs.checkpoints import save_checkpoint
from codeq.studies import cuts, reproduction
from codeq.studies.expand import expand
from codeq.studies.reproduction import read_record, reproduce
from codeq.studies.reproduction_budgets import BUDGETS, Cell
from codeq.studies.reproduction_page import METHODS, render_cells, render_page, verdict
from codeq.studies.rounds import Options

ROOT = Path(__file__).parents[2]
STORES = [json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "benchmarks" / "reproduction").glob("*.json"))]
PAGE = (ROOT / "docs" / "reproduction.md").read_text("utf-8")
# Table 2 of arXiv 2512.12981: accuracy and relative BOPs in percent with their deviations.
PAPER = {"float": "91.70 100.00", "4 bit": "91.88 0.15 2.95 0.12", "mixed": "91.86 0.10 2.61 0.08"}

QUANTIZER = {"name": "deadzone", "kwargs": {"learnable_bit": True}}
SETTINGS = {"quantizer": QUANTIZER, "theta_regularizer": "l2", "loss_terms": [], "init_from": None, "amp": None}
SETTINGS |= {"seed": 0, "epochs": 300, "dataset": "cifar10", "batch_size": 512}
SUMMARY = {"accuracy_last": 0.9, "mean_bits": 3.5, "seconds": 60.0, "baseline_bops": 1000, "baseline_macs": 100}
SUMMARY |= {"unstructured_bops": 25, "structured_bops": 200, "structured_macs": 80}


def make_run(folder: Path, status: str = "done", summary=None, **settings) -> Path:
    folder.mkdir(parents=True)
    environment = {"git_commit": "abcdef0123456789", "gpu": None, "cpu": "Z80", "cpu_threads": 2, "precision": "bf16"}
    files = {"config.yaml": SETTINGS | settings, "environment.json": environment}
    files["status.json"] = {"status": status, "started": "2026-01-02T03:04:05+00:00"}
    if status == "done":
        files["summary.json"] = SUMMARY | (summary or {})
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def record(method="mixed", reading="l2", seed=0, status="done", **figures):
    base = {"run": f"{method}-{seed}", "method": method, "theta_regularizer": reading, "seed": seed, "status": status}
    base |= {"epochs": 300, "batch_size": 512, "dataset": "cifar10", "precision": "bf16", "hardware": "Z80"}
    base |= {"commit": None, "started": "2026-01-02", "init_from": None, "teachers": [], "target": {}}
    figures = {"accuracy": 0.9, "relative_bops": 0.03, "structured_relative_bops": 0.2, "seconds": 60.0} | figures
    figures = {"seconds_before": 0.0} | figures
    return base | (figures | {"structured_macs": 0.8, "mean_bits": 3.5} if status == "done" else {})


def cells(runs, budget="paper"):
    """Cells of the table by its row: method and reading as printed."""
    lines = render_cells({"budget": budget, "runs": runs}, BUDGETS[budget].cells)[2:]
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): row[2:] for row in rows}


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_holds_the_figures_of_its_run_folder(tmp_path):
    found = read_record(make_run(tmp_path / "mixed,seed=3", seed=3))
    assert found == {
        "run": "mixed,seed=3", "method": "mixed", "theta_regularizer": "l2", "status": "done", "started": "2026-01-02",
        "seed": 3, "epochs": 300, "dataset": "cifar10", "batch_size": 512, "init_from": None, "teachers": [],
        "target": {}, "precision": "bf16", "hardware": "Z80, threads: 2", "commit": "abcdef0123456789", "accuracy": 0.9,
        "relative_bops": 0.025, "structured_relative_bops": 0.2, "structured_macs": 0.8, "mean_bits": 3.5,
        "seconds": 60.0, "seconds_before": 0.0,
    }  # fmt: skip
    assert "accuracy" not in read_record(make_run(tmp_path / "b", status="diverged"))
    held_out = make_run(tmp_path / "c", summary={"test_accuracy_last": 0.8})  # the last accuracy is of other images
    assert read_record(held_out)["accuracy"] == 0.8


def test_a_record_names_all_hardware_and_commits_that_a_resumed_run_was_trained_with(tmp_path):
    run = make_run(tmp_path / "moved")
    environment = json.loads((run / "environment.json").read_text())
    later = [{"epoch": 3, "torch": "2.9"}, {"epoch": 5, "gpu": "H100", "git_commit": "1234567890abcdef-dirty"}]
    (run / "environment.json").write_text(json.dumps(environment | {"resumed_with": later}))
    found = read_record(run)
    assert found["hardware"] == "Z80, threads: 2; then H100"
    assert found["commit"] == "abcdef0123456789, 1234567890abcdef-dirty"


@each(("teacher", "teachers"), [("outputs/a", ["outputs/a"]), (["outputs/a", "outputs/b"], ["outputs/a", "outputs/b"])])
def test_a_record_names_teachers_and_target_of_its_run(tmp_path, teacher, teachers):
    target = ExperimentConfig("x", target={"relative_bops": 0.03}).to_dict()["target"]
    settings = {"distillation": {"teacher": teacher, "alpha": 0.5}, "target": target}
    found = read_record(make_run(tmp_path / str(len(teachers)), **settings))
    assert (found["teachers"], found["target"]) == (teachers, {"relative_bops": 0.03, "reach": target["reach"]})


def test_a_record_has_the_time_of_the_trainings_before_its_own(tmp_path):
    first = make_run(tmp_path / "first", summary={"seconds": 1000.0})
    second = make_run(tmp_path / "second", summary={"seconds": 200.5}, init_from=f"{first}/compacted/trainable.pt")
    third = make_run(tmp_path / "third", init_from=str(second))
    assert [read_record(run)["seconds_before"] for run in (first, second, third)] == [0.0, 1000.0, 1200.5]
    (first / "summary.json").unlink()
    assert read_record(third)["seconds_before"] is None
    assert read_record(make_run(tmp_path / "weights", init_from="weights.pt"))["seconds_before"] is None


@each(
    ("settings", "cell"),
    [
        ({"quantizer": None}, Cell("float", None)),
        ({"quantizer": {"name": "deadzone", "kwargs": {}}}, Cell("mixed", "l2")),
        ({"theta_regularizer": "decoupled"}, Cell("mixed", "decoupled")),
        ({"quantizer": {"name": "deadzone", "kwargs": {"learnable_bit": False}}}, Cell("4 bit", "l2")),
        (
            {"quantizer": {"name": "deadzone", "kwargs": {"learnable_bit": False, "fixed_bit_val": 6}}},
            Cell("6 bit", "l2"),
        ),
        ({"loss_terms": [{"name": "coupled_group_lasso"}]}, Cell("channels", "l2")),
        ({"init_from": "outputs/a/compacted/trainable.pt"}, Cell("channels", "l2")),
        ({"init_from": "outputs/a"}, Cell("mixed", "l2")),
        ({"quantizer": {"name": "uniform", "kwargs": {}}}, Cell("uniform", "l2")),
    ],
)
def test_a_run_belongs_to_the_cell_of_its_configuration(settings, cell):
    assert reproduction.classify(SETTINGS | settings) == cell


def test_a_run_that_starts_from_a_recovered_one_has_its_pruned_channels(tmp_path):
    recovered = {"quantizer": None, "init_from": str(tmp_path / "whole" / "compacted" / "trainable.pt")}
    make_run(tmp_path / "recovered", **recovered)
    assert reproduction.classify(SETTINGS | recovered) == Cell("float channels", None)
    assert reproduction.classify(SETTINGS | {"init_from": str(tmp_path / "recovered")}) == Cell("channels", "l2")
    make_run(tmp_path / "whole", quantizer=None)
    assert reproduction.classify(SETTINGS | {"init_from": str(tmp_path / "whole")}) == Cell("mixed", "l2")


@pytest.mark.parametrize("structure", [{"structure": {"nodes": []}}, {}])
def test_the_cell_of_a_run_does_not_depend_on_the_folders_of_others(tmp_path, structure):
    run = make_run(tmp_path / "channels,seed=0", init_from=str(tmp_path / "removed"))
    save_checkpoint(run / "checkpoints", {"model": {}, **structure}, epoch=0, step=1, accuracy=0.5)
    assert read_record(run)["method"] == ("channels" if structure else "mixed")
    make_run(tmp_path / "removed", init_from=str(tmp_path / "compacted" / "trainable.pt"))
    assert read_record(run)["method"] == ("channels" if structure else "mixed")


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_members_of_the_studies_fill_the_cells_of_their_budget(budget, tmp_path):
    """With the configurations that the trainings get."""
    from codeq.studies.checks import Mistakes, configurations
    from codeq.studies.study import read_study

    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    filled, epochs = [], set()
    for name in BUDGETS[budget].studies:
        study, mistakes = read_study(f"configs/studies/{name}.yaml"), Mistakes()
        configs = configurations(study, expand(study), mistakes)
        assert not mistakes
        filled += [reproduction.classify(config.to_dict()) for config in configs.values() if config.seed == 1]
        epochs |= {str(config.epochs) for config in configs.values()}
        for member, config in configs.items():  # as if they were done, for the members that start from them
            folder = tmp_path / "outputs" / study.name / member
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(json.dumps(config.to_dict()))
        if budget == "paper" or name == BUDGETS[budget].studies[0]:
            continue
        first = read_study(f"configs/studies/{BUDGETS[budget].studies[0]}.yaml").name
        options = (f"--{key.replace('_', '-')} {value}" for key, value in BUDGETS[budget].cut.items())
        text = (tmp_path / "configs" / "studies" / f"{name}.yaml").read_text("utf-8")
        if name == BUDGETS[budget].studies[1]:
            assert f"codeq compact RUN {' '.join(options)}`" in text
        for config in configs.values():
            source = f"outputs/{first}/seed={config.seed}"
            starts = {source, f"{source}/compacted/trainable.pt", f"outputs/table2-laptop-recovered/seed={config.seed}"}
            assert config.init_from in starts
            shared = [f"outputs/{first}/seed={seed}" for seed in range(BUDGETS[budget].teachers)]
            assert config.distillation is None or config.distillation.teacher in (source, shared)
    assert sorted(filled, key=str) == sorted(BUDGETS[budget].cells, key=str)
    assert set(re.findall(r"(\d+) epochs", BUDGETS[budget].recipe)) == epochs


# --- the table --------------------------------------------------------------------------------------------------------


def test_means_deviations_and_verdicts_of_three_seeds():
    runs = [
        record(seed=k, accuracy=a, relative_bops=b)
        for k, (a, b) in enumerate([(0.917, 0.02), (0.918, 0.022), (0.92, 0.024)])
    ]
    row = cells(runs)["CoDeQ mixed", "l2"]
    assert row[:5] == ["3 (0, 1, 2)", "91.83 ± 0.15", "91.86 ± 0.10", "-0.03", "no significant difference"]
    # Welch: (2.61 - 2.20) / sqrt(0.2² / 3 + 0.08² / 3) = 3.30; 2.6 degrees of freedom, p = 0.055.
    assert row[5:9] == ["2.20 ± 0.20", "2.61 ± 0.08", "-0.41", "no significant difference"]
    assert row[9:] == ["60", "60", "Z80"]


@each(("target", "found"), [({"relative_bops": 0.0259, "reach": 0.5}, "steered"), ({"mean_bits": 3.0}, "worse")])
def test_relative_bops_that_the_training_steers_are_not_judged(target, found):
    runs = [record(seed=k, accuracy=0.9186) | {"target": target} for k in range(3)]
    row = cells(runs)["CoDeQ mixed", "l2"]
    assert (row[4], row[7], row[8]) == ("no significant difference", "+0.39", found)


def test_times_of_different_hardware_are_not_averaged():
    runs = [record(seed=0), record(seed=1, seconds=70.0), record(seed=2, seconds=4000.0) | {"hardware": "a laptop"}]
    assert cells(runs)["CoDeQ mixed", "l2"][9:] == ["65; 4000", "65; 4000", "Z80; a laptop"]


def test_times_with_the_networks_before_are_sums_where_all_are_known():
    runs = [record(seed=k, seconds_before=before) for k, before in enumerate([30.0, 40.0])]
    assert cells(runs)["CoDeQ mixed", "l2"][9:11] == ["60", "95"]
    runs.append(record(seed=2, seconds_before=None))
    assert cells(runs)["CoDeQ mixed", "l2"][9:11] == ["60", "–"]


def test_too_few_seeds_are_said_and_the_same_seed_twice_is_one():
    runs = [record(seed=0), record(seed=0), record(seed=1), record(seed=2, status="diverged")]
    row = cells(runs)["CoDeQ mixed", "l2"]
    assert (row[0], row[4], row[8]) == ("2 (0, 1), 1 diverged", *["too few seeds: 2 of 3"] * 2)
    assert cells(runs)["float", "–"][:5] == ["0", "–", "91.70", "–", "too few seeds: 0 of 3"]


def test_pruned_channels_count_whole_channels_and_are_not_in_the_paper():
    row = cells([record("channels", structured_relative_bops=0.07)])["CoDeQ mixed, channels pruned", "l2"]
    assert (row[5], row[4], row[8]) == ("7.00", "not in the paper", "not in the paper")


def test_a_smoke_test_is_compared_with_nothing():
    row = cells([record(seed=seed) for seed in (0, 1, 2)], "smoke")["CoDeQ mixed", "l2"]
    assert row[3:5] == row[7:9] == ["–", "not comparable: other images"]


@each("more_is_better", [True, False])
@each("sign", [1, -1])
@each(
    ("shift", "std", "differs"),
    [
        # Two samples of three with the same deviation, 4 degrees of freedom: the 5 % limit of |t| is 2.776 (tables of
        # Student's t), which is a difference of 2.776 · 0.01 · sqrt(2 / 3) = 0.02267.
        (0.0226, 0.01, False),
        (0.0228, 0.01, True),
        # A constant, 2 degrees of freedom: 4.303 · 0.01 / sqrt(3) = 0.02484.
        (0.0247, math.nan, False),
        (0.0250, math.nan, True),
    ],
)
def test_verdicts_are_those_of_students_t(shift, std, differs, sign, more_is_better):
    found = verdict([0.50, 0.51, 0.52], 0.51 + sign * shift, std, more_is_better)
    assert found == (
        ("worse" if (sign > 0) == more_is_better else "better") if differs else "no significant difference"
    )


@pytest.mark.parametrize("std", [0.01, 0.0, math.nan])
def test_verdicts_on_results_that_do_not_vary(std):
    assert verdict([1.0] * 3, 1.0, std, True) == "no significant difference"
    assert verdict([1.0] * 3, 0.5, std, False) == "worse"


def test_results_that_equal_the_papers_but_for_rounding_do_not_differ():
    third = 0.1 + 0.2
    assert third != 0.3
    for std in (0.01, 0.0, math.nan):
        assert (
            verdict([third] * 3, 0.3, std, True)
            == verdict([0.3] * 3, third, std, False)
            == ("no significant difference")
        )
    assert verdict([third, 0.3, 0.3], 0.5, math.nan, True) == "worse"


def test_figures_that_are_not_finite_have_no_verdict():
    runs = [record(seed=0), record(seed=1, accuracy=math.nan), record(seed=2, relative_bops=math.nan)]
    row = cells(runs)["CoDeQ mixed", "l2"]
    assert row[1:5] == ["–", "91.86 ± 0.10", "–", "no figure from 1 of 3 seeds"]
    assert row[8] == "no figure from 1 of 3 seeds"
    assert verdict([math.nan] * 3, 0.9, math.nan, True) == "no figure from 3 of 3 seeds"


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_written_from_the_stored_results():
    assert render_page(STORES, BUDGETS) == PAGE, "run docs/make_reproduction.py"


def stored_numbers(store):
    """Every number that the runs of a store and the paper justify, as printed."""
    runs = store["runs"]
    percents = ("accuracy", "relative_bops", "structured_relative_bops", "structured_macs")
    found = {f"{100 * run[key]:.2f}" for run in runs if run["status"] == "done" for key in percents}
    found |= {f"{run['mean_bits']:.2f}" for run in runs if run["status"] == "done"}
    found |= {f"{run['seconds']:.0f}" for run in runs if run["status"] == "done"}
    found |= {str(run[key]) for run in runs for key in ("epochs", "batch_size", "seed")}
    found |= {str(value) for run in runs for value in run["target"].values()}
    found |= {number for paper in PAPER.values() for number in paper.split()}
    for method, reading in itertools.product(METHODS, ("l2", "decoupled", None)):
        done = [
            run for run in runs if (run["method"], run["theta_regularizer"], run["status"]) == (method, reading, "done")
        ]
        found |= {str(len(done))}
        published = PAPER.get(method, "").split()[:: 1 if method == "float" else 2] or [None] * 2
        cost = "structured_relative_bops" if method.endswith("channels") else "relative_bops"
        for key, paper in zip(("accuracy", cost), published, strict=True):
            values = [100 * run[key] for run in done]
            if values:
                found |= {f"{statistics.mean(values):.2f}"}
            if values and paper:
                found |= {f"{statistics.mean(values) - float(paper):+.2f}"}
            if len(values) > 1:
                found |= {f"{statistics.stdev(values):.2f}"}
        for machine in {run["hardware"] for run in done}:
            here = [run for run in done if run["hardware"] == machine]
            found |= {f"{statistics.mean(run['seconds'] for run in here):.0f}"}
            found |= {f"{statistics.mean(run['seconds'] + run['seconds_before'] for run in here):.0f}"}
    return found


def numbers(text):
    return re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.]*\w)", text)


def test_every_number_on_the_page_is_in_the_stored_runs_or_the_paper():
    head, *sections = PAGE.split("\n## ")
    assert set(numbers(head)) <= {
        "2",
        "-10",
        "10",
        "20",
        "2512.12981",
        "32",
        "5",
    }  # Table 2, CIFAR-10, the arXiv's number
    assert len(sections) == len(STORES)
    for section, store in zip(sections, STORES, strict=True):
        names = {run[key] for run in store["runs"] for key in ("run", "hardware", "started")}
        sources = {source for run in store["runs"] for source in (run["init_from"], *run["teachers"]) if source}
        text = section
        for note in store.get("notes", []):
            assert note in text
            text = text.replace(note, "")
        for word in sorted(names | {source.removeprefix("outputs/") for source in sources}, key=len, reverse=True):
            text = re.sub(rf"(?<=[|;,]) {re.escape(word)}(?= \||;|,)", " ", text)
        text = re.sub(r"4 bit|too few seeds: (\d+) of 3", r"\1", text)
        strange = {number for number in numbers(text) if number not in stored_numbers(store)}
        assert not strange
        assert len(numbers(text)) > 30


def test_the_stored_times_before_a_training_are_those_of_the_stored_networks_that_it_started_from():
    earlier = {"float": [], "float channels": ["float"], "channels": ["float", "float channels"]}
    for store in STORES:
        seconds = {(run["method"], run["seed"]): run["seconds"] for run in store["runs"]}
        for run in store["runs"]:
            before = earlier.get(run["method"], ["float"]) if run["init_from"] else []
            total = sum(seconds[method, run["seed"]] for method in before)
            assert run["seconds_before"] == pytest.approx(total), run["run"]


def test_the_note_on_the_seed_that_chose_the_recipe_states_the_means_of_the_others():
    (store,) = [store for store in STORES if store["budget"] == "laptop"]
    (note,) = [note for note in store["notes"] if "alone have" in note]
    found = re.findall(r"(\d+\.\d+) % \((4 bit|mixed)\)", note)
    assert [method for _, method in found] == ["4 bit", "mixed"]
    for number, method in found:
        values = [100 * run["accuracy"] for run in store["runs"] if run["method"] == method and run["seed"] != 3]
        assert float(number) == pytest.approx(statistics.mean(values), abs=0.0051)  # rounded to two digits


def test_changes_that_were_not_committed_are_on_the_page():
    dirty = [run for store in STORES for run in store["runs"] if (run["commit"] or "").endswith("-dirty")]
    assert dirty
    assert all(f"| {run['commit'][:8]}-dirty |" in PAGE for run in dirty)


def test_a_second_run_of_networks_that_the_paper_has_not_gives_numbers_that_its_runs_justify():
    (store,) = [store for store in STORES if store["budget"] == "laptop"]
    second = [run | {"seed": 9, "accuracy": 0.9, "structured_relative_bops": 0.05} for run in store["runs"][-2:]]
    assert {run["method"] for run in second} == {"float channels", "channels"}
    longer = store | {"runs": [*store["runs"], *second]}
    rows = render_cells(longer, BUDGETS["laptop"].cells)[-2:]
    shown = {number for row in rows for number in numbers(row.rpartition("|")[0].rpartition("|")[0])}
    assert len(shown) > 10
    assert shown <= stored_numbers(longer)


def test_a_number_that_no_run_has_would_be_found():
    store = STORES[0]
    assert numbers("| 89.09 ± 0.15 | -2.77 | bf16 | 2026-11-26 |")[:3] == ["89.09", "0.15", "-2.77"]
    assert "91.99" not in stored_numbers(store)


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path


DEFAULTS = {"borders": "map", "streams": "scatter", "multiple_of": 1}  # of a compaction


def pretend(monkeypatch, outcomes):
    """Replace the trainings by run folders in the states `outcomes` (default: done) by name of the study and seed."""
    seen = []

    def run_study(study, command, options, check):
        seen.append((study.name, study.seeds))
        states = []
        for member in expand(study):
            seed = member.varied["seed"]
            states.append(outcomes.get((study.name, seed), "done"))
            quantizer = None if study.name.endswith("float") else QUANTIZER
            if states[-1] != "pending" and not (study.folder / member.name).exists():
                make_run(study.folder / member.name, states[-1], seed=seed, quantizer=quantizer)
        return set(states) == {"done"}

    def compact_run(run, trainable, **cut):
        assert trainable
        assert cut in [budget.cut for budget in BUDGETS.values()]
        seen.append(("cut", run.folder.name))
        (run.folder / "compacted").mkdir()
        (run.folder / "compacted" / "trainable.pt").touch()
        (run.folder / "compacted" / "proof.json").write_text(json.dumps({"options": DEFAULTS | cut}))
        return SimpleNamespace(cut="some channels are zero")

    monkeypatch.setattr(reproduction, "run_study", run_study)
    monkeypatch.setattr(cuts, "compact_run", compact_run)
    return seen


def test_the_options_of_a_cut_that_no_budget_names_have_the_defaults_of_a_compaction():
    parameters = inspect.signature(compact_run).parameters
    options = {name: parameters[name].default for name in ("borders", "streams", "multiple_of", "macs", "latency")}
    assert options == cuts.CUT_DEFAULTS | {"macs": None, "latency": None}


def test_compression_starts_from_the_float_networks_that_are_done(home, monkeypatch, capsys):
    seen = pretend(monkeypatch, {("table2-smoke-float", 1): "diverged"})
    assert not reproduce("smoke", 3, Options())
    cut = [("cut", "seed=0"), ("cut", "seed=2")]
    assert seen == [("table2-smoke-float", [0, 1, 2]), *cut, ("table2-smoke", [0, 2])]
    assert "| float | – | 2 (0, 2), 1 diverged |" in capsys.readouterr().out
    seen = pretend(monkeypatch, {("table2-smoke-float", 1): "diverged"})
    reproduce("smoke", 3, Options())
    assert not [name for name, _ in seen if name == "cut"]  # each network once


def test_a_dry_run_ends_before_networks_that_are_not_cut(home, monkeypatch, capsys):
    seen = pretend(monkeypatch, {("table2-smoke", seed): "pending" for seed in (0, 1)})
    assert reproduce("smoke", 2, Options(dry_run=True))
    assert seen == [("table2-smoke-float", [0, 1])]
    runs = ", ".join(f"outputs/table2-smoke-float/seed={seed}" for seed in (0, 1))
    assert f"the next study can be checked once the channels of {runs} are cut" in capsys.readouterr().out
    reproduce("smoke", 2, Options())
    seen.clear()
    reproduce("smoke", 2, Options(dry_run=True))
    assert seen == [("table2-smoke-float", [0, 1]), ("table2-smoke", [0, 1])]


SMOKE = DEFAULTS | {"macs": 0.6}


@each(
    ("proof", "refused"),
    [
        ({"options": SMOKE | {"macs": 0.5}}, "macs=0.5 and not 0.6"),
        (
            {"options": SMOKE | {"borders": "live", "latency": 0.5}},
            "borders=live and not map, latency=0.5 and not None",
        ),
        ({}, "macs=None and not 0.6"),  # of `codeq compact --trainable` of an earlier version
        ({"options": SMOKE, "checkpoint": "step-0.pt"}, r"checkpoint=step-0\.pt and not step-1\.pt"),
        ({"options": SMOKE, "checkpoint": "step-1.pt"}, ""),
        ({"cut": {"groups": 10}, "checkpoint": "step-1.pt"}, ""),  # of earlier versions
        ({"cut": {"groups": 10}}, ""),
    ],
)
def test_a_network_that_was_cut_otherwise_is_refused_by_name(home, monkeypatch, proof, refused):
    seen = pretend(monkeypatch, {})
    assert reproduce("smoke", 1, Options())
    run = home / "outputs" / "table2-smoke-float" / "seed=0"
    save_checkpoint(run / "checkpoints", {"model": {}}, epoch=0, step=1, accuracy=0.5)
    (run / "compacted" / "proof.json").write_text(json.dumps(proof))
    seen.clear()
    if refused:
        with pytest.raises(CodeqError, match=rf"float/seed=0/compacted holds another network than .*: {refused}\."):
            reproduce("smoke", 1, Options())
    else:
        assert reproduce("smoke", 1, Options())
    assert [name for name, _ in seen] == ([] if refused else ["table2-smoke-float", "table2-smoke"])
    shutil.rmtree(home / "outputs")


def cut_otherwise(run):
    (run / "compacted" / "proof.json").write_text(json.dumps({"options": SMOKE | {"macs": 0.5}}))


def test_runs_that_started_from_a_network_that_was_cut_otherwise_are_named_and_in_no_table(home, monkeypatch, capsys):
    pretend(monkeypatch, {})
    assert reproduce("smoke", 1, Options())
    cut_otherwise(home / "outputs" / "table2-smoke-float" / "seed=0")
    study = home / "outputs" / "table2-smoke"
    source = "outputs/table2-smoke-float/seed=0"
    make_run(study / "a", init_from=f"{source}/compacted/trainable.pt")
    make_run(study / "b", init_from="outputs/table2-smoke/a")
    make_run(study / "whole", init_from=source)
    (make_run(study / "damaged") / "config.yaml").write_text("[")
    (study / "table2.json").unlink()
    capsys.readouterr()
    named = r"or move them elsewhere: outputs/table2-smoke/a, outputs/table2-smoke/b$"
    with pytest.raises(CodeqError, match=rf"Rename the folder to keep it, or remove it\. Remove the runs .*{named}"):
        reproduce("smoke", 1, Options())
    assert capsys.readouterr().out == ""
    assert not (study / "table2.json").exists()


def test_a_network_that_was_cut_otherwise_meanwhile_is_refused_after_the_training(home, monkeypatch, capsys):
    seen = pretend(monkeypatch, {})
    assert reproduce("smoke", 1, Options())
    run_study = reproduction.run_study

    def cuts_otherwise(study, *arguments):
        cut_otherwise(home / "outputs" / "table2-smoke-float" / "seed=0")
        return run_study(study, *arguments)

    monkeypatch.setattr(reproduction, "run_study", cuts_otherwise)
    seen.clear()
    capsys.readouterr()
    with pytest.raises(CodeqError, match=r"macs=0\.5 and not 0\.6\. Rename the folder to keep it, or remove it$"):
        reproduce("smoke", 1, Options())
    assert seen == [("table2-smoke-float", [0])]
    assert capsys.readouterr().out == ""


def test_compression_waits_for_float_networks_that_were_interrupted(home, monkeypatch):
    seen = pretend(monkeypatch, {("table2-smoke-float", 1): "preempted"})
    assert not reproduce("smoke", 3, Options())
    assert seen == [("table2-smoke-float", [0, 1, 2])]
    shutil.rmtree(home / "outputs" / "table2-smoke-float" / "seed=1")
    seen = pretend(monkeypatch, {})
    assert reproduce("smoke", 3, Options())
    assert [name for name, _ in seen] == ["table2-smoke-float", "cut", "cut", "cut", "table2-smoke"]


def test_the_float_networks_that_teach_all_others_are_trained_for_one_seed_too(home, monkeypatch):
    seen = pretend(monkeypatch, {})
    assert reproduce("laptop", 1, Options())
    later = ("table2-laptop-recovered", "table2-laptop")
    assert seen == [("table2-laptop-float", [0, 1]), ("cut", "seed=0"), *((name, [0]) for name in later)]


@each(("seeds", "lost"), [(3, 1), (1, 1)])
def test_later_networks_wait_for_a_teacher_that_failed(home, monkeypatch, capsys, seeds, lost):
    seen = pretend(monkeypatch, {("table2-laptop-float", lost): "diverged"})
    assert not reproduce("laptop", seeds, Options())
    assert seen == [("table2-laptop-float", list(range(max(seeds, 2))))]
    out = capsys.readouterr().out
    assert f"seed={lost} of table2-laptop-float failed: later networks of every seed are distilled from it" in out
    assert "1 diverged" in out  # in the table of what is done
    shutil.rmtree(home / "outputs")


def test_networks_wait_for_no_failure_of_another_seed_than_those_of_the_teachers(home, monkeypatch):
    seen = pretend(monkeypatch, {("table2-laptop-float", 2): "diverged"})
    assert not reproduce("laptop", 3, Options())
    assert seen[-1] == ("table2-laptop", [0, 1])


@each("lost", [{1}, {0, 1, 2}])
def test_a_network_that_cannot_be_cut_costs_its_seed_alone(home, monkeypatch, capsys, lost):
    seen = pretend(monkeypatch, {})
    cut = cuts.compact_run

    def compact_run(run, **options):
        if int(run.folder.name.removeprefix("seed=")) in lost:
            raise CodeqError("latency=0.68: cannot be reached")
        return cut(run, **options)

    monkeypatch.setattr(cuts, "compact_run", compact_run)
    assert not reproduce("smoke", 3, Options())
    rest = [seed for seed in range(3) if seed not in lost]
    assert [entry for entry in seen if entry[0] == "table2-smoke"] == ([("table2-smoke", rest)] if rest else [])
    assert "seed=1 is left out: latency=0.68: cannot be reached" in (out := capsys.readouterr().out)
    assert "| float | – | 3 (0, 1, 2) |" in out
    shutil.rmtree(home / "outputs")


def test_the_table_is_stored_before_a_mistake_in_a_later_study_is_reported(home, monkeypatch, capsys):
    pretend(monkeypatch, {})
    run_study = reproduction.run_study

    def refuse(study, *arguments):
        if study.name == "table2-smoke":
            raise CodeqError("study table2-smoke: lr=0")
        return run_study(study, *arguments)

    monkeypatch.setattr(reproduction, "run_study", refuse)
    with pytest.raises(CodeqError, match="study table2-smoke: lr=0"):
        reproduce("smoke", 2, Options())
    assert "| float | – | 2 (0, 1) |" in capsys.readouterr().out
    assert len(json.loads((home / "outputs" / "table2-smoke" / "table2.json").read_text())["runs"]) == 2


def test_the_table_follows_from_the_run_folders_alone(home, monkeypatch):
    pretend(monkeypatch, {})
    assert reproduce("smoke", 2, Options())
    path = home / "outputs" / "table2-smoke" / "table2.json"
    first = path.read_bytes()
    path.unlink()
    assert reproduce("smoke", 2, Options())
    assert path.read_bytes() == first
    assert len(json.loads(first)["runs"]) == 2 + 3 * 2


def test_a_damaged_run_costs_itself_alone(home, monkeypatch, capsys):
    pretend(monkeypatch, {})
    assert reproduce("smoke", 1, Options())
    (home / "outputs" / "table2-smoke" / "mixed,seed=0" / "summary.json").write_text('{"baseline_bops": 1}')
    capsys.readouterr()
    reproduce("smoke", 1, Options())
    out = capsys.readouterr().out
    assert re.search(
        r"left out: .*mixed,seed=0 is damaged, or of another version of codeq: KeyError\('accuracy_last'\)", out
    )
    run = home / "outputs" / "table2-smoke" / "mixed,seed=0"
    (run / "environment.json").write_text("{")
    with pytest.raises(CodeqError, match=r"environment\.json"):
        read_record(run)


def test_a_project_without_the_study_files_is_told_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CodeqError, match=r"table2_paper\.yaml not found: `codeq init DIR` lays out configs/"):
        reproduce("paper", 1, Options(dry_run=True))
    assert not any(tmp_path.iterdir())


def test_mistakes_and_dry_runs_train_nothing(home, capsys):
    assert main(["reproduce", "table2", "--seeds", "0"]) == 2
    assert "--seeds 0: must be at least 1" in capsys.readouterr().err
    assert main(["reproduce", "table2", "--budget", "laptop", "--data-dir", "nowhere\0"]) == 2
    assert main(["reproduce", "table2", "--budget", "smoke", "--dry-run", "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 to run" in out
    assert "before the runs of table2-smoke-float are done: table2-smoke\n" in out
    assert not (home / "outputs").exists()


@pytest.mark.exhaustive
def test_a_whole_reproduction_that_was_interrupted(home):
    """Minutes: float, then three compressed networks on digits; stopped in the second study, then continued."""
    command = [sys.executable, "-m", "codeq", "reproduce", "table2", "--budget", "smoke", "--seeds", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 600
    metrics = home / "outputs" / "table2-smoke" / "mixed,seed=0" / "metrics.csv"
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    first, _ = process.communicate(timeout=300)
    assert process.returncode == 1, first
    assert "to continue: codeq reproduce table2 --budget smoke --seeds 1" in first
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    store = json.loads((home / "outputs" / "table2-smoke" / "table2.json").read_text())
    figures = {run["method"]: run for run in store["runs"]}
    assert set(figures) == {"float", "4 bit", "mixed", "channels"}
    assert figures["float"]["relative_bops"] == 1.0
    assert figures["float"]["accuracy"] > 0.8
    # Four bits of 32 and some zeros; in four epochs from a trained network.
    assert figures["4 bit"]["relative_bops"] < 0.125
    assert min(figures[name]["accuracy"] for name in ("4 bit", "mixed")) > 0.8
    source = "outputs/table2-smoke-float/seed=0"
    assert all(figures[name]["init_from"] == source for name in ("4 bit", "mixed"))
    assert figures["channels"]["init_from"] == f"{source}/compacted/trainable.pt"
    assert figures["channels"]["structured_macs"] < 0.6 < figures["mixed"]["structured_macs"]
    assert figures["channels"]["accuracy"] > 0.6
    assert result.stdout.count("too few seeds") == 0  # other images are not judged at all
