"""Opens sources by name."""

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
from cxrjax.data.splits.partial_labels import hide_labels

_KINDS = {
  "mini": "cxrjax.data.mini",
  "phantom": "cxrjax.data.sources.phantom",
  "folder": "cxrjax.data.sources.folder",
  "tfds": "cxrjax.data.sources.tfds",
}
_WITHOUT_LOCATION = ("phantom", "mini")
_VALID_NAMES = (
  "'mini', 'phantom', 'folder:PATH', 'tfds:NAME', or your own 'package.module' that defines Source"
)
_ITEM_KEYS = ("source", "split", "weight", "options", "subset", "fold", "rename")


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
  """Opens a split of one source of radiographs, or of several as a mixture.

  Args:
    name: `mini` (1,600 radiographs that come with the package), `phantom` (synthetic),
      `folder:PATH` (a tree of images), `tfds:NAME` or `tfds:NAME/CONFIG` (a TFDS data set, prepared
      on first use if possible), or the dotted name of your own module that defines a `Source`,
      called as `Source(split=..., **options)`.
      A list of such names is a pool (`cxrjax.data.sources.mixture`); its items may also be
      `{"source": NAME}` with any of `weight` (how often its images are drawn, relative to the
      others'; 1 if only others have one), `split`, `subset`, `fold`, `options` and `rename`
      (`{"its class": "name in the pool"}`).
    split: `train`, `val`, `test`, or another split of the source; `all` is everything. In a pool,
      the default of its sources. `train[15%:]` is the complement of `train[:15%]`: whole patients,
      classes in proportion (also for TFDS data sets, whose own slices divide patients).
    subset: part of the split, `10 %` or `16 per class`, see `data.splits.subset`; all by default.
    fold: `2 of 5`: the source's own splits are ignored; `split` is `train` or `test` of that fold.
      `2 of 5 in train` divides one of the source's splits.
    split_seed: random seed of subsets and folds.
    labelled: like `subset`, selects the images whose labels are known; the other images of the
      split stay, without labels; all by default.
    labelled_share: share of labelled images among those drawn; 0 draws all equally often. See
      `cxrjax.data.splits.partial_labels`.
    **options: options of the source; unknown ones raise an error that lists the valid ones. In a
      pool, all of its sources get them.

  Raises:
    UserError: unknown source, split or option, or missing or damaged data.
  """
  _check_selection(split_seed, subset=subset, fold=fold, labelled=labelled)
  base, ends = subsets.parse_slice(split)
  source_split = subsets.parse_fold(fold)[2] if fold else base
  if isinstance(name, str):
    source = _open_single(
      name, source_split, {k: instantiate.freeze(v) for k, v in options.items()}
    )
  else:
    source = _open_pool(name, source_split, split_seed, options)
  if fold:
    source = subsets.take_fold(source, fold, base, split_seed)
  if ends:
    source = subsets.take_slice(source, split, ends)
  if subset:
    source = subsets.take(source, subset, split_seed)
  if labelled or labelled_share:
    source = hide_labels(source, labelled or "", labelled_share, split_seed)
  return source


def _check_selection(split_seed: Any, **texts: Any) -> None:
  """Validates the types of what selects images."""
  if isinstance(split_seed, bool) or not isinstance(split_seed, int):
    raise UserError(f"config.data.split_seed={split_seed!r} is not a seed; give a whole number")
  for key, text in texts.items():
    if text is not None and not isinstance(text, str):
      raise UserError(
        f"config.data.{key}={text!r} is not a string; write it like "
        f"{'2 of 5' if key == 'fold' else '10 %'!r}"
      )


def _open_pool(items: Sequence[Any], split: str, seed: int, options: Mapping[str, Any]) -> Source:
  if not isinstance(items, list | tuple):
    raise UserError(f"config.data.source={items!r} names no source; give {_VALID_NAMES}, or a list")
  sources, weights, renames = [], [], []
  for k, item in enumerate(items):
    key = f"config.data.source[{k}]"
    # ConfigDict.to_dict does not convert ConfigDicts in tuples.
    item = item.to_dict() if isinstance(item, ConfigDict) else item
    is_mapping = isinstance(item, Mapping)
    fields = dict(item) if is_mapping else {"source": item}
    for word in fields:
      if word not in _ITEM_KEYS:
        raise UserError(f"{key}.{word} is not an option{errors.suggest(str(word), _ITEM_KEYS)}")
    name = fields.get("source", "")
    if not isinstance(name, str):
      raise UserError(f"{key}={name!r} names no source; give {_VALID_NAMES}")
    item_options, rename = fields.get("options") or {}, fields.get("rename") or {}
    for word, value in (("options", item_options), ("rename", rename)):
      if not isinstance(value, Mapping):
        raise UserError(
          f"{key}.{word}={value!r} is not a mapping; write it like {{'name': 'value'}}"
        )
    try:
      sources.append(
        open_source(
          name,
          split=fields.get("split") or split,
          subset=fields.get("subset"),
          fold=fields.get("fold"),
          split_seed=seed,
          **{**options, **item_options},
        )
      )
    except UserError as error:
      raise UserError(_with_position(str(error), key, is_mapping)) from error
    weights.append(fields.get("weight"))
    renames.append(dict(rename))
  if all(w is None for w in weights):
    return mixture.Pool(sources, None, renames)
  return mixture.Pool(sources, [1 if w is None else w for w in weights], renames)


def _with_position(message: str, key: str, is_mapping: bool) -> str:
  """Adds the position in the list of sources to the config keys in an error message."""
  if "config.data." not in message:
    return f"{key}: {message}"
  message = message.replace("config.data.source", f"{key}.source" if is_mapping else key)
  for word in ("options", "split", "subset", "fold"):
    message = message.replace(f"config.data.{word}", f"{key}.{word}")
  return message


def _open_single(name: str, split: str, options: dict[str, Any]) -> Source:
  if not name:
    raise UserError(f"config.data.source={name!r} names no source; give {_VALID_NAMES}")
  kind, colon, location = name.partition(":")
  if kind not in _KINDS or (kind in _WITHOUT_LOCATION and colon):
    if "." not in kind:
      raise UserError(f"config.data.source={name!r} names no source; give {_VALID_NAMES}")
    if colon:
      kind, location = name, ""  # `package.module:Class`
    factory = instantiate.locate(kind, "Source", "config.data.source")
    instantiate.check_keywords(factory, options, "config.data.options", hidden=("split",))
    source = factory(split=split, **options)
    missing = [attribute for attribute in ("info", "table") if not hasattr(source, attribute)]
    if missing:
      raise UserError(
        f"config.data.source={name!r} is not a source: it lacks "
        f"{', '.join(missing)} (see cxrjax.data.base.Source)"
      )
    return source
  if kind not in _WITHOUT_LOCATION and not location:
    raise UserError(f"config.data.source={name!r} is incomplete; give {_VALID_NAMES}")
  factory = importlib.import_module(_KINDS[kind]).Source
  where = {} if kind in _WITHOUT_LOCATION else {"where": location}
  instantiate.check_keywords(factory, options, "config.data.options", hidden=("split", "where"))
  return factory(**where, split=split, **options)
