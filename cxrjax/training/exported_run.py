"""A finished run to hand on: a folder with its network and what is known of it, without its data.

`python -m cxrjax.export --workdir=RUN --out=FOLDER --format=run` writes one, and whatever takes a
workdir takes it. It holds `config.json`, `run.json` (what describes the network and how it was
judged), `network.safetensors` (half precision), `learnt.npz` (hashes of the images that it has
learnt from, so that a later run notices test images among them), and `manifest.json` (checksums of
these); no patient, no optimiser, no place on the machine that it ran on.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.models.weights import files as weights
from cxrjax.training.checkpoint import flatten

NETWORK = "network.safetensors"
# Of `run.json`: what restores the network, and what says how it was judged.
_FACTS = ("status", "steps", "epochs", "batch_size", "method", "model", "finished", "versions")
_TRAIN = (
  "name",
  "split",
  "n",
  "bits",
  "classes",
  "exclusive",
  "class_counts",
  "class_known",
  "fingerprint",
)


def needed(method: Any, template: Mapping[str, Any]) -> set[str]:
  """Names of the arrays of a method's state that its network is made of; the rest is training's.

  Args:
    method: of the run.
    template: `params` and `extra`, of any leaves.
  """
  names = flatten(template)
  marks = {name: np.zeros(0) for name in names}
  where = {id(mark): name for name, mark in marks.items()}
  state = jax.tree.unflatten(jax.tree.structure(template), [marks[name] for name in names])
  networks = [method.encoder_params(state["params"], state["extra"])]
  if hasattr(method, "predict"):
    networks.append(method.network_params(state["params"], state["extra"]))
  return {where[id(leaf)] for leaf in jax.tree.leaves(networks)}


def write(run: Any, folder: pathlib.Path) -> None:
  """Writes a run's network and what is known of it.

  Args:
    run: of `restore.restore`.
    folder: created if missing.

  Raises:
    OSError: it cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  state = {"params": run.params, "extra": run.extra}
  wanted = needed(run.method, state)
  arrays = {
    name: _half(np.asarray(value)) for name, value in flatten(state).items() if name in wanted
  }
  about = json.dumps({"names": "cxrjax run", "step": run.step})
  weights.write(folder / NETWORK, arrays, about)
  _write_json(folder / "config.json", _config(run.config))
  _write_json(folder / "run.json", _facts(run.facts))


def read(folder: pathlib.Path, wanted: Mapping[str, Any]) -> tuple[int, dict[str, np.ndarray]]:
  """The step and the state that `write` wrote; zeros stand for what only training needs.

  Args:
    folder: of it.
    wanted: arrays by name, with their shapes and types.

  Raises:
    UserError: an array of another shape, or of another name.
  """
  file = weights.read(folder / NETWORK, "the network")
  found = {}
  for name, leaf in wanted.items():
    value = (
      np.asarray(file.arrays[name]) if name in file.arrays else np.zeros(leaf.shape, leaf.dtype)
    )
    if value.shape != tuple(leaf.shape):
      raise UserError(
        f"{file.path} has {name} of shape {value.shape}, where its config makes it "
        f"{tuple(leaf.shape)}"
      )
    found[name] = value.astype(leaf.dtype)
  unknown = set(file.arrays) - set(wanted)
  if unknown:
    raise UserError(f"{file.path} has {min(unknown)}, which its config does not make")
  return int(file.about.get("step", 0)), found


def _half(value: np.ndarray) -> np.ndarray:
  if value.dtype != np.float32 or np.abs(value).max(initial=0) > np.finfo(np.float16).max:
    return value
  return value.astype(np.float16)


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config without places on the machine that it ran on."""
  found = _placeless(dict(config))
  found["init"] = {"path": ""}
  if str(found["data"].get("masks", "")) not in ("", "own"):
    found["data"]["masks"] = "own"
  return found


def _placeless(value: Any) -> Any:
  """A value of a config or of facts in which folders have their own names alone."""
  if isinstance(value, Mapping):
    return {
      key: "" if key in ("manual_dir", "cache_dir") else _placeless(item)
      for key, item in value.items()
    }
  if isinstance(value, list | tuple):
    return [_placeless(item) for item in value]
  if isinstance(value, str) and "/" in value and value.startswith(("folder:", "/", "~", ".")):
    kind, colon, path = value.rpartition(":")
    return kind + colon + pathlib.PurePath(path).name
  return value


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
  train = facts["data"]["train"]
  found = {key: facts[key] for key in _FACTS if key in facts}
  found["data"] = {"train": {key: train[key] for key in _TRAIN if key in train}}
  found["evaluation"] = {
    name: {
      "trained": {
        key: value
        for key, value in of.get("trained", {}).items()
        if key in ("temperature", "thresholds", "decision", "prevalence")
      }
    }
    for name, of in (facts.get("evaluation") or {}).items()
  }
  return _placeless(found)


def _write_json(file: pathlib.Path, content: Any) -> None:
  file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
