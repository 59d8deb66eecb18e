"""A finished run as a network: its config and its checkpoint, from its workdir."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from cxrjax.core.build import build
from cxrjax.core.clock import Clock
from cxrjax.core.errors import UserError
from cxrjax.training.checkpoint import load_tree
from cxrjax.training.optimizer import path_names


@dataclasses.dataclass(frozen=True, eq=False)
class Restored:
  """What a run has learnt.

  Attributes:
    workdir: of the run.
    config: of `config.json`.
    facts: of `run.json`.
    step: of the checkpoint.
    method: with the encoder, `method.encoder`.
    params: of the method, as nested dicts of arrays.
    extra: the rest of the method's state, likewise.
  """

  workdir: pathlib.Path
  config: dict[str, Any]
  facts: dict[str, Any]
  step: int
  method: Any
  params: Any
  extra: Any

  @property
  def encoder(self) -> Any:
    """The network without its parameters."""
    return self.method.encoder

  @property
  def encoder_params(self) -> Any:
    """Of the network that the run was judged by (a teacher, say)."""
    return self.method.encoder_params(self.params, self.extra)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of the networks and their parameters: equal for equal predictions."""
    content = hashlib.sha256()
    known = {key: self.config[key] for key in ("model", "method", "views")}
    content.update(json.dumps(known, sort_keys=True).encode())
    tree = {"params": self.params, "extra": self.extra}
    names, leaves = jax.tree.leaves(path_names(tree)), jax.tree.leaves(tree)
    for name, leaf in sorted(zip(names, leaves, strict=True), key=lambda pair: pair[0]):
      content.update(name.encode())
      content.update(np.asarray(leaf).tobytes())
    return content.hexdigest()


def restore(workdir: str | pathlib.Path, key: str) -> Restored:
  """Reads a finished run: of its checkpoints the one with the best score, without scores the last.

  Args:
    workdir: of the run.
    key: the config key that names it, for errors, e.g. `"config.data.masks"`.

  Raises:
    UserError: no workdir, a run that has not finished, or a checkpoint that cannot be read.
  """
  folder = pathlib.Path(workdir).expanduser()
  named = f"{key}={str(workdir)!r}"
  try:
    config = json.loads((folder / "config.json").read_text())
    facts = json.loads((folder / "run.json").read_text())
    method = config["method"]["name"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{named} holds no run ({_first_line(error)}); give the workdir of a finished one") from error
  if facts.get("status") != "finished":
    raise UserError(
      f"{named} holds a run that has not finished (its status: {facts.get('status')!r}); run its "
      "command again to its end")
  try:
    clock = Clock(
      facts["steps"], facts["steps"] / max(facts["epochs"], 1e-9), facts["batch_size"])
    encoder = build(config["model"], "Model", "config.model")
    method = build(config["method"], "Method", "config.method", encoder=encoder, clock=clock)
    step, tree = load_tree(folder / "checkpoints", best=True)
  except Exception as error:  # whatever a damaged checkpoint or another version may raise
    raise UserError(f"{named} cannot be restored: {_first_line(error)}") from error
  return Restored(
    folder, config, facts, step, method, tree.get("params", {}), tree.get("extra", {}))


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [repr(error)])[0][:200]
