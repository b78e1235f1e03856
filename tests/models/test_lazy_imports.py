"""Networks, quantizers and data sets are known by name without the libraries that some of them need."""

import ast
from pathlib import Path

from cases import each

import codeq

HEAVY = {"torchvision", "timm", "huggingface_hub", "sklearn", "PIL", "scipy", "pandas"}
FILES = [file for room in ("models", "quantizer", "data") for file in Path(codeq.__file__).parent.glob(f"{room}/*.py")]


def imported_at_once(nodes):
    """The packages that a file imports outside functions and outside `if TYPE_CHECKING`."""
    for node in nodes:
        match node:
            case ast.Import(names=names):
                yield from (alias.name.split(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module.split(".")[0]
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.FunctionDef() | ast.AsyncFunctionDef():
                pass
            case _:
                yield from imported_at_once(ast.iter_child_nodes(node))


@each("file", FILES)
def test_heavy_libraries_are_imported_inside_functions(file):
    assert not HEAVY.intersection(imported_at_once(ast.parse(file.read_text("utf-8")).body))


def test_the_check_sees_an_import():
    assert list(imported_at_once(ast.parse("class A:\n    from PIL import Image").body)) == ["PIL"]
