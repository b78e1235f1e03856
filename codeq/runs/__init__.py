"""What a run leaves on disk and elsewhere, and how it is read again."""

from codeq.runs.run import Run, build_model, refuse_used_folder

__all__ = ["Run", "build_model", "refuse_used_folder"]
