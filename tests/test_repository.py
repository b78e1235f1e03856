"""Holds the files around the module to each other: what is declared, pinned, cited and stored says one thing."""

import ast
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from cases import each
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [
    requirement
    for line in itertools.chain.from_iterable(PROJECT.get("optional-dependencies", {}).values())
    if (requirement := Requirement(line)).name != PROJECT["name"]  # an extra may name other extras of the project
]
LOCK = [
    line
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Where a checkout happens to lie on someone's machine; no part of a web address.
MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(?:home|root|Users|work|workspace)/\w")
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}


def named(requirements):
    return {canonicalize_name(requirement.name) for requirement in requirements}


# --- what is installed ------------------------------------------------------------------------------------------------


def test_conda_environment_brings_python_alone():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python, pip, through_pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert through_pip == {"pip": ["-e .[dev]"]}


def test_lock_names_versions_and_no_places():
    for line in LOCK:
        assert re.match(r"[a-z0-9-]+==[^\s;]+( ; .+)?$", line), f"not a plain pin: {line!r}"
        assert "://" not in line
        assert "@" not in line


@each("python", ["3.11", "3.12", "3.13"])
@each("platform", PLATFORMS)
def test_lock_covers_every_dependency(platform, python):
    environment = {
        **PLATFORMS[platform],
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    pins = [Requirement(line) for line in LOCK]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    for requirement in DEPENDENCIES + EXTRAS:
        if requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""}):
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None, f"requirements.lock lacks {requirement}: run `make lock`"
            assert requirement.specifier.contains(version, prereleases=True), f"{version} is not {requirement}"


def test_hooks_use_the_pinned_tools():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    pins = {pin for repo in hooks for hook in repo["hooks"] for pin in hook.get("additional_dependencies", [])}
    assert named(map(Requirement, pins)) == {"ruff", "nbstripout"}
    assert pins <= {str(requirement) for requirement in EXTRAS}


def test_every_import_is_declared():
    providers = importlib.metadata.packages_distributions()
    always, sometimes = named(DEPENDENCIES), named(DEPENDENCIES + EXTRAS)
    for path in sorted((ROOT / "codeq").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        at_import = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                sources = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                sources = {node.module.split(".")[0]}
            else:
                continue
            for source in sources - sys.stdlib_module_names - {"codeq"}:
                names = {canonicalize_name(name) for name in providers.get(source, [source])}
                declared = always if id(node) in at_import else sometimes
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert names & declared, f"{where} imports {source}, but pyproject.toml does not list {names}"


# --- what is cited ----------------------------------------------------------------------------------------------------


def test_citation_names_the_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Wenshøj", "Chen", "Pepin", "Selvan"]
    assert "arXiv:2512.12981" in [identifier["value"] for identifier in paper["identifiers"]]


def test_changelog_knows_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[?{re.escape(PROJECT['version'])}\b", changelog, re.MULTILINE)


# --- what is stored ---------------------------------------------------------------------------------------------------


def code_cells(path):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
class TestNotebook:
    def test_stores_no_outputs(self, path):
        for cell in code_cells(path):
            assert cell["outputs"] == []
            assert cell["execution_count"] is None

    def test_has_one_cell_of_parameters(self, path):
        tagged = [cell for cell in code_cells(path) if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1

    def test_defines_nothing(self, path):
        """A function worth a name belongs in the module, where it is tested."""
        if path.stem == "own_model":
            pytest.skip("definitions of one's own are its subject")
        for cell in code_cells(path):
            source = TransformerManager().transform_cell("".join(cell["source"]))
            for node in ast.walk(ast.parse(source)):
                assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), node.name


def tracked_files():
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_machine_paths():
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # pictures and archives
        where = path.relative_to(ROOT)
        found += [f"{where}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert not found, "\n".join(found)


# --- links ------------------------------------------------------------------------------------------------------------

PAGES = sorted(
    path for folder in (".", "docs", "benchmarks", "notebooks", "configs") for path in (ROOT / folder).glob("*.md")
)


def anchors(page):
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), target


def test_pages_are_found():
    assert {"README.md", "RESULTS.md", "concepts.md"} <= {page.name for page in PAGES}
    assert "how-channels-are-pruned" in anchors(ROOT / "docs" / "concepts.md")
