"""The command line and the headless execution of notebooks."""
