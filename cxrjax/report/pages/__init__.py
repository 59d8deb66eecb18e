"""Whole pages, each a function of a workdir."""
