"""Start of every test: no network, no display, a folder of its own, and the same random numbers each time."""

import copy
import functools
import os
import signal
import sys
import time
from pathlib import Path

import pytest

os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
# Servers of tests are reached without the proxy of the machine, and what is printed has no colours and the same width.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("PYTHON_COLORS", None)
os.environ.pop("TTY_COMPATIBLE", None)
os.environ.pop("COLUMNS", None)
# The same number of threads on every machine, before torch starts its pool: small tensors are slower on many, and the
# runs that tests start in other processes then add up in the same order as those in this one. One beside other workers.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
# Threads that wait without spinning long do not stall each other when something else runs on the same cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from hypothesis import settings

# The same examples each time, and no deadline per example: a busy machine is not a failing test.
settings.register_profile("codeq", derandomize=True, deadline=None)
settings.load_profile("codeq")


def pytest_collection_modifyitems(items):
    """Begin with the longest test: at the end, the other workers would wait for it."""
    items.sort(key=lambda item: "default_debug_run" not in item.nodeid)


def pytest_runtest_setup():
    """Skip what would begin after the time that .ci/run has."""
    if time.time() > float(os.environ.get("CODEQ_TESTS_UNTIL", "inf")):
        pytest.skip("NO TIME WAS LEFT: after the time in CODEQ_TESTS_UNTIL no test begins")


@pytest.fixture(autouse=True)
def fresh_start(monkeypatch, tmp_path):
    """Outputs and data sets of a test lie in its own folder, its imports are its own, torch draws the same numbers."""
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path))
    monkeypatch.setenv("CODEQ_IMPORTS", "")
    monkeypatch.setattr(sys, "path", list(sys.path))  # importing a module appends the folder of the project
    # A tenth of the time of a short training, for files that no test reads after a loss of power.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory):
    """Kernels and processes of tests find no settings of the user, and folders in which they can write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        if not os.access(Path.home(), os.W_OK):
            patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield


@pytest.fixture(scope="session", autouse=True)
def same_commit():
    """Git is asked once, not for each of hundreds of runs."""
    from codeq.runs import provenance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_git_commit", functools.cache(provenance._git_commit))
        yield


@pytest.fixture(scope="session", autouse=True)
def same_synthetic_images():
    """Synthetic images are generated once a size, not for each of hundreds of trainings; every data set has its own."""
    from codeq.data.sources import DATASETS, load_synthetic

    generated = functools.cache(load_synthetic)

    @functools.wraps(load_synthetic)
    def load(data_dir, img_size):
        return copy.deepcopy(generated(data_dir, img_size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "synthetic", load)
        patch.setitem(DATASETS._built_in, "synthetic", load)  # not a part of this session alone
        yield


@pytest.fixture(scope="module")
def without_figures():
    """The trainings of a module draw no figures, which take a third of the time of a short one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codeq.training.recording.Recorder._draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def quick_timing():
    """Latencies in a module are those of three executions: nobody reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codeq.common.timing.BUDGET", 0.0)
        patch.setattr("codeq.common.timing.TURN_SECONDS", 1e-9)
        yield


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, also where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
