import os
import subprocess
import sys

import pytest
from cases import each
from own_parts import PARTS, forget_imports

from codeq import MODELS
from codeq.common.errors import CodeqError
from codeq.common.imports import VARIABLE, import_parts, imported_factory, recorded_name, source_files


@pytest.fixture(autouse=True)
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(VARIABLE, "")
    forget_imports()
    path = tmp_path / "my_parts.py"
    path.write_text(PARTS)
    yield path
    forget_imports()


def test_a_file_is_imported_once_under_its_name(parts, capsys):
    module = import_parts("my_parts.py")  # relative to the project
    assert import_parts(str(parts)) is module is sys.modules["my_parts"]
    assert capsys.readouterr().out == "my parts are imported\n"
    assert MODELS["my_net"] is module.MyNet
    assert source_files(["my_parts.py", "never"]) == [parts]


def test_a_path_is_taken_like_its_text(parts):
    assert import_parts(parts).MyNet is MODELS["my_net"]
    assert os.environ[VARIABLE] == str(parts)


def test_a_file_in_a_folder_that_python_searches_is_no_other_module(parts, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(parts.parent), *sys.path])  # as under `python -m codeq`
    assert import_parts("my_parts.py").__file__ == str(parts)


def test_a_file_in_the_working_directory_comes_first(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my_parts.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path / "here")
    assert import_parts("my_parts.py").x == 1


def test_a_module_is_found_in_the_working_directory_and_the_project(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "nets.py").write_text("def build(num_classes): ...")
    assert callable(import_parts("my_package.nets").build)
    assert imported_factory("my_package.nets:build").__name__ == "build"


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("broken.py", "x = ", "import 'broken.py' failed: SyntaxError"),
        ("raises.py", "1 / 0", "import 'raises.py' failed: ZeroDivisionError: division by zero"),
        ("leaves.py", "raise SystemExit(3)", "import 'leaves.py' failed: SystemExit: 3"),
        ("json.py", "x = 1", "there is another module 'json'; rename the file"),
        ("my-parts.py", "x = 1", "must be an identifier"),
        ("gone.py", None, "gone.py': there is no such file"),
        ("no_such_module", None, "import 'no_such_module' failed: ModuleNotFoundError"),
        ("a/b", None, r"import 'a/b': must be a file ending in \.py, or the name of a module"),
        ("", None, "must be a file"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path, name, code, message):
    if code is not None:
        (tmp_path / name).write_text(code)
    with pytest.raises(CodeqError, match=message):
        import_parts(name)
    assert name.removesuffix(".py") not in sys.modules or name == "json.py"
    assert not os.environ.get(VARIABLE)


def test_a_file_that_no_other_process_could_import_is_refused(tmp_path):
    folder = tmp_path / f"a{os.pathsep}b"
    folder.mkdir()
    (folder / "nets.py").write_text("raise AssertionError")
    with pytest.raises(
        CodeqError, match=f"b.nets.py': the path must not contain '{os.pathsep}', which separates those in"
    ):
        import_parts(str(folder / "nets.py"))


def test_two_files_of_one_name_are_refused(tmp_path):
    import_parts("my_parts.py")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "my_parts.py").write_text("x = 1")
    with pytest.raises(CodeqError, match="another module 'my_parts'"):
        import_parts("other/my_parts.py")


@each(
    ("reference", "message"),
    [
        ("my_parts:system", "defines no function or class 'system'"),  # imported there, but not its own
        ("my_parts:nn", "defines no"),
        ("my_parts:gone", "defines no"),
        ("my_parts:MyNet.forward", "defines no"),
        ("os:system", "os has not been imported; add --import os"),
        ("subprocess:run", "has not been imported"),
    ],
)
def test_a_configuration_can_call_nothing_but_what_an_imported_module_defines(reference, message):
    import_parts("my_parts.py")
    with pytest.raises(CodeqError, match=message):
        imported_factory(reference)


@pytest.mark.slow
def test_processes_started_from_this_one_import_the_same(parts):
    import_parts("my_parts.py")
    code = "from codeq import MODELS; print(MODELS['my_net'].__name__, MODELS['my_parts:build'].__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.splitlines() == ["my parts are imported", "MyNet build"]


def test_an_inherited_import_replaces_an_entry_of_codeq(parts, monkeypatch):
    built_in = MODELS["mlp"]
    monkeypatch.setitem(MODELS, "mlp", built_in)  # it comes back after the test
    parts.write_text(f"{PARTS}\nbefore = MODELS['mlp']\nMODELS['mlp'] = MyNet\n")
    monkeypatch.setenv(VARIABLE, str(parts))
    assert MODELS["mlp"] is MODELS["my_net"]
    assert sys.modules["my_parts"].before is built_in


def test_inherited_imports_come_before_those_of_the_process(parts, tmp_path, monkeypatch):
    (tmp_path / "later.py").write_text(
        "from codeq import MODELS\nMODELS['my_net'] = later = lambda num_classes: None\n"
    )
    monkeypatch.setenv(VARIABLE, str(parts))
    later = import_parts("later.py")
    assert MODELS["my_net"] is later.later
    assert os.environ[VARIABLE].split(os.pathsep) == [str(parts), str(tmp_path / "later.py")]


def test_an_inherited_import_that_fails_is_named_with_the_variable_every_time(parts, monkeypatch):
    parts.write_text("from codeq import MODELS\nMODELS['mlp']\nraise ValueError('on purpose')")
    monkeypatch.setenv(VARIABLE, str(parts))
    for _ in range(2):
        with pytest.raises(CodeqError, match=r"^CODEQ_IMPORTS: import '.*my_parts\.py' failed: ValueError: on purpose"):
            MODELS["mlp"]


def test_recorded_names(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path / "home"))
    assert recorded_name("my_package.nets") == "my_package.nets"
    assert recorded_name(str(tmp_path / "home" / "sub" / "a.py")) == "sub/a.py"
    assert recorded_name(str(tmp_path / "a.py")) == str(tmp_path / "a.py")
