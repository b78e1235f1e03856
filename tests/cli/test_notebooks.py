import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from cases import each
from papermill import inspect_notebook
from PIL import Image

from codeq import ExperimentConfig, Run
from codeq.cli import notebooks
from codeq.cli.main import build_parser, main
from codeq.cli.notebook_parameters import check_parameters, parse_parameters, read_parameters
from codeq.cli.notebooks import NOTEBOOKS, find_notebook, run_notebook
from codeq.common.errors import CodeqError
from codeq.runs.networks import build_network

DEBUG_RUN = NOTEBOOKS / "debug_run.ipynb"
FIGURES = {
    "accuracy_curve",
    "sparsity_curves",
    "channel_liveness",
    "per_layer_channels",
    "sparsity_bars",
    "sparsity_map",
}
TINY = {"dataset": "synthetic", "epochs": 1, "batch_size": 256}


def write_notebook(path: Path, *cells: str, tagged: bool = True) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    if tagged:
        notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


@each("notebook", sorted(NOTEBOOKS.glob("*.ipynb")))
def test_every_parameter_says_its_type_and_what_it_is(notebook):
    parameters = inspect_notebook(str(notebook))
    assert list(parameters) == list(read_parameters(notebook))  # papermill drops lines with a second =
    for name, parameter in parameters.items():
        assert parameter["inferred_type_name"] in ("int", "float", "str", "bool"), name
        assert len(parameter["help"]) > 8, name


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epoch": 5}, r"no parameter 'epoch'\. Did you mean 'epochs'\?"),
        ({"epochs": "many"}, "epochs='many' must be of type int"),
        ({"epochs": 2.5}, "epochs=2.5 must be of type int"),
        ({"epochs": True}, "epochs=True must be of type int"),
        ({"epochs": None}, "epochs=None must be of type int"),
        ({"dataset": 3}, "dataset=3 must be of type str"),
    ],
)
def test_a_wrong_parameter_is_an_error_before_anything_starts(tmp_path, parameters, message):
    with pytest.raises(CodeqError, match=message):
        run_notebook("debug_run", parameters)
    assert not list(tmp_path.iterdir())


def test_right_parameters_pass():
    defaults = check_parameters(DEBUG_RUN, {"lr": 1, "epochs": 3, "data_dir": None, "run_dir": "x"})
    assert defaults["dataset"].default == "'digits'"


def test_an_unknown_notebook_gets_the_nearest_name():
    with pytest.raises(CodeqError, match=r"'debug_rum' is unknown\. Did you mean 'debug_run'"):
        find_notebook("debug_rum")


def test_a_notebook_can_be_named_by_its_path(tmp_path):
    path = write_notebook(tmp_path / "mine.ipynb", "x: int = 1  # a number")
    assert find_notebook(str(path)) == path


def test_a_name_may_have_dots(tmp_path):
    (tmp_path / "notebooks").mkdir()
    path = write_notebook(tmp_path / "notebooks" / "resnet_v1.2.ipynb", "x: int = 1  # a number")
    assert find_notebook("resnet_v1.2") == find_notebook("resnet_v1.2.ipynb") == path


def test_a_path_starts_here_or_in_the_project(tmp_path, monkeypatch):
    (tmp_path / "here" / "mine").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    inside = write_notebook(tmp_path / "mine" / "look.ipynb", "x: int = 1  # a number")
    monkeypatch.chdir(tmp_path / "here")
    assert find_notebook("mine/look.ipynb") == inside
    here = write_notebook(tmp_path / "here" / "mine" / "look.ipynb", "x: int = 1  # a number")
    assert find_notebook("mine/look.ipynb") == here


def test_a_notebook_without_parameters_cell_takes_none(tmp_path):
    path = write_notebook(tmp_path / "plain.ipynb", "x = 1", tagged=False)
    with pytest.raises(CodeqError, match="no cell tagged 'parameters'"):
        run_notebook(str(path), {"x": 2})


