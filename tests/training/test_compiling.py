import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from codeq import ExperimentConfig, Run, run_experiment
from codeq.common.errors import CodeqError
from codeq.training.compiling import compiled

pytestmark = pytest.mark.usefixtures("without_figures")


def config(folder) -> ExperimentConfig:
    settings = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "device": "cpu", "use_compile": True}
    return ExperimentConfig("tiny", run_dir=str(folder), **settings)


@pytest.fixture
def compiler(monkeypatch):
    """Let the compiler fail for some functions, and leave the others as they are."""

    def failing(*_):
        raise TorchDynamoException("no kernel\n")

    def install(fails):
        monkeypatch.setattr(torch, "compile", lambda function, **_: failing if fails(function) else function)

    return install


def test_a_machine_without_a_compiler_is_found_before_the_folder_is_made(tmp_path, compiler):
    compiler(lambda _: True)
    refused = r"^use_compile=True: .* for device 'cpu' .*; set use_compile: false\. TorchDynamoException: no kernel"
    with pytest.raises(CodeqError, match=refused):
        run_experiment(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_compiled_is_one_clear_error(tmp_path, compiler):
    compiler(lambda function: isinstance(function, nn.Module))
    refused = r"^use_compile=True: .* compile this training; set use_compile: false\. TorchDynamoException: no kernel"
    with pytest.raises(CodeqError, match=refused):
        run_experiment(config(tmp_path / "run"))
    assert Run.open(tmp_path / "run").status == "failed"


def test_errors_of_other_kinds_stay_as_they_are():
    for wanted, error in ((True, RuntimeError("shapes differ")), (False, TorchDynamoException("own compilation"))):
        with pytest.raises(type(error), match=str(error)), compiled(wanted):
            raise error


@pytest.mark.slow
def test_torch_without_a_compiler_is_refused(tmp_path):
    code = "import torch, codeq.training.compiling as c; c.check_compiler(torch.device('cpu'))"
    environment = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True)
    assert "CodeqError: use_compile=True: torch.compile does not work for device 'cpu'" in done.stderr
