"""Radiographs: sources, decoding, splits, loading; `base` defines the interface of a source."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from cxrjax.data.base import Record, Source, SourceInfo, Table
  from cxrjax.data.loading.decoded_cache import Images, load_images
  from cxrjax.data.loading.loader import Loader
  from cxrjax.data.sources.by_name import open_source

__all__ = [
  "Images",
  "Loader",
  "Record",
  "Source",
  "SourceInfo",
  "Table",
  "load_images",
  "open_source",
]
_MODULES = {
  "Images": "loading.decoded_cache",
  "Loader": "loading.loader",
  "load_images": "loading.decoded_cache",
  "open_source": "sources.by_name",
}


def __getattr__(name: str) -> Any:
  """Imports names lazily, so that processes that only decode images do not import JAX."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'base')}"), name)
