"""Source for data sets in TFDS format, read from array_record files without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from cxrjax.core import cache_folder, files
from cxrjax.core.atomic_files import atomic_open
from cxrjax.core.errors import UserError, suggest
from cxrjax.data import base
from cxrjax.data.base import Record, SourceInfo, Table
from cxrjax.data.decoding import decode
from cxrjax.data.sources import file_hashes, label_policies
from cxrjax.data.sources.tfds_prepare import builder_class as _builder_class  # noqa: F401
from cxrjax.data.sources.tfds_prepare import prepared
from cxrjax.data.splits import patient_splits

_IDS, _PATIENTS, _SITES = ("id", "image_id", "filename"), ("patient", "patient_id"), ("site",)
_KEY = "config.data.options"


class Source(base.Source):
  """A split of a TFDS data set, prepared on first use if its builder and archive are available.

  Args:
    where: `NAME` or `NAME/CONFIG`.
    split: a split of the data set; `val` also finds `validation`; `train+validation` joins two;
      `train[:10%]` and the like take a part; `all` is everything.
    data_dir: folder of prepared data sets; TFDS's default: `$TFDS_DATA_DIR`, else
      `~/tensorflow_datasets`.
    manual_dir: folder with the published archive, if the data set has yet to be prepared; by
      default `downloads/manual` in `data_dir`.
    label: the target: a ClassLabel, a sequence of them, or `labels`, the findings of a data set
      with several; or the names of some of those findings, or of features that are 1, 0 or -1. By
      default `label`, else `labels`, else nothing.
    uncertain: policy for findings marked as uncertain (-1 in the data): `ignore` makes them
      unknown, `zeros` absent, `ones` present (Irvin et al. 2019, arXiv 1901.07031, section 3.1,
      U-Ignore, U-Zeros, U-Ones).
    views: views to take, of `PA`, `AP`, `L` (lateral) and `unknown`; all by default.
    cache_dir: where tables of the records are cached.

  Raises:
    UserError: the data set is neither prepared nor preparable, has another file format, or lacks
      the split or feature.
  """

  def __init__(
    self,
    where: str,
    split: str = "train",
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    label: str | Sequence[str] | None = None,
    uncertain: str = "ignore",
    views: str | Sequence[str] | None = None,
    cache_dir: str | None = None,
  ):
    label_policies.check_uncertain(uncertain)
    builder = prepared(where, data_dir, manual_dir)
    self._features = builder.info.features
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    expression, names = _split_expression(where, split, sizes)
    canonical_sizes = {_canonical(name, sizes): n for name, n in sizes.items()}

    self._image = self._find_image(where)
    self.bits = 16 if self._features[self._image].np_dtype == np.uint16 else 8
    self._mask = "mask" if self._is_image("mask") else None
    self._label = self._label_features(where, label)
    self._id, self._patient, self._site = (
      next((name for name in candidates if name in self._features), None)
      for candidates in (_IDS, _PATIENTS, _SITES)
    )
    metadata = builder.info.metadata or {}
    notes = [f"TFDS {builder.info.full_name}", *metadata.get("notes", ())]
    if self._patient is None:
      notes.append(patient_splits.UNKNOWN)

    # Keep the published bytes: our decoder converts all color types to gray, TFDS's does not.
    skip = {name: tfds.decode.SkipDecoding() for name in self._features if self._is_image(name)}
    self._records = builder.as_data_source(expression, decoders=skip)
    shards = [
      pathlib.Path(os.fspath(f)) for name in names for f in builder.info.splits[name].filepaths
    ]
    classes, self._exclusive = self._classes()
    raw, fingerprint = self._scan(shards, expression, len(classes), cache_dir)
    self._rows, selection_notes = _select_views(where, raw, views)
    self.table = raw.take(self._rows)
    selection_notes += self._decide_uncertain(where, uncertain)
    if selection_notes:
      content = f"{fingerprint} {uncertain} {hashlib.sha256(self._rows.tobytes()).hexdigest()}"
      fingerprint = hashlib.sha256(content.encode()).hexdigest()
    self.info = SourceInfo(
      name=f"tfds:{where}",
      split=_canonical(expression, sizes),
      classes=classes,
      exclusive=self._exclusive,
      splits=canonical_sizes,
      fingerprint=fingerprint,
      notes=(*notes, *selection_notes),
      dataset=f"tfds:{where.partition('/')[0]}",
      skipped=tuple((str(name), str(reason)) for name, reason in metadata.get("left_out", ())),
    )

  def _decide_uncertain(self, where: str, uncertain: str) -> tuple[str, ...]:
    """Gives uncertain findings a value in the table; says so in a note."""
    if uncertain != "ignore" and self._exclusive:
      raise UserError(
        f"{_KEY}.uncertain={uncertain!r} applies to findings, but this label of "
        f"tfds:{where} has classes"
      )
    labels = self.table.labels  # `take` has copied them
    labels[labels < 0] = label_policies.UNCERTAIN[uncertain]
    if uncertain == "ignore":
      return ()
    return (f"uncertain findings count as {'absent' if uncertain == 'zeros' else 'present'}",)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Reads image `index`; JPEGs may be decoded at reduced size, not below `at_least` pixels."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    example = self._records[int(self._rows[index])]
    mask = None
    # A smaller image would no longer lie under its mask.
    image = decode.decode(example[self._image], at_least=None if self._mask else at_least)
    if self._mask and base.is_mask(example[self._mask]):
      mask = (decode.decode(example[self._mask]) > 0).astype(np.uint8)
    window = tuple(float(v) for v in example["window"]) if "window" in self._features else ()
    return Record(
      image=image,
      labels=self.table.labels[index],
      mask=mask,
      id=self.table.ids[index],
      patient=self.table.patients[index],
      site=self.table.sites[index],
      window=window if len(window) == 2 and window[0] < window[1] else None,
    )

  # Roles of the features.

  def _is_image(self, name: str) -> bool:
    return name in self._features and isinstance(self._features[name], tfds.features.Image)

  def _find_image(self, where: str) -> str:
    images = [name for name in self._features if self._is_image(name) and not name.endswith("mask")]
    if not images:
      raise UserError(f"tfds:{where} has no image; features: {', '.join(sorted(self._features))}")
    return "image" if "image" in images else images[0]

  def _label_features(self, where: str, label: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the label features; sets the group of findings that they may belong to."""
    if label is None:
      names: tuple[str, ...] = ()
    else:
      names = (label,) if isinstance(label, str) else tuple(label)
    groups = [n for n, f in self._features.items() if isinstance(f, tfds.features.FeaturesDict)]
    # A data set may have findings by several readers, each a group with the same names.
    self._group = names[0] if len(names) == 1 and names[0] in groups else "labels"
    # Sorted, since their order on disk differs between processes.
    findings = sorted(self._features[self._group]) if self._group in groups else []
    self._findings = set(findings)
    if not names:
      return ("label",) if "label" in self._features else tuple(findings)
    if names == (self._group,) and findings:
      return tuple(findings)
    for name in names:
      if name in findings:
        continue
      if name not in self._features:
        raise UserError(
          f"{_KEY}.label={name!r} is not a feature of tfds:{where}"
          f"{suggest(name, [*self._features, *findings])}"
        )
      feature = self._features[name]
      inner = getattr(feature, "feature", feature)
      is_classes = len(names) == 1 and isinstance(inner, tfds.features.ClassLabel)
      is_number = isinstance(feature, tfds.features.Scalar | tfds.features.Tensor) and (
        feature.shape == () and np.dtype(feature.np_dtype).kind in "biuf"
      )
      if not (is_classes or is_number):
        raise UserError(
          f"{_KEY}.label={name!r} is {feature!r}; give a ClassLabel, a sequence of "
          "them, or several features that are 1, 0 or -1"
        )
    return names

  def _classes(self) -> tuple[tuple[str, ...], bool]:
    """Names of the classes, and whether they are exclusive."""
    if len(self._label) == 1 and self._label[0] not in self._findings:
      feature = self._features[self._label[0]]
      if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names), True
      if isinstance(getattr(feature, "feature", None), tfds.features.ClassLabel):
        return tuple(feature.feature.names), False
    return self._label, not self._label

  def _label_row(self, example: dict[str, Any], k: int) -> np.ndarray:
    """Labels of a record as stored: -1 is uncertain, NaN unknown."""
    row = np.zeros(k, np.float32)
    feature = None
    if len(self._label) == 1 and self._label[0] not in self._findings:
      feature = self._features[self._label[0]]
    if isinstance(getattr(feature, "feature", feature), tfds.features.ClassLabel):
      present = np.atleast_1d(np.asarray(example[self._label[0]], np.int64))
      if (present < 0).any():
        return np.full(k, np.nan, np.float32)
      row[present] = 1
      return row
    for i, name in enumerate(self._label):
      row[i] = (example[self._group] if name in self._findings else example)[name]
    return row

  def _text(self, example: dict[str, Any], name: str) -> str:
    value, feature = example[name], self._features[name]
    if isinstance(feature, tfds.features.ClassLabel):
      text = feature.int2str(int(value)) if value >= 0 else ""
      return "" if text == "unknown" else text
    return value.decode() if isinstance(value, bytes) else str(value)

  def _scan(
    self, shards: Sequence[pathlib.Path], expression: str, k: int, cache_dir: str | None
  ) -> tuple[Table, str]:
    """Table and fingerprint, from the cache or by one pass over the records.

    The fingerprint is a hash of ids and encoded images, not of the files' bytes, which depend on
    the versions of the software that wrote them.
    """
    states = [[str(f.resolve()), *file_hashes.file_state(f.stat())] for f in shards]
    key = json.dumps([3, states, expression, self._group, self._label, len(self._records)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    cache = cache_folder.cache_root(cache_dir) / "tables" / f"{digest}.npz"
    texts = ("ids", "patients", "sites", "views", "sexes")
    with contextlib.suppress(OSError, ValueError, KeyError):
      arrays = files.read_npz(cache)
      table = Table(
        **{name: tuple(arrays[name].tolist()) for name in texts},
        labels=arrays["labels"],
        ages=arrays["ages"],
      )
      return table, str(arrays["fingerprint"])
    n = len(self._records)
    columns: dict[str, list[str]] = {name: [] for name in texts}
    labels, ages = np.zeros((n, k), np.float32), np.full(n, np.nan, np.float32)
    view, sex = (name if name in self._features else None for name in ("view", "sex"))
    content = hashlib.sha256()
    for i, example in enumerate(self._examples(expression)):
      image_id = self._text(example, self._id) if self._id else f"{expression}-{i:07d}"
      columns["ids"].append(image_id)
      columns["patients"].append(self._text(example, self._patient) if self._patient else "")
      for name, feature in (("sites", self._site), ("views", view), ("sexes", sex)):
        columns[name].append(self._text(example, feature) if feature else "")
      if "age" in self._features:
        ages[i] = example["age"]
      labels[i] = self._label_row(example, k)
      for piece in (
        image_id.encode(),
        example[self._image],
        example[self._mask] if self._mask else b"",
      ):
        content.update(len(piece).to_bytes(8, "little") + piece)
    fingerprint = content.hexdigest()
    with contextlib.suppress(OSError), atomic_open(cache, private=True) as opened:
      text_arrays: dict[str, Any] = {name: np.array(column) for name, column in columns.items()}
      np.savez(opened, **text_arrays, labels=labels, ages=ages, fingerprint=np.array(fingerprint))
    texts_by_name = {name: tuple(column) for name, column in columns.items()}
    return Table(**texts_by_name, labels=labels, ages=ages), fingerprint

  def _examples(self, expression: str) -> Iterator[dict[str, Any]]:
    """Yields all records in order, read in batches; shows a progress bar if there are many."""
    n, step = len(self._records), 64
    bar = tqdm.tqdm(
      total=n,
      desc=f"reading {expression}",
      unit=" records",
      file=sys.stderr,
      disable=n < 20_000,
      dynamic_ncols=True,
    )
    with bar:
      for start in range(0, n, step):
        rows = list(range(start, min(start + step, n)))
        yield from self._records.__getitems__(rows)
        bar.update(len(rows))


def _select_views(
  where: str, table: Table, views: str | Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Rows of the requested views, and a note on those left out."""
  if views is None:
    return np.arange(len(table)), ()
  rows = label_policies.rows_of_views(f"tfds:{where}", table.views, views)
  names = (views,) if isinstance(views, str) else tuple(views)
  excluded = len(table) - len(rows)
  return rows, (f"views {', '.join(names)} only: {excluded} images of other views left out",)


def _canonical(name: str, sizes: dict[str, int]) -> str:
  """Split name with TFDS's `validation` replaced by `val`, the name used everywhere else."""
  return name if "val" in sizes else re.sub(r"\bvalidation\b", "val", name)


def _split_expression(where: str, split: str, sizes: dict[str, int]) -> tuple[str, tuple[str, ...]]:
  """TFDS's expression for a split, and the names of the splits that it takes images from."""
  if split == "all":
    return "+".join(sizes), tuple(sizes)
  parts, names = [], []
  for part in split.split("+"):
    match = re.match(r"^\s*([^\[\s]+)\s*(\[.*\])?\s*$", part)
    name, rows = (match[1], match[2] or "") if match else (part, "")
    if name == "val" and "val" not in sizes and "validation" in sizes:
      name = "validation"
    if name not in sizes:
      valid = [*(_canonical(n, sizes) for n in sizes), "all"]
      raise UserError(f"tfds:{where} has no split {name!r}{suggest(name, valid)}")
    parts.append(name + rows)
    names.append(name)
  return "+".join(parts), tuple(dict.fromkeys(names))
