"""Radiographs: sources, decoding, the decoded store, the loader, splits."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from cxrjax.data.loader import Loader
  from cxrjax.data.prepare import open_source
  from cxrjax.data.store import Images, load_images
  from cxrjax.data.types import Record, Source, SourceInfo, Table

__all__ = [
  "Images", "Loader", "Record", "Source", "SourceInfo", "Table", "load_images", "open_source",
]
_HOMES = {"Images": "store", "Loader": "loader", "load_images": "store", "open_source": "prepare"}


def __getattr__(name: str) -> Any:
  """Imports a name when it is first asked for: processes that decode images need no JAX."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'types')}"), name)
