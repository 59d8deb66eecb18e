"""The same sources as for `cxrjax.data`."""

from array_sources import arrays, cache, encode, listed, texture  # noqa: F401
