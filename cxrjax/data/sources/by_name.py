"""Sources by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config import instantiate
from cxrjax.core import errors
from cxrjax.core.errors import UserError
from cxrjax.data.base import Source
from cxrjax.data.sources import mixture
from cxrjax.data.splits import subset as subsets
from cxrjax.data.splits.partial_labels import hide

_KINDS = {
  "mini": "cxrjax.data.mini",
  "phantom": "cxrjax.data.sources.phantom",
  "folder": "cxrjax.data.sources.folder",
  "tfds": "cxrjax.data.sources.tfds",
}
_NO_PLACE = ("phantom", "mini")  # they have a name alone
_VALID = (
  "'mini', 'phantom', 'folder:PATH', 'tfds:NAME', or your own 'package.module' that defines Source"
)
_ITEM = ("source", "split", "weight", "options", "subset", "fold", "rename")


def open_source(
  name: str | Sequence[Any],
  *,
  split: str = "train",
  subset: Any = None,
  fold: Any = None,
  split_seed: int = 0,
  labelled: Any = None,
  labelled_share: Any = 0.0,
  **options: Any,
) -> Source:
  """Opens a split of a source of radiographs, or of several as one.

  Args:
    name: `mini` (1,600 radiographs that come with the package), `phantom` (drawn), `folder:PATH`
      (a tree of images), `tfds:NAME` or `tfds:NAME/CONFIG` (a TFDS data set, prepared on first use
      where it can be), or the dotted name of your own module with a `Source` in it, called as
      `Source(split=..., **options)`.
      A list of such names is a pool (`cxrjax.data.sources.mixture`); instead of a name it may have
      `{"source": NAME}` with any of `weight` (how often its images are drawn, relative to the
      others'; 1 where only others have one), `split`, `subset`, `fold`, `options` and `rename`
      (`{"its class": "name in the pool"}`).
    split: `train`, `val`, `test`, or whatever the source has; `all` is everything. In a pool, of
      the sources that do not say another. `train[15%:]` is the rest of what `train[:15%]` takes:
      whole patients, classes in proportion (also of TFDS data sets, whose own slices divide
      patients).
    subset: part of the split, `10 %` or `16 per class`, see `data.splits.subset`; nothing is all.
    fold: `2 of 5`: the source's own splits do not count; `split` is `train` or `test` of that
      fold. `2 of 5 in train` divides one of the source's splits.
    split_seed: another seed, another subset and other folds.
    labelled: like `subset`, and of these images the labels are known; the other images of the
      split stay, without labels; nothing is all.
    labelled_share: of the images drawn that are labelled; 0 draws all equally often. See
      `cxrjax.data.splits.partial_labels`.
    **options: the source's own; an unknown one raises an error that lists them. In a pool, all of
      its sources get them.

  Raises:
    UserError: unknown source, split or option, or data that is missing or damaged.
  """
  if isinstance(split_seed, bool) or not isinstance(split_seed, int):
    raise UserError(f"config.data.split_seed={split_seed!r} is no seed; give a whole number")
  for key, text in (("subset", subset), ("fold", fold), ("labelled", labelled)):
    if text is not None and not isinstance(text, str):
      raise UserError(
        f"config.data.{key}={text!r} is no text; write it like "
        f"{'2 of 5' if key == 'fold' else '10 %'!r}"
      )
  base, ends = subsets.parse_slice(split)
  whole = subsets.parse_fold(fold)[2] if fold else base
  if isinstance(name, str):
    source = _open_one(name, whole, {k: instantiate.freeze(v) for k, v in options.items()})
  else:
    source = _open_pool(name, whole, split_seed, options)
  if fold:
    source = subsets.take_fold(source, fold, base, split_seed)
  if ends:
    source = subsets.take_slice(source, split, ends)
  if subset:
    source = subsets.take(source, subset, split_seed)
  if labelled or labelled_share:
    source = hide(source, labelled or "", labelled_share, split_seed)
  return source


def _open_pool(items: Sequence[Any], split: str, seed: int, options: Mapping[str, Any]) -> Source:
  if not isinstance(items, list | tuple):
    raise UserError(f"config.data.source={items!r} names no source; give {_VALID}, or a list")
  sources, weights, renames = [], [], []
  for k, item in enumerate(items):
    key = f"config.data.source[{k}]"
    # ConfigDict.to_dict leaves those in tuples as they are.
    item = item.to_dict() if isinstance(item, ConfigDict) else item
    named = isinstance(item, Mapping)
    given = dict(item) if named else {"source": item}
    for word in given:
      if word not in _ITEM:
        raise UserError(f"{key}.{word} is not an option{errors.suggest(str(word), _ITEM)}")
    name = given.get("source", "")
    if not isinstance(name, str):
      raise UserError(f"{key}={name!r} names no source; give {_VALID}")
    own, rename = given.get("options") or {}, given.get("rename") or {}
    for word, value in (("options", own), ("rename", rename)):
      if not isinstance(value, Mapping):
        raise UserError(f"{key}.{word}={value!r} is no mapping; write it like {{'name': 'value'}}")
    try:
      sources.append(
        open_source(
          name,
          split=given.get("split") or split,
          subset=given.get("subset"),
          fold=given.get("fold"),
          split_seed=seed,
          **{**options, **own},
        )
      )
    except UserError as error:
      raise UserError(_placed(str(error), key, named)) from error
    weights.append(given.get("weight"))
    renames.append(dict(rename))
  if all(w is None for w in weights):
    return mixture.Pool(sources, None, renames)
  return mixture.Pool(sources, [1 if w is None else w for w in weights], renames)


def _placed(message: str, key: str, named: bool) -> str:
  """An error about a source of a list, with the list's position in the keys it names."""
  if "config.data." not in message:
    return f"{key}: {message}"
  message = message.replace("config.data.source", f"{key}.source" if named else key)
  for word in ("options", "split", "subset", "fold"):
    message = message.replace(f"config.data.{word}", f"{key}.{word}")
  return message


def _open_one(name: str, split: str, options: dict[str, Any]) -> Source:
  if not name:
    raise UserError(f"config.data.source={name!r} names no source; give {_VALID}")
  kind, colon, rest = name.partition(":")
  if kind not in _KINDS or (kind in _NO_PLACE and colon):
    if "." not in kind:
      raise UserError(f"config.data.source={name!r} names no source; give {_VALID}")
    if colon:
      kind, rest = name, ""  # `package.module:Class`
    factory = instantiate.locate(kind, "Source", "config.data.source")
    instantiate.check_keywords(factory, options, "config.data.options", hidden=("split",))
    source = factory(split=split, **options)
    lacking = [part for part in ("info", "table") if not hasattr(source, part)]
    if lacking:
      raise UserError(
        f"config.data.source={name!r} gives no source: it lacks "
        f"{', '.join(lacking)} (see cxrjax.data.base.Source)"
      )
    return source
  if kind not in _NO_PLACE and not rest:
    raise UserError(f"config.data.source={name!r} lacks its second half; give {_VALID}")
  factory = importlib.import_module(_KINDS[kind]).Source
  given = {} if kind in _NO_PLACE else {"where": rest}
  instantiate.check_keywords(factory, options, "config.data.options", hidden=("split", "where"))
  return factory(**given, split=split, **options)
