"""Shared by every package: the one error class, registries, paths and the console."""
