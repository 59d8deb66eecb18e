"""A finished run to share: a folder with its network and facts about it, without its data.

`python -m cxrjax.export --workdir=RUN --out=FOLDER --format=run` writes one, and it is accepted
wherever a workdir is. It holds `config.json`, `run.json` (the network's description and its
evaluation), `network.safetensors` (half precision), `learnt.npz` (hashes of the training images, so
that a later run notices test images among them), and `manifest.json` (checksums of these); no
patients, no optimiser, no paths of the machine that it ran on.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.methods.base import SupervisedMethod
from cxrjax.models.weights import files as weights
from cxrjax.training.checkpoint import flatten

NETWORK = "network.safetensors"
# Keys of `run.json` that are needed to restore the network, or that describe its evaluation.
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
_DECISION = ("temperature", "thresholds", "decision", "prevalence")


def network_arrays(method: Any, template: Mapping[str, Any]) -> set[str]:
  """Names of the state's arrays that make up a method's network; the others serve training.

  Args:
    method: of the run.
    template: `params` and `method_state`, with any leaves.
  """
  names = flatten(template)
  markers = {name: np.zeros(0) for name in names}
  name_of = {id(mark): name for name, mark in markers.items()}
  state = jax.tree.unflatten(jax.tree.structure(template), [markers[name] for name in names])
  networks = [method.encoder_params(state["params"], state["method_state"])]
  if isinstance(method, SupervisedMethod):
    networks.append(method.network_params(state["params"], state["method_state"]))
  return {name_of[id(leaf)] for leaf in jax.tree.leaves(networks)}


def write(run: Any, folder: pathlib.Path) -> None:
  """Writes a run's network and facts about it.

  Args:
    run: from `restore.restore`.
    folder: created if missing.

  Raises:
    OSError: the folder cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  state = {"params": run.params, "method_state": run.method_state}
  needed_names = network_arrays(run.method, state)
  arrays = {
    name: _half(np.asarray(value)) for name, value in flatten(state).items() if name in needed_names
  }
  metadata = json.dumps({"names": "cxrjax run", "step": run.step})
  weights.write(folder / NETWORK, arrays, metadata)
  _write_json(folder / "config.json", _config(run.config))
  _write_json(folder / "run.json", _facts(run.facts))


def read(folder: pathlib.Path, wanted: Mapping[str, Any]) -> tuple[int, dict[str, np.ndarray]]:
  """Reads the step and state written by `write`; arrays that only training needs are zeros.

  Args:
    folder: of the exported run.
    wanted: arrays by name, with their shapes and types.

  Raises:
    UserError: an array has an unexpected shape or name.
  """
  file = weights.read(folder / NETWORK, "the network")
  arrays = {}
  for name, leaf in wanted.items():
    value = (
      np.asarray(file.arrays[name]) if name in file.arrays else np.zeros(leaf.shape, leaf.dtype)
    )
    if value.shape != tuple(leaf.shape):
      raise UserError(
        f"{file.path} has {name} of shape {value.shape}, but its config makes it "
        f"{tuple(leaf.shape)}"
      )
    arrays[name] = value.astype(leaf.dtype)
  unknown = set(file.arrays) - set(wanted)
  if unknown:
    raise UserError(f"{file.path} has {min(unknown)}, which its config does not make")
  return int(file.about.get("step", 0)), arrays


def _half(value: np.ndarray) -> np.ndarray:
  if value.dtype != np.float32 or np.abs(value).max(initial=0) > np.finfo(np.float16).max:
    return value
  return value.astype(np.float16)


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config without paths of the machine that the run was on."""
  portable = _strip_paths(dict(config))
  portable["init"] = {"path": ""}
  if str(portable["data"].get("masks", "")) not in ("", "own"):
    portable["data"]["masks"] = "own"
  return portable


def _strip_paths(value: Any) -> Any:
  """Reduces the paths in a value of a config or of facts to their last component."""
  if isinstance(value, Mapping):
    return {
      key: "" if key in ("manual_dir", "cache_dir") else _strip_paths(item)
      for key, item in value.items()
    }
  if isinstance(value, list | tuple):
    return [_strip_paths(item) for item in value]
  if isinstance(value, str) and "/" in value and value.startswith(("folder:", "/", "~", ".")):
    kind, colon, path = value.rpartition(":")
    return kind + colon + pathlib.PurePath(path).name
  return value


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
  train = facts["data"]["train"]
  portable = {key: facts[key] for key in _FACTS if key in facts}
  portable["data"] = {"train": {key: train[key] for key in _TRAIN if key in train}}
  portable["evaluation"] = {}
  for name, scores in (facts.get("evaluation") or {}).items():
    trained = scores.get("trained", {})
    decision = {key: value for key, value in trained.items() if key in _DECISION}
    portable["evaluation"][name] = {"trained": decision}
  return _strip_paths(portable)


def _write_json(file: pathlib.Path, content: Any) -> None:
  file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