def test_a_failing_cell_is_named_and_the_executed_notebook_kept(tmp_path, capfd):
    path = write_notebook(tmp_path / "fails.ipynb", "x: int = 1  # a number", "print('before')", "1 / (x - 1)")
    with pytest.raises(CodeqError, match=r"fails\.ipynb failed: ZeroDivisionError"):
        run_notebook(str(path), run_dir=tmp_path / "out")
    assert "before" in capfd.readouterr().out
    executed = nbformat.read(tmp_path / "out" / "fails.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in executed.cells for output in cell.get("outputs", []))


@pytest.mark.exhaustive
def test_the_debug_run_as_a_user_starts_it_leaves_pictures_tables_and_a_run_that_opens(tmp_path):
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "codeq", "notebook", "debug_run", "--run-dir", str(folder)]
    for name, value in TINY.items():
        arguments += ["-p", name, str(value)]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert "epoch 1/1 | loss" in printed
    names = ", ".join(sorted(f"{name}.png" for name in FIGURES))
    assert printed.rstrip().endswith(f"figures in {folder / 'plots'}: {names}")

    pictures = {path.stem: path for path in (folder / "plots").glob("*.png")}
    assert set(pictures) == FIGURES
    for name, path in pictures.items():
        with Image.open(path) as image:
            assert min(image.size) > 200, name
            assert len(image.convert("L").getcolors()) > 8, name
    run = Run.open(folder)
    assert run.status == "done"
    assert len(run.history) == 1

    cells = nbformat.read(folder / "debug_run.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(FIGURES)
    shown = "".join(output.get("text", "") for output in outputs)
    assert "epoch 1/1" in shown
    assert "unstructured" in shown
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]  # every term has an effect

    with pytest.raises(CodeqError, match="already holds a run"):  # and refuses the folder at once the second time
        run_notebook("debug_run", TINY, folder)


@pytest.mark.slow
def test_plain_papermill_works_and_the_notebook_makes_its_own_folder(tmp_path):
    command = [sys.executable, "-m", "papermill", str(DEBUG_RUN), str(tmp_path / "out.ipynb"), "-k", "python3"]
    for name, value in {"epochs": 2, "dataset": "synthetic", "batch_size": 256}.items():
        command += ["-p", name, str(value)]
    subprocess.run(command, check=True, capture_output=True)
    (run,) = Run.list(tmp_path / "outputs")
    assert len(run.history) == 2
    assert run.folder.parent == tmp_path / "outputs" / "debug_run"


@pytest.mark.parametrize(
    "seed", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.exhaustive)]
)
def test_the_default_debug_run_shows_the_method_working(tmp_path, seed):
    run = Run.open(run_notebook("debug_run", {"seed": seed}, tmp_path / "run").parent)
    assert run.summary["accuracy_last"] >= 0.95
    assert run.summary["unstructured_sparsity"] >= 0.30
    assert run.summary["mean_bits"] < 8
    assert run.summary["structured_sparsity"] > 0.02
    assert run.summary["structured_mac_ratio"] > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["debug_run", "full_training"])
def test_a_layer_that_does_not_exist_is_found_before_training_and_leaves_no_folder(tmp_path, name):
    with pytest.raises(CodeqError, match=rf"^{name}\.ipynb: layer 'conv9' is unknown\. Did you mean 'conv1'\?"):
        run_notebook(name, {"layer": "conv9"})
    assert not list(tmp_path.glob("outputs/*"))


