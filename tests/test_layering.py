"""Holds the files of codeq/ to one order: each imports only from those above it, so any of them reads from the top."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import codeq

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "codeq"

# One room a line, the lowest first: a file of codeq/ or a package, whose files may import each other as long as they
# do not go in a circle.
LAYERS = (
    "common",
    "schedules",
    "optimizers",
    "quantizer",
    "models",
    "graph",
    "sparsity",
    "flow",
    "metrics",
    "compaction",
    "plots",
    "data",
    "config",
    "evaluator",
    "runs",
    "training",
    "trainer",
    "export",
    "analysis",
    "studies",
    "widgets",
    "cli",
)
# The public surface and the entry point stand above everything.
EXEMPT = {"codeq", "codeq.__main__"}
HEAVY = {"torch", "pandas", "matplotlib", "wandb", "ipywidgets", "papermill"}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ORDERED = [name for name in MODULES if name not in EXEMPT]


def layer(module: str) -> int | None:
    """The place of a module in LAYERS; `codeq.models.mlp` lies where `codeq.models` does."""
    name = module.split(".")[1]
    return LAYERS.index(name) if name in LAYERS else None


def imports(nodes: Iterable[ast.AST], module: str, is_package: bool = False) -> Iterator[tuple[int, str, str | None]]:
    """Each import as line, dotted module and the name taken from it; relative ones are spelled out."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = module.split(".") if is_package else module.split(".")[:-1]
                base = base[: len(base) - node.level + 1]
                source = ".".join([*base, *([source] if source else [])])
            for alias in node.names:
                yield node.lineno, source, alias.name


def internal_imports(module: str) -> dict[str, int]:
    """The modules of codeq that a module imports anywhere, also inside functions, with the line of each."""
    path = MODULES[module]
    found: dict[str, int] = {}
    for line, source, name in imports(everything(path), module, path.name == "__init__.py"):
        if source.split(".")[0] == "codeq":
            submodule = f"{source}.{name}"
            found.setdefault(submodule if submodule in MODULES else source, line)
    return found


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def everything(path: Path) -> Iterator[ast.AST]:
    return ast.walk(parse(path))


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a file that importing it runs: no function bodies, nothing under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if not deferred and not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from run_at_import(child)


def test_imports_only_from_above():
    for module in ORDERED:
        own = layer(module)
        assert own is not None, f"{module} has no place in the order: add it to LAYERS in tests/test_layering.py"
        for target, line in internal_imports(module).items():
            where = f"{MODULES[module].relative_to(ROOT)}:{line} imports {target}"
            assert target not in EXEMPT, f"{where}: import from the file that defines the name"
            above = layer(target)
            assert above is not None, f"{where}, which has no place in LAYERS"
            assert above <= own, f"{where}, which lies below it in the order"


def test_no_circles():
    graph = {name: internal_imports(name).keys() - EXEMPT for name in ORDERED}
    for name in graph:  # a package's own __init__ gathers what its files define
        if MODULES[name].name != "__init__.py":
            assert name.rpartition(".")[0] not in graph[name], f"{name} imports its own package"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_import_is_light():
    code = "import json, sys, codeq; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    assert "codeq" in loaded
    assert not HEAVY & loaded


def test_importing_a_public_name_loads_no_plots_or_services():
    code = "import sys; from codeq import run_experiment; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "wandb", "ipywidgets", "papermill"} & set(result.stdout.split())


def test_the_stub_lists_every_package_and_the_public_names():
    stub = parse(PACKAGE / "__init__.pyi")
    packages = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) and not node.module
                for alias in node.names}  # fmt: skip
    assert packages == {name.removeprefix("codeq.") for name in MODULES if name.count(".") == 1} - {"cli", "__main__"}
    (public,) = [node for node in stub.body if isinstance(node, ast.Assign)]
    assert set(ast.literal_eval(public.value)) == set(codeq.__all__)
    assert {*codeq.__all__, *packages} == set(dir(codeq))
    for name in dir(codeq):
        assert getattr(codeq, name) is not None


def test_only_widgets_knows_ipywidgets():
    for module in [name for name in MODULES if not name.startswith("codeq.widgets")]:
        for line, source, _ in imports(everything(MODULES[module]), module):
            assert source.split(".")[0] != "ipywidgets", f"{module}, line {line}"


def test_plots_imports_matplotlib_inside_its_functions():
    for module in [name for name in MODULES if name.startswith("codeq.plots")]:
        nodes = run_at_import(parse(MODULES[module]))
        at_import = {source.split(".")[0] for _, source, _ in imports(nodes, module)}
        assert not at_import & {"matplotlib", "seaborn"}, module


def test_a_stranger_can_survey_the_rooms():
    assert len({path.relative_to(PACKAGE).parts[0] for path in MODULES.values()}) <= 25


def test_the_readme_has_the_rooms_in_their_order():
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert tuple(rows) == LAYERS


def test_every_room_has_its_tests():
    for name in LAYERS:
        tests = [ROOT / "tests" / f"test_{name}.py", *(ROOT / "tests" / name).glob("test_*.py")]
        assert any(path.is_file() for path in tests), f"codeq.{name} has no tests"
