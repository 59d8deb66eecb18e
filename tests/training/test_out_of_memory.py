"""A step that does not fit says what to change, with values that would."""

import types

import jax
import lab
import numpy as np
import pytest

from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.methods.simclr import Method
from cxrjax.models import vit
from cxrjax.training import dispatch, out_of_memory
from cxrjax.training.train_step import TrainStep

GB = 1e9


def said(error="RESOURCE_EXHAUSTED: Out of memory", **options):
  return str(
    out_of_memory.out_of_memory(
      jax.errors.JaxRuntimeError(error),
      **{
        "images": 256,
        "accumulate": 1,
        "devices": 1,
        "remat": False,
        "resident_bytes": 0,
        "fixed": 1 * GB,
        "peak": 30 * GB,
        "limit": 16 * GB,
      }
      | options,
    )
  )


def test_the_microbatch_is_the_largest_that_fits():
  # 29 GB shrink with the microbatch; 0.92 * 16 GB less 1 GB have room for less than half of them.
  assert "config.accumulate=4 (microbatches of 64 images), or config.batch_size=64" in said()
  assert "config.accumulate=2 (microbatches of 128" in said(limit=24 * GB)
  assert "30.0 GB of 16.0 GB" in said()


def test_what_is_accumulated_already_counts():
  assert "config.accumulate=8 (microbatches of 32" in said(accumulate=2)


def test_a_tpus_compiler_says_how_much():
  text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 10.00G hbm."
  assert "21.5 GB of 10.7 GB" in said(text, peak=None, limit=None)
  assert "config.accumulate=4" in said(text, peak=None, limit=None)


def test_without_numbers_the_next_smaller_microbatch():
  assert "config.accumulate=2" in said(peak=None, limit=None)


def test_parameters_alone():
  text = said(fixed=15 * GB)
  assert "config.mesh.fsdp" in text and "accumulate" not in text


def test_other_ways():
  assert "config.model.remat=True" in said()
  assert "remat" not in said(remat=True) and "remat" not in said(remat=None)
  assert "config.data.storage='cached', which frees 2.0 GB" in said(resident_bytes=2_000_000_000)


def test_other_errors_stay():
  def fail():
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    out_of_memory.guarded(fail, lambda error: UserError("memory"))


class _Full(TrainStep):
  """A step whose program compiles and then does not fit."""

  @property
  def run(self):
    whole = TrainStep.run.func(self)

    def call(*args):
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    return _Callable(call, whole.lower)


class _Callable:
  def __init__(self, call, lower):
    self._call, self.lower = call, lower

  def __call__(self, *args):
    return self._call(*args)


def test_a_run_says_it():
  clock = Clock(total_steps=4, steps_per_epoch=1.0, batch_size=16)
  method = Method(
    encoder=vit.Model(variant="Nu", patch_size=16, image_size=32, depth=1, width=16, heads=1),
    clock=clock,
    hidden=16,
    dim=8,
  )
  work = lab.train_step(method, lab.recipe())
  full = _Full(**{name: getattr(work, name) for name in TrainStep.__dataclass_fields__})
  batch = lab.phantoms()
  state = work.init(work.batch_spec({}, batch))
  batches = jax.tree.map(lambda x: np.broadcast_to(x, (work.block, *x.shape)), batch)
  loader = types.SimpleNamespace(data={}, batch_size=16, storage="cached")
  with pytest.raises(UserError, match=r"16 images does not fit .*config\.accumulate=2"):
    dispatch.dispatch(full, loader, state, batches, 1, wait=True)