def debug_config(**changes):
    """The configuration that the first cells of the debug notebook make."""
    cells = [cell for cell in json.loads(DEBUG_RUN.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    names = {}
    exec("".join(cells[0]["source"]), names)
    names |= changes
    exec("".join(cells[1]["source"]).replace("%matplotlib inline\n", ""), names)
    return names["config"]


def test_the_quick_example_is_the_experiment_of_the_debug_notebook():
    quick = ExperimentConfig.from_yaml(NOTEBOOKS.parent / "configs" / "quick_resnet20_digits.yaml").to_dict()
    assert debug_config().to_dict() == quick | {"name": "debug_run"}


@pytest.mark.parametrize(("epochs", "lr_theta", "strength"), [(5, 0.028, 120.0), (10, 0.014, 60.0), (2, 0.0315, 135.0)])
def test_rates_of_the_debug_notebook_follow_its_length(epochs, lr_theta, strength):
    """Of 45 steps per epoch, the same products as the 900 steps of 20 epochs, which the README shows."""
    config = debug_config(epochs=epochs)
    (term,) = config.loss_terms
    assert config.lr_dz == config.lr_bit == pytest.approx(lr_theta)
    assert term.lambda_ == pytest.approx(strength)
    coefficients = [term.schedule.build()(epoch, epochs) for epoch in range(epochs)]
    assert coefficients[-1] == 1.0
    assert coefficients[0] == 0.0
    assert debug_config(epochs=epochs, lr_theta=0.5, group_lambda=2.0).lr_dz == 0.5


def test_the_group_lasso_of_the_debug_notebook_starts_at_a_few_times_the_cross_entropy_in_the_loss():
    for epochs in (5, 20):
        config = debug_config(group_step="gradient", epochs=epochs)
        (term,), model = config.loss_terms, build_network(config, 10)
        assert 10 < term.lambda_ * term.build(model, (3, 32, 32))(model).item() < 100  # the cross-entropy is 2.3
    (term,) = debug_config(group_step="gradient", group_lambda=0.5).loss_terms
    assert term.lambda_ == 0.5


@each("lr", [0.0, -1e-3])
def test_a_learning_rate_that_is_no_rate_is_named_by_the_configuration(lr):
    with pytest.raises(CodeqError, match=r"lr=.*: must be above 0"):
        debug_config(lr=lr)


def test_one_epoch_of_the_debug_notebook_prunes_no_channels():
    assert debug_config(epochs=1).loss_terms == []


@each(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"dataset": "digit"}, "Did you mean 'digits'"),
        ({"delay": -0.5}, "delay=-10.0: must be at least 0"),
        ({"group_step": "prox"}, "step='prox'"),
        ({"layer": "conv9"}, "layer 'conv9' is unknown"),
    ],
)
def test_wrong_values_are_found_in_the_first_cells(changes, message):
    with pytest.raises(CodeqError, match=message):
        debug_config(**changes)


# --- small notebooks --------------------------------------------------------------------------------------------------

KINDS = """
count: int = 1  # a number
rate: float = 0.5  # another
name: str = "x"  # a text
flag: bool = False  # a flag
maybe: float = None  # a number or nothing
run_dir: str = None  # where results go
"""
WRITES = (
    "import json, pathlib\npathlib.Path(run_dir, 'got.json').write_text(json.dumps([count, rate, name, flag, maybe]))"
)


@pytest.fixture
def kinds(tmp_path) -> Path:
    return write_notebook(tmp_path / "kinds.ipynb", KINDS, WRITES)


@pytest.mark.parametrize(
    "parameters",
    [{"count": 3}, {"rate": 3}, {"rate": 3.5}, {"name": ""}, {"flag": True}, {"maybe": None}, {"maybe": 1}, {}],
)
def test_values_of_the_declared_types_pass(kinds, parameters):
    assert check_parameters(kinds, parameters)["count"].default == "1"


@pytest.mark.parametrize(
    "parameters",
    [
        {"count": 3.0}, {"count": True}, {"count": "3"}, {"count": None}, {"rate": True}, {"rate": "0.5"},
        {"rate": None}, {"name": None}, {"name": 3}, {"name": Path("x")}, {"flag": 1}, {"flag": "true"},
        {"flag": None}, {"maybe": "0.5"}, {"maybe": False}, {"count": 3, "rate": [1.0]},
    ],
)  # fmt: skip
def test_values_of_other_types_do_not(kinds, parameters):
    name = list(parameters)[-1]
    with pytest.raises(CodeqError, match=rf"kinds\.ipynb: parameter {name}=.* must be of type"):
        check_parameters(kinds, parameters)


def test_parameters_arrive_and_results_lie_beside_the_executed_notebook(kinds, tmp_path):
    given = {"count": 3, "rate": 1e-5, "name": 'a "b" λ', "flag": True}
    executed = run_notebook(str(kinds), given, run_dir="results/here")
    assert executed == tmp_path / "results" / "here" / "kinds.ipynb"
    assert json.loads((executed.parent / "got.json").read_text()) == [3, 1e-5, 'a "b" λ', True, None]


