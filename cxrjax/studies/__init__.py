"""Many runs: plans, the launcher, results side by side and their pages."""
