"""Lets ``python -m codeq`` be the command line."""

from codeq.cli import main

raise SystemExit(main())
