"""Splits by patient, subsets, partial labels, leakage checks."""
