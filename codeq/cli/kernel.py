"""Kernel of headless notebooks, ``python -m codeq.cli.kernel``: that of IPython, with a quick and quiet end."""

import logging
import runpy

from codeq.common.ending import end_process

if __name__ == "__main__":
    # jupyter_client interrupts a kernel before it ends it; one that is just handling a message logs that as an error.
    logging.getLogger("IPKernelApp").addFilter(lambda record: "KeyboardInterrupt caught" not in record.getMessage())
    runpy.run_module("ipykernel_launcher", run_name="__main__")
    end_process(0)
