import math

from cases import each

from codeq.runs.text_table import format_cell, text_table

ROWS = [
    {
        "run": "outputs/a",
        "status": "done",
        "epochs": "3/3",
        "eval/accuracy": 0.5,
        "quantizer/mean_bits": 4.25,
        "reason": "",
    },
    {"run": "outputs/" + "b" * 40, "status": "failed", "epochs": "1/3", "eval/accuracy": math.nan, "reason": "[disk]"},
]
COLUMNS = ["run", "status", "epochs", "eval/accuracy", "quantizer/mean_bits", "reason"]


def test_without_a_limit_each_run_is_one_line_below_the_heading():
    heading, first, second = text_table(ROWS, COLUMNS).splitlines()
    assert heading.split() == ["run", "status", "epoch", "accuracy", "bits", "reason"]
    assert first.split() == ["outputs/a", "done", "3/3", "50.00", "%", "4.25"]
    assert second.split() == ["outputs/" + "b" * 40, "failed", "1/3", "–", "–", "[disk]"]


@each("width", [120, 80, 72, 60, 50, 30, 10])
def test_no_line_is_wider_than_the_terminal_and_names_are_whole(width):
    text = text_table(ROWS, COLUMNS, width)
    assert max(map(len, text.splitlines())) <= width
    assert "".join(line[:48] for line in text.splitlines()).count("b") >= 40
    if width >= 30:
        assert "failed" in text or "status" in text.partition("no room for")[2]
        assert "accuracy" in text  # in the table, or named below it


def test_columns_that_do_not_fit_are_named_and_the_reason_stays():
    text = text_table(ROWS, COLUMNS, 50)
    assert text.splitlines()[-1] == "no room for eval/accuracy, quantizer/mean_bits"
    assert "[disk]" in text


def test_an_empty_reason_takes_no_room():
    assert "reason" not in text_table(ROWS[:1], COLUMNS)


def test_a_long_heading_is_broken_at_its_separators():
    key = "optimizer.param_groups.dz.lr"
    lines = text_table([{"run": "a", key: 0.5}], ["run", key]).splitlines()
    assert [line.split() for line in lines] == [["optimizer."], ["param_"], ["run", "groups.dz.lr"], ["a", "0.5"]]


@each(
    ("column", "value", "text"),
    [
        ("eval/accuracy", 0.98765, "98.77 %"), ("train/ce_loss", 0.000123456, "0.0001235"), ("seed", 10, "10"),
        ("x", None, "–"), ("x", math.nan, "–"), ("x", math.inf, "inf"), ("x", True, "True"), ("x", "a\n b", "a b"),
    ],
)  # fmt: skip
def test_cells(column, value, text):
    assert format_cell(column, value) == text
