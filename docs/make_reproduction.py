"""Write docs/reproduction.md from the stored results in benchmarks/reproduction/: ``python docs/make_reproduction.py``.

``codeq reproduce table2`` stores its results as ``outputs/table2-…/table2.json``; a copy in that folder becomes part of
the page, with a list `notes` of sentences for what the records of the runs do not hold. Notes of a file that it
replaces are carried over by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

from codeq.studies.reproduction_budgets import BUDGETS
from codeq.studies.reproduction_page import render_page

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write the page."""
    stores = [json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "benchmarks/reproduction").glob("*.json"))]
    (ROOT / "docs" / "reproduction.md").write_text(render_page(stores, BUDGETS), "utf-8")


if __name__ == "__main__":
    main()
