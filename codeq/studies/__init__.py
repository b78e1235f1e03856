"""Studies: many runs described in one file, checked as a whole, executed, resumed, and collected in one table."""

from codeq.studies.results import collect

__all__ = ["collect"]
