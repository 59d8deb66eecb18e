"""Sections of a page, each a function of what it shows."""
