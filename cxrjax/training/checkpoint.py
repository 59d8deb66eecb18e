"""Checkpoints: asynchronous, atomic, plain dicts; the only file that knows orbax.

Every checkpoint has a manifest with checksums of its files, which is written as soon as these are
complete and held against them before anything of a checkpoint is used; and the config of its run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import logging
import math
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from cxrjax.core import checksums, files
from cxrjax.core.errors import UserError
from cxrjax.training.optimizer import path_names

# One line a save and a policy table a deletion would bury the progress bar; a save that fails logs
# the same traceback at every level, where this file raises one sentence.
logging.getLogger("absl").setLevel(logging.CRITICAL)

# More numbers than an optimiser keeps for each parameter; and so many that may be there anyway.
_STATES, _LEAST = 16, 1 << 24


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
    config: of the run, which every checkpoint holds; see `config_of`.
  """

  def __init__(
    self, directory: pathlib.Path, keep: int = 2, config: Mapping[str, Any] | None = None
  ) -> None:
    if keep < 1:
      raise UserError(f"config.checkpoint.keep={keep} must be at least 1")
    self.directory = pathlib.Path(directory).absolute()
    self._keep = keep
    self._about = None if config is None else {"config": json.loads(json.dumps(config))}
    self._pending: concurrent.futures.Future | None = None
    self._threads = concurrent.futures.ThreadPoolExecutor(1, "cxrjax-checkpoint")
    self._failed = False
    self._remarks: list[str] = []
    if jax.process_index() == 0:
      self._look_over()
    if jax.process_count() > 1:  # and what the first has moved is moved for all
      count = multihost_utils.broadcast_one_to_all(np.int32(len(self._remarks)))
      self._remarks += ["a checkpoint is damaged"] * (int(count) - len(self._remarks))
    self._open()

  def _look_over(self) -> None:
    """Sees to what orbax reads when it opens the folder, and to what a kill has left unfinished."""
    newest = newest_step(self.directory)
    for step in _steps(self.directory):
      folder = self.directory / str(step)
      if step == newest and not (folder / checksums.MANIFEST).exists():
        checksums.write_manifest(folder)  # the kill came between the checkpoint and its checksums
      reason = _damage_outside(folder)
      if reason:
        self._remarks.append(self._damaged(step, reason))

  def _open(self) -> None:
    policies = ocp.training.preservation_policies
    best = policies.BestN(
      get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False
    )
    self._checkpointer = ocp.training.Checkpointer(
      self.directory,
      cleanup_tmp_directories=True,
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
    )

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
      response = self._checkpointer.save_async(
        step, flatten(state), force=True, metrics=metrics, custom_metadata=self._about
      )
    except Exception as error:
      self._fail(error)
    self._pending = self._threads.submit(self._complete, step, response)

  def _complete(self, step: int, response: Any) -> None:
    """Waits for a checkpoint's files, and writes their checksums."""
    response.result()
    if jax.process_index() == 0:
      checksums.write_manifest(self.directory / str(step))

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
      f"config.checkpoint.keep, then run the same command again{kept}"
    ) from error

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
    remarks, self._remarks = self._remarks, []
    for step in reversed(self.steps):
      reason = self._damage(step)
      if not reason:
        try:
          return self._read(step, template), remarks
        except Exception as error:
          reason = (str(error).strip().splitlines() or [repr(error)])[0][:160]
      self._checkpointer.close()
      remarks.append(self._damaged(step, reason))
      if jax.process_count() > 1:  # before the others open what the first has moved
        multihost_utils.sync_global_devices("cxrjax-checkpoints")
      self._open()
    if remarks:
      raise UserError("; ".join(remarks) + "; none is left; start again with another --workdir")
    return None, remarks

  def load(self, step: int, template: Any) -> Any:
    """The state of one step, in the structure of `template`; see `restore`.

    Raises:
      UserError: it is damaged.
    """
    self.wait()
    reason = self._damage(step)
    if reason:
      raise _refusal(self.directory / str(step), reason)
    return self._read(step, template)

  def _read(self, step: int, template: Any) -> Any:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # orbax on its own deprecations
      return unflatten(template, self._checkpointer.load(step, flatten(template)))

  def _damage(self, step: int) -> str:
    """What is wrong with a checkpoint, as the first process finds it; the same in all."""
    reason = checksums.damage(self.directory / str(step)) if jax.process_index() == 0 else ""
    if jax.process_count() > 1:
      sent = np.frombuffer(reason.encode()[:160].ljust(160), np.uint8)
      reason = (
        np.asarray(multihost_utils.broadcast_one_to_all(sent))
        .tobytes()
        .decode(errors="replace")
        .strip()
      )
    return reason

  def _damaged(self, step: int, reason: str) -> str:
    """Moves a damaged checkpoint aside; what to tell of it."""
    folder = self.directory / str(step)
    if jax.process_index() == 0:
      aside = (self.directory / f"{step}.damaged{i or ''}" for i in itertools.count())
      folder.rename(next(place for place in aside if not place.exists()))
    return f"checkpoint {folder} is damaged ({reason})"

  def close(self) -> None:
    try:
      self.wait()
    finally:
      self._threads.shutdown()
      # It raises the error of a failed save once more, which is known by then.
      with contextlib.suppress(*[Exception] if self._failed else []):
        self._checkpointer.close()


