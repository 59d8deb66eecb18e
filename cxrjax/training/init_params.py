"""What an encoder starts from: nothing, a finished run, or a file of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.core import zoo
from cxrjax.core.errors import UserError
from cxrjax.data.sources import file_hashes
from cxrjax.data.splits import image_hashes, leakage
from cxrjax.evals.eval_splits import Data
from cxrjax.models import weights
from cxrjax.tasks import leakage_checks
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
  place = zoo.place(path, KEY)
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
  """Refuses test images that the starting run has learnt from, or whose patients; remarks.

  Patients are compared by name and images by what they show: under other names, in other splits
  and formats an image is the same.

  Args:
    path: `config.init.path`.
    evaluations: what judges the run, by name.
    choice: `config.data.shared_patients`, "error" or "allow".
    cache_dir: `config.data.cache_dir`, where the secret lies.

  Raises:
    UserError: there are such patients or images, and `choice` is "error"; or the run's file of
      them is damaged.
  """
  if not path:
    return []
  before = leakage_checks.learnt(path)
  if before is None:
    return [f"{path} does not say what it learnt from, so whether test images, or other images of "
            "their patients, were among it is not known"]
  secret = file_hashes.patient_key(cache_dir)
  remarks = []
  for name, data in evaluations.items():
    if not isinstance(data, Data):
      continue
    keys, info = leakage_checks.test_patients(data)
    patients = leakage.overlap(before.patients, keys, secret) if len(before.patients) else ()
    key, rows = data.rows["test"]
    bits = image_hashes.nearest(before.hashes, image_hashes.of_images(data.images[key], rows))
    same = np.flatnonzero(bits <= image_hashes.SAME).tolist()
    for found, what in (([i for i, k in enumerate(keys) if k in (patients or ())],
                         f"are of {len(patients or ())} patients whom {KEY}={path} learnt from"),
                        (same, f"are among those that {KEY}={path} learnt from")):
      if found and choice == "error":
        raise UserError(
          f"{len(found)} of the {len(keys)} images of config.evals.{name}'s test split {what}, "
          f"e.g. {data.ids('test')[found[0]]}, so results would flatter; start from a run on the "
          "same data with the same split and patients (data.csv, data.patient_column), or set "
          "config.data.shared_patients='allow'")
    remarks.append(f"{name}: " + _patients(patients, leakage.known(keys, info), before, path))
    remarks.append(f"{name}: " + _images(len(same), len(keys), before, path))
  return remarks


def _patients(
    shared: Sequence[str] | None, test: leakage.Known, before: leakage_checks.Learnt, path: str) -> str:
  """What is said of the patients whom a run has learnt from."""
  if shared is None:
    return (f"whether {path} learnt from a patient of the test images could not be checked: it "
            "keeps their hashes under another secret than this cache folder's; see "
            "CXRJAX_PATIENT_KEY")
  return leakage.said(
    len(shared), (test, before.known), ("test images", f"images that {path} learnt from"),
    some=f"{len(shared)} of its test patients are among those that {path} learnt from",
    none=f"no patient of the test images is among those that {path} learnt from",
    whether=f"whether {path} learnt from a patient of the test images")


def _images(same: int, total: int, before: leakage_checks.Learnt, path: str) -> str:
  """What is said of the test images that a run has learnt from."""
  if same:
    return f"{same} of {total} test images are among those that {path} learnt from"
  if before.unseen:
    return (f"whether {path} learnt from a test image could not be checked, as it streamed "
            f"{before.unseen} images")
  return (f"none of the {total} test images looks the same as one that {path} learnt from (crops "
          "are not recognised: configs/audit.py finds them)")
