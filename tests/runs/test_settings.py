import pytest

from codeq import ExperimentConfig
from codeq.common.errors import CodeqError
from codeq.runs.settings import read_settings


def test_settings_read_in_parts_are_those_of_the_whole_file(tmp_path):
    path = tmp_path / "config.yaml"
    config = ExperimentConfig(name="no: 1e-3", loss_terms=[{"name": "group_lasso", "schedule": {"name": "constant"}}])
    config.to_yaml(path)
    expected = {key: value for key, value in config.to_dict().items() if key not in ("name", "run_dir", "save_dir")}
    assert read_settings(path) == expected
    assert read_settings(path, incidental=True) == config.to_dict()
    assert read_settings(tmp_path / "missing.yaml") == {}


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("# a comment\na: 1\nb:\n- 2\n- 3\n\nc: {d: x}\n", {"a": 1, "b": [2, 3], "c": {"d": "x"}}),
        ("a: &anchor [1]\nb: *anchor\n", {"a": [1], "b": [1]}),
        ("{a: 1,\nb: 2}\n", {"a": 1, "b": 2}),
        ("a: >\n  one\n  two\nb: 'x\n\n  y'\n", {"a": "one two\n", "b": "x\ny"}),
    ],
)
def test_settings_written_by_hand_are_read_too(tmp_path, text, content):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert read_settings(path) == content


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "[1, 2]\n", "name: abc\n"])
def test_settings_that_hold_nothing_are_damaged(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(CodeqError, match=r"config\.yaml is damaged: it holds no settings"):
        read_settings(path)
