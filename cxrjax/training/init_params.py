"""Initial encoder parameters: drawn at random, from a finished run, or from a weights file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cxrjax.core import zoo
from cxrjax.core.errors import UserError
from cxrjax.methods.base import SupervisedMethod
from cxrjax.models import weights
from cxrjax.training.restore import Restored, restore

KEY = "config.init.path"


def start(config: Mapping[str, Any], encoder: Any) -> tuple[Any, dict[str, Any]]:
  """Initial parameters of the encoder, None to draw them; and facts for `run.json`.

  Args:
    config: of the run; its `init.path` is "", the workdir of a finished run, or a weights file.
    encoder: of the run.

  Raises:
    UserError: the path does not exist, or the weights do not fit the encoder.
  """
  path = (config.get("init") or {}).get("path", "")
  if not path:
    return None, {}
  place = zoo.resolve_workdir(path, KEY)
  if not place.exists():
    raise UserError(
      f"{KEY}={path!r} does not exist; give the workdir of a finished run, or a file of weights"
    )
  if not place.is_dir():
    views = config["views"]
    params, report = weights.load(
      str(place), encoder, key=KEY, mean=views["mean"], std=views["std"]
    )
    return params, {"init": report.facts() | {"summary": report.summary()}}
  run = restore(path, KEY)
  params, report = weights.fit(run.encoder_params, encoder, key=KEY)
  report = dataclasses.replace(
    report,
    path=path,
    source=run.config["method"]["name"].rpartition(".")[2],
    left=(*report.left, *(f"{name}/*" for name in run.params if name != "encoder")),
    notes=(*report.notes, *_head_notes(run), *_preprocessing_notes(run, config)),
  )
  return params, {"init": report.facts() | {"summary": report.summary(), "step": run.step}}


def _head_notes(run: Restored) -> list[str]:
  """A note on a supervised run's head, which is not taken over."""
  if not isinstance(run.method, SupervisedMethod) or not run.method.classes:
    return []
  classes = ", ".join(run.method.classes)
  return [f"its head for {classes} is not used; the new head starts from scratch"]


def _preprocessing_notes(run: Restored, config: Mapping[str, Any]) -> list[str]:
  """Notes on preprocessing that differs from what the encoder was trained with."""
  notes = []
  for part, keys in (
    ("views", ("mean", "std")),
    ("model", ("standardize",)),
    ("data", ("fit", "window")),
  ):
    for key in keys:
      old, new = run.config[part].get(key), config[part].get(key)
      if old != new and {old, new} != {None, False}:
        notes.append(f"config.{part}.{key} was {old!r} when the encoder was trained, now {new!r}")
  return notes
