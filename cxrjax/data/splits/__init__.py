"""Who may be where: splits by patient, subsets, partial labels, leakage."""
