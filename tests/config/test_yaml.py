"""YAML 1.2 in files and overrides, and the errors of files that are not valid."""

import math
import resource
import sys
import time

import pytest
import yaml
from cases import each
from hypothesis import given
from hypothesis import strategies as st

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.config.yaml import dump_yaml, parse_overrides, parse_scalar, read_yaml
from codeq.runs.references import find_config


@each(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-.5e-1", -0.05),
        ("5.", 5.0),
        ("+3", 3),
        (" 3 ", 3),
        ("-0", 0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", 1000),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ("' a '", " a "),
        ('"a\\tb #c"', "a\tb #c"),
        ("'it''s'", "it's"),
        ("[bn, 1, no]", ["bn", 1, "no"]),
        ("[]", []),
        ("{delay: 5, ramp: 1e1}", {"delay": 5, "ramp": 10.0}),
        ("[&a x, *a]", ["x", "x"]),
    ],
)
def test_scalars(text, value):
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


@each(
    "text",
    [
        "/data/set #2", "a: b", "a:", ": a", "*a", "&a b", "!!int 3", "!a", "%a", "@a", "`a`", "| a", "> a", "- a", "-",
        "? a", "a # b", "#a", " a ", "a ", "a\tb", "a\nb", "---", "...", "2026-11-21", "12:30:45", "1:30", "<<", "=",
        "a=b", "no", "on", "Yes", "tRUE", "e3", ".", "a, b", "a]", "a}", "C:\\data\\x", "a'b", 'say "a"', "~/data",
        "layer1.*", "*.conv1", "1e-3x", "0b1x", "3 # three", "é", "-.5e1x",
    ],
)  # fmt: skip
def test_other_text_stays_as_it_is(text):
    assert parse_scalar(text) == text
    assert parse_overrides([f"data_dir={text}"]) == {"data_dir": text}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_value_is_text_unchanged_or_no_text(text):
    try:
        value = parse_scalar(text)
    except CodeqError:
        assert text.strip()[0] in "'\"[{"
    else:
        assert value == text or not isinstance(value, str) or text.strip()[0] in "'\""


@each("text", ["'a' #b", "'a' b", "[a] #b", "[a] b", "{a: 1} #b", "'a", "[a", "{a: 1", "'a', 'b'"])
def test_text_beside_quotes_or_brackets_is_an_error(text):
    with pytest.raises(CodeqError, match=r"^value "):
        parse_scalar(text)


@pytest.mark.parametrize("change", ["epochs", "=3", ""])
def test_an_override_has_a_key_and_a_value(change):
    with pytest.raises(CodeqError, match=f"override '{change}': must be KEY=VALUE, e.g. epochs=20"):
        parse_overrides([change])


def test_one_text_holds_several_overrides_whose_values_may_have_spaces():
    assert parse_overrides("") == parse_overrides("  ") == {}
    text = " name='two words'  init_from=my runs/x/seed=0 loss_terms.0.kwargs={block_size: 4, weights: {}}\n\tseed=1 "
    assert parse_overrides(text) == {
        "name": "two words", "init_from": "my runs/x/seed=0", "seed": 1,
        "loss_terms.0.kwargs": {"block_size": 4, "weights": {}},
    }  # fmt: skip
    with pytest.raises(CodeqError, match="override 'epochs 3': must be KEY=VALUE"):
        parse_overrides("epochs 3")


def test_nan():
    assert math.isnan(parse_scalar(".nan"))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("epochs: 3\nseed: [1", 2, "expected ',' or ']'"),
        ("epochs: 3\nseed: 1\nepochs: 4", 3, "key 'epochs' twice"),
        ("a:\n  lr: 1\n  lr: 1", 3, "key 'lr' twice"),
        ("a: {lr: 1,\n lr: 2}", 2, "key 'lr' twice"),
        ("a: 1\n b: 2", 2, "mapping values are not allowed here"),
        ("a: !!python/object:os.system {}", 1, "could not determine a constructor"),
        ("a: 1\n---\nb: 1", 2, "another document"),
        ("a: *x", 1, "undefined alias"),
        ("a: \t- b", 1, "cannot start any token"),
        ("? {a: 1}\n: 1", 1, "unhashable key"),
    ],
)
def test_bad_yaml_names_file_and_line(tmp_path, text, line, problem):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(CodeqError) as caught:
        read_yaml(path)
    assert f"{path}, line {line}, column " in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty: must be a mapping"),
        (b"# nothing\n", "is empty: must be a mapping"),
        (b"- a", "contains a list: must be a mapping"),
        (b"resnet20", "contains a str: must be a mapping"),
        (b"a: \xff\xfe", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
        (b"a: !!int x", "not valid YAML"),
        (b"a: !!int", "not valid YAML"),
        (b"a: !!timestamp x", "not valid YAML"),
        (b"a: !!omap [{x: 1}, {x: 2}]", "not valid YAML"),
        (b"a: 1" + b"0" * 5000, "not valid YAML"),
        (b"a: " + b"[" * 5000, "line 1, column .*: not valid YAML: maximum depth of data structure exceeded"),
        (b"a: &x [*x]", "contain themselves"),
        (b"a: &x {b: *x}", "contain themselves"),
    ],
)
def test_a_file_that_is_not_a_mapping(tmp_path, content, problem):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(CodeqError, match=problem):
        read_yaml(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(CodeqError, match="cannot be read: "):
        read_yaml(tmp_path / name)


def test_a_misspelt_file_is_answered_with_the_nearest_one_of_its_folder(tmp_path):
    for name in ("quick_mlp_digits.yaml", "other.yaml", "quick_mlp_digit.txt"):
        (tmp_path / name).touch()
    with pytest.raises(CodeqError, match=r"No such file or directory\. Did you mean '.*/quick_mlp_digits\.yaml'\?$"):
        read_yaml(tmp_path / "quick_mlp_digit.yaml")
    with pytest.raises(CodeqError, match=r"No such file or directory$"):
        read_yaml(tmp_path / "no-folder" / "quick_mlp_digit.yaml")


@pytest.mark.parametrize("folder", ["configs", "configs/studies"])
def test_a_file_without_its_folder_is_answered_with_the_example_of_that_name(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path))
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "lambda_dz.yaml").touch()
    with pytest.raises(CodeqError, match=rf"No such file or directory\. Did you mean '{folder}/lambda_dz\.yaml'\?$"):
        read_yaml("lambda_dz.yaml")
    with pytest.raises(CodeqError, match=rf"must be a YAML file.* Did you mean '{folder}/lambda_dz\.yaml'\?$"):
        find_config("lambda_dz")


