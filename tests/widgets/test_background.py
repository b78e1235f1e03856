import threading

import pytest

from codeq.widgets.background import LatestTask


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("codeq.widgets.background.PAUSE", 0.0)


def test_a_computation_starts_again_if_what_replaces_it_fails():
    task, started, ended = LatestTask(), threading.Semaphore(0), []

    def work(cancelled: threading.Event) -> None:
        started.release()
        if not ended:
            assert cancelled.wait(60)
        ended.append(cancelled.is_set())

    task.start(work)
    assert started.acquire(timeout=60)
    with pytest.raises(KeyboardInterrupt), task.replaced():
        raise KeyboardInterrupt
    task.wait()
    assert ended == [True, False]
    with pytest.raises(KeyError), task.replaced():  # it has finished
        raise KeyError
    task.wait()
    assert len(ended) == 2


def test_a_computation_that_was_replaced_or_cancelled_stays_so(monkeypatch):
    task, done = LatestTask(), []
    monkeypatch.setattr("codeq.widgets.background.PAUSE", 60.0)
    task.start(done.append)
    with task.replaced():
        pass
    task.start(done.append)
    task.cancel()
    with pytest.raises(KeyError), task.replaced():
        raise KeyError
    task.wait()
    assert not done