@pytest.mark.slow
def test_a_notebook_without_metadata_in_a_folder_with_braces_is_executed(tmp_path):
    (tmp_path / "{mine}").mkdir()
    path = write_notebook(tmp_path / "{mine}" / "bare.ipynb", KINDS, WRITES)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": {}}))
    executed = run_notebook(str(path), {"count": 3}, run_dir="outputs/{trial}")
    assert executed == tmp_path / "outputs" / "{trial}" / "bare.ipynb"
    assert json.loads((executed.parent / "got.json").read_text())[0] == 3


def test_a_folder_beside_a_run_to_resume_is_refused(tmp_path):
    resumes = "resume: str = None  # a run\nrun_dir: str = None  # where results go"
    path = write_notebook(tmp_path / "resumes.ipynb", resumes, "pass")
    run = Run.create(ExperimentConfig("begun", run_dir="outputs/begun"))
    for parameters, folder in (({}, "elsewhere"), ({"run_dir": "elsewhere"}, None)):
        with pytest.raises(CodeqError, match=r"run_dir='elsewhere' and resume='.*begun': a resumed run stays in its"):
            run_notebook(str(path), {"resume": "latest", **parameters}, run_dir=folder)
    assert not (tmp_path / "elsewhere").exists()
    assert not (run.folder / "resumes.ipynb").exists()


@pytest.fixture
def executions(monkeypatch):
    """Parameters of notebooks that are not executed in truth."""
    seen = []
    monkeypatch.setattr("papermill.execute_notebook", lambda *given, **_: seen.append(given[2]))
    return seen


def test_two_folders_are_refused_and_one_may_be_given_twice(kinds, tmp_path, executions):
    with pytest.raises(CodeqError, match=r"^run_dir='a' and the notebook's parameter run_dir='b' are two folders"):
        run_notebook(str(kinds), {"run_dir": "b"}, run_dir="a")
    assert [path.name for path in tmp_path.iterdir()] == ["kinds.ipynb"]
    run_notebook(str(kinds), {"run_dir": "a"}, run_dir=tmp_path / "a")
    assert executions == [{"run_dir": str(tmp_path / "a")}]


def test_a_parameter_resume_that_takes_no_text_is_one_of_the_notebook(tmp_path, executions):
    path = write_notebook(tmp_path / "own.ipynb", "resume: bool = False  # whether to\nrun_dir: int = 3  # a number")
    executed = run_notebook(str(path), {"resume": True, "run_dir": 5})
    assert executed.parent.parent == tmp_path / "outputs" / "own"
    assert executions == [{"resume": True, "run_dir": 5}]


def test_runs_and_folders_may_be_called_by_digits(tmp_path, executions):
    path = write_notebook(tmp_path / "own.ipynb", "resume = None\nrun_dir = None")
    run = Run.create(ExperimentConfig("begun", run_dir="outputs/20261121"))
    for name, text in (("resume", "20261121"), ("run_dir", "7")):
        run_notebook(str(path), parse_parameters(path, [(name, text)]))
    folder = str(tmp_path / "7")
    assert executions == [{"resume": str(run.folder), "run_dir": str(run.folder)}, {"run_dir": folder}]


@pytest.mark.slow
def test_without_a_folder_a_new_one_is_made_in_outputs(kinds, tmp_path):
    executed = run_notebook(str(kinds))
    assert executed.parent.parent == tmp_path / "outputs" / "kinds"
    assert re.fullmatch(r"20\d{6}-\d{6}_kinds", executed.parent.name)
    assert (executed.parent / "got.json").exists()


def test_an_error_names_the_cell_the_message_and_the_executed_notebook(tmp_path):
    path = write_notebook(
        tmp_path / "fails.ipynb", "x: int = 1  # a number", "y = 2", "raise KeyError('gone')", "z = 3"
    )
    with pytest.raises(CodeqError) as raised:
        run_notebook(str(path), run_dir=tmp_path / "out")
    assert str(raised.value).splitlines() == [
        "cell 3 of fails.ipynb failed: KeyError: 'gone'",
        f"The notebook with the failing cell marked: {tmp_path / 'out' / 'fails.ipynb'}",
    ]
    cells = nbformat.read(tmp_path / "out" / "fails.ipynb", as_version=4).cells
    ran = [cell.source for cell in cells if cell.cell_type == "code" and cell.execution_count]
    assert ran[-1] == "raise KeyError('gone')"