def newest_step(directory: pathlib.Path) -> int | None:
  """Of the complete checkpoints, by their folders' names: one under way has another name.

  It asks nobody but the file system, so that it can be used when other processes are gone.
  """
  return max(_steps(directory), default=None)


def config_of(directory: pathlib.Path) -> dict[str, Any] | None:
  """The config that the newest undamaged checkpoint of a folder was trained with.

  Returns:
    None where there is no such checkpoint, or none that was given a config.
  """
  directory = pathlib.Path(directory).absolute()
  for step in reversed(_steps(directory)):
    folder = directory / str(step)
    if (folder / checksums.MANIFEST).exists() and _damage_outside(folder):
      continue
    try:  # not by Orbax, which would look into the arrays, damaged or not
      about = files.read_mapping(folder / "_CHECKPOINT_METADATA").get("custom_metadata")
    except (OSError, files.Damaged):
      continue
    return about["config"] if about else None
  return None


def _steps(directory: pathlib.Path) -> list[int]:
  return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())


def _damage_outside(folder: pathlib.Path) -> str:
  """What is wrong with a checkpoint's small files beside its arrays."""
  return checksums.damage(folder, only=lambda name: not name.startswith("state/"))


def _refusal(folder: pathlib.Path, reason: str) -> UserError:
  return UserError(
    f"checkpoint {folder} is damaged ({reason}); put a copy of it in its place, or move it away, "
    "so that another of the run's checkpoints is taken"
  )


def best_step(checkpointer: Any) -> int | None:
  """See `Checkpoints.best`."""
  scored = [(c.metrics["score"], -c.step) for c in checkpointer.checkpoints if c.metrics]
  return -max(scored)[1] if scored else None


def _check_sizes(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Refuses arrays that are not as wanted, before memory is taken for them."""
  for name, leaf in wanted.items():
    if name not in known:
      raise UserError(f"its checkpoint lacks {name}, which this version's method has")
    if tuple(known[name].shape) != tuple(leaf.shape):
      raise UserError(
        f"its checkpoint has {name} of shape {tuple(known[name].shape)}, where its "
        f"config makes it {tuple(leaf.shape)}"
      )
  own, rest = (
    sum(math.prod(known[name].shape) for name in names)
    for names in (wanted, set(known) - set(wanted))
  )
  if rest > max(_STATES * own, _LEAST):
    raise UserError(f"its checkpoint has {rest:,} numbers of an optimiser for {own:,} parameters")


def load_flat(
  directory: pathlib.Path,
  step: int | None = None,
  best: bool = False,
  wanted: Mapping[str, Any] | None = None,
) -> tuple[int, dict[str, Any]]:
  """A whole checkpoint as host arrays by their names (see `flatten`), and its step.

  Args:
    directory: of a run's checkpoints.
    step: which one; by default the newest.
    best: the one with the best score instead, where there are scores.
    wanted: arrays that must be there, by name, with their shapes.

  Raises:
    UserError: no checkpoint, a damaged one, or one without what is wanted.
  """
  directory = pathlib.Path(directory).absolute()
  if not directory.is_dir():
    raise UserError(f"{directory} does not exist; give a finished run's workdir")
  for known in _steps(directory):  # of any of them the score may be what is damaged
    reason = _damage_outside(directory / str(known))
    if reason:
      raise _refusal(directory / str(known), reason)
  with ocp.training.Checkpointer(directory) as checkpointer:
    steps = [c.step for c in checkpointer.checkpoints]
    if not steps:
      raise UserError(f"{directory} holds no checkpoint; was the run started?")
    scored = best_step(checkpointer) if best else None
    step = scored if scored is not None else steps[-1] if step is None else step
    reason = checksums.damage(directory / str(step))
    if reason:
      raise _refusal(directory / str(step), reason)
    # Onto one device here, wherever it was: the devices it was saved on may be gone.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      known = checkpointer.metadata(step).metadata
      if wanted is not None:
        _check_sizes(known, wanted)
      found = checkpointer.load(
        step,
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in known.items()},
      )
  return step, {name: np.asarray(x) for name, x in found.items()}


def load_params(directory: pathlib.Path, prefix: str, step: int | None = None) -> dict[str, Any]:
  """Part of a run's newest checkpoint as a nested dict, e.g. `prefix="extra/teacher/encoder"`.

  Raises:
    UserError: no checkpoint, or nothing under that prefix.
  """
  nested: dict[str, Any] = {}
  for name, value in load_flat(directory, step)[1].items():
    if name.startswith(prefix + "/"):
      *parents, leaf = name[len(prefix) + 1 :].split("/")
      node = nested
      for parent in parents:
        node = node.setdefault(parent, {})
      node[leaf] = value
  if not nested:
    raise UserError(f"{directory} holds nothing under {prefix!r}")
  return nested
