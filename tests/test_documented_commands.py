"""Every command that README.md, docs/ and the notebooks show is valid.

Each is read from the text and checked by the code that the command itself uses, in a project with runs of the same
names. Those that take minutes at most are executed too; the others are listed with the reason.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch.distributed.run
from PIL import Image
from sklearn.datasets import load_digits

from codeq import ExperimentConfig, Run, run_experiment
from codeq.cli.init import lay_out
from codeq.cli.main import build_parser, main
from codeq.cli.notebook_parameters import check_parameters, parse_parameters
from codeq.cli.notebooks import find_notebook
from codeq.common.errors import CodeqError
from codeq.config import parse_overrides
from codeq.data import load_dataset as load
from codeq.runs.references import find_run, find_runs
from codeq.runs.status import read_status
from codeq.studies import collect

ROOT = Path(__file__).parent.parent
PROGRAMS = (
    "codeq", "make", "torchrun", "sbatch", "papermill", "python", "pip", "conda", "source", "tensorboard", "wandb",
)  # fmt: skip
# RUN, DIR, ..., [FOLDER]: a synopsis, of which the options are checked.
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b|\.\.\.|\[")
RUN = "20261121-120000"  # in the names of documented runs

SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive
EXECUTED = {
    "codeq runs": (),
    "codeq runs --where \"dataset == 'digits'\" --sort eval/accuracy --csv": (),
    "codeq sweep configs/studies/quick.yaml --dry-run": SLOW,
    "codeq plot latest": EXHAUSTIVE,
    "codeq compact debug_run/latest": EXHAUSTIVE,
    "codeq sweep configs/studies/quick.yaml": EXHAUSTIVE,
    "codeq sweep configs/studies/digits_lambda.yaml": EXHAUSTIVE,
    "codeq train --config configs/quick_mlp_digits.yaml": EXHAUSTIVE,
    "codeq train --config configs/quick_mlp_digits.yaml --set target.relative_bops=0.03 "
    "optimizer.param_groups.dz.lr=0.02": EXHAUSTIVE,
    "codeq train --config configs/quick_mlp_digits.yaml --set wandb_project=digits tensorboard=true": EXHAUSTIVE,
    "codeq train --config configs/deadzone_mlp.yaml --set dataset=digits epochs=3 "
    "init_from=outputs/quick-mlp-digits/20261121-120000_quick-mlp-digits": EXHAUSTIVE,
    "codeq train --config configs/quick_resnet20_digits.yaml": EXHAUSTIVE,
    "codeq train --config latest/config.yaml --set seed=1": EXHAUSTIVE,
    "codeq notebook debug_run": EXHAUSTIVE,
    "codeq notebook debug_run -p epochs 5": EXHAUSTIVE,
    "codeq notebook debug_run -p dataset imagefolder -p data_dir path/to/class-per-folder/images": EXHAUSTIVE,
    "codeq notebook own_model": EXHAUSTIVE,
    "codeq notebook own_model -p source folder": EXHAUSTIVE,
    "codeq notebook full_training -p config_path configs/quick_mlp_digits.yaml": EXHAUSTIVE,
    "codeq notebook full_training -p config_path configs/quick_mlp_digits.yaml "
    "-p overrides 'seed=1 quantizer.kwargs.max_bits=6'": EXHAUSTIVE,
    "codeq notebook compression_analysis -p runs 'outputs/debug_run/*'": EXHAUSTIVE,
    "codeq notebook study_analysis -p study outputs/quick": EXHAUSTIVE,
    "codeq notebook study_analysis -p study outputs/digits-lambda": EXHAUSTIVE,
    "papermill notebooks/debug_run.ipynb out.ipynb -p epochs 5": EXHAUSTIVE,
    "torchrun --standalone --nproc-per-node=2 -m codeq train --config configs/quick_mlp_digits.yaml "
    "--device cpu": EXHAUSTIVE,
}
# Results worth showing: least accuracy, most mean bits, least share of dead filters and ratio of unstructured BOPs.
RESULTS = {
    "codeq train --config configs/quick_": (0.92, 6, 0.02, 20),
    "torchrun": (0.92, 6, 0.02, 20),
    "codeq notebook full_training": (0.92, 6, 0.02, 20),
    "codeq notebook debug_run": (0.92, 6, 0.02, 20),
    "codeq notebook debug_run -p epochs 5": (0.8, 6, 0.1, 8),
    "papermill": (0.8, 6, 0.1, 8),
    "codeq notebook debug_run -p dataset imagefolder": (0.8, 7.5, 0.02, 8),
    "codeq notebook own_model": (0.92, 6.5, 0.02, 15),
}
# Beginnings of commands that are checked, but not executed here.
NOT_EXECUTED = {
    "codeq notebook debug_run -p dataset cifar10": "a download, and an hour",
    "codeq notebook full_training -p config_path configs/deadzone_resnet20_mixed.yaml": "hours",
    "codeq notebook compression_analysis -p runs": "executed with another name of runs",
    "codeq notebook study_analysis -p study": "executed with another name of a study",
    "codeq notebook liveness_explorer -p run FOLDER": "executed by tests/widgets",
    "codeq notebook deploy -p run": "executed by tests/analysis/test_exports.py",
    "codeq train": "hours on CIFAR-10 or ImageNet, or the resumption of a run of hours",
    "codeq runs": "reads results that a reader does not have yet; tests/cli/test_main.py executes all options",
    "codeq plot": "executed by tests/cli/test_own_parts.py",
    "codeq compact": "executed by tests/cli/test_own_parts.py",
    "codeq explain": "executed by tests/cli",
    "codeq export": "executed by tests/export",
    "codeq calibrate": "executed by tests/cli",
    "codeq reproduce": "hours",
    "codeq init": "executed by tests/cli/test_init.py",
    "codeq sweep": "executed by tests/studies",
    "torchrun": "several GPUs",
    "sbatch": "a Slurm cluster; tests/test_slurm.py executes the scripts",
    "make": "the tests themselves, or a server",
}
# Programs that are not of this project.
FOREIGN = {
    "conda env create -f environment.yml": "conda; tests/test_repository.py reads the file",
    "conda activate codeq": "conda",
    "source .venv/bin/activate": "a shell",
    "pip install 'codeq[tensorboard]'": "the network",
    "pip install 'codeq[search]'": "the network",
    "pip install 'codeq[export]'": "the network",
    "tensorboard --logdir outputs": "a server",
    "wandb sync": "an account",
    "wandb sync outputs/quick-mlp-digits/*/wandb/offline-run-*": "an account; tests/runs/test_sinks.py has a server",
    "wandb login": "an account",
    "python docs/make_images.py": "a debug run of minutes",
    "python docs/make_screenshots.py": "a debug run of minutes; tests/browser executes it",
}


def texts() -> list[str]:
    """The pages, and the text cells of the notebooks."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [path.read_text("utf-8") for path in pages]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        found.append("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"))
    return found


