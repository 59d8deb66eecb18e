"""Decoded images on disk and on devices, and batches as a function of (seed, step)."""
