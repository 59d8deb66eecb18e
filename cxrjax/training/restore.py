"""Restores a finished run's network from its workdir: config, facts and checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.config.instantiate import build
from cxrjax.core import checksums, files, zoo
from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.core.target import Target
from cxrjax.methods.base import Labels
from cxrjax.models.build import build_encoder
from cxrjax.training import exported_run, sharding
from cxrjax.training.build import build_method
from cxrjax.training.checkpoint import config_of, flatten, load_flat, unflatten
from cxrjax.training.train_step import views_of
from cxrjax.training.workdir import differences


@dataclasses.dataclass(frozen=True, eq=False)
class Restored:
  """A finished run, restored.

  Attributes:
    workdir: of the run.
    config: content of `config.json`.
    facts: content of `run.json`.
    step: of the checkpoint.
    method: including the encoder, `method.encoder`.
    params: of the method.
    method_state: the rest of the method's state.
  """

  workdir: pathlib.Path
  config: dict[str, Any]
  facts: dict[str, Any]
  step: int
  method: Any
  params: Any
  method_state: Any

  @property
  def encoder(self) -> Any:
    """The network without its parameters."""
    return self.method.encoder

  @property
  def encoder_params(self) -> Any:
    """Parameters of the encoder that the run evaluated (a teacher, say)."""
    return self.method.encoder_params(self.params, self.method_state)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of the networks and their parameters: equal for equal predictions."""
    content = hashlib.sha256()
    settings = {key: self.config[key] for key in ("model", "method", "views")}
    content.update(json.dumps(settings, sort_keys=True).encode())
    tree = {"params": self.params, "method_state": self.method_state}
    for name, leaf in sorted(flatten(tree).items()):
      content.update(name.encode())
      content.update(np.asarray(leaf).tobytes())
    return content.hexdigest()


def restore(workdir: str | pathlib.Path, key: str) -> Restored:
  """Reads a finished run's best checkpoint by score or, without scores, its last.

  Args:
    workdir: of the run, an exported one (see `exported_run`), or `zoo:NAME`.
    key: the config key that names it, for errors, e.g. `"config.data.masks"`.

  Raises:
    UserError: no workdir, an unfinished run, or an unreadable checkpoint.
  """
  folder = zoo.resolve_workdir(workdir, key)
  origin = f"{key}={str(workdir)!r}"
  is_exported = (folder / exported_run.NETWORK).is_file()
  if is_exported and (damage := checksums.find_damage(folder)):
    raise UserError(f"{origin} is damaged: {damage}; export the run again")
  try:
    config = files.read_mapping(folder / "config.json")
    facts = files.read_mapping(folder / "run.json")
    method = config["method"]["name"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{origin} holds no run ({_first_line(error)}); give the workdir of a finished one"
    ) from error
  if facts.get("status") != "finished":
    raise UserError(
      f"{origin} holds an unfinished run (status: {facts.get('status')!r}); run its command "
      "again to finish it"
    )
  try:
    changes = not is_exported and differences(config_of(folder / "checkpoints") or config, config)
    if changes:
      raise UserError(
        "its checkpoints were trained with a config other than config.json "
        f"({'; '.join(changes)}); restore these values"
      )
    clock = Clock(facts["steps"], facts["steps"] / max(facts["epochs"], 1e-9), facts["batch_size"])
    encoder = build_encoder(config["model"], Target.of(sharding.make_mesh()))
    data = facts["data"]["train"]
    labels = Labels(
      tuple(data["classes"]),
      data.get("exclusive", True),
      tuple(data["class_counts"].values()),
      tuple(data.get("class_known", {}).values()),
    )
    method = build_method(config["method"], encoder, clock, labels)
    template = _template(config, facts, method)
    if is_exported:
      step, flat = exported_run.read(folder, flatten(template))
    else:
      step, flat = load_flat(folder / "checkpoints", best=True, wanted=flatten(template))
    state = jax.tree.map(jnp.asarray, unflatten(template, flat))
  except Exception as error:  # anything that a damaged checkpoint or another version may raise
    raise UserError(f"{origin} cannot be restored: {_first_line(error)}") from error
  return Restored(folder, config, facts, step, method, state["params"], state["method_state"])


def _template(config: Any, facts: Any, method: Any) -> dict[str, Any]:
  """Structure of the method's state, including empty parts, which checkpoints do not store."""
  recipe = build(config["views"], "Recipe", "config.views")
  batch_size, size, data = config["batch_size"], config["data"]["size"], facts["data"]["train"]
  batch_of = lambda dtype, *rest: jax.ShapeDtypeStruct((batch_size, *rest), dtype)  # noqa: E731
  batch = {
    "image": batch_of(jnp.uint8, size, size, 1),
    "index": batch_of(jnp.int32),
    "labels": batch_of(jnp.float32, len(data.get("classes", ()))),
  }
  if config["data"].get("masks"):
    batch["mask"] = batch_of(jnp.uint8, size, size, 1)
  spec = jax.eval_shape(lambda x: views_of(recipe, x, jax.random.key(0)), batch)
  params, method_state = jax.eval_shape(lambda: method.init(jax.random.key(0), spec))
  return {"params": params, "method_state": method_state}


def _first_line(error: Exception) -> str:
  if isinstance(error, UserError):
    return str(error)
  return (str(error).strip().splitlines() or [repr(error)])[0][:200]
