"""What an encoder starts from: nothing, a finished run, or a file of weights."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from cxrjax.core import files
from cxrjax.core.errors import UserError
from cxrjax.data import hashes, leaks, splits
from cxrjax.evals.parts import Data
from cxrjax.models import weights
from cxrjax.tasks import guard
from cxrjax.training.restore import Restored, restore

KEY = "config.init.path"


def start(config: Mapping[str, Any], encoder: Any) -> tuple[Any, dict[str, Any]]:
  """The encoder's first parameters, or None where they are drawn; and facts for `run.json`.

  Args:
    config: of the run, of which `init.path` is read: "", the workdir of a finished run, or a file.
    encoder: that of the run.

  Raises:
    UserError: a path that is neither, or weights that do not fit the encoder.
  """
  path = (config.get("init") or {}).get("path", "")
  if not path:
    return None, {}
  place = pathlib.Path(path).expanduser()
  if not place.exists():
    raise UserError(f"{KEY}={path!r} does not exist; give the workdir of a finished run, or a file "
                    "of weights")
  if not place.is_dir():
    views = config["views"]
    params, report = weights.load(
      str(place), encoder, key=KEY, mean=views["mean"], std=views["std"])
    return params, {"init": report.facts() | {"summary": report.summary()}}
  run = restore(path, KEY)
  params, report = weights.fit(run.encoder_params, encoder, key=KEY)
  report = dataclasses.replace(
    report, path=path, source=run.config["method"]["name"].rpartition(".")[2],
    left=(*report.left, *(f"{name}/*" for name in run.params if name != "encoder")),
    notes=(*report.notes, *_head(run), *_differences(run, config)))
  return params, {"init": report.facts() | {"summary": report.summary(), "step": run.step}}


def _head(run: Restored) -> list[str]:
  """What a supervised run has learnt beside its encoder, which is not taken over."""
  if not any(field.name == "labels" for field in dataclasses.fields(run.method)):
    return []
  classes = ", ".join(run.method.labels.classes)
  return [f"its head for {classes} is not taken over, the new one begins afresh"]


def _differences(run: Restored, config: Mapping[str, Any]) -> list[str]:
  """What the network saw otherwise than it will."""
  found = []
  for room, keys in (("views", ("mean", "std")), ("model", ("standardize",)),
                     ("data", ("fit", "window"))):
    for key in keys:
      old, new = run.config[room].get(key), config[room].get(key)
      if old != new and {old, new} != {None, False}:
        found.append(f"config.{room}.{key} was {old!r} when the encoder was trained, now {new!r}")
  return found


def seen_before(
    path: str, evaluations: Mapping[str, Any], choice: str, cache_dir: str | None = None,
    ) -> list[str]:
  """Refuses test images of patients that the starting run has learnt from; returns remarks.

  Args:
    path: `config.init.path`.
    evaluations: what judges the run, by name.
    choice: `config.data.shared_patients`, "error" or "allow".
    cache_dir: `config.data.cache_dir`, where the secret lies.

  Raises:
    UserError: there are such patients, and `choice` is "error"; or the run's file of its patients
      is damaged.
  """
  file = pathlib.Path(path).expanduser() / guard.FILE
  if not path or not file.is_file():
    return []
  try:
    remembered = files.read_npy(file)
  except (OSError, files.Damaged) as error:
    raise UserError(f"{KEY}={path}: its {guard.FILE} cannot be read ({error}), so it is not known "
                    "which patients it learnt from; start from another run") from error
  secret = hashes.patient_key(cache_dir)
  remarks = []
  for name, data in evaluations.items():
    if not isinstance(data, Data):
      continue
    key, rows = data.rows["test"]
    keys = splits.patient_keys(data.images[key])
    both = leaks.overlap(remembered, [keys[i] for i in rows.tolist()], secret)
    if both is None:
      remarks.append(
        f"{name}: whether {path} learnt from its test patients cannot be told: it keeps their "
        "hashes under another secret than this cache folder's; see CXRJAX_PATIENT_KEY")
      continue
    if both and choice == "error":
      raise UserError(
        f"{len(both)} patients of config.evals.{name}'s test split were learnt from by {KEY}={path}"
        f", e.g. {both[0]!r}, so results would flatter; start from another run, or set "
        "config.data.shared_patients='allow'")
    remarks.append(f"{name}: {len(both)} of its test patients are among those that {path} learnt "
                   "from")
  return remarks
