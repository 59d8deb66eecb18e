"""Data sets in TFDS's format, read from array_record files without TensorFlow."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from cxrjax.core.build import suggest
from cxrjax.core.errors import UserError
from cxrjax.data import decode, store
from cxrjax.data.types import Record, SourceInfo, Table

BUILDERS = pathlib.Path(__file__).parents[2] / "tfds_builders"  # in a checkout
_IDS, _PATIENTS, _SITES = ("id", "image_id", "filename"), ("patient", "patient_id"), ("site",)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR,
         errno.ENOENT)
_KEY = "config.data.options"


class Source:
  """A split of a TFDS data set, prepared on first use where a builder and its archive are there.

  Args:
    where: `NAME` or `NAME/CONFIG`.
    split: one of the data set's; `val` also finds `validation`; `train+validation` joins two;
      `train[:10%]` and the like take a part; `all` is everything.
    data_dir: where prepared data sets lie; TFDS's default: `$TFDS_DATA_DIR`, else
      `~/tensorflow_datasets`.
    manual_dir: the folder with the published archive, where the data set has yet to be prepared;
      by default `downloads/manual` in `data_dir`.
    label: the feature to learn: a ClassLabel, a sequence of them, or several names of features
      that are 1, 0 or -1 (unknown). The default is left out where there is none.
    cache_dir: where tables of what is in the records are remembered.

  Raises:
    UserError: not prepared and not preparable, another file format, an unknown split or feature.
  """

  def __init__(
      self, where: str, split: str = "train", *, data_dir: str | None = None,
      manual_dir: str | None = None, label: str | Sequence[str] | None = None,
      cache_dir: str | None = None):
    builder = _prepared(where, data_dir, manual_dir)
    self._features = builder.info.features
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    expression, names = _split_expression(where, split, sizes)
    shown = {_canonical(name, sizes): n for name, n in sizes.items()}

    self._image = self._find_image(where)
    self._mask = "mask" if self._is_image("mask") else None
    self._label = self._label_features(where, label)
    self._id, self._patient, self._site = (
      next((f for f in options if f in self._features), None)
      for options in (_IDS, _PATIENTS, _SITES))
    notes = [f"TFDS {builder.info.full_name}"]
    if self._patient is None:
      notes.append("patients unknown: every image counts as a patient of its own")

    raw = [self._image] + ([self._mask] if self._mask else [])
    # The bytes as published: our decoder turns every colour type to gray, and TFDS's needs more.
    skip = {name: tfds.decode.SkipDecoding() for name in raw}
    self._records = builder.as_data_source(expression, decoders=skip)
    shards = [pathlib.Path(os.fspath(f)) for name in names
              for f in builder.info.splits[name].filepaths]
    classes, self._exclusive = self._classes()
    self.table, fingerprint = self._scan(shards, expression, len(classes), cache_dir)
    self.info = SourceInfo(
      name=f"tfds:{where}", split=_canonical(expression, sizes), classes=classes,
      exclusive=self._exclusive, splits=shown, fingerprint=fingerprint, notes=tuple(notes))

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Image `index`; a JPEG may be decoded smaller, for a result of `at_least` pixels."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    example = self._records[index]
    mask = None
    # A smaller image would no longer lie under its mask.
    image = decode.decode(example[self._image], at_least=None if self._mask else at_least)
    if self._mask and example[self._mask]:
      mask = (decode.decode(example[self._mask]) > 0).astype(np.uint8)
    return Record(
      image=image, labels=self.table.labels[index], mask=mask, id=self.table.ids[index],
      patient=self.table.patients[index], site=self.table.sites[index])

  # Which feature is what.

  def _is_image(self, name: str) -> bool:
    return name in self._features and isinstance(self._features[name], tfds.features.Image)

  def _find_image(self, where: str) -> str:
    found = [name for name in self._features if self._is_image(name) and name != "mask"]
    if not found:
      raise UserError(f"tfds:{where} has no image; features: {', '.join(sorted(self._features))}")
    return "image" if "image" in found else found[0]

  def _label_features(self, where: str, label: str | Sequence[str] | None) -> tuple[str, ...]:
    if label is None:
      return ("label",) if "label" in self._features else ()
    names = (label,) if isinstance(label, str) else tuple(label)
    for name in names:
      if name not in self._features:
        raise UserError(f"{_KEY}.label={name!r} is no feature of tfds:{where}"
                        f"{suggest(name, self._features)}")
      feature = self._features[name]
      inner = getattr(feature, "feature", feature)
      classes = len(names) == 1 and isinstance(inner, tfds.features.ClassLabel)
      number = isinstance(feature, tfds.features.Scalar | tfds.features.Tensor) and (
        feature.shape == () and np.dtype(feature.np_dtype).kind in "biuf")
      if not (classes or number):
        raise UserError(f"{_KEY}.label={name!r} is {feature!r}; give a ClassLabel, a sequence of "
                        "them, or several features that are 1, 0 or -1")
    return names

  def _classes(self) -> tuple[tuple[str, ...], bool]:
    if len(self._label) == 1:
      feature = self._features[self._label[0]]
      if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names), True
      if isinstance(getattr(feature, "feature", None), tfds.features.ClassLabel):
        return tuple(feature.feature.names), False
    return self._label, not self._label

  def _label_row(self, example: dict[str, Any], k: int) -> np.ndarray:
    row = np.zeros(k, np.float32)
    first = self._features[self._label[0]] if self._label else None
    if len(self._label) == 1 and isinstance(getattr(first, "feature", first),
                                            tfds.features.ClassLabel):
      present = np.atleast_1d(np.asarray(example[self._label[0]], np.int64))
      if (present < 0).any():
        return np.full(k, np.nan, np.float32)
      row[present] = 1
      return row
    for i, name in enumerate(self._label):
      value = float(example[name])
      row[i] = value if value >= 0 else np.nan  # NaN stays: it is not >= 0
    return row

  def _text(self, example: dict[str, Any], name: str) -> str:
    value, feature = example[name], self._features[name]
    if isinstance(feature, tfds.features.ClassLabel):
      return feature.int2str(int(value)) if value >= 0 else ""
    return value.decode() if isinstance(value, bytes) else str(value)

  def _scan(
      self, shards: Sequence[pathlib.Path], expression: str, k: int, cache_dir: str | None,
      ) -> tuple[Table, str]:
    """Table and fingerprint, from the cache or by one pass over the records.

    The fingerprint is of ids and encoded images. The files' own bytes would not do: they depend on
    the versions of what wrote them.
    """
    states = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in shards]
    key = json.dumps([1, states, expression, self._label, len(self._records)])
    memory = (store.cache_root(cache_dir) / "tables" /
              f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz")
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError), \
         np.load(memory) as found:
      return Table(*(tuple(found[n].tolist()) for n in ("ids", "patients", "sites")),
                   labels=found["labels"]), str(found["fingerprint"])
    ids, patients, sites, labels = [], [], [], np.zeros((len(self._records), k), np.float32)
    content = hashlib.sha256()
    for i in range(len(self._records)):
      example = self._records[i]
      ids.append(self._text(example, self._id) if self._id else f"{expression}-{i:07d}")
      patients.append(self._text(example, self._patient) if self._patient else ids[-1])
      sites.append(self._text(example, self._site) if self._site else "")
      labels[i] = self._label_row(example, k)
      for piece in (ids[-1].encode(), example[self._image],
                    example[self._mask] if self._mask else b""):
        content.update(len(piece).to_bytes(8, "little") + piece)
    fingerprint = content.hexdigest()
    with contextlib.suppress(OSError):
      memory.parent.mkdir(parents=True, exist_ok=True)
      handle, temporary = tempfile.mkstemp(dir=memory.parent, suffix=".npz")
      with os.fdopen(handle, "wb") as opened:
        np.savez(opened, ids=np.array(ids), patients=np.array(patients), sites=np.array(sites),
                 labels=labels, fingerprint=np.array(fingerprint))
      os.replace(temporary, memory)
    return Table(tuple(ids), tuple(patients), tuple(sites), labels), fingerprint


def _canonical(name: str, sizes: dict[str, int]) -> str:
  """`validation` is called `val` everywhere else."""
  return name if "val" in sizes else re.sub(r"\bvalidation\b", "val", name)


def _split_expression(
    where: str, split: str, sizes: dict[str, int]) -> tuple[str, tuple[str, ...]]:
  """The split as TFDS spells it, and the whole splits that it takes images from."""
  if split == "all":
    return "+".join(sizes), tuple(sizes)
  parts, names = [], []
  for part in split.split("+"):
    match = re.match(r"^\s*([^\[\s]+)\s*(\[.*\])?\s*$", part)
    name = match[1] if match else part
    if name == "val" and "val" not in sizes and "validation" in sizes:
      name = "validation"
    if name not in sizes:
      shown = [_canonical(n, sizes) for n in sizes]
      raise UserError(f"tfds:{where} has no split {name!r}{suggest(name, [*shown, 'all'])}")
    parts.append(name + (match[2] or ""))
    names.append(name)
  return "+".join(parts), tuple(dict.fromkeys(names))


# Finding and preparing.


def _prepared(where: str, data_dir: str | None, manual_dir: str | None) -> Any:
  """A builder whose files are there, in a format that is read without TensorFlow."""
  name, _, config = where.partition("/")
  root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  root = root.expanduser()
  kind = _builder_class(name)
  if kind is not None:
    try:
      with _quiet():
        options = {"data_dir": str(root), "config": config or None}
        builder = kind(**options)
        ready = builder.is_prepared()
        if not ready:
          builder = kind(**options, file_format="array_record")
    except ValueError as error:
      if not config:
        raise
      known = [c.name for c in kind.BUILDER_CONFIGS]
      raise UserError(f"tfds:{name} has no config {config!r}{suggest(config, known)}") from error
    if not ready:
      _prepare(builder, where, root, manual_dir)
  else:
    folder = _newest(root / where)
    if folder is None:
      ours = sorted(p.parent.name for p in BUILDERS.glob("*/*_dataset_builder.py"))
      raise UserError(f"tfds:{where} is not prepared in {root}, and there is no builder for it"
                      f"{suggest(name, ours) if ours else ''}; or name the folder of prepared data "
                      f"sets in {_KEY}.data_dir")
    builder = tfds.builder_from_directory(str(folder))
  file_format = builder.info.file_format
  if file_format is None or file_format.value != "array_record":
    raise UserError(
      f"{builder.data_path} holds {getattr(file_format, 'value', 'other')} files, which need "
      "TensorFlow to read; make it anew: tfds build --overwrite --file_format=array_record")
  return builder


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
  versions = [p for p in folder.glob("*.*.*") if (p / "dataset_info.json").is_file()
              and all(part.isdigit() for part in p.name.split("."))]
  return max(versions, key=lambda p: [int(part) for part in p.name.split(".")], default=None)


def _builder_class(name: str) -> type | None:
  """The class in `tfds_builders/NAME/NAME_dataset_builder.py` of this checkout, if there is one."""
  file = BUILDERS / name / f"{name}_dataset_builder.py"
  if not name.isidentifier() or not file.is_file():
    return None
  module_name = f"tfds_builders.{name}.{name}_dataset_builder"
  module = sys.modules.get(module_name)
  if module is None:
    spec = importlib.util.spec_from_file_location(module_name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
      spec.loader.exec_module(module)
    except BaseException:
      del sys.modules[module_name]
      raise
    module.Builder.pkg_dir_path = tfds.core.Path(file.parent)
  return module.Builder


def _prepare(builder: Any, where: str, root: pathlib.Path, manual_dir: str | None) -> None:
  manual = pathlib.Path(manual_dir).expanduser() if manual_dir else root / "downloads" / "manual"
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (manual.is_dir() and any(manual.iterdir())):
    raise UserError(
      f"tfds:{where} is not prepared in {root}, and its manual folder {manual} does not exist or "
      f"is empty; name it in {_KEY}.manual_dir. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
  try:
    root.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(root / f".{builder.name}.lock"):
      with _quiet():
        if builder.is_prepared():
          return
      sys.stderr.write(f"preparing tfds:{where} from {manual} in {root}, once\n")
      tfds.disable_progress_bar()
      with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(manual_dir=str(manual)))
  except Exception as error:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError | OSError):
      cause = cause.__cause__ or cause.__context__
    if isinstance(cause, UserError):
      while isinstance(cause.__cause__, UserError):  # TFDS adds a line of its own in front
        cause = cause.__cause__
      raise UserError(str(cause)) from error
    if isinstance(cause, OSError) and cause.errno in _DISK:
      raise UserError(f"cannot prepare tfds:{where} in {root}: {cause.strerror}; name another "
                      f"folder in {_KEY}.data_dir") from error
    raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without TFDS's warning that a data set which is about to be prepared is not prepared."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)


@contextlib.contextmanager
def _one_at_a_time(lock: pathlib.Path) -> Iterator[None]:
  """Lets one process in; the others wait, and then find the work done."""
  try:
    import fcntl
  except ImportError:  # not on this system; two processes at once then do the work twice
    yield
    return
  with open(lock, "w") as opened:
    fcntl.flock(opened, fcntl.LOCK_EX)
    yield
