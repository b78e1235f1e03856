"""Recording takes place on the CPU, whatever device a forward names."""

import torch
from cases import each
from torch import nn

from codeq.graph.call_recording import record_calls


class Moves(nn.Module):
    def __init__(self, move) -> None:
        super().__init__()
        self.fc, self.move = nn.Linear(4, 2), move
        self.register_buffer("mask", torch.tensor([1, 0, 1, 1]))

    def forward(self, x):
        return self.fc(x * self.move(self.mask, x))


@each(
    "move",
    [
        lambda mask, _: mask.to("cuda"),
        lambda mask, _: mask.to("cuda:0", torch.float16),
        lambda mask, _: mask.to(0, non_blocking=True),
        lambda mask, _: mask.to(device="cuda"),
        lambda mask, _: mask.cuda(),
        lambda mask, x: mask.to(torch.device("cuda"), x.dtype),
        lambda mask, _: mask * torch.ones(4, device=0),
        lambda mask, _: mask * torch.ones(4, device="cuda"),
    ],
)
def test_devices_are_the_cpu(move):
    calls = record_calls(Moves(move), (4,))
    assert calls.problems == []
    assert calls.model.mask.device.type == "cpu"
