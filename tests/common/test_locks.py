import os
import subprocess
import sys

import pytest

from codeq.common.errors import CodeqError
from codeq.common.locks import locked

FORKED = """
import os, sys, time
from pathlib import Path
from codeq.common.locks import locked

path = Path(sys.argv[1])
begun, begins = os.pipe()
with locked(path, wait=False):
    child = os.fork()
    if not child:
        os.write(begins, b".")
        time.sleep(60)
        os._exit(0)
    os.read(begun, 1)
    with locked(path, wait=False) as held:
        print("meanwhile", held)
with locked(path, wait=False) as held:
    print("afterwards", held)
os.kill(child, 9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are copied")
def test_a_copied_process_does_not_keep_the_lock_of_an_ended_one(tmp_path):
    """As the workers of a data loader do, which outlive a killed training by some seconds."""
    command = [sys.executable, "-c", FORKED, str(tmp_path / ".lock")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["meanwhile False", "afterwards True"], done.stderr


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock", wait=False):
        _ = 1 / 0
    with locked(tmp_path / ".lock", wait=False) as held:
        assert held


def test_a_lock_that_cannot_be_made_is_one_message(tmp_path):
    with (
        pytest.raises(CodeqError, match=r"nowhere/\.lock cannot be written"),
        locked(tmp_path / "nowhere/.lock", wait=True),
    ):
        pass
