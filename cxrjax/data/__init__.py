"""Radiographs: sources, decoding, the decoded store, the loader, splits."""

from cxrjax.data.loader import Loader
from cxrjax.data.prepare import open_source
from cxrjax.data.store import Images, load_images
from cxrjax.data.types import Record, Source, SourceInfo, Table

__all__ = [
  "Images", "Loader", "Record", "Source", "SourceInfo", "Table", "load_images", "open_source",
]
