"""Asynchronous, atomic checkpoints of plain dicts; the only module that uses orbax.

Every checkpoint has a manifest with checksums of its files, written as soon as these are complete
and verified before anything of the checkpoint is used; and the config of its run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import logging
import math
import pathlib
import re
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

# Orbax logs a line per save and a policy table per deletion, which would bury the progress bar; for
# a failed save it logs the same traceback at every level, where this module raises one sentence.
logging.getLogger("absl").setLevel(logging.CRITICAL)

# Upper limits on what is stored besides the parameters: values per parameter (no optimiser keeps as
# many), and a total that is always allowed.
_STATES, _LEAST = 16, 1 << 24


def flatten(tree: Any) -> dict[str, Any]:
  """Flattens a tree to `{"params/encoder/cls": array, ...}`, as stored; drops Python types."""
  names = map(_stored_name, jax.tree.leaves(path_names(tree)))
  return dict(zip(names, jax.tree.leaves(tree), strict=True))


def unflatten(template: Any, flat: dict[str, Any]) -> Any:
  """Inverse of `flatten`, in the structure of `template`."""
  return jax.tree.map(lambda name: flat[_stored_name(name)], path_names(template))


def _stored_name(path: str) -> str:
  """Name of the array at a path of the state; in files the method's state is called `extra`."""
  return re.sub("^method_state/", "extra/", path)


class Checkpoints:
  """The checkpoints of one run; keeps the newest and the best.

  Args:
    directory: created if missing.
    keep: number of newest checkpoints that are kept, besides the best by `score`.
    config: of the run, stored in every checkpoint; see `config_of`.
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
      self._inspect()
    if jax.process_count() > 1:  # the first process has moved them aside for all
      count = multihost_utils.broadcast_one_to_all(np.int32(len(self._remarks)))
      self._remarks += ["a checkpoint is damaged"] * (int(count) - len(self._remarks))
    self._open()

  def _inspect(self) -> None:
    """Completes an interrupted manifest; moves checkpoints with damaged metadata aside."""
    newest = newest_step(self.directory)
    for step in _steps(self.directory):
      folder = self.directory / str(step)
      if step == newest and not (folder / checksums.MANIFEST).exists():
        checksums.write_manifest(folder)  # the run was killed between checkpoint and checksums
      reason = _metadata_damage(folder)
      if reason:
        self._remarks.append(self._move_aside(step, reason))

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
    """Steps of all complete checkpoints, ascending."""
    return [c.step for c in self._checkpointer.checkpoints]

  @property
  def best(self) -> int | None:
    """Step of the checkpoint with the best score, the first on ties; None without scores."""
    return best_step(self._checkpointer)

  def save(self, step: int, state: Any, score: float | None = None) -> None:
    """Starts writing `state`, after waiting for the previous save if that is still under way.

    Raises:
      UserError: the previous save failed, e.g. because the disk is full.
    """
    self.wait()
    if step in self.steps:
      return
    # On CPU the writer reads device buffers directly, which the next step would overwrite.
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
    """Waits for a checkpoint's files, then writes their checksums."""
    response.result()
    if jax.process_index() == 0:
      checksums.write_manifest(self.directory / str(step))

  def wait(self) -> None:
    """Blocks until everything is on disk; raises a UserError if it could not be written."""
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
    hint = f"; the run can resume from step {self.steps[-1]}" if self.steps else ""
    raise UserError(
      f"a checkpoint could not be written to {self.directory}: {reason}; free some space or lower "
      f"config.checkpoint.keep, then run the same command again{hint}"
    ) from error

  def restore(self, template: Any) -> tuple[Any | None, list[str]]:
    """Restores the newest readable checkpoint, with remarks on damaged ones.

    Damaged checkpoints are moved aside to `<step>.damaged`, never deleted.

    Args:
      template: ShapeDtypeStructs with shardings; the devices may differ from those at saving.

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
      remarks.append(self._move_aside(step, reason))
      if jax.process_count() > 1:  # before the others open what the first process has moved
        multihost_utils.sync_global_devices("cxrjax-checkpoints")
      self._open()
    if remarks:
      raise UserError("; ".join(remarks) + "; none is left; start again with another --workdir")
    return None, remarks

  def load(self, step: int, template: Any) -> Any:
    """Loads the checkpoint of one step in the structure of `template`; see `restore`.

    Raises:
      UserError: the checkpoint is damaged.
    """
    self.wait()
    reason = self._damage(step)
    if reason:
      raise _damaged_error(self.directory / str(step), reason)
    return self._read(step, template)

  def _read(self, step: int, template: Any) -> Any:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # orbax warns of its own deprecations
      return unflatten(template, self._checkpointer.load(step, flatten(template)))

  def _damage(self, step: int) -> str:
    """Damage to a checkpoint, "" for none; checked by the first process, returned by all."""
    reason = checksums.find_damage(self.directory / str(step)) if jax.process_index() == 0 else ""
    if jax.process_count() > 1:
      encoded = np.frombuffer(reason.encode()[:160].ljust(160), np.uint8)
      received = np.asarray(multihost_utils.broadcast_one_to_all(encoded))
      reason = received.tobytes().decode(errors="replace").strip()
    return reason

  def _move_aside(self, step: int, reason: str) -> str:
    """Moves a damaged checkpoint aside and returns the remark about it."""
    folder = self.directory / str(step)
    if jax.process_index() == 0:
      targets = (self.directory / f"{step}.damaged{i or ''}" for i in itertools.count())
      folder.rename(next(target for target in targets if not target.exists()))
    return f"checkpoint {folder} is damaged ({reason})"

  def close(self) -> None:
    try:
      self.wait()
    finally:
      self._threads.shutdown()
      # After a failed save, closing raises its error again, which has been reported already.
      with contextlib.suppress(*[Exception] if self._failed else []):
        self._checkpointer.close()


def newest_step(directory: pathlib.Path) -> int | None:
  """Step of the newest complete checkpoint, by folder name; an unfinished one is named otherwise.

  Uses nothing but the file system, so that it works when other processes are gone.
  """
  return max(_steps(directory), default=None)


def config_of(directory: pathlib.Path) -> dict[str, Any] | None:
  """The config of the newest undamaged checkpoint of a folder.

  Returns:
    None if there is no such checkpoint, or if it was saved without a config.
  """
  directory = pathlib.Path(directory).absolute()
  for step in reversed(_steps(directory)):
    folder = directory / str(step)
    if (folder / checksums.MANIFEST).exists() and _metadata_damage(folder):
      continue
    try:  # not through orbax, which would open the arrays, damaged or not
      about = files.read_mapping(folder / "_CHECKPOINT_METADATA").get("custom_metadata")
    except (OSError, files.Damaged):
      continue
    return about["config"] if about else None
  return None


def _steps(directory: pathlib.Path) -> list[int]:
  return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())


def _metadata_damage(folder: pathlib.Path) -> str:
  """Damage to a checkpoint's small files, everything but its arrays; "" for none."""
  return checksums.find_damage(folder, only=lambda name: not name.startswith("state/"))


