"""The code that README.md shows for one's own scripts does what it says."""

import re
from pathlib import Path

import pytest
import torch

from codeq.models import resnet20

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
LOOP, TOOLS, EXPERIMENT = re.findall(
    r"^```python\n(.*?)^```", README.partition("## Use it in your own code")[2], re.MULTILINE | re.DOTALL
)


@pytest.mark.slow
def test_the_loop_trains_all_parameters_and_its_network_is_explained_counted_and_compacted(capsys):
    before = {}
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8)) for _ in range(2)]

    def watched():
        for batch in batches:
            before.update(before or {name: p.detach().clone() for name, p in names["model"].named_parameters()})
            yield batch

    names = {"batches": watched()}
    exec(LOOP, names)
    assert all(not torch.equal(before[name], p) for name, p in names["model"].named_parameters())
    exec(TOOLS, names)
    assert "channel 3 of layer1.0.conv2: live" in capsys.readouterr().out
    assert names["report"].proof.flipped == 0


def test_the_sparsity_term_of_the_experiment_is_smaller_than_the_cross_entropy(monkeypatch):
    monkeypatch.setattr("codeq.run_experiment", lambda config: config)
    names = {}
    exec(EXPERIMENT, names)
    [term] = names["run"].loss_terms
    assert 0 < term.lambda_ * term.build(resnet20(), (3, 32, 32))(resnet20()).item() < 2.3
    assert names["run"].name == "group-lasso-delay50"
    assert term.schedule.kwargs == {"delay": 50, "ramp": 50}
