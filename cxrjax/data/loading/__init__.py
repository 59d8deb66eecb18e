"""Caching of decoded images on disk and devices; batches as a function of (seed, step)."""
