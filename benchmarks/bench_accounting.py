"""Time of both accountings of a quantized ResNet-20: null channels, structured and unstructured MACs and BOPs.

python benchmarks/bench_accounting.py
"""

from __future__ import annotations

import torch
from _common import describe_machine, median_ms

from codeq import attach_weight_quantizers
from codeq.metrics import measure, structured_stats, unstructured_stats
from codeq.models import resnet20


def main() -> None:
    torch.set_num_threads(1)
    model = resnet20()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.5})

    def both() -> None:
        records = measure(model)
        structured_stats(records)
        unstructured_stats(records)

    print(describe_machine())
    print("| accounting | ms |\n|---|---|")
    print(
        f"| both accountings of a ResNet-20, weights quantized for it | {median_ms(both, repeats=50, warmup=5):.2f} |"
    )


if __name__ == "__main__":
    main()