def test_the_error_quotes_a_bad_scalar():
    with pytest.raises(CodeqError, match=r"value '\[1'.*not valid YAML"):
        parse_scalar("[1")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
    | st.sampled_from(["1e-3", "no", "010", "0o7", "null", "~", "true", "1:30", "2026-11-21", ".5", "", "<<", "1_0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc:. #", max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcxyz", min_size=1), plain, min_size=1, max_size=4))
def test_dump_and_read_give_back_the_same(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_text(dump_yaml(content), encoding="utf-8")
    parsed = read_yaml(path)
    assert parsed == content
    assert repr(parsed) == repr(content)  # 1 and 1.0 and true are equal in Python


@given(st.dictionaries(st.text("abcxyz", min_size=1), plain, max_size=4))
def test_readers_of_yaml_1_1_see_the_same(content):
    assert yaml.safe_load(dump_yaml(content)) == content


def test_keys_keep_their_order_and_no_anchor_is_written():
    shared = [1, 2]
    assert dump_yaml({"b": shared, "a": shared}) == "b:\n- 1\n- 2\na:\n- 1\n- 2\n"


def test_anchors_and_merge_keys_in_a_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("dz: &theta {lr: 0.1, decay: 1}\nbit: *theta\nother: {<<: *theta, lr: 0.2}\n")
    content = read_yaml(path)
    assert content == {
        "dz": {"lr": 0.1, "decay": 1}, "bit": {"lr": 0.1, "decay": 1}, "other": {"lr": 0.2, "decay": 1}
    }  # fmt: skip
    content["dz"]["lr"] = 3.0
    assert content["bit"]["lr"] == 0.1


# Nine levels of ten aliases each: a billion values in half a kilobyte.
BOMB = "\n".join(
    f"{name}: &{name} [{', '.join(['lol' if name == 'a' else f'*{before}'] * 10)}]"
    for before, name in zip("_abcdefgh", "abcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "load",
    [
        lambda path: ExperimentConfig.from_yaml(write(path, f"{BOMB}\n")),
        lambda path: ExperimentConfig.from_yaml(write(path, BOMB + "\nquantizer: {name: uniform, kwargs: {x: *i}}")),
        lambda path: ExperimentConfig.from_yaml(write(path, f"{BOMB}\nexclude: {{k: *i, k: *i}}")),
        lambda path: ExperimentConfig.from_yaml(write(path, f"{BOMB}\n? *i\n: 3")),
        lambda path: ExperimentConfig.from_yaml(write(path, f"{BOMB}\n*i : 3")),
        lambda _: parse_overrides([f"quantizer.kwargs={{{', '.join(BOMB.splitlines())}}}"]),
        lambda _: ExperimentConfig("x", quantizer_kwargs={"x": bomb()}),
        lambda _: ExperimentConfig("x").override({"loss_terms": bomb()}),
        lambda _: ExperimentConfig("x", lr=bomb()),
    ],
    ids=["unknown key", "kwargs", "key twice", "key", "alias key", "override", "argument", "value", "alias"],
)  # fmt: skip
def test_an_alias_bomb_is_refused_at_once(tmp_path, load):
    ExperimentConfig("x")  # imports what it needs
    started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CodeqError) as caught:
        load(tmp_path / "bomb.yaml")
    assert time.process_time() - started < 20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * unit < 50_000_000
    assert len(str(caught.value)) < 2000


def write(path, text):
    path.write_text(text)
    return path


def bomb():
    value = "lol"
    for _ in range(9):
        value = [value] * 10
    return value


def test_a_file_of_thousands_of_unknown_keys_is_refused_briefly(tmp_path):
    path = write(tmp_path / "long.yaml", "\n".join(f"key{k}: 1" for k in range(3000)))
    with pytest.raises(CodeqError, match="has 3000 problems:") as caught:
        ExperimentConfig.from_yaml(path)
    assert str(caught.value).endswith("… and 2900 more")


@pytest.mark.parametrize("content", [{"x" * 10_000: 1}, {"epochs": "x" * 10_000}, {"model": "x" * 10_000}])
def test_long_keys_and_values_are_cut(content):
    with pytest.raises(CodeqError) as caught:
        ExperimentConfig.from_dict(content)
    assert "x" * 90 in str(caught.value)
    assert "x" * 201 not in str(caught.value)
