"""``codeq explain``: why a channel of a run is live or dead, since when, and what pruning it saves."""

from __future__ import annotations

import argparse
from typing import Any

from codeq.common.console import show
from codeq.runs.references import FORMS, find_run


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("explain", help="explain why a channel of a run is live or dead, and since when")
    parser.add_argument("name", metavar="RUN", help=FORMS)
    parser.add_argument("layer", metavar="LAYER", help="full dotted name of a layer: layer1.0.conv2")
    parser.add_argument("channel", metavar="CHANNEL", type=int, help="output channel, counted from 0")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the explanation of the channel."""
    found = find_run(options.name)

    from codeq.analysis.channel import explain_channel

    show(explain_channel(found, options.layer, options.channel))
