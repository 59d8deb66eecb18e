"""Checkpoints: asynchronous, atomic, plain dicts; the only file that knows orbax."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from cxrjax.core.errors import UserError
from cxrjax.training.optimizer import path_names

# One line a save and a policy table a deletion would bury the progress bar; a save that fails logs
# the same traceback at every level, where this file raises one sentence.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def flatten(tree: Any) -> dict[str, Any]:
  """`{"params/encoder/cls": array, ...}`: what is written. Keeps no Python types."""
  return dict(zip(jax.tree.leaves(path_names(tree)), jax.tree.leaves(tree), strict=True))


def unflatten(template: Any, flat: dict[str, Any]) -> Any:
  """The inverse, in the structure of `template`."""
  return jax.tree.map(lambda name: flat[name], path_names(template))


class Checkpoints:
  """The checkpoints of one run, newest and best kept.

  Args:
    directory: created if missing.
    keep: how many of the newest stay; the best by `score` stays as well.
  """

  def __init__(self, directory: pathlib.Path, keep: int = 2) -> None:
    if keep < 1:
      raise UserError(f"config.checkpoint.keep={keep} must be at least 1")
    self.directory = pathlib.Path(directory).absolute()
    self._keep = keep
    self._pending: Any = None
    self._failed = False
    self._open()

  def _open(self) -> None:
    policies = ocp.training.preservation_policies
    best = policies.BestN(
      get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False)
    self._checkpointer = ocp.training.Checkpointer(
      self.directory, cleanup_tmp_directories=True,
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]))

  @property
  def steps(self) -> list[int]:
    """Of all complete checkpoints, ascending."""
    return [c.step for c in self._checkpointer.checkpoints]

  @property
  def best(self) -> int | None:
    """The step of the checkpoint with the best score, the first of equals; None without scores."""
    return best_step(self._checkpointer)

  def save(self, step: int, state: Any, score: float | None = None) -> None:
    """Starts writing `state`; waits for the save before it, if one is still under way.

    Raises:
      UserError: the previous save failed, e.g. because the disk is full.
    """
    self.wait()
    if step in self.steps:
      return
    # Where device memory is host memory the writer would read buffers the next step overwrites.
    if jax.default_backend() == "cpu":
      state = jax.tree.map(jnp.copy, state)
    metrics = None if score is None else {"score": float(score)}
    try:
      self._pending = self._checkpointer.save_async(
        step, flatten(state), force=True, metrics=metrics)
    except Exception as error:
      self._fail(error)

  def wait(self) -> None:
    """Returns when everything is on disk; raises a UserError if it could not be written."""
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      pending.result()
    except Exception as error:
      self._fail(error)

  def _fail(self, error: Exception) -> None:
    self._failed = True
    reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
    if "No space left on device" in str(error):
      reason = "no space left on device"
    kept = f"; the run can go on from step {self.steps[-1]}" if self.steps else ""
    raise UserError(
      f"a checkpoint could not be written to {self.directory}: {reason}; free some space or lower "
      f"config.checkpoint.keep, then run the same command again{kept}") from error

  def restore(self, template: Any) -> tuple[Any | None, list[str]]:
    """The newest checkpoint that can be read, and remarks on those that cannot.

    A damaged one is moved aside to `<step>.damaged`, never deleted.

    Args:
      template: ShapeDtypeStructs with shardings; the devices may be others than at saving.

    Returns:
      The state, or None where there is no checkpoint at all; one line for each damaged one.

    Raises:
      UserError: there are checkpoints, and none can be read.
    """
    remarks: list[str] = []
    steps = self.steps
    for step in reversed(steps):
      try:
        return self.load(step, template), remarks
      except Exception as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:160]
        remarks.append(f"checkpoint {self.directory / str(step)} is damaged ({reason})")
        self._set_aside(step)
    if remarks:
      raise UserError(
        "; ".join(remarks) + "; none is left; start again with another --workdir")
    return None, remarks

  def load(self, step: int, template: Any) -> Any:
    """The state of one step, in the structure of `template`; see `restore`."""
    self.wait()
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # orbax on its own deprecations
      return unflatten(template, self._checkpointer.load(step, flatten(template)))

  def _set_aside(self, step: int) -> None:
    self._checkpointer.close()
    if jax.process_index() == 0:
      (self.directory / str(step)).rename(self.directory / f"{step}.damaged")
    self._open()

  def close(self) -> None:
    try:
      self.wait()
    finally:
      # It raises the error of a failed save once more, which is known by then.
      with contextlib.suppress(*[Exception] if self._failed else []):
        self._checkpointer.close()


def newest_step(directory: pathlib.Path) -> int | None:
  """Of the complete checkpoints, by their folders' names: one under way has another name.

  It asks nobody but the file system, so that it can be used when other processes are gone.
  """
  return max((int(p.name) for p in directory.glob("*") if p.name.isdigit()), default=None)


def best_step(checkpointer: Any) -> int | None:
  """See `Checkpoints.best`."""
  scored = [(c.metrics["score"], -c.step) for c in checkpointer.checkpoints if c.metrics]
  return -max(scored)[1] if scored else None


def load_flat(
    directory: pathlib.Path, step: int | None = None, best: bool = False,
    ) -> tuple[int, dict[str, Any]]:
  """A whole checkpoint as host arrays by their names (see `flatten`), and its step.

  Args:
    directory: of a run's checkpoints.
    step: which one; by default the newest.
    best: the one with the best score instead, where there are scores.

  Raises:
    UserError: no checkpoint.
  """
  directory = pathlib.Path(directory).absolute()
  if not directory.is_dir():
    raise UserError(f"{directory} does not exist; give a finished run's workdir")
  with ocp.training.Checkpointer(directory) as checkpointer:
    steps = [c.step for c in checkpointer.checkpoints]
    if not steps:
      raise UserError(f"{directory} holds no checkpoint; was the run started?")
    scored = best_step(checkpointer) if best else None
    step = scored if scored is not None else steps[-1] if step is None else step
    # Onto one device here, wherever it was: the devices it was saved on may be gone.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      known = checkpointer.metadata(step).metadata
      found = checkpointer.load(step, {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in known.items()})
  return step, {name: np.asarray(x) for name, x in found.items()}


def load_params(directory: pathlib.Path, prefix: str, step: int | None = None) -> dict[str, Any]:
  """Part of a run's newest checkpoint as a nested dict, e.g. `prefix="extra/teacher/encoder"`.

  Raises:
    UserError: no checkpoint, or nothing under that prefix.
  """
  nested: dict[str, Any] = {}
  for name, value in load_flat(directory, step)[1].items():
    if name.startswith(prefix + "/"):
      *parents, leaf = name[len(prefix) + 1:].split("/")
      node = nested
      for parent in parents:
        node = node.setdefault(parent, {})
      node[leaf] = value
  if not nested:
    raise UserError(f"{directory} holds nothing under {prefix!r}")
  return nested
