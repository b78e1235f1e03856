"""Files of `torch.export` programs."""

import zipfile

import torch
from cases import each
from torch import nn

from codeq.export.program import save_program


class Branching(nn.Module):
    """A network with a graph inside of its graph."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.fc(torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,)))


def content(path) -> bytes:
    with zipfile.ZipFile(path) as file:
        return b"".join(map(file.read, file.namelist()))


@each("net", [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2)), Branching()])
def test_a_program_holds_neither_its_example_nor_source_code(net, tmp_path):
    example = torch.rand(8, 3, 32, 32)
    save_program(net.eval(), example, tmp_path / "net.pt2")
    found = content(tmp_path / "net.pt2")
    for private in (example[0, 0].numpy().tobytes()[:64], __file__.encode(), b"nn/modules", b"stack_trace"):
        assert private not in found
    assert next(net.parameters()).detach().numpy().tobytes() in found


def test_a_program_is_loaded_saved_and_exported_again(tmp_path):
    net, example = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval(),
        torch.rand(8, 3, 8, 8),
    )
    save_program(net, example, tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2")
    torch.export.save(program, tmp_path / "copy.pt2")
    save_program(program.module(), example, tmp_path / "again.pt2")
    for size in (1, 5):
        x = torch.randn(size, 3, 8, 8)
        for name in ("net", "copy", "again"):
            torch.testing.assert_close(torch.export.load(tmp_path / f"{name}.pt2").module()(x), net(x))
