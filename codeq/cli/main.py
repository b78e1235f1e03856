"""The command line ``codeq``: one file per command, which imports what it needs when it runs."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from codeq.cli import calibrate, compact, explain, export, init, notebook, plot, reproduce, runs, sweep, train
from codeq.common.console import ReaderGone, TolerantStream, say
from codeq.common.ending import end_process
from codeq.common.errors import CodeqError, system_reason
from codeq.common.imports import import_inherited, import_parts
from codeq.training.interruption import Interrupted, Preempted

READER_GONE = 141  # status that a shell reports for a program ended by SIGPIPE


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from codeq.runs.provenance import installed_version

        say(f"codeq {installed_version('codeq') or '(not installed)'}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line; each command stores its function as ``run``."""
    parser = argparse.ArgumentParser(prog="codeq", description="Joint pruning and quantization of neural networks.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (train, sweep, reproduce, notebook, runs, plot, explain, compact, calibrate, export, init):
        command.add_parser(commands)
    for command_parser in commands.choices.values():
        command_parser.add_argument(
            "--import", action="append", default=[], dest="imports", metavar="FILE|MODULE",
            help="import parts of your own first: a .py file or a module; may be repeated",
        )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Returns
    -------
    int
        0; 2 for a user's mistake or a file that cannot be read or written; 130 after Ctrl-C and 143 after another
        signal, with the state of a training saved; 141 if the reader of the output is gone.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ÷ or → shows ?
    try:
        options = build_parser().parse_args(arguments)
        logging.basicConfig(format="%(message)s")
        import_inherited()
        for source in options.imports:
            import_parts(source)
        options.run(options)
    except Preempted as error:
        error.report()
        return error.exit_status
    except ReaderGone:
        return READER_GONE
    except CodeqError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", Interrupted.exit_status)
    except OSError as error:
        return _fail(system_reason(error), 2)
    finally:
        TolerantStream(sys.stdout).flush()  # also the usage that argparse prints
    return 0


def run() -> NoReturn:
    """Run the command line and end the process with its exit status."""
    # GNU OpenMP lets waiting threads spin for milliseconds, which stalls processes that share cores, see
    # benchmarks/bench_sharing.py. It reads this when PyTorch is imported; kernels inherit it.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        status = main()
    except KeyboardInterrupt:  # another one, while the message of the first is printed
        status = Interrupted.exit_status
    if status == Interrupted.exit_status:
        # The next one ends the process at once, not with the traceback of an exit handler.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_process(status)


def _fail(message: str, status: int) -> int:
    say(f"codeq: {message}", sys.stderr)
    return status