def read_commands() -> list[str]:
    """Commands of blocks whose first line is one, and those in the text between backticks."""
    found: list[str] = []
    for text in texts():
        blocks = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        blocks += re.findall(r"(?<=\n\n)((?: {4}.*\n)+)", prose)
        for block in blocks:
            lines = [line.strip().removeprefix("$ ") for line in block.splitlines()]
            if lines[0].split()[0] in PROGRAMS:
                found += [" ".join(shlex.quote(word) for word in shlex.split(line, comments=True)) for line in lines]
        prose = re.sub(r"^ {4}.*$", "", prose, flags=re.MULTILINE)
        inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
        found += [code for code in inline if code.split()[0] in PROGRAMS and " " in code]
    return sorted(dict.fromkeys(found))


COMMANDS = read_commands()


def key(command: str) -> str:
    """The command without the quotes that a shell removes."""
    return " ".join(shlex.split(command))


def test_the_reader_finds_the_commands():
    assert len(COMMANDS) > 50
    for expected in ("make debug", "codeq runs", "codeq notebook debug_run -p epochs 5", "conda activate codeq"):
        assert expected in map(key, COMMANDS)
    known = {key(command) for command in COMMANDS}
    for listed in (*EXECUTED, *FOREIGN):
        assert key(listed) in known, f"{listed} is no longer documented"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_executed_or_listed_with_a_reason(command):
    listed = {key(c) for c in (*EXECUTED, *FOREIGN)}
    assert key(command) in listed or any(f"{command} ".startswith(f"{start} ") for start in NOT_EXECUTED), command
    if command.startswith("codeq train --config configs/") and key(command) not in listed:
        options = build_parser().parse_args(shlex.split(command)[1:])
        config = ExperimentConfig.from_yaml(ROOT / options.config).override(parse_overrides(options.changes))
        assert config.dataset != "digits", "ends within minutes: list it in EXECUTED"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project as `codeq init` makes it, with runs of the documented names."""
    home = lay_out(tmp_path_factory.mktemp("home"))
    settings = {"model": "mlp", "dataset": "synthetic", "epochs": 1, "batch_size": 256, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEQ_HOME", str(home))
        run = run_experiment(ExperimentConfig("tiny", **settings, exclude_layers=[], run_dir=str(home / "tiny")))
    for name in set(re.findall(rf"outputs/([\w.-]+/{RUN}_[\w.-]+)", "\n".join(texts()))):
        shutil.copytree(run.folder, home / "outputs" / name)
    # Two debug runs, as most readers have: a reference that names several runs is refused.
    names = [f"debug_run/{RUN}_debug_run", "debug_run/20261122-120000_debug_run"]
    for name in (*names, "digits-lambda/member", "lambda-dz-digits/member"):
        shutil.copytree(run.folder, home / "outputs" / name, dirs_exist_ok=True)
    images = home / "path/to/class-per-folder/images"
    digits = load_digits()
    for k, (pixels, label) in enumerate(zip(digits.images[:500], digits.target, strict=False)):
        (images / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((16 * pixels).clip(0, 255).astype("uint8")).save(images / str(label) / f"{k}.png")
    (home / "my_parts.py").write_text("")
    (home / "my_experiment.yaml").write_text("model: mlp\ndataset: digits\n")
    return home


@pytest.fixture
def here(project, monkeypatch) -> Path:
    monkeypatch.setenv("CODEQ_HOME", str(project))
    monkeypatch.chdir(project)
    return project


def check(words: list[str]) -> None:
    """Check a command by the code that it uses, and raise an error for a mistake."""
    match words[0]:
        case "codeq":
            check_codeq(words[1:])
        case "torchrun":
            inner = words.index("-m")
            assert words[inner + 1] == "codeq"
            torch.distributed.run.get_args_parser().parse_args([*words[1:inner], "script"])
            check_codeq(words[inner + 2 :])
        case "sbatch":
            options = [word for word in words[1:] if word.startswith("--") and "=" in word]
            script, *rest = words[1 + len(options) :]
            assert (ROOT / script).is_file()
            check_codeq(["train", "--config", *rest])
        case "papermill":
            check_codeq(["notebook", words[1], *words[3:]])
        case "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def check_codeq(words: list[str]) -> None:
    options = build_parser().parse_args(words)
    match words[0]:
        case "train":
            assert options.config or options.resume
            if options.resume:
                find_run(options.resume.partition("/checkpoints/")[0])
            if options.config and options.config != "latest/config.yaml":
                check_terms(ExperimentConfig.from_yaml(options.config).override(parse_overrides(options.changes)))
        case "notebook":
            notebook = find_notebook(Path(options.name).stem)
            values = parse_parameters(notebook, options.parameters)
            check_parameters(notebook, values)
            if notebook.stem in ("debug_run", "full_training"):
                check_terms(configure(notebook, values))
        case "explain":
            find_run(options.name)
        case "plot" | "compact" | "export" | "calibrate":
            find_runs(options.names)
        case "sweep":
            assert Path(options.study).is_file()


def check_terms(config: ExperimentConfig) -> None:
    for term in config.loss_terms:
        values = [term.schedule.build()(epoch, config.epochs) for epoch in range(config.epochs)]
        assert max(values) == 1.0, "a term never acts"


def configure(notebook: Path, values: dict) -> ExperimentConfig:
    """Execute the cells of a notebook that come before its training; CIFAR-10 is replaced by digits."""
    names: dict = {}
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        if source.startswith("run = run_experiment("):
            break
        if cell["cell_type"] == "code":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "codeq.data.load_dataset", lambda name, *rest: load("digits" if name == "cifar10" else name, *rest)
                )
                exec(source, names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= values
    return names["config"]


CHECKED = [command for command in COMMANDS if key(command) not in map(key, FOREIGN) and not PLACEHOLDER.search(command)]
# Inline mentions of a command or option alone, as in "`codeq train` ends with", have nothing to check but their name.
MENTIONS = re.compile(r"codeq \w+(?: --[\w-]+)?$")


@pytest.mark.parametrize("command", CHECKED)
def test_every_command_is_valid(here, command):
    words = shlex.split(command)
    words = words[: words.index(">")] if ">" in words else words
    if MENTIONS.match(command) and command != "codeq runs":
        name, *option = words[1:]
        parsers = build_parser()._subparsers._group_actions[0].choices
        assert name in parsers
        assert not option or option[0] in parsers[name]._option_string_actions
    else:
        check(words)


@pytest.mark.parametrize("reference", sorted(set(re.findall(r'find_run\("([^"]+)"\)', "\n".join(texts())))))
def test_every_run_that_code_names_is_one_run(here, reference):
    find_run(reference)


@pytest.mark.parametrize(
    "command",
    [
        "codeq notebook debug_run -p epoch 5", "codeq notebook full_training -p config_path configs/nothing.yaml",
        "codeq train --config configs/deadzone_mlp.yaml --set epoch=5", "codeq plot nothing", "make tests",
        "codeq train --config configs/quick_resnet20_digits.yaml --set epochs=5",
        "codeq notebook debug_run -p layer conv9", "codeq notebook debug_run -p delay 0.9 -p ramp 0.5",
        "codeq sweep configs/studies/q.yaml",
        "torchrun --nproc-per-node 4 -m codeq train --config configs/deadzone_mlpp.yaml",
        "sbatch slurm/trian.sh configs/x.yaml",
    ],
)  # fmt: skip
def test_the_check_finds_mistakes(here, command):
    with pytest.raises((CodeqError, AssertionError, OSError)):
        check(shlex.split(command))


@pytest.mark.parametrize("command", [pytest.param(command, marks=marks) for command, marks in EXECUTED.items()])
def test_short_commands_succeed(here, command, capfd, monkeypatch):
    if "wandb_project" in command:  # as for a reader without an account
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NETRC", str(here / "no-netrc"))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    program, *words = shlex.split(command)
    if program == "codeq":
        assert main(words) == 0
    else:
        module = {"torchrun": "torch.distributed.run", "papermill": "papermill"}[program]
        subprocess.run([sys.executable, "-m", module, *words], check=True)
    printed = capfd.readouterr()
    assert (printed.out + printed.err).strip()
    if expected := max((start for start in RESULTS if command.startswith(start)), default=None):
        run = find_run("latest")
        assert (run.status, read_status(run.folder).started >= started) == ("done", True)
        assert_worth_showing(run, *RESULTS[expected], "target" if "target" in command else "")
    if "init_from" in command:
        assert find_run("latest").summary["epochs"] == 3
    if "wandb_project" in command:
        assert "to upload: wandb sync" in printed.out
        assert list(run.folder.glob("wandb/offline-run-*/*.wandb"))
        assert list(run.folder.glob("tensorboard/events*"))
    if command == "codeq sweep configs/studies/quick.yaml":
        runs = [run for run in Run.list("outputs/quick") if run.folder.name.startswith("dz.")]
        assert len(runs) == 4
        assert all(run.summary["mean_bits"] < 7.5 for run in runs)
        assert sorted(run.summary["unstructured_bops_ratio"] for run in runs)[2] > 15  # the stronger regularizer
    if command == "codeq sweep configs/studies/digits_lambda.yaml":
        table = collect("outputs/digits-lambda")
        groups = table.groupby("optimizer.param_groups.dz.weight_decay")
        assert groups["seed"].apply(sorted).to_dict() == {value: [0, 1, 2] for value in (0.1, 0.3, 1.0, 3.0)}
        assert groups["eval/accuracy"].mean().min() > 0.88
        ratios = groups["compression/unstructured_bops_ratio"].mean()
        assert ratios.is_monotonic_increasing
        assert ratios.iloc[-1] > 20


def assert_worth_showing(run: Run, accuracy: float, bits: float, dead: float, ratio: float, target: str) -> None:
    found = run.summary
    assert found["accuracy_last"] >= accuracy
    assert found["mean_bits"] <= bits
    assert found["structured_sparsity"] >= dead
    assert found["unstructured_bops_ratio"] >= ratio
    if target:
        assert 100 / found["unstructured_bops_ratio"] == pytest.approx(3, rel=0.1)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    "target",
    sorted({w for c in COMMANDS if c.startswith("make ") for w in c.split()[1:] if re.fullmatch(r"[a-z][a-z-]*", w)}),
)
def test_documented_targets_of_make_have_a_recipe(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
