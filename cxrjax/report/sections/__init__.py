"""Sections of a page, each a function of the data that it shows."""
