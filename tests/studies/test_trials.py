"""Trials of a search: what Optuna is told, and what survives a new process."""

import builtins

import pytest

from codeq.common.errors import CodeqError
from codeq.studies.files import journal_file
from codeq.studies.progress import Row
from codeq.studies.states import MemberState
from codeq.studies.study import make_study
from codeq.studies.trials import begin_trials, check_optuna, recorded_trials, score

LR, BITS = "optimizer.param_groups.base.lr", "quantizer.kwargs.max_bits"
RANGES = {LR: {"low": 1e-4, "high": 1e-2, "log": True}, BITS: {"low": 2, "high": 8}}


def make_trials(*arguments, **search):
    return begin_trials(make(*arguments, **search))


@pytest.fixture
def journal(tmp_path):
    return journal_file(tmp_path / "outputs" / "s")


def make(trials=6, ranges=RANGES, **search):
    return make_study({"name": "s", "base": "b.yaml", "search": {"ranges": ranges, "trials": trials, **search}})


def ask(trials, count):
    for _ in range(count):
        trials.ask()
    return [member.name for member in trials.members()]


def row(member, accuracy=0.5, bops=0.1, state="done"):
    return Row(member, MemberState(state, "", None), accuracy=accuracy, bops=bops)


def test_a_search_that_was_renamed_with_its_folder_keeps_its_trials(tmp_path):
    trials = make_trials()
    names = ask(trials, 2)
    trials.tell([row(names[0])])
    (tmp_path / "outputs" / "s").rename(tmp_path / "outputs" / "renamed")
    search = {"ranges": RANGES, "trials": 6}
    renamed = begin_trials(make_study({"name": "renamed", "base": "b.yaml", "search": search}))
    assert [member.name for member in renamed.members()] == names
    assert [member.name for member in renamed.members(only_open=True)] == names[1:]
    assert ask(renamed, 1) == ask(make_trials(), 3)


def test_values_lie_in_their_ranges_and_name_the_members():
    trials = make_trials()
    ask(trials, 6)
    for member in trials.members():
        assert 1e-4 <= member.varied[LR] <= 1e-2
        assert type(member.varied[BITS]) is int
        assert 2 <= member.varied[BITS] <= 8
        assert member.name == f"base.lr={member.varied[LR]!r},quantizer.max_bits={member.varied[BITS]}"
    assert len({member.varied[LR] for member in trials.members()}) == 6


def test_another_process_finds_the_same_trials_and_would_ask_the_same_next_one():
    names = ask(make_trials(), 2)
    continued = make_trials()
    assert [member.name for member in continued.members()] == names
    continued.tell([row(names[0])])
    assert [member.name for member in make_trials().members(only_open=True)] == names[1:]
    third = ask(continued, 1)[2]
    assert third not in names


def test_an_interrupted_search_asks_what_an_uninterrupted_one_does(monkeypatch, tmp_path):
    whole = ask(make_trials(), 4)
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path / "another"))
    assert ask(make_trials(), 2) == whole[:2]
    assert ask(make_trials(), 2) == whole
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path / "other-seed"))
    assert ask(make_trials(seed=1), 1) != whole[:1]


def test_the_front_has_what_no_other_trial_beats():
    trials = make_trials()
    a, b, c, d = ask(trials, 4)
    trials.tell([row(a, 0.9, 0.10), row(b, 0.8, 0.05), row(c, 0.8, 0.06), row(d, 0.95, 0.01, state="degenerate")])
    assert trials.best() == [a, b]  # c has b's accuracy for more BOPs, d was stopped
    assert trials.members(only_open=True) == []


@pytest.mark.parametrize(
    ("constraint", "best"),
    [({"relative_bops": 0.07}, 2), ({"relative_bops": 0.2}, 0), ({"accuracy": 0.75}, 1), ({"accuracy": 0.99}, None)],
)
def test_under_a_constraint_the_best_of_those_that_satisfy_it_is_chosen(constraint, best):
    trials = make_trials(constraint=constraint)
    names = ask(trials, 4)
    trials.tell(
        [row(names[0], 0.9, 0.10), row(names[1], 0.8, 0.05), row(names[2], 0.85, 0.06), row(names[3], 0.1, 0.08)]
    )
    assert trials.best() == ([] if best is None else [names[best]])


def test_figures_that_violate_a_constraint_rank_below_all_others_by_their_violation():
    limit = {"relative_bops": 0.05}
    order = [score(*figures, limit)[0] for figures in ((0.99, 0.9), (0.99, 0.06), (0.0, 0.05), (0.5, 0.001))]
    assert order == sorted(order)
    assert len(set(order)) == 4
    limit = {"accuracy": 0.9}
    order = [score(*figures, limit)[0] for figures in ((0.1, 0.001), (0.89, 0.001), (0.9, 1.0), (0.95, 0.2))]
    assert order == sorted(order)
    assert len(set(order)) == 4


@pytest.mark.parametrize("state", ["running", "died", "preempted", "failed", "misconfigured", "pending"])
def test_a_member_without_a_result_stays_open(state):
    trials = make_trials()
    (name,) = ask(trials, 1)
    trials.tell([row(name, state=state)])
    assert [member.name for member in trials.members(only_open=True)] == [name]


