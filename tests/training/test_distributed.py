"""Two processes under torchrun against one: the same curve, the same quantizers everywhere, one writer."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from codeq import MODELS, ExperimentConfig, Run, run_experiment
from codeq.training.distributed import Ranks, joined, own_device

# In float64 and without BatchNorm, whose statistics are each process's own on the CPU; batches that two cannot halve.
SCRIPT = """
import sys
import torch
from torch import nn
from codeq import MODELS, ExperimentConfig, named_quantizers, run_experiment
from codeq.models import CifarMLP


class Double(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.net = CifarMLP(num_classes).double()

    def forward(self, x):
        return self.net(x.double())


MODELS["double"] = Double
CONFIG = dict(
    model="double", dataset="synthetic", epochs=2, batch_size=101, device="cpu", seed=1, lr_dz=0.02, lr_bit=0.02,
    loss_terms=[{"name": "group_lasso", "lambda": 1e-3, "kwargs": {"lambda_linear": 1.0}}],
)

if __name__ == "__main__":
    import os
    from codeq import trainer

    made = []
    real = trainer._Training.run

    def watched(training):
        made.append(training)
        return real(training)

    trainer._Training.run = watched
    run = run_experiment(ExperimentConfig("ddp", run_dir=sys.argv[1], **CONFIG), resume=(sys.argv[2:] or [None])[0])
    state = {name: value.clone() for name, value in made[0].model.state_dict().items()}
    torch.save(state, f"{sys.argv[1]}.rank{os.environ.get('RANK', 0)}.pt")
"""


def launch(tmp_path, name, processes, *more):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / name), *more],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    return folder, launch(folder, "one", 1), launch(folder, "two", 2)


def history(folder, name):
    # The configuration names a model that only the script has, so the table is read without it.
    return Run(folder / name).history


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(pair):
    folder, *_ = pair
    one, two = history(folder, "one"), history(folder, "two")
    assert list(one.columns) == list(two.columns)
    for key in ("train/ce_loss", "train/theta_loss", "eval/loss", "train/group_lasso"):
        np.testing.assert_allclose(two[key], one[key], rtol=0, atol=1e-5, err_msg=key)
    for key in ("train/accuracy", "eval/accuracy", "sparsity/unstructured", "quantizer/mean_bits"):
        assert two[key].tolist() == one[key].tolist(), key


@pytest.mark.slow
def test_every_process_ends_with_the_same_quantizers_and_weights(pair):
    folder, *_ = pair
    states = [torch.load(folder / f"two.rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    alone = torch.load(folder / "one.rank0.pt", weights_only=True)
    for key in alone:
        torch.testing.assert_close(states[0][key], alone[key], rtol=0, atol=1e-6)
    assert any("logit_dz" in key and abs(alone[key] - 3.0) > 0.05 for key in alone), "the logits moved"


@pytest.mark.slow
def test_one_process_writes_and_prints(pair):
    folder, one, two = pair
    assert two.count("epoch 1/2") == one.count("epoch 1/2") == 1
    assert "2 processes" in two
    assert len(list((folder / "two" / "checkpoints").glob("*.pt"))) == len(
        list((folder / "one" / "checkpoints").glob("*.pt"))
    )


@pytest.mark.slow
def test_two_processes_go_on_where_they_were(pair):
    folder, *_ = pair
    shutil.copytree(folder / "two", folder / "again")
    whole = (folder / "again" / "metrics.csv").read_bytes()
    first = min((folder / "again" / "checkpoints").glob("*.pt"), key=lambda path: int(path.stem.removeprefix("step-")))
    (folder / "again" / "status.json").write_text(
        (folder / "again" / "status.json").read_text().replace('"done"', '"preempted"')
    )
    launch(folder, "again", 2, str(first))
    assert (folder / "again" / "metrics.csv").read_bytes() == whole


def test_alone_everything_is_as_it_was():
    ranks, values = Ranks(), torch.tensor([1.0, 2.0])
    assert ranks.sum(values) is values
    assert ranks.mean(values) is values
    assert ranks.from_first("x") == "x"
    model = nn.Linear(2, 2)
    assert ranks.replicate(model, torch.device("cpu")) is model
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    with joined(torch.device("cpu")) as ranks:
        assert ranks == Ranks()


def test_mps_trains_alone(monkeypatch):
    from codeq.common.errors import CodeqError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CodeqError, match="'mps' trains in one process"), joined(torch.device("mps")):
        pass


def test_this_process_is_no_part_of_others(tmp_path):
    config = ExperimentConfig("x", model="mlp", dataset="synthetic", epochs=1, run_dir=str(tmp_path / "run"))
    assert run_experiment(config).status == "done"
    assert "mlp" in MODELS


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    from codeq.common.errors import CodeqError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CodeqError, match="device 'cuda:0' is one GPU; under torchrun write cuda"):
        own_device(torch.device("cuda:0"))
