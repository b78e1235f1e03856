"""A user's file of parts, and a process that has not imported it."""

import os
import sys

from codeq import DATASETS, LOSSES, MODELS, OPTIMIZERS, QUANTIZERS, SCHEDULES
from codeq.common import imports

REGISTRIES = (MODELS, QUANTIZERS, LOSSES, SCHEDULES, OPTIMIZERS, DATASETS)

PARTS = """
from torch import nn
from codeq import LOSSES, MODELS
from os import system

print("my parts are imported")

@MODELS.register("my_net")
class MyNet(nn.Module):
    def __init__(self, num_classes=10, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=4)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))

def build(num_classes=10):
    return MyNet(num_classes, width=2)

@LOSSES.register("my_loss")
def my_loss(model, power=2.0):
    return model.conv.weight.abs().pow(power).sum()
"""

EXPERIMENT = """
name: mine
imports: [my_parts.py]
model: my_net
dataset: synthetic
epochs: 1
batch_size: 256
device: cpu
quantizer: {name: deadzone}
loss_terms: [{name: my_loss, lambda: 0.001}]
run_dir: outputs/mine
"""


def forget_imports() -> None:
    """Forget all parts, as a new process has."""
    for name in imports._imported:
        sys.modules.pop(name, None)
        sys.modules.pop(name.partition(".")[0], None)
    imports._imported.clear()
    os.environ.pop(imports.VARIABLE, None)
    for registry in REGISTRIES:
        for name, entry in list(registry.items()):
            if not getattr(entry, "__module__", "codeq").startswith(("codeq", "torch")):
                del registry[name]
