"""Two processes under torchrun against one: the same curve, the same quantizers everywhere, one writer."""

import contextlib
import copy
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import needs_compiler
from torch import nn

from codeq import Evaluator, Run
from codeq.common.errors import CodeqError
from codeq.data import load_dataset
from codeq.metrics.encoding import decode_norms
from codeq.training.building import _build_forward
from codeq.training.distributed import Ranks, joined
from codeq.training.unused_parameters import unused_parameters

# In float64 and without BatchNorm, whose statistics are each process's own on the CPU; batches that two cannot halve.
SCRIPT = """
import sys
import torch
from torch import nn
from codeq import MODELS, ExperimentConfig, run_experiment
from codeq.models import CifarMLP


class Double(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.net = CifarMLP(num_classes).double()

    def forward(self, x):
        return self.net(x.double())


class Normed(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Dropout(0.4),
            nn.Flatten(), nn.Linear(96, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, num_classes),
        )


MODELS["double"], MODELS["normed"] = Double, Normed
DOUBLE = dict(
    model="double", epochs=2, batch_size=101, seed=1, lr_dz=0.02, lr_bit=0.02,
    loss_terms=[{"name": "group_lasso", "lambda": 1e-3, "kwargs": {"lambda_linear": 1.0}}],
    target={"relative_bops": 0.15},
)
NORMED = dict(model="normed", epochs=2, batch_size=128, recalibrate_batchnorm=2)

if __name__ == "__main__":
    import os
    import torch.distributed as dist
    from codeq import trainer

    kind, folder, *resume = sys.argv[1:]
    if kind == "existing":
        dist.init_process_group("gloo")
    made, masks = [], []
    build = trainer.build_training

    def watched(*args, **kwargs):
        made.append(build(*args, **kwargs))
        if kind != "double":
            made[0].model[4].register_forward_hook(lambda m, _, out: masks.append(out == 0) if m.training else None)
        return made[0]

    trainer.build_training = watched
    settings = DOUBLE if kind == "double" else NORMED
    config = ExperimentConfig("ddp", dataset="synthetic", device="cpu", run_dir=folder, **settings)
    run = run_experiment(config, resume=(resume or [None])[0])
    state = {name: value.clone() for name, value in made[0].model.state_dict().items()}
    state["masks"] = masks[0][:, :, 0, 0].clone() if masks else torch.zeros(0)
    state["random"] = torch.get_rng_state()
    torch.save(state, f"{folder}.rank{os.environ.get('RANK', 0)}.pt")
    if kind == "existing":
        assert dist.is_initialized()
        dist.destroy_process_group()
"""


def launch(tmp_path, kind, name, processes, *more):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), kind, str(tmp_path / name), *more],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    return folder, launch(folder, "double", "one", 1), launch(folder, "double", "two", 2)


@pytest.fixture(scope="module")
def normed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normed")
    launch(folder, "existing", "run", 2)
    return folder


def history(folder, name):
    # The configuration names a model that only the script has, so the table is read without it.
    return Run(folder / name).history


