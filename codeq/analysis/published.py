"""Published results for comparison, with their source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "arXiv 2512.12981"
# Model and data set as codeq names them and as the paper does; then method, accuracy and relative BOPs in percent. The
# paper counts unstructured MACs with 32-bit activations, except for structured pruning methods.
STRUCTURED = {"GETA"}
# Standard deviations over three runs of accuracy and relative BOPs, in percent, where the paper gives them.
SPREADS = {
    ("resnet20", "cifar10", "CoDeQ 4 bit"): (0.15, 0.12),
    ("resnet20", "cifar10", "CoDeQ mixed"): (0.10, 0.08),
    ("resnet18", "imagenet", "CoDeQ 4 bit"): (0.14, 0.19),
    ("resnet18", "imagenet", "CoDeQ mixed"): (0.09, 0.05),
    ("vit", "cifar10", "baseline"): (0.09, math.nan),
    ("vit", "cifar10", "CoDeQ 4 bit"): (0.19, 0.04),
    ("vit", "cifar10", "CoDeQ mixed"): (0.21, 0.01),
}
NONE = (math.nan, math.nan)
RESULTS = {
    ("resnet20", "cifar10", "ResNet-20", "CIFAR-10"): [
        ("baseline", 91.70, 100.0),
        ("SQL", 90.90, 6.1),
        ("QST-P", 91.80, 5.0),
        ("GETA", 91.42, 4.5),
        ("QST-Q", 91.60, 3.3),
        ("CoDeQ 4 bit", 91.88, 2.95),
        ("CoDeQ mixed", 91.86, 2.61),
    ],
    ("resnet18", "imagenet", "ResNet-18", "ImageNet"): [
        ("baseline", 70.30, 100.0),
        ("CoDeQ 4 bit", 69.83, 4.75),
        ("CoDeQ mixed", 69.81, 4.42),
    ],
    ("resnet50", "imagenet", "ResNet-50", "ImageNet"): [("baseline", 76.30, 100.0), ("CoDeQ mixed", 75.29, 2.62)],
    ("vit", "cifar10", "TinyViT", "CIFAR-10"): [
        ("baseline", 87.99, 100.0),
        ("CoDeQ 4 bit", 87.86, 2.15),
        ("CoDeQ mixed", 87.85, 1.66),
    ],
}
# Settings of a run, beside model and data set, with which its network and its images are those of the paper.
SAME_NETWORK = {
    "ResNet-20": {"img_size": 32, "model_kwargs": {}},
    "TinyViT": {"img_size": 32, "model_kwargs": {"patch_size": 4}, "pretrained": False},
}


def published_results() -> pd.DataFrame:
    """Return the published results, one row each.

    `model`, `dataset`, `method`, `accuracy`, `relative_bops` (fractions), `accuracy_std`, `relative_bops_std` (standard
    deviations over three runs, NaN where there are none), `structured` (whether the BOPs are of a
    network with whole channels removed), `source`; `key_model` and `key_dataset` are codeq's names of model and data
    set. No run is compared with the rows of ImageNet, which is no data set of codeq: nothing says what is in an
    ``imagefolder``.

    Examples
    --------
    >>> table = published_results()
    >>> best = table[table["method"] == "CoDeQ mixed"].iloc[0]
    >>> best["model"], round(float(best["relative_bops"]), 4), best["source"]
    ('ResNet-20', 0.0261, 'arXiv 2512.12981')
    """
    import pandas as pd

    rows = [
        {
            "key_model": key[0], "key_dataset": key[1], "model": key[2], "dataset": key[3],
            "method": method, "accuracy": accuracy / 100, "relative_bops": bops / 100,
            "accuracy_std": SPREADS.get((*key[:2], method), NONE)[0] / 100,
            "relative_bops_std": SPREADS.get((*key[:2], method), NONE)[1] / 100,
            "structured": method in STRUCTURED, "source": SOURCE,
        }
        for key, results in RESULTS.items()
        for method, accuracy, bops in results
    ]  # fmt: skip
    return pd.DataFrame(rows)


def published_network(settings: Mapping[str, Any]) -> str:
    """Return the paper's name of the network that a run with these settings trains on the same images, or ``""``.

    Examples
    --------
    >>> published_network({"model": "resnet20", "dataset": "cifar10", "img_size": 32, "model_kwargs": {}})
    'ResNet-20'
    >>> published_network({"model": "vit", "dataset": "cifar10", "img_size": 224, "pretrained": True})
    ''
    """
    for model, dataset, network, _ in RESULTS:
        needed = SAME_NETWORK.get(network)
        if needed is not None and (model, dataset) == (settings.get("model"), settings.get("dataset")):
            return network if all(settings.get(key) == value for key, value in needed.items()) else ""
    return ""


def published_for(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the published results that are comparable with the runs of `summary`: same network and data set.

    Empty if the column `network` (`published_network`) has several values, or no results for it were published.
    """
    table, networks = published_results(), set(summary["network"])
    return table[table["model"].isin(networks if len(networks) == 1 else ())].reset_index(drop=True)
