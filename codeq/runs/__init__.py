"""Run folders: configuration, status, tables, figures and checkpoints of trainings."""

from codeq.runs.run import Run, refuse_used_folder

__all__ = ["Run", "refuse_used_folder"]
