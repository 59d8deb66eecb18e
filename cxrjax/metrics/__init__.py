"""Metrics in NumPy, each with a confidence interval."""
