"""Dispatches training steps to the devices; the first is compiled in the background."""

from __future__ import annotations

import concurrent.futures
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.training import out_of_memory, peers
from cxrjax.training.train_step import State, TrainStep

Start = tuple[State, float]  # state before the first step, seconds spent compiling


def compile_in_background(train_step: TrainStep, loader: Any) -> Callable[[], Start] | None:
  """Initialises the state and compiles the step in a thread, e.g. while evaluation images load.

  Returns:
    A function that waits for the result and returns it; to be called once. None with several
    devices: programs that communicate must start in the same order on all of them.
  """
  if train_step.mesh.size > 1:
    return None

  def initialize() -> Start:
    state = train_step.init(train_step.batch_spec(loader.data, loader[0]))
    if train_step.block == 1 or loader.storage != "resident":
      return state, 0.0  # compiling by a call would take a step, or read images
    began = time.perf_counter()
    # With a count of 0 the call compiles, takes no step and returns the state unchanged.
    batches = loader.block(0, train_step.block)
    state, _ = dispatch(train_step, loader, state, batches, 0, wait=True)
    return state, time.perf_counter() - began

  pool = concurrent.futures.ThreadPoolExecutor(1, "cxrjax-compile")
  futures = [pool.submit(initialize)]  # emptied on delivery: the state may be large
  pool.shutdown(wait=False)
  return lambda: futures.pop().result()


def dispatch(
  train_step: TrainStep, loader: Any, state: State, batches: Any, count: int, wait: bool
) -> tuple[State, Any]:
  """Runs the next `count` steps.

  Args:
    train_step: of the run.
    loader: its data.
    state: donated.
    batches: of a whole block.
    count: number of steps to take.
    wait: block until the result is ready; running out of memory may show only then.

  Raises:
    UserError: the step does not fit into a device's memory.
  """

  def call() -> tuple[State, Any]:
    if wait and jax.process_count() > 1:  # the call below finds this in the cache
      train_step.run.lower(state, loader.data, batches, np.int32(count)).compile()
      peers.barrier()
    outputs = train_step.run(state, loader.data, batches, np.int32(count))
    return jax.block_until_ready(outputs) if wait else outputs

  return out_of_memory.guarded(
    call, lambda error: _memory_error(error, train_step, loader, state, batches)
  )


def _memory_error(
  error: Exception, train_step: TrainStep, loader: Any, state: State, batches: Any
) -> UserError:
  """The error for a step that does not fit, with what the compiler and the device report."""
  shapes = jax.tree.map(  # the arrays may already be donated
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  try:  # cached by JAX if the program could be compiled
    program = train_step.run.lower(shapes, loader.data, batches, np.int32(1)).compile()
    analysis = program.memory_analysis()
    peak = None if analysis is None else float(analysis.peak_memory_in_bytes)
  except jax.errors.JaxRuntimeError:
    peak = None
  data_bytes = sum(x.nbytes for x in jax.tree.leaves(loader.data)) / train_step.mesh.size
  state_bytes = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes)
  )
  return out_of_memory.out_of_memory(
    error,
    images=loader.batch_size,
    accumulate=train_step.accumulate,
    devices=train_step.mesh.size,
    remat=train_step.method.encoder.remat,
    resident_bytes=int(data_bytes) if loader.storage == "resident" else 0,
    fixed=state_bytes + data_bytes,
    peak=peak,
    limit=(train_step.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit"),
  )