def states(folder, name):
    return [torch.load(folder / f"{name}.rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(pair):
    folder, *_ = pair
    one, two = history(folder, "one"), history(folder, "two")
    assert list(one.columns) == list(two.columns)
    for key in ("train/ce_loss", "train/theta_loss", "eval/loss", "train/group_lasso"):
        np.testing.assert_allclose(two[key], one[key], rtol=0, atol=1e-5, err_msg=key)
    for key in ("train/accuracy", "eval/accuracy", "sparsity/unstructured", "quantizer/mean_bits"):
        assert two[key].tolist() == one[key].tolist(), key
    tables = [Run(folder / name).layers for name in ("one", "two")]
    texts = [table[["norms", "filters"]].to_numpy() for table in tables]
    norms = [np.concatenate([decode_norms(*row) for row in rows]) for rows in texts]
    assert norms[0].any()
    np.testing.assert_allclose(norms[1], norms[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_are_steered_as_one(pair):
    folder = pair[0]
    one, two = (Run.open(folder / name).steering for name in ("one", "two"))
    assert len(one) == 2 * 6  # an update in every batch of 101 of 512 images
    assert one["factor"].nunique() > 3
    np.testing.assert_allclose(two.to_numpy(), one.to_numpy(), rtol=1e-6)


@pytest.mark.slow
def test_every_process_ends_with_the_same_quantizers_and_weights(pair):
    folder, *_ = pair
    first, second = states(folder, "two")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first.keys() - {"random"})
    alone = torch.load(folder / "one.rank0.pt", weights_only=True)
    for key in alone.keys() - {"random"}:
        torch.testing.assert_close(first[key], alone[key], rtol=0, atol=1e-6)
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
def test_every_process_evaluates_what_the_checkpoint_holds(normed, monkeypatch):
    """BatchNorm's statistics and dropout differ between the processes; what they evaluate must not."""
    namespace = {"__name__": "script"}
    exec(SCRIPT, namespace)  # registers the models
    from codeq import MODELS

    try:
        run = Run(normed / "run")
        model = run.load_model()
    finally:
        MODELS.pop("double"), MODELS.pop("normed")
    result = Evaluator(model).evaluate(model, load_dataset("synthetic").test_batches())
    row = run.history.iloc[-1]
    assert row["eval/loss"] == pytest.approx(result.test_loss, rel=1e-5)
    assert row["eval/accuracy"] == result.test_accuracy
    for state in states(normed, "run"):
        for name, value in model.state_dict().items():
            assert torch.equal(state[name], value), name


@pytest.mark.slow
def test_each_process_has_its_own_dropout_stream_and_a_resumed_training_continues_all(normed):
    first, second = states(normed, "run")
    assert not torch.equal(first["masks"], second["masks"])
    shutil.copytree(normed / "run", normed / "again")
    whole = (normed / "run" / "metrics.csv").read_bytes()
    status = normed / "again" / "status.json"
    status.write_text(status.read_text().replace('"done"', '"preempted"'))
    launch(normed, "normed", "again", 2, str(normed / "again" / "checkpoints" / "step-4.pt"))
    assert (normed / "again" / "metrics.csv").read_bytes() == whole
    for end, again in zip(states(normed, "run"), states(normed, "again"), strict=True):
        assert torch.equal(end["random"], again["random"])


# --- one process ------------------------------------------------------------------------------------------------------


def test_alone_everything_is_as_it_was():
    ranks, values = Ranks(), torch.tensor([1.0, 2.0])
    assert ranks.sum(values) is values
    assert ranks.mean(values) is values
    assert ranks.from_first("x") == "x"
    assert ranks.gather("x") == ["x"]
    assert ranks.on_first(lambda: "x") == ranks.first_then_others(lambda: "x") == "x"
    assert (ranks.any(True), ranks.any(False)) == (True, False)
    before = torch.get_rng_state()
    ranks.seed(3)
    assert torch.equal(torch.get_rng_state(), before)
    model = nn.Linear(2, 2)
    assert ranks.replicate(model) is model
    with joined(torch.device("cpu")) as ranks:
        assert ranks == Ranks()


@pytest.mark.parametrize(
    ("rank", "world"),
    [
        (None, "2"),
        ("", "2"),
        ("two", "2"),
        ("2", "2"),
        ("-1", "2"),
        ("0", "two"),
        ("0", ""),
        ("0", "0"),
        ("x" * 999, "2"),
    ],
)
def test_an_environment_that_makes_no_sense_is_one_clear_error(monkeypatch, rank, world):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with (
        pytest.raises(CodeqError, match=r"RANK='.*' and WORLD_SIZE='.*': must be integers") as raised,
        joined(torch.device("cpu")),
    ):
        pass
    assert len(str(raised.value)) < 400


def test_processes_that_cannot_find_each_other_are_one_clear_error(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(CodeqError, match=r"2 processes cannot train together on 'cpu': .*MASTER_ADDR"),
        joined(torch.device("cpu")),
    ):
        pass


def test_a_process_alone_works_on_the_gpu_that_is_named(monkeypatch):
    """Its stream, random state and properties are those of the current GPU, which is number 0 otherwise."""
    current = []

    @contextlib.contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    with joined(torch.device("cuda:1")) as ranks:
        assert current == [ranks.device] == [torch.device("cuda:1")]
    assert not current
    with joined(torch.device("cpu")):
        assert not current


def together(monkeypatch, rank="1"):
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("rank", "logged"), [("0", ["warned"]), ("1", [])])
def test_the_first_process_alone_warns(monkeypatch, caplog, rank, logged):
    together(monkeypatch, rank)
    monkeypatch.setattr("codeq.training.distributed._start_group", lambda _: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(Ranks, "sum", lambda _, values: values)
    logger = logging.getLogger("codeq.training.terms")
    with joined(torch.device("cpu")):
        logger.warning("warned")
    assert caplog.messages == logged
    logger.warning("afterwards")
    assert caplog.messages == [*logged, "afterwards"]


def test_mps_trains_alone(monkeypatch):
    together(monkeypatch)
    with pytest.raises(CodeqError, match="'mps' trains in one process"), joined(torch.device("mps")):
        pass


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    together(monkeypatch)
    with (
        pytest.raises(CodeqError, match="device 'cuda:0' is one GPU; under torchrun write cuda"),
        joined(torch.device("cuda:0")),
    ):
        pass


def test_more_processes_than_gpus_are_one_clear_error(monkeypatch):
    together(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    message = r"LOCAL_RANK=1: .* there are 1 of them here; start torchrun with --nproc-per-node at most 1$"
    with pytest.raises(CodeqError, match=message), joined(torch.device("cuda")):
        pass


def test_a_failure_of_the_first_process_is_one_of_all(monkeypatch):
    """Rank 1 of 2 receives what rank 0 sent."""
    monkeypatch.setattr(Ranks, "from_first", lambda *_: (None, "CodeqError: no network"))
    with pytest.raises(CodeqError, match="rank 0 failed with CodeqError: no network"):
        Ranks(1, 2).first_then_others(lambda: pytest.fail("was loaded"))


@pytest.mark.parametrize("text", ["[pair.cc:561] Connection closed by peer [127.0.0.1]:8105", "writev: Broken pipe"])
def test_the_end_of_another_process_is_one_message_with_the_way_to_resume(text):
    def lose(ranks, text):  # as gloo does in a collective operation, or autograd in the backward pass
        with ranks.together("codeq train x"):
            raise RuntimeError(text)

    with pytest.raises(CodeqError, match=r"another of the 2 processes has ended; .* resumes with: codeq train x$"):
        lose(Ranks(0, 2), text)
    with pytest.raises(RuntimeError, match=r"peer|pipe"):
        lose(Ranks(), text)
    with pytest.raises(RuntimeError, match=r"^shapes differ"):
        lose(Ranks(0, 2), "shapes differ")


def test_the_first_process_sends_its_failure_before_it_raises_it(monkeypatch):
    sent = []
    monkeypatch.setattr(Ranks, "from_first", lambda _, value: sent.append(value))

    def fails():
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        Ranks(0, 2).on_first(fails)
    assert sent == [(None, "OSError: no network")]


@pytest.fixture
def lone_group():
    """A process group with one member, in which the gradients are collected as in a larger one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("lone_group")
def test_parameters_without_a_gradient_from_the_batch_are_not_waited_for():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare, self.norm = nn.Linear(12, 2), nn.Conv2d(3, 4, 1), nn.BatchNorm1d(2)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.used(x.flatten(1))

    net = Net()
    replicated = Ranks(0, 2).replicate(net, unused_parameters(net, (3, 2, 2)))
    for _ in range(3):
        net.zero_grad()
        (replicated(torch.ones(2, 3, 2, 2)).sum() + net.spare.weight.sum()).backward()  # a term of the loss, too
        assert net.used.weight.grad.unique().tolist() == [2.0]
        assert net.spare.weight.grad.unique().tolist() == [1.0]
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.usefixtures("lone_group")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[pytest.mark.slow, needs_compiler])])
def test_layers_that_a_step_leaves_out_at_random_are_not_waited_for(compiled):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block, self.last = nn.Linear(12, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.dropped = False

        def forward(self, x):
            x = self.first(x.flatten(1))
            return self.last(x if self.dropped else x + self.block(x))

    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 2, 2)
    alone = copy.deepcopy(net)
    forward = _build_forward(net, Ranks(0, 2), compiled, (3, 2, 2))
    for dropped in (True, False, True, True, False):
        for model, call in ((net, forward), (alone, alone)):
            model.zero_grad()
            model.dropped = dropped
            (call(x).square().sum() + model.block.bias.sum()).backward()  # a term of the loss, too
        for (name, parameter), expected in zip(net.named_parameters(), alone.parameters(), strict=True):
            wanted = torch.zeros_like(parameter) if expected.grad is None else expected.grad
            torch.testing.assert_close(parameter.grad, wanted, msg=name)


SEVERAL = """
import time
import torch
from torch import nn
from codeq.training.building import _build_forward
from codeq.training.distributed import joined


class HalfUsed(nn.Sequential):
    # The last layer is left out by one process after the other.
    def forward(self, x):
        y = self[0](x.flatten(1))
        return y if self.training and self.step % 2 != self.rank else y + self[3](x.flatten(1))


for _ in range(3):
    with joined(torch.device("cpu")) as ranks:
        assert ranks.sum(torch.ones(1)).item() == 2
        bare = HalfUsed(nn.Linear(4, 2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(4, 2))
        bare.rank, bare.step = ranks.rank, 0
        model = _build_forward(bare, ranks, False, (1, 2, 2))
        for bare.step in range(3):
            x = torch.full((1, 1, 2, 2), ranks.rank + 1.0)
            (model(x).sum() + bare[1].weight.square().sum()).backward()
        assert bare[0].weight.grad.unique().item() == 3 * 1.5  # averaged
        assert torch.allclose(bare[1].weight.grad, 3 * 2 * bare[1].weight)
        assert bare[3].weight.grad.unique().item() == (1 + 2 + 1) / 2
    time.sleep(0 if ranks.rank else 1)  # the other process is at the next group first
"""


@pytest.mark.slow
def test_trainings_of_one_script_follow_each_other_also_with_layers_that_are_never_called(tmp_path):
    script = tmp_path / "several.py"
    script.write_text(SEVERAL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
