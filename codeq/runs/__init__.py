"""Run folders: configuration, status, tables, figures and checkpoints of trainings."""

from codeq.runs.creation import refuse_used_folder
from codeq.runs.run import Run

__all__ = ["Run", "refuse_used_folder"]
