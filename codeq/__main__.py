"""Lets ``python -m codeq`` be the command line."""

from codeq.cli.main import run

if __name__ == "__main__":
    run()