def _damaged_error(folder: pathlib.Path, reason: str) -> UserError:
  return UserError(
    f"checkpoint {folder} is damaged ({reason}); restore it from a copy, or move it away, "
    "so that another of the run's checkpoints is used"
  )


def best_step(checkpointer: Any) -> int | None:
  """See `Checkpoints.best`."""
  scored = [(c.metrics["score"], -c.step) for c in checkpointer.checkpoints if c.metrics]
  return -max(scored)[1] if scored else None


def _check_sizes(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
  """Checks the stored arrays' names and shapes before memory is allocated for them."""
  for name, leaf in expected.items():
    if name not in stored:
      raise UserError(f"its checkpoint lacks {name}, which this version's method needs")
    if tuple(stored[name].shape) != tuple(leaf.shape):
      raise UserError(
        f"its checkpoint has {name} of shape {tuple(stored[name].shape)}, but its "
        f"config implies {tuple(leaf.shape)}"
      )
  used, unused = (
    sum(math.prod(stored[name].shape) for name in names)
    for names in (expected, set(stored) - set(expected))
  )
  if unused > max(_STATES * used, _LEAST):
    raise UserError(
      f"its checkpoint has {unused:,} values of optimiser state for {used:,} parameters"
    )


def load_flat(
  directory: pathlib.Path,
  step: int | None = None,
  best: bool = False,
  wanted: Mapping[str, Any] | None = None,
) -> tuple[int, dict[str, Any]]:
  """Loads a whole checkpoint as host arrays by name (see `flatten`), with its step.

  Args:
    directory: of a run's checkpoints.
    step: of the checkpoint; by default the newest.
    best: load the one with the best score instead, if there are scores.
    wanted: required arrays by name, with their shapes.

  Raises:
    UserError: no checkpoint, a damaged one, or one that lacks a required array.
  """
  directory = pathlib.Path(directory).absolute()
  if not directory.is_dir():
    raise UserError(f"{directory} does not exist; give a finished run's workdir")
  for saved in _steps(directory):  # all of them, as any may hold the damaged score
    reason = _metadata_damage(directory / str(saved))
    if reason:
      raise _damaged_error(directory / str(saved), reason)
  with ocp.training.Checkpointer(directory) as checkpointer:
    steps = [c.step for c in checkpointer.checkpoints]
    if not steps:
      raise UserError(f"{directory} holds no checkpoint; was the run started?")
    scored = best_step(checkpointer) if best else None
    if scored is not None:
      step = scored
    elif step is None:
      step = steps[-1]
    reason = checksums.find_damage(directory / str(step))
    if reason:
      raise _damaged_error(directory / str(step), reason)
    # Onto one local device, as the devices it was saved from may not exist here.
    device_sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      stored = checkpointer.metadata(step).metadata
      if wanted is not None:
        _check_sizes(stored, wanted)
      arrays = checkpointer.load(
        step,
        {
          name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device_sharding)
          for name, x in stored.items()
        },
      )
  return step, {name: np.asarray(x) for name, x in arrays.items()}
