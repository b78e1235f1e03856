import io
import json
import math

from rich.console import Console

from codeq.studies.attempts import begin
from codeq.studies.progress import Row, counts, make_table, survey
from codeq.studies.states import MemberState


def row(member, state, **figures):
    return Row(member, MemberState(state, figures.pop("reason", ""), None), **figures)


def printed(table, width=150):
    console = Console(width=width, record=True, file=io.StringIO(), highlight=False)
    console.print(table)
    return console.export_text()


def test_a_row_tells_epoch_accuracy_bops_and_the_expected_end(tmp_path):
    run = tmp_path / "m"
    run.mkdir()
    (run / "config.yaml").write_text("model: mlp\nepochs: 12\n")
    (run / "metrics.csv").write_text(
        "epoch,eval/accuracy,compression/unstructured_bops_ratio\n" + "".join(f"{i},0.5,4.0\n" for i in range(6))
    )
    (run / "status.json").write_text(json.dumps({"status": "running", "message": "", "host": "x", "pid": 1}))
    claim = begin(tmp_path / ".study/attempts/m", 1, rows=2)
    written = (run / "metrics.csv").stat().st_mtime
    claim.record(started=written - 40)  # four epochs of 10 s; six are left
    (found,) = survey(tmp_path, ["m"])
    assert (found.epoch, found.epochs, found.accuracy, found.bops) == (6, 12, 0.5, 0.25)
    assert found.end == written + 60
    text = printed(make_table([found]))
    assert "6/12" in text
    assert "50.00 %" in text
    assert "25.00 %" in text


def test_a_member_that_never_began_has_no_figures(tmp_path):
    (found,) = survey(tmp_path, ["m"])
    assert found.found.state == "pending"
    assert math.isnan(found.accuracy)
    assert "–" in printed(make_table([found]))


def test_the_caption_counts_states():
    rows = [row("a", "done"), row("b", "running"), row("c", "done")]
    assert counts(rows) == "3 members: 1 running, 2 done"
    assert "3 members: 1 running, 2 done" in printed(make_table(rows))


def test_a_short_table_shows_what_runs_and_what_went_wrong_first():
    rows = [row(f"d{i}", "done") for i in range(50)] + [row("bad", "diverged", reason="[nan]"), row("now", "running")]
    text = printed(make_table(rows, longest=4))
    assert text.index("now") < text.index("bad") < text.index("d0")
    assert "[nan]" in text  # not taken for markup
    assert "… and 49 more" in text
