"""What a run leaves on disk and elsewhere, and how it is read again."""

from codeq.runs.run import Run, refuse_used_folder

__all__ = ["Run", "refuse_used_folder"]
