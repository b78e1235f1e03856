"""Lets ``python -m codeq`` be the command line."""

from codeq.cli.main import main

raise SystemExit(main())
