"""Losses: pure functions on arrays, each with its paper and equation."""