@pytest.mark.parametrize("there", ["", "results", "results/run"])
def test_a_rejected_start_leaves_no_folder_but_those_that_were_there(tmp_path, there):
    source = "from codeq.common.errors import CodeqError\nraise CodeqError('x=1: must be 2')"
    path = write_notebook(tmp_path / "rejects.ipynb", "x: int = 1  # a number", source)
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CodeqError, match=r"^rejects\.ipynb: x=1: must be 2$"):
        run_notebook(str(path), run_dir="results/run")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_after_the_run_began_keeps_the_folder(tmp_path):
    source = "from pathlib import Path\nfrom codeq.common.errors import CodeqError\n"
    source += "Path(run_dir, 'status.json').write_text('{}')\nraise CodeqError('late')"
    path = write_notebook(tmp_path / "late.ipynb", "run_dir: str = None  # where", source)
    with pytest.raises(CodeqError, match="CodeqError: late\nThe notebook with the failing cell marked"):
        run_notebook(str(path), run_dir="run")
    assert (tmp_path / "run" / "late.ipynb").exists()


@pytest.mark.parametrize(
    ("parameter", "shown", "kept"),
    [
        ("x: int = 1  # a number", "'a table'", True),
        ("x: int = 1  # a number", "print('text')", False),
        ("resume: str = None  # a run", "'the configuration'", False),
    ],
)
def test_what_an_analysis_has_shown_is_kept_when_a_later_cell_finds_a_mistake(tmp_path, parameter, shown, kept):
    source = "from codeq.common.errors import CodeqError\nraise CodeqError('no data set')"
    path = write_notebook(tmp_path / "looks.ipynb", parameter, shown, source)
    where = r"CodeqError: no data set\nThe notebook with the failing cell" if kept else r"^looks\.ipynb: no data set$"
    with pytest.raises(CodeqError, match=where):
        run_notebook(str(path), run_dir="looked")
    assert (tmp_path / "looked" / "looks.ipynb").exists() is kept


@pytest.mark.slow
def test_the_kernel_runs_exit_handlers_and_does_not_report_the_interrupt_before_its_end(tmp_path, capfd):
    cells = [
        "run_dir: str = None  # its folder",
        "import atexit, logging, pathlib, sys\n"
        "atexit.register(lambda: pathlib.Path(run_dir, 'ended').write_text(' '.join(sys.orig_argv)))\n"
        "for error in ('KeyboardInterrupt caught in kernel.', 'another'):\n"
        "    logging.getLogger('IPKernelApp').error(error)",
    ]
    executed = run_notebook(str(write_notebook(tmp_path / "ending.ipynb", *cells)))
    assert "codeq.cli.kernel" in (executed.parent / "ended").read_text()
    printed = "".join(capfd.readouterr())
    assert "another" in printed
    assert "KeyboardInterrupt" not in printed


def test_a_slow_optional_parser_is_skipped_while_papermill_is_imported_and_can_be_imported_later(monkeypatch):
    monkeypatch.delitem(sys.modules, "rfc3987_syntax", raising=False)
    with notebooks._without_address_parser(), pytest.raises(ImportError):
        import rfc3987_syntax
    assert "rfc3987_syntax" not in sys.modules
    monkeypatch.setitem(sys.modules, "rfc3987_syntax", sys)
    with notebooks._without_address_parser():
        import rfc3987_syntax

        assert rfc3987_syntax is sys


def test_the_notebook_itself_is_not_changed(kinds):
    before = kinds.read_bytes()
    run_notebook(str(kinds), {"count": 2})
    assert kinds.read_bytes() == before