def test_equal_values_are_one_member_and_end_together():
    trials = make_trials(ranges={BITS: {"low": 2, "high": 3}})
    names = ask(trials, 6)
    assert sorted(names) == ["quantizer.max_bits=2", "quantizer.max_bits=3"]
    assert trials.count == 6
    trials.tell([row(names[0])])
    assert [member.name for member in trials.members(only_open=True)] == names[1:]


def test_no_more_trials_than_wanted_when_two_processes_ask():
    first, second = make_trials(2), make_trials(2)
    first.ask()
    second.ask()
    second.ask()
    first.ask()
    assert first.count == second.count == make_trials(2).count == 2
    assert make_trials(3).count == 2  # more trials continue the search


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"search\.seed is not that of the recorded trials, 0"),
        ({"constraint": {"accuracy": 0.5}}, r"search\.ranges|search\.constraint"),
        ({"ranges": {**RANGES, BITS: {"low": 2, "high": 6}}}, r"search\.ranges is not that of the recorded trials"),
        ({"ranges": {**RANGES, BITS: {"low": 2.0, "high": 8}}}, r"search\.ranges is not that of the recorded trials"),
    ],
)
def test_a_search_that_has_changed_is_refused(changes, message):
    make_trials().ask()
    with pytest.raises(CodeqError, match=message):
        make_trials(**changes)


def test_a_search_that_has_changed_names_its_keys_in_their_letters():
    make_trials(ranges={"größe": {"low": 1, "high": 2}})
    with pytest.raises(CodeqError, match='"größe"'):
        make_trials()


def test_a_missing_optuna_is_named_with_its_command(monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest):
        if name.split(".")[0] == "optuna":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(CodeqError, match=r"search needs the package Optuna: pip install 'codeq\[search\]'"):
        check_optuna()


def test_reading_the_trials_of_a_search_needs_no_lock_and_changes_nothing(journal, monkeypatch):
    names = ask(make_trials(), 2)
    (journal.parent / "search.journal.lock").symlink_to(journal)  # of a process that was killed
    before = journal.read_bytes()
    monkeypatch.setattr("optuna.storages.journal.JournalFileSymlinkLock.acquire", lambda _: pytest.fail("waits"))
    found = recorded_trials(make())
    assert [member.name for member in found.members()] == names
    assert found.best() == []
    with pytest.raises(CodeqError, match=r"search\.seed is not that of the recorded trials"):
        recorded_trials(make(seed=1))
    assert make_trials().count == 2  # as a finished search that is started again
    assert journal.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b'{"op_code": 0, "worker'])
def test_a_record_that_was_torn_at_its_beginning_has_no_trials(journal, content):
    journal.parent.mkdir(parents=True)
    journal.write_bytes(content)
    assert recorded_trials(make()) is None
    assert len(ask(make_trials(), 1)) == recorded_trials(make()).count == 1


@pytest.mark.parametrize("end", [b"", b'{"op_code": 0, "study_name": "s"}\n', b"\0\0\0"])
def test_a_torn_line_is_removed_before_the_next_one(journal, end):
    first = make_trials()
    names = ask(first, 3)
    first.tell([row(names[0])])
    journal.write_bytes(journal.read_bytes()[:-20] + end)  # 0 had its result in it, which is told again
    assert recorded_trials(make()).count == 3
    again = begin_trials(make())
    assert len(again.members(only_open=True)) == 3
    again.tell([row(names[0])])
    ask(again, 1)
    assert [member.name for member in recorded_trials(make()).members(only_open=True)][:2] == names[1:]


def test_a_line_that_was_torn_meanwhile_is_removed_as_well(journal):
    trials = make_trials()
    ask(trials, 1)
    with open(journal, "ab") as file:  # by another process of the search, as its disk was full
        file.write(b'{"op_code": 4, "wor')
    ask(trials, 1)
    assert recorded_trials(make()).count == 2


LINES = (b'{"op_code": 0,{"op_code": 0}', b"{}", b"[]", b'{"op_code": 99}', b"\xff", b'{"op_code": 4}')


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("read", [recorded_trials, begin_trials])
def test_a_damaged_record_is_refused_with_the_way_out(journal, line, read):
    names = ask(make_trials(), 2)
    lines = journal.read_bytes().splitlines()
    lines[-3] = line
    journal.write_bytes(b"\n".join(lines) + b"\n")
    message = r"search\.journal is damaged \(.*The runs are intact: remove this file"
    with pytest.raises(CodeqError, match=message) as caught:
        read(make())
    assert "\n" not in str(caught.value)
    journal.unlink()
    assert ask(make_trials(), 2) == names


def test_a_record_that_cannot_be_written_is_named(journal, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    trials = make_trials()
    monkeypatch.setattr("optuna.storages.journal.JournalFileBackend.append_logs", fail)
    with pytest.raises(CodeqError, match=r"search\.journal cannot be written: No space left on device"):
        trials.ask()
