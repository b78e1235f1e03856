"""The command line ``codeq`` and the headless execution of notebooks."""