@pytest.mark.parametrize("name", ["nowhere/debug_run.ipynb", "nowhere.ipynb", "nowhere", ""])
def test_a_notebook_that_is_not_there_is_a_clear_error(tmp_path, name):
    with pytest.raises(CodeqError, match=r"is unknown.*Allowed: .*debug_run"):
        run_notebook(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_clear_error(tmp_path):
    path = write_notebook(tmp_path / "dies.ipynb", "x: int = 1  # a number", "import os\nos._exit(3)")
    with pytest.raises(CodeqError, match=r"dies\.ipynb"):
        run_notebook(str(path), run_dir=tmp_path / "out")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([sys.executable, "-c", "exit(3)"], r"the kernel did not start, often for lack of memory: Kernel"),
        (["/nowhere/python"], r"the kernel did not start: .*No such file or directory: '/nowhere/python'$"),
    ],
)
def test_a_kernel_that_does_not_start_is_a_clear_error_and_leaves_no_folder(tmp_path, monkeypatch, command, message):
    monkeypatch.setattr("codeq.cli.notebook_engine.with_quick_end", lambda _: command)
    path = write_notebook(tmp_path / "waits.ipynb", "x: int = 1  # a number")
    with pytest.raises(CodeqError, match=rf"^waits\.ipynb: {message}"):
        run_notebook(str(path), run_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_kernel_that_does_not_start_leaves_the_notebook_of_a_run_to_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("codeq.cli.notebook_engine.with_quick_end", lambda _: [sys.executable, "-c", "exit(3)"])
    path = write_notebook(tmp_path / "resumes.ipynb", "resume: str = None  # a run")
    run = Run.create(ExperimentConfig("begun", run_dir="outputs/begun"))
    write_notebook(run.folder / "resumes.ipynb", "resume: str = None  # a run")
    with pytest.raises(CodeqError, match="the kernel did not start"):
        run_notebook(str(path), {"resume": "begun"})
    assert (run.folder / "resumes.ipynb").exists()


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_before_the_first_cell_leaves_no_folder_and_after_it_the_notebook(tmp_path, monkeypatch):
    path = write_notebook(tmp_path / "waits.ipynb", "x: int = 1  # a number")
    with monkeypatch.context() as patch:
        patch.setattr("codeq.cli.notebook_engine.ForwardingClient.start_new_kernel", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_notebook(str(path), run_dir="out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("codeq.cli.notebook_engine.ForwardingClient.execute_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_notebook(str(path), run_dir="out")
    assert (tmp_path / "out" / "waits.ipynb").exists()


def full(*_):
    raise OSError(28, "No space left on device")


def fills_up_within_a_character(_, text, path):
    Path(path).write_bytes(text.encode()[:9] + "é".encode()[:1])
    full()


@pytest.mark.parametrize(("write", "left"), [(full, False), (fills_up_within_a_character, True)])
def test_a_full_disk_is_one_line_and_leaves_no_folder_without_a_file(tmp_path, monkeypatch, capsys, write, left):
    monkeypatch.setattr("papermill.iorw.LocalHandler.write", write)
    path = write_notebook(tmp_path / "waits.ipynb", "x: int = 1  # a number")
    assert main(["notebook", str(path), "--run-dir", "out"]) == 2
    message = f"codeq: {tmp_path / 'out' / 'waits.ipynb'} cannot be written: No space left on device"
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert (tmp_path / "out").exists() == left


@pytest.mark.slow
def test_a_folder_that_was_removed_is_named(tmp_path):
    cells = ("run_dir: str = None  # where", "import shutil\nshutil.rmtree(run_dir)")
    path = write_notebook(tmp_path / "removes.ipynb", *cells)
    with pytest.raises(CodeqError, match=r"out/removes\.ipynb cannot be written: output folder .*/out doesn't exist"):
        run_notebook(str(path), run_dir="out")


def test_a_file_that_is_no_notebook_is_a_clear_error(tmp_path):
    (tmp_path / "text.ipynb").write_text("not a notebook")
    with pytest.raises(CodeqError, match=r"text\.ipynb"):
        run_notebook(str(tmp_path / "text.ipynb"))


# --- parameters that papermill's own reader drops ---------------------------------------------------------------------

ODD = """
%matplotlib inline
overrides: str = ""  # other keys, e.g. viz_interval=5
url: str = "http://x/?a=1"  # where
several: str = (
    "a=b"
)
rate: float | None = None  # optional
old = 3  # type: int
"""


def test_parameters_with_a_second_equals_sign_are_known(tmp_path):
    path = write_notebook(tmp_path / "odd.ipynb", ODD)
    known = read_parameters(path)
    assert {name: (p.type, p.optional) for name, p in known.items()} == {
        "overrides": ("str", False), "url": ("str", False), "several": ("str", False), "rate": ("float", True),
        "old": ("int", False),
    }  # fmt: skip
    assert known["url"].default == "'http://x/?a=1'"
    assert check_parameters(path, {"overrides": "epochs=2 dataset=digits", "rate": None, "old": 4})


def test_a_quoted_annotation_and_a_comment_about_types_mean_nothing_else(tmp_path):
    source = "quoted: 'int' = 3  # a number\nperhaps: 'int | None' = 3\nkind: str = 'a'  # type: which of the three"
    known = read_parameters(write_notebook(tmp_path / "quoted.ipynb", source))
    assert {name: (p.type, p.optional) for name, p in known.items()} == {
        "quoted": ("int", False), "perhaps": ("int", True), "kind": ("str", False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "3", 3), ("rate", "1e-5", 1e-5), ("rate", "3", 3.0), ("flag", "true", True), ("flag", "False", False),
        ("name", "2024", "2024"), ("name", "true", "true"), ("name", "a=1 b=2", "a=1 b=2"), ("name", "null", "null"),
        ("name", "/data/set #2", "/data/set #2"), ("maybe", "null", None), ("maybe", "0.5", 0.5), ("run_dir", "7", "7"),
    ],
)  # fmt: skip
def test_the_text_of_the_command_line_becomes_a_value_of_the_declared_type(kinds, name, text, value):
    parsed = parse_parameters(kinds, [(name, text)])
    assert parsed == {name: value}
    assert type(parsed[name]) is type(value)
    check_parameters(kinds, parsed)


UNTYPED = """
flag = True
version = "1"
width = 3
chosen = None
switches = {}
"""


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("flag", "false", False), ("flag", "TRUE", True), ("version", "2", "2"), ("version", "true", "true"),
        ("width", "4", 4), ("width", "null", None), ("width", "None", None), ("width", "1_000", 1000),
        ("chosen", "true", True), ("chosen", "auto", "auto"), ("chosen", "{[1]: 2}", "{[1]: 2}"),
        ("switches", '{"a": true, "b": null}', {"a": True, "b": None}), ("switches", "{'a': True}", {"a": True}),
    ],
)  # fmt: skip
def test_without_an_annotation_the_default_and_the_text_itself_say_the_type(tmp_path, name, text, value):
    path = write_notebook(tmp_path / "untyped.ipynb", UNTYPED)
    parsed = parse_parameters(path, [(name, text)])
    assert parsed == {name: value}
    assert type(parsed[name]) is type(value)
    check_parameters(path, parsed)


