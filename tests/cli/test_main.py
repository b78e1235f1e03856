import errno
import io
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from typing import get_args

import nbformat
import pandas as pd
import pytest
from cases import each

from codeq import ExperimentConfig, Run, run_experiment
from codeq.cli.main import build_parser, main
from codeq.common.paths import CHECKOUT
from codeq.compaction.compact import Padding
from codeq.flow import Streams
from codeq.runs.tracking import Tracker

pytestmark = pytest.mark.usefixtures("without_figures")


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("codeq 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["notebook", "debug_rum"], "Did you mean 'debug_run'?"),
        (["notebook", "debug_run", "-p", "epoch", "5"], "Did you mean 'epochs'?"),
        (["notebook", "debug_run", "-p", "epochs", "five"], "epochs='five' must be of type int"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("codeq: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not captured.out


@pytest.mark.parametrize("arguments", [[], ["trian"], ["notebook"]])
def test_a_wrong_command_shows_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: codeq" in capsys.readouterr().err


def test_runs_are_listed_with_status_and_results(capsys, tmp_path):
    assert main(["runs"]) == 0
    assert "no runs" in capsys.readouterr().out
    settings = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 256}
    run = run_experiment(ExperimentConfig("first", **settings))
    run_experiment(ExperimentConfig("second", **settings)).set_status("failed", "on purpose")
    capsys.readouterr()
    assert main(["runs"]) == 0
    *_, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first[:3] == [str(run.folder.relative_to(tmp_path)), "done", "1/1"]
    assert float(first[3]) == round(100 * run.summary["accuracy_last"], 2)
    assert second[1] == "failed"
    assert second[-2:] == ["on", "purpose"]
    assert main(["runs", "outputs/second"]) == 0
    text = capsys.readouterr().out
    assert "second" in text
    assert "first" not in text


@pytest.fixture
def two_runs(tmp_path) -> list[Run]:
    """One that is done, one that failed after its first epoch."""
    made = []
    for name, seed, dataset in (("good", 3, "digits"), ("bad", 1, "cifar10")):
        config = ExperimentConfig(name, model="mlp", seed=seed, dataset=dataset, epochs=2, run_dir=f"outputs/{name}")
        run = Run.create(config)
        run.set_status("done" if name == "good" else "failed", "" if name == "good" else "no [disk]")
        (run.folder / "summary.json").write_text('{"epochs": 2, "accuracy_last": 0.5, "accuracy_best": 0.75}')
        (run.folder / "metrics.csv").write_text(f"epoch,eval/accuracy\n0,0.75\n1,{0.5 if name == 'good' else 0.25}\n")
        made.append(run)
    return made


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--where", "dataset == 'cifar10'"], ["bad"]),
        (["--where", "eval/accuracy > 0.3 and status == 'done'"], ["good"]),
        (["--sort", "seed"], ["bad", "good"]),
        (["--sort", "eval/accuracy", "--columns", "run,seed", "dataset"], ["bad", "good"]),
        (["--where", "run == 'outputs/bad'"], ["bad"]),
        (["--where", "seed == 7"], []),
    ],
)
def test_runs_are_selected_and_sorted(two_runs, capsys, arguments, names):
    assert main(["runs", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [name for line in lines for name in ("good", "bad") if line.split()[0] in (name, f"outputs/{name}")]
    assert shown == names
    if not names:
        assert lines == ["none of 2 runs is selected by --where seed == 7"]
    if "--columns" in arguments:
        assert [line.split() for line in lines] == [
            ["run", "seed", "dataset"], ["outputs/bad", "1", "cifar10"], ["outputs/good", "3", "digits"],
        ]  # fmt: skip


def test_every_key_of_the_configuration_is_a_column(two_runs, capsys):
    terms = [{"name": "group_lasso", "lambda": 0.1, "schedule": {"name": "constant"}}]
    Run.create(ExperimentConfig("lasso", model="mlp", loss_terms=terms, run_dir="outputs/lasso"))
    for expression, name in (("loss_terms.0.lambda == 0.1", "lasso"), ("name == 'good'", "good")):
        assert main(["runs", "--where", expression, "--columns", "name", "save_dir"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["name", name]
    assert main(["runs", "--where", "loss_terms.1.lambda == 0.1"]) == 2
    assert "column 'loss_terms.1.lambda' is unknown. Did you mean 'loss_terms.0.lambda'?" in capsys.readouterr().err


def test_runs_are_printed_as_csv_latex_and_json(two_runs, capsys):
    columns = ["--columns", "run", "reason", "eval/accuracy"]
    assert main(["runs", "--csv", "--sort", "seed", *columns]) == 0
    assert capsys.readouterr().out == "run,reason,eval/accuracy\noutputs/bad,no [disk],0.25\noutputs/good,,0.5\n"
    assert main(["runs", "--csv"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert {"run", "status", "seed", "dataset", "lr_scheduler", "best/eval/accuracy", "folder"} <= {*heading.split(",")}
    assert len(rows) == 2
    assert main(["runs", "--json", *columns, "--where", "status == 'failed'"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"run": "outputs/bad", "reason": "no [disk]", "eval/accuracy": 0.25}]
    assert main(["runs", "--latex", "--sort", "seed"]) == 0
    text = capsys.readouterr().out
    assert "outputs/bad & failed & " in text
    assert r"best/eval/accuracy" in text
    assert "reason" not in text


def test_json_has_all_digits_and_null_for_what_it_cannot_say(two_runs, capsys):
    (two_runs[0].folder / "metrics.csv").write_text("epoch,lr,eval/loss\n0,0.1,1.0\n1,1.23456789012e-09,inf\n")
    assert main(["runs", "good", "--json", "--columns", "lr,eval/loss"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"lr": 1.23456789012e-09, "eval/loss": None}]


@each(
    ("arguments", "printed"),
    [
        (["--json"], "[]\n"),
        (["--csv", "--columns", "run,seed", "--where", "seed == 1"], "run,seed\n"),
        (["--latex"], "\\begin{tabular}"),
    ],
)
def test_no_runs_are_an_empty_table_for_programs(capsys, arguments, printed):
    assert main(["runs", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(printed)
    assert captured.err.startswith("no runs in ")
    assert "no runs" not in captured.out


def test_a_chosen_key_keeps_its_name_in_the_heading(two_runs, capsys):
    assert main(["runs", "--columns", "run", "epochs", "epoch"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", "epochs", "epoch"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "datset == 'x'"], "column 'datset' is unknown. Did you mean 'dataset'?"),
        (["--where", "seed >"], "where 'seed >' cannot be evaluated: invalid syntax"),
        (["--sort", "acuracy"], "column 'acuracy' is unknown. Did you mean 'eval/accuracy'?"),
        (["--columns", "run,sed"], "column 'sed' is unknown. Did you mean 'seed'?"),
    ],
)
def test_a_wrong_selection_is_one_line(two_runs, capsys, arguments, message):
    assert main(["runs", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"codeq: {message}")
    assert len(captured.err.splitlines()) == 1
    assert not captured.out


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "codeq", "runs"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "no runs" in done.stdout


def write_notebook(path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return str(path)


def test_a_notebook_that_fails_ends_with_status_2_and_no_traceback(tmp_path):
    path = write_notebook(tmp_path / "fails.ipynb", "x: float = 1  # a number", "raise ValueError(f'x is {x}')")
    command = [sys.executable, "-m", "codeq", "notebook", path, "--run-dir", "out", "-p", "x", "2.5e-3"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    (message, where) = done.stderr.splitlines()[-2:]
    assert message.startswith("codeq: cell ")
    assert message.endswith("of fails.ipynb failed: ValueError: x is 0.0025")
    assert str(tmp_path / "out" / "fails.ipynb") in where
    assert "Traceback" not in done.stderr.partition("codeq: ")[2]


def test_a_folder_that_holds_a_run_ends_with_status_2(capsys, tmp_path):
    Run.create(ExperimentConfig("first", model="mlp", run_dir="taken"))
    assert main(["notebook", "debug_run", "--run-dir", "taken"]) == 2
    assert capsys.readouterr().err == (
        f"codeq: run_dir='{tmp_path / 'taken'}' already holds a run; choose another folder or remove it\n"
    )


@pytest.mark.parametrize("value", ["[a", "{", "a: b: c"])
def test_a_value_of_another_type_ends_with_status_2(capsys, value):
    assert main(["notebook", "debug_run", "-p", "epochs", value]) == 2
    assert capsys.readouterr().err == f"codeq: debug_run.ipynb: parameter epochs={value!r} must be of type int\n"


def test_an_interruption_ends_with_status_130(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "list", interrupted)
    assert main(["runs"]) == 130
    assert capsys.readouterr().err == "codeq: interrupted\n"


@pytest.mark.parametrize("status", ["running", "failed", "diverged", "preempted", "died"])
def test_a_run_without_an_epoch_is_listed_with_its_status(capsys, tmp_path, status):
    run = Run.create(ExperimentConfig("early", model="mlp"))
    run.set_status(status)
    assert main(["runs"]) == 0
    _, line = capsys.readouterr().out.splitlines()[-2:]
    assert line.split()[:4] == [str(run.folder.relative_to(tmp_path)), status, "0/300", "–"]


def test_a_line_of_the_list_says_what_the_run_reached(capsys, tmp_path):
    run = Run.create(ExperimentConfig("half", model="mlp", epochs=20))
    layers = pd.DataFrame({"layer": ["fc1"]})
    for epoch, accuracy in enumerate((0.5, 0.75, 0.625)):
        metrics = {"epoch": epoch, "eval/accuracy": accuracy, "sparsity/unstructured": 0.4, "sparsity/structured": 0.1}
        metrics |= {"quantizer/mean_bits": 5.25, "compression/unstructured_bops_ratio": 12.34}
        Tracker(run.folder).log_epoch(metrics | {"compression/structured_bops_ratio": 8.0}, layers)
    main(["runs"])
    above, heading, line = capsys.readouterr().out.splitlines()
    assert above.split() == ["BOPs", "×"] * 2
    assert heading.split()[:7] == ["run", "status", "epoch", "accuracy", "best", "images", "unstructured"]
    assert heading.split()[7:] == ["bits", "zero", "weights", "dead", "filters", "structured"]
    figures = " ".join(line.split()[2:])
    assert figures == "3/20 62.50 % 75.00 % test 12.34 5.25 40.00 % 10.00 % 8"


def test_a_run_with_a_configuration_of_another_version_does_not_hide_the_others(capsys, tmp_path):
    keys = ("eval/accuracy", "sparsity/unstructured", "sparsity/structured", "quantizer/mean_bits")
    keys += ("compression/unstructured_bops_ratio", "compression/structured_bops_ratio")
    for name in ("good", "old"):
        run = Run.create(ExperimentConfig(name, model="mlp", run_dir=f"outputs/{name}"))
        Tracker(run.folder).log_epoch({"epoch": 0, **dict.fromkeys(keys, 0.5)}, pd.DataFrame({"layer": ["fc1"]}))
    with open(tmp_path / "outputs" / "old" / "config.yaml", "a") as file:
        file.write("a_key_of_the_past: 1\n")
    assert main(["runs"]) == 0
    good, old = capsys.readouterr().out.splitlines()[-2:]
    assert "50.00 %" in good
    assert "50.00 %" in old


def test_a_folder_that_does_not_exist_is_a_mistake(capsys):
    assert main(["runs", "outptus"]) == 2


@pytest.mark.slow
def test_plot_draws_what_a_run_has_and_says_what_it_has_not(capsys, tmp_path):
    settings = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 256, "quantizer": None}
    run_experiment(ExperimentConfig("float", **settings, run_dir="outputs/float"))
    capsys.readouterr()
    assert main(["plot", "outputs/float", "--layer", "fc2", "--format", "svg", "--format", "pdf"]) == 0
    first, *missing = capsys.readouterr().out.splitlines()
    plots = tmp_path / "outputs" / "float" / "plots"
    assert first.startswith(f"13 figures, as SVG and PDF, in {plots}: training_curves, accuracy_curve")
    assert [line.split(": ")[:2] for line in missing] == [
        ["not drawn", "weight_histograms"],
        ["not drawn", "weight_histogram"],
    ]
    assert {path.name for path in plots.glob("layer_costs.*")} == {"layer_costs.svg", "layer_costs.pdf"}


def test_plot_of_several_runs_begins_with_none_if_one_lacks_the_layer(capsys, tmp_path):
    for model in ("mlp", "resnet20"):
        Run.create(ExperimentConfig(model, model=model, run_dir=f"outputs/{model}"))
    assert main(["plot", str(tmp_path / "outputs"), "--layer", "fc2"]) == 2
    assert "layer 'fc2' is unknown" in capsys.readouterr().err
    assert not list(tmp_path.glob("outputs/*/plots/*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run is named 'nowhere'"),
        (["empty"], "empty holds no run"),
        (["begun", "--layer", "fc9"], "layer 'fc9'"),
    ],
)
def test_plot_of_what_is_no_run_is_one_line_and_exit_status_2(capsys, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    Run.create(ExperimentConfig("begun", model="mlp", run_dir="outputs/begun"))
    assert main(["plot", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("codeq: ")
    assert message in line


def test_the_version_comes_from_the_module_too():
    done = subprocess.run([sys.executable, "-m", "codeq", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"codeq {version('codeq')}\n"


# --- start-up ---------------------------------------------------------------------------------------------------------

LOADED = """
import contextlib, sys
from codeq.cli.main import main
for arguments in {}:
    with contextlib.suppress(SystemExit):
        main(arguments)
print(*{{name.split('.')[0] for name in sys.modules}})
"""
HEAVY = {"torch", "pandas", "numpy", "matplotlib", "papermill", "nbformat", "pydantic", "tqdm", "wandb"}


@pytest.mark.parametrize("arguments", [["--help"], ["compact", "--help"], ["--version"], ["runs"]])
def test_help_and_listing_import_only_what_they_use(tmp_path, arguments):
    run = Run.create(ExperimentConfig("first", model="mlp"))
    (run.folder / "metrics.csv").write_text("epoch,eval/accuracy\n0,0.5\n")
    code = LOADED.format([arguments])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "codeq" in loaded
    assert not loaded & HEAVY


def test_results_and_studies_are_listed_without_torch(tmp_path):
    Run.create(ExperimentConfig("first", model="mlp"))
    (tmp_path / "study.yaml").write_text("{name: rates, base: base.yaml, seeds: [0, 1]}")
    listing = ["runs", "--where", "epochs > 0", "--csv"]
    status = ["sweep", str(tmp_path / "study.yaml"), "--status"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format([listing, status])], capture_output=True, text=True, check=True
    )
    assert "first" in done.stdout
    assert "2 members: 2 pending" in done.stdout
    assert "torch" not in done.stdout.splitlines()[-1].split()


def test_a_refused_notebook_imports_no_torch(tmp_path):
    code = LOADED.format([["notebook", "debug_rum"], ["notebook", "debug_run", "-p", "epochs", "five"]])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 2
    assert not set(done.stdout.split()) & HEAVY


def test_the_choices_of_compact_are_those_of_the_library():
    actions = {
        action.dest: action for action in build_parser()._subparsers._group_actions[0].choices["compact"]._actions
    }
    assert actions["borders"].choices == list(get_args(Padding))
    assert actions["streams"].choices == list(get_args(Streams))


# --- output that is lost ----------------------------------------------------------------------------------------------


def many_runs(folder, count=40):
    for k in range(count):
        run = folder / "outputs" / f"{k:03d}{'x' * 200}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("epochs: 3\n")
        (run / "status.json").write_text('{"status": "failed"}')


def test_a_reader_that_is_gone_ends_the_list_quietly(tmp_path):
    many_runs(tmp_path, 400)  # more than a pipe holds
    with subprocess.Popen(
        [sys.executable, "-m", "codeq", "runs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert "BOPs" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(tmp_path, unbuffered):
    many_runs(tmp_path, 2)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    (tmp_path / "study.yaml").write_text("{name: rates, base: base.yaml, seeds: [0, 1]}")
    lost = "codeq: the output cannot be written: No space left on device\n"
    for arguments, status, message in (
        (["runs"], 2, lost),
        (["sweep", str(tmp_path / "study.yaml"), "--status"], 2, lost),
        (["--help"], 0, ""),
        (["--version"], 0, ""),
    ):
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "codeq", *arguments]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        assert (done.returncode, done.stderr) == (status, message)


def test_an_explanation_is_lost_on_a_full_disk_with_an_error(capsys, monkeypatch):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Run.create(ExperimentConfig("explained", model="mlp"))
    monkeypatch.setattr("codeq.analysis.channel.explain_channel", lambda *_: "it is live")
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["explain", "latest", "fc1", "0"]) == 2
    assert capsys.readouterr().err == "codeq: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(("encoding", "sign"), [("cp1252", "×"), ("ascii", "?")])
def test_a_terminal_without_the_signs_gets_the_list(tmp_path, encoding, sign):
    many_runs(tmp_path, 1)
    (run,) = (tmp_path / "outputs").iterdir()
    (run / "metrics.csv").write_text("epoch,eval/accuracy,compression/structured_bops_ratio\n0,0.5,8\n")
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-m", "codeq", "runs"], capture_output=True, env=environment, check=True)
    assert f"BOPs {sign}" in done.stdout.decode(encoding)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/read/only/file"), "/read/only/file: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(capsys, monkeypatch, error, message):
    def refused():
        raise error

    monkeypatch.setattr(Run, "list", refused)
    assert main(["runs"]) == 2
    assert capsys.readouterr().err == f"codeq: {message}\n"


@each(
    ("arguments", "message"),
    [
        (
            ["train", "--config", str(CHECKOUT / "configs/deadzone_mlp.yaml"), "--device", ""],
            "device='': must not be empty",
        ),
        (["train", "--config", "", "--resume", "begun"], "the name of a configuration is empty"),
        (["notebook", "debug_run", "--run-dir", ""], "run_dir is empty: must be a folder"),
        (["reproduce", "table2", "--data-dir", ""], "data_dir='': must not be empty"),
    ],
)
def test_an_empty_value_as_of_an_unset_variable_is_refused(capsys, tmp_path, arguments, message):
    if not (tmp_path / "outputs" / "begun").exists():
        Run.create(ExperimentConfig("begun", model="mlp", run_dir="outputs/begun"))
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kill", ["while the message is printed", "in an exit handler"])
def test_a_second_ctrl_c_at_the_end_shows_no_traceback(kill):
    at_exit = kill == "in an exit handler"
    code = f"""
import atexit, os, signal
from codeq.cli import main
def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
main.import_parts = interrupted  # the first Ctrl-C
if {at_exit}:
    atexit.register(interrupted)
else:
    main._fail = interrupted
main.sys.argv = ["codeq", "runs", "--import", "x"]
main.run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == (-signal.SIGINT if at_exit else 130)
    assert done.stderr == ("codeq: interrupted\n" if at_exit else "")
