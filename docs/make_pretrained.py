"""Write the weights of `resnet20(pretrained=True)` from a finished float run: ``python docs/make_pretrained.py RUN``.

The metadata of the file are those of the run: its configuration, accuracy, hardware and commit.
"""

from __future__ import annotations

import json
import sys

from safetensors.torch import save_file

from codeq import Run
from codeq.config.serialize import serialize
from codeq.models.cifar_resnet import RESNET20_WEIGHTS, resnet20

KEYS = ("epochs", "batch_size", "optimizer", "lr_scheduler", "lr_scheduler_kwargs", "lr_schedule_unit", "seed")


def main(folder: str) -> None:
    """Write the file."""
    run = Run.open(folder)
    config = serialize(run.config)
    state = run.load_model().state_dict()
    resnet20().load_state_dict(state)  # a float ResNet-20 for 10 classes, or an error
    settings = {key: config[key] for key in KEYS}
    metadata = {
        "data": "CIFAR-10: trained on its 50,000 training images, tested on its 10,000 test images",
        "accuracy": str(float(run.history["eval/accuracy"].iloc[-1])),
        "settings": json.dumps(settings),
        **{key: str(run.environment[key]) for key in ("precision", "cpu", "git_commit")},
    }
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, RESNET20_WEIGHTS, metadata)
    print(f"{RESNET20_WEIGHTS}: {RESNET20_WEIGHTS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
