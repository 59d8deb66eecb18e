"""The training loop. There is only one: fine-tuning and probing are methods, not other loops."""

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
  """Receives the metrics of a run; implemented by `cxrjax.report.run_writer.Writer`."""

  def scalars(self, step: int, epoch: float, values: Mapping[str, float]) -> None: ...

  def truncate(self, step: int) -> int: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluator that is called every `every` steps, at step 0 and at the end.

  `run(step, state)` returns the score by which the best checkpoint is chosen (higher is better), or
  None.
  """

  every: int
  run: Callable[[int, State], float | None]


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """Outcome of a call of `train`.

  Attributes:
    state: after the last step taken.
    step: number of steps taken since the beginning of the run.
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
  """Images per second of training; pauses for evaluations and checkpoints."""

  def __init__(self) -> None:
    self.images, self.seconds, self.host = 0, 0.0, 0.0
    self.host_images = 0
    self._since: float | None = None

  def pause(self) -> None:
    self._since = None

  def tick(self, images: int) -> float | None:
    """Images per second since the last tick; None for the first tick after a pause."""
    now, since = time.perf_counter(), self._since
    self._since = now
    if since is None:
      return None
    self.images += images
    self.seconds += now - since
    return images / (now - since)


Fresh = tuple[State, float]  # state before the first step, seconds spent compiling


def compile_in_background(trainer: Trainer, loader: Any) -> Callable[[], Fresh] | None:
  """Initialises the state and compiles the step in a thread, e.g. while evaluation images load.

  Returns:
    A function that waits for the result and returns it; to be called once. None with several
    devices: programs that communicate must start in the same order on all of them.
  """
  if trainer.mesh.size > 1:
    return None

  def initialize() -> Fresh:
    state = trainer.init(trainer.batch_spec(loader.data, loader[0]))
    if trainer.block == 1 or loader.storage != "resident":
      return state, 0.0  # compiling by a call would take a step, or read images
    began = time.perf_counter()
    # With a count of 0 the call compiles, takes no step and returns the state unchanged.
    state, _ = _dispatch(trainer, loader, state, loader.block(0, trainer.block), 0, wait=True)
    return state, time.perf_counter() - began

  pool = concurrent.futures.ThreadPoolExecutor(1, "cxrjax-compile")
  futures = [pool.submit(initialize)]  # emptied on delivery: the state may be large
  pool.shutdown(wait=False)
  return lambda: futures.pop().result()


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
  """Trains from the newest checkpoint (or the beginning) to the end, or until a signal.

  Args:
    trainer: the training step.
    loader: see `cxrjax.data.loading.loader.Loader`.
    clock: length of the run.
    checkpoints: where to resume from and save to.
    writer: where metrics go.
    evaluations: by name.
    log_every: steps between lines of metrics.
    save_every: steps between checkpoints.
    watch: stops a run that has diverged.
    begun: from `begin`, if that was called.
    progress: show a bar on stderr.
    say: prints what the user should know before the first step.

  Raises:
    Diverged: NaN, or a collapse. Nothing has been saved since the last healthy checkpoint.
    UserError: a checkpoint could not be written or read.
  """
  began = time.perf_counter()
  spec = trainer.batch_spec(loader.data, loader[0])
  state, remarks = checkpoints.restore(trainer.abstract(spec))
  fresh, compile_s = begun() if begun else (None, 0.0)
  if state is None:
    state = trainer.init(spec) if fresh is None else fresh
  del fresh
  step = int(state["step"])
  logged = writer.truncate(step)
  if step:
    say(f"resumed from step {step:,} of {clock.total_steps:,}")
    expected = step // log_every + (step == clock.total_steps and step % log_every > 0)
    if logged < expected:
      remarks.append(
        f"metrics.jsonl lacks {expected - logged} of {expected} lines of the steps up to {step}: "
        "it was deleted or changed, and curves are drawn without them"
      )
  for remark in remarks:
    say(f"note: {remark}")
  scores = {}
  if step == 0:
    for evaluation in evaluations.values():
      evaluation.run(0, state)

  size, block, total = clock.batch_size, trainer.block, clock.total_steps
  intervals = [log_every, save_every, *(e.every for e in evaluations.values())]
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
  log: list[tuple[int, int, Any]] = []  # dispatches whose metrics are still unread

  def flush(until: int = 0) -> None:
    """Reads, checks and writes the metrics of all but the newest `until` dispatches."""
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
  batches = _batch_getter(loader, step, total, block, meter)
  with PreemptionHandler() as preemption, bar:
    while step < total:
      boundary = min(total, *((step // n + 1) * n for n in intervals))
      count = min(block, boundary - step)
      batch = batches(step)
      started = time.perf_counter()
      state, metrics = _dispatch(trainer, loader, state, batch, count, wait=not compile_s)
      if not compile_s:
        compile_s = time.perf_counter() - started
      log.append((step, count, metrics))
      step += count
      flush(until=1)
      pending = _agree_on_signal(preemption.signal, step % log_every == 0 or step == total)
      due = [e for e in evaluations.values() if step % e.every == 0 or step == total]
      if due or step % save_every == 0 or step == total or pending:
        flush()  # never save or evaluate a state whose loss has not been checked
        meter.pause()
        scores = {
          name: e.run(step, state) for name, e in evaluations.items() if e in due and not pending
        }
        if scores:  # evaluations take long enough for a signal to arrive
          pending = _agree_on_signal(preemption.signal, True)
        if step % save_every == 0 or step == total or pending:
          score = next((s for s in scores.values() if s is not None), None)
          checkpoints.save(step, state, score)
        peers.barrier()
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
  """Runs the next `count` steps.

  Args:
    trainer: the training step.
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
      trainer.run.lower(state, loader.data, batches, np.int32(count)).compile()
      peers.barrier()
    outputs = trainer.run(state, loader.data, batches, np.int32(count))
    return jax.block_until_ready(outputs) if wait else outputs

  def explain(error: Exception) -> UserError:
    shapes = jax.tree.map(  # the arrays may already be donated
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    try:  # cached by JAX if the program could be compiled
      program = trainer.run.lower(shapes, loader.data, batches, np.int32(count)).compile()
      analysis = program.memory_analysis()
      peak = None if analysis is None else float(analysis.peak_memory_in_bytes)
    except jax.errors.JaxRuntimeError:
      peak = None
    device = trainer.mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    data_bytes = sum(x.nbytes for x in jax.tree.leaves(loader.data)) / trainer.mesh.size
    state_bytes = jax.tree.leaves(
      jax.tree.map(lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize, shapes)
    )
    return out_of_memory.out_of_memory(
      error,
      images=loader.batch_size,
      accumulate=trainer.accumulate,
      devices=trainer.mesh.size,
      remat=getattr(trainer.method.encoder, "remat", None),
      resident_bytes=int(data_bytes) if loader.storage == "resident" else 0,
      fixed=float(sum(state_bytes)) + data_bytes,
      peak=peak,
      limit=limit,
    )

  return out_of_memory.guarded(call, explain)


def _agree_on_signal(signal: int | None, asking: bool) -> int | None:
  """The signal that any process has received; collective at steps where all are `asking`."""
  if jax.process_count() == 1:
    return signal
  if not asking:
    return None
  signals = multihost_utils.process_allgather(np.int32(signal or 0))
  return int(np.max(signals)) or None


def _batch_getter(
  loader: Any, start: int, stop: int, block: int, meter: Throughput
) -> Callable[[int], Any]:
  """Returns `batches(step)`, the next `block` steps' batches; `meter` records the host's time."""
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
