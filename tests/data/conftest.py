"""Sources of given images, and a cache of each test's own."""

from array_sources import arrays, cache, encode, listed, texture  # noqa: F401
