"""YAML scalars as YAML 1.2 reads them, and what is said about files that are no good."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from codeq.common.errors import CodeqError
from codeq.config.yaml import dump_yaml, parse_scalar, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("5.", 5.0),
        ("+3", 3),
        ("-0", 0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("tRUE", "tRUE"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-11-21", "2026-11-21"),
        ("<<", "<<"),
        ("=", "="),
        ("e3", "e3"),
        (".", "."),
        ("-", [None]),
        ("layer1.*", "layer1.*"),
        ("'1e-3'", "1e-3"),
        ("[bn, 1, no]", ["bn", 1, "no"]),
        ("{delay: 5, ramp: 1e1}", {"delay": 5, "ramp": 10.0}),
    ],
)
def test_scalars(text, value):
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


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
        ("a: &x [*x]", 1, "recursive"),
        ("a: *x", 1, "undefined alias"),
        ("a: \t- b", 1, "cannot start any token"),
        ("? [a]\n: 1", 1, "unhashable key"),
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
        (b"- a", "holds a list: must be a mapping"),
        (b"resnet20", "holds a str: must be a mapping"),
        (b"a: \xff\xfe", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
        (b"a: !!int x", "not valid YAML"),
    ],
)
def test_what_is_no_mapping(tmp_path, content, problem):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(CodeqError, match=problem):
        read_yaml(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_what_cannot_be_read(tmp_path, name):
    with pytest.raises(CodeqError, match="cannot be read: "):
        read_yaml(tmp_path / name)


def test_bad_scalar_is_named():
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


@given(st.dictionaries(st.text("abcxyz", min_size=1), plain, max_size=4))
def test_dump_and_read_give_back_the_same(content):
    text = dump_yaml(content)
    parsed = parse_scalar(text)
    assert parsed == content
    assert repr(parsed) == repr(content)  # 1 and 1.0 and true are equal in Python


@given(st.dictionaries(st.text("abcxyz", min_size=1), plain, max_size=4))
def test_readers_of_yaml_1_1_see_the_same(content):
    assert yaml.safe_load(dump_yaml(content)) == content


def test_keys_keep_their_order_and_nothing_is_an_alias():
    shared = [1, 2]
    assert dump_yaml({"b": shared, "a": shared}) == "b:\n- 1\n- 2\na:\n- 1\n- 2\n"
