"""Kernel of headless notebooks, ``python -m codeq.cli.kernel``: that of IPython, with a quick end."""

import runpy

from codeq.common.ending import end_process

if __name__ == "__main__":
    runpy.run_module("ipykernel_launcher", run_name="__main__")
    end_process(0)
