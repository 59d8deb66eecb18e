"""Sources by name."""

from __future__ import annotations

import importlib
from typing import Any

from cxrjax.core import build
from cxrjax.core.errors import UserError
from cxrjax.data.types import Source

_KINDS = {
  "phantom": "cxrjax.data.phantom", "folder": "cxrjax.data.folder", "tfds": "cxrjax.data.tfds"}
_VALID = "'phantom', 'folder:PATH', 'tfds:NAME', or your own 'package.module' that defines Source"


def open_source(name: str, *, split: str = "train", **options: Any) -> Source:
  """Opens a split of a source of radiographs.

  Args:
    name: `phantom` (drawn, no files), `folder:PATH` (a tree of images), `tfds:NAME` or
      `tfds:NAME/CONFIG` (a TFDS data set, prepared on first use where it can be), or the dotted
      name of your own module with a `Source` in it, called as `Source(split=..., **options)`.
    split: `train`, `val`, `test`, or whatever the source has; `all` is everything.
    **options: the source's own; an unknown one raises an error that lists them.

  Raises:
    UserError: unknown source, split or option, or data that is missing or damaged.
  """
  if not isinstance(name, str) or not name:
    raise UserError(f"config.data.source={name!r} names no source; give {_VALID}")
  kind, colon, rest = name.partition(":")
  options = {key: build.freeze(value) for key, value in options.items()}
  if kind not in _KINDS or (kind == "phantom" and colon):
    if "." not in kind:
      raise UserError(f"config.data.source={name!r} names no source; give {_VALID}")
    if colon:
      kind, rest = f"{kind}.{rest}", ""  # `package.module:Class`
    factory = build.locate(kind, "Source", "config.data.source")
    build.check_keywords(factory, options, "config.data.options", hidden=("split",))
    source = factory(split=split, **options)
    lacking = [part for part in ("info", "table", "__len__", "__getitem__")
               if not hasattr(source, part)]
    if lacking:
      raise UserError(f"config.data.source={name!r} gives no source: it lacks "
                      f"{', '.join(lacking)} (see cxrjax.data.types.Source)")
    return source
  if kind != "phantom" and not rest:
    raise UserError(f"config.data.source={name!r} lacks its second half; give {_VALID}")
  factory = importlib.import_module(_KINDS[kind]).Source
  given = {} if kind == "phantom" else {"where": rest}
  build.check_keywords(factory, options, "config.data.options", hidden=("split", "where"))
  return factory(**given, split=split, **options)