def test_a_boolean_without_an_annotation_takes_nothing_else(tmp_path):
    path = write_notebook(tmp_path / "untyped.ipynb", UNTYPED)
    with pytest.raises(CodeqError, match=r"untyped\.ipynb: parameter flag='no' must be of type bool"):
        check_parameters(path, parse_parameters(path, [("flag", "no")]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", False), ("version", "1"), ("version", "null"), ("width", 5), ("width", -1e-5), ("width", None),
        ("chosen", "12"), ("chosen", "true"), ("chosen", "None"), ("chosen", "a b"), ("chosen", [True, None, "ü😀"]),
        ("chosen", '"x"'), ("chosen", [-1, 0.5]), ("switches", {"a": {"b": False}}),
    ],
)  # fmt: skip
def test_the_value_of_a_study_comes_back_from_the_command_line(tmp_path, name, value):
    path = write_notebook(tmp_path / "untyped.ipynb", UNTYPED)
    words = ["notebook", "untyped", "-p", name, check_parameters(path, {name: value})[name].text(value)]
    parsed = parse_parameters(path, build_parser().parse_args(words).parameters)
    assert parsed == {name: value}
    assert type(parsed[name]) is type(value)


def test_an_executed_notebook_is_not_overwritten(kinds, tmp_path):
    run_notebook(str(kinds), run_dir="once")
    with pytest.raises(CodeqError, match=r"once/kinds\.ipynb exists"):
        run_notebook(str(kinds), run_dir="once")


def test_a_notebook_of_the_project_comes_before_that_of_the_package(tmp_path):
    (tmp_path / "notebooks").mkdir()
    mine = write_notebook(tmp_path / "notebooks" / "debug_run.ipynb", "x: int = 1  # a number")
    assert find_notebook("debug_run") == mine
    assert find_notebook("full_training") == NOTEBOOKS / "full_training.ipynb"
