"""The training loop. There is one; fine-tuning and probing are other methods, not other loops."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.training import out_of_memory, peers
from cxrjax.training.checkpoint import Checkpoints
from cxrjax.training.divergence import DivergenceMonitor
from cxrjax.training.preemption import PreemptionHandler
from cxrjax.training.train_step import State, Trainer


@runtime_checkable
class Writer(Protocol):
  """Where the numbers go; `cxrjax.report.run_writer.Writer` is one."""

  def scalars(self, step: int, epoch: float, values: Mapping[str, float]) -> None: ...

  def truncate(self, step: int) -> int: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """`run(step, state)` every `every` steps, at step 0 and at the end.

  It returns a score, higher is better, that decides which checkpoint is the best; or None.
  """

  every: int
  run: Callable[[int, State], float | None]


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """How a call of `train` ended.

  Attributes:
    state: after the last step taken.
    step: how many steps it holds.
    stopped: the signal that ended it early, or None.
    timing: seconds and rates of this call.
    remarks: what the user should know, e.g. of a damaged checkpoint.
  """

  state: State
  step: int
  stopped: int | None
  timing: dict[str, float]
  remarks: list[str]


class Throughput:
  """Times dispatches, leaving out what is not training."""

  def __init__(self) -> None:
    self.images, self.seconds, self.host = 0, 0.0, 0.0
    self.host_images = 0
    self._since: float | None = None

  def pause(self) -> None:
    self._since = None

  def tick(self, images: int) -> float | None:
    """Images a second since the last tick; None for the first after a pause."""
    now, since = time.perf_counter(), self._since
    self._since = now
    if since is None:
      return None
    self.images += images
    self.seconds += now - since
    return images / (now - since)


Fresh = tuple[State, float]  # the state before the first step; seconds that compiling steps took


def begin(trainer: Trainer, loader: Any) -> Callable[[], Fresh] | None:
  """Draws the parameters and compiles the step, while the caller reads images that judge, say.

  Returns:
    What waits for the result and hands it over, once. None with several devices: programs that
    speak to each other must start in the same order everywhere.
  """
  if trainer.mesh.size > 1:
    return None

  def made() -> Fresh:
    state = trainer.init(trainer.batch_spec(loader.data, loader[0]))
    if trainer.block == 1 or loader.storage != "resident":
      return state, 0.0  # a call would take a step, or read images
    began = time.perf_counter()
    # Compiles, takes no step of the block and hands the state back as it was.
    state, _ = _dispatch(trainer, loader, state, loader.block(0, trainer.block), 0, wait=True)
    return state, time.perf_counter() - began

  pool = concurrent.futures.ThreadPoolExecutor(1, "cxrjax-compile")
  kept = [pool.submit(made)]  # not longer than until it is asked for: it may be large
  pool.shutdown(wait=False)
  return lambda: kept.pop().result()


def train(
  trainer: Trainer,
  loader: Any,
  clock: Clock,
  *,
  checkpoints: Checkpoints,
  writer: Writer,
  evaluations: Mapping[str, Evaluation],
  log_every: int,
  save_every: int,
  watch: DivergenceMonitor,
  begun: Callable[[], Fresh] | None = None,
  progress: bool = True,
  say: Callable[[str], None] = lambda line: None,
) -> TrainResult:
  """Runs from the newest checkpoint (or the beginning) to the end, or to a signal.

  Args:
    trainer: the step.
    loader: see `cxrjax.data.loading.loader.Loader`.
    clock: length of the run.
    checkpoints: where to resume from and save to.
    writer: where metrics go.
    evaluations: by name.
    log_every: steps between lines of metrics.
    save_every: steps between checkpoints.
    watch: stops a run that is lost.
    begun: from `begin`, where it was called before.
    progress: show a bar on stderr.
    say: takes what the user should know before the first step.

  Raises:
    Diverged: NaN, or a collapse. Nothing after the last healthy checkpoint has been saved.
    UserError: a checkpoint could not be written or read.
  """
  began = time.perf_counter()
  spec = trainer.batch_spec(loader.data, loader[0])
  state, remarks = checkpoints.restore(trainer.abstract(spec))
  first, compile_s = begun() if begun else (None, 0.0)
  if state is None:
    state = trainer.init(spec) if first is None else first
  del first
  step = int(state["step"])
  known = writer.truncate(step)
  if step:
    say(f"resumed from step {step:,} of {clock.total_steps:,}")
    wanted = step // log_every + (step == clock.total_steps and step % log_every > 0)
    if known < wanted:
      remarks.append(
        f"metrics.jsonl lacks {wanted - known} of {wanted} lines of the steps up to {step}: it was "
        "deleted or changed, and curves are drawn without them"
      )
  for remark in remarks:
    say(f"note: {remark}")
  scores = {}
  if step == 0:
    for evaluation in evaluations.values():
      evaluation.run(0, state)

  size, block, total = clock.batch_size, trainer.block, clock.total_steps
  stops = [log_every, save_every, *(e.every for e in evaluations.values())]
  meter, pending = Throughput(), None
  bar = tqdm(
    total=total * size,
    initial=step * size,
    unit="img",
    unit_scale=True,
    disable=not progress,
    dynamic_ncols=True,
    smoothing=0.1,
  )
  log: list[tuple[int, int, Any]] = []  # dispatches whose metrics have not been read

  def flush(until: int = 0) -> None:
    """Reads, judges and writes metrics of all but the newest `until` dispatches."""
    while len(log) > until:
      first, count, metrics = log.pop(0)
      values = {k: np.asarray(v)[:count] for k, v in metrics.items()}
      rate = meter.tick(count * size)
      bar.update(count * size)
      watch.check(first, values)
      last = first + count
      mean = {k: float(np.mean(v)) for k, v in values.items()}
      window.append((count, mean, rate))
      if last % log_every == 0 or last == total:
        weights = [c for c, _, _ in window]
        means = {k: float(np.average([m[k] for _, m, _ in window], weights=weights)) for k in mean}
        rates = [r for _, _, r in window if r]
        if rates:
          means["images_per_s"] = float(np.median(rates))
        window.clear()
        writer.scalars(last, clock.epoch(last), means)
        bar.set_postfix_str(f"loss {means['loss']:.3f}", refresh=False)

  window: list[tuple[int, dict[str, float], float | None]] = []
  batches = _batches(loader, step, total, block, meter)
  with PreemptionHandler() as stopping, bar:
    while step < total:
      boundary = min(total, *((step // n + 1) * n for n in stops))
      count = min(block, boundary - step)
      batch = batches(step)
      started = time.perf_counter()
      state, metrics = _dispatch(trainer, loader, state, batch, count, wait=not compile_s)
      if not compile_s:
        compile_s = time.perf_counter() - started
      log.append((step, count, metrics))
      step += count
      flush(until=1)
      pending = _agreed(stopping.signal, step % log_every == 0 or step == total)
      evaluate = [e for e in evaluations.values() if step % e.every == 0 or step == total]
      if evaluate or step % save_every == 0 or step == total or pending:
        flush()  # never save or judge a state whose loss has not been looked at
        meter.pause()
        scores = {
          name: e.run(step, state)
          for name, e in evaluations.items()
          if e in evaluate and not pending
        }
        if scores:  # they take long enough for a signal to come
          pending = _agreed(stopping.signal, True)
        if step % save_every == 0 or step == total or pending:
          checkpoints.save(step, state, next((s for s in scores.values() if s is not None), None))
        peers.meet()
      if pending:
        break
  checkpoints.wait()
  timing = {
    "compile_s": compile_s,
    "total_s": time.perf_counter() - began,
    "images_per_s": meter.images / meter.seconds if meter.seconds else float("nan"),
    "host_ms_per_image": 1e3 * meter.host / max(meter.host_images, 1),
  }
  return TrainResult(state, step, pending, timing, remarks)


def _dispatch(
  trainer: Trainer, loader: Any, state: State, batches: Any, count: int, wait: bool
) -> tuple[State, Any]:
  """The next steps.

  Args:
    trainer: the step.
    loader: its data.
    state: donated.
    batches: of a whole block.
    count: how many of them to take.
    wait: for the result; what does not fit into memory may show only then.

  Raises:
    UserError: the step does not fit into a device's memory.
  """

  def call() -> tuple[State, Any]:
    if wait and jax.process_count() > 1:  # the call below finds what is compiled here
      trainer.run.lower(state, loader.data, batches, np.int32(count)).compile()
      peers.meet()
    found = trainer.run(state, loader.data, batches, np.int32(count))
    return jax.block_until_ready(found) if wait else found

  def why(error: Exception) -> UserError:
    shapes = jax.tree.map(  # the arrays themselves may be gone
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    try:  # from JAX's cache, where the program could be compiled
      program = trainer.run.lower(shapes, loader.data, batches, np.int32(count)).compile()
      analysis = program.memory_analysis()
      peak = None if analysis is None else float(analysis.peak_memory_in_bytes)
    except jax.errors.JaxRuntimeError:
      peak = None
    device = trainer.mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    here = sum(x.nbytes for x in jax.tree.leaves(loader.data)) / trainer.mesh.size
    parts = jax.tree.leaves(
      jax.tree.map(lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize, shapes)
    )
    return out_of_memory.out_of_memory(
      error,
      images=loader.batch_size,
      accumulate=trainer.accumulate,
      devices=trainer.mesh.size,
      remat=getattr(trainer.method.encoder, "remat", None),
      resident_bytes=int(here) if loader.storage == "resident" else 0,
      fixed=float(sum(parts)) + here,
      peak=peak,
      limit=limit,
    )

  return out_of_memory.guarded(call, why)


def _agreed(signal: int | None, asking: bool) -> int | None:
  """The signal that any process has seen, at a step at which all processes ask."""
  if jax.process_count() == 1:
    return signal
  if not asking:
    return None
  seen = multihost_utils.process_allgather(np.int32(signal or 0))
  return int(np.max(seen)) or None


def _batches(
  loader: Any, start: int, stop: int, block: int, meter: Throughput
) -> Callable[[int], Any]:
  """`batches(step)`: the next `block` steps' batches, with the host's share of the time noted."""
  stream: Iterator[Any] | None = None
  if loader.storage != "resident":
    stream = iter(loader.iterate(start, stop, block=1))

  def get(step: int) -> Any:
    began = time.perf_counter()
    if stream is None:
      batch = loader.block(step, block)
    else:
      at, _, batch = next(stream)
      assert at == step, (at, step)
    meter.host += time.perf_counter() - began
    meter.host_images += block * loader.batch_size
    return batch

  return get
