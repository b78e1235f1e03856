"""Copies notebooks, configurations and Slurm scripts into the wheel, where `codeq init` finds them.

Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithWorkbench(build_py):
    """The usual build, plus the folder ``codeq/workbench``; an editable install reads the checkout instead."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            for name in ("notebooks", "configs", "slurm"):
                target = Path(self.build_lib, "codeq", "workbench", name)
                shutil.copytree(name, target, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithWorkbench})
