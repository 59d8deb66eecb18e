"""The training loop. There is only one: fine-tuning and probing are methods, not other loops."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from cxrjax.core.durations import Clock
from cxrjax.training import peers
from cxrjax.training.checkpoint import Checkpoints
from cxrjax.training.dispatch import Start, dispatch
from cxrjax.training.divergence import DivergenceMonitor
from cxrjax.training.preemption import PreemptionHandler
from cxrjax.training.train_step import State, TrainStep


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
  """Outcome of `TrainLoop.run`.

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


@dataclasses.dataclass(frozen=True)
class TrainLoop:
  """Trains from the newest checkpoint (or the beginning) to the end, or until a signal.

  Attributes:
    train_step: what is repeated.
    loader: see `cxrjax.data.loading.loader.Loader`.
    clock: length of the run.
    checkpoints: where to resume from and save to.
    writer: where metrics go.
    evaluations: by name.
    log_every: steps between lines of metrics.
    save_every: steps between checkpoints.
    monitor: stops a run that has diverged.
    progress: show a bar on stderr.
    say: prints what the user should know before the first step.
  """

  train_step: TrainStep
  loader: Any
  clock: Clock
  checkpoints: Checkpoints
  writer: Writer
  evaluations: Mapping[str, Evaluation]
  log_every: int
  save_every: int
  monitor: DivergenceMonitor
  progress: bool = True
  say: Callable[[str], None] = lambda line: None

  def run(self, pending_start: Callable[[], Start] | None = None) -> TrainResult:
    """Runs the loop.

    Args:
      pending_start: from `compile_in_background`, if that was called.

    Raises:
      Diverged: NaN, or a collapse. Nothing has been saved since the last healthy checkpoint.
      UserError: a checkpoint could not be written or read.
    """
    began = time.perf_counter()
    state, compile_s, remarks = self._start(pending_start)
    step, total, block = int(state["step"]), self.clock.total_steps, self.train_step.block
    intervals = [self.log_every, self.save_every, *(e.every for e in self.evaluations.values())]
    throughput, signal = Throughput(), None
    batches = _batch_getter(self.loader, step, total, block, throughput)
    with PreemptionHandler() as preemption, self._progress_bar(step) as bar:
      log = MetricLog(self.clock, self.log_every, self.monitor, self.writer, throughput, bar)
      while step < total and not signal:
        next_event = min(total, *((step // n + 1) * n for n in intervals))
        count, batch = min(block, next_event - step), batches(step)
        called = time.perf_counter()
        state, metrics = dispatch(
          self.train_step, self.loader, state, batch, count, wait=not compile_s
        )
        compile_s = compile_s or time.perf_counter() - called
        log.add(step, count, metrics)
        step += count
        log.flush(keep=1)
        is_last = step == total
        signal = _agree_on_signal(preemption.signal, step % self.log_every == 0 or is_last)
        due = {k: e for k, e in self.evaluations.items() if step % e.every == 0 or is_last}
        saves = step % self.save_every == 0 or is_last
        if due or saves or signal:
          log.flush()  # never save or evaluate a state whose loss has not been checked
          throughput.pause()
          scores = [] if signal else [e.run(step, state) for e in due.values()]
          if scores:  # evaluations take long enough for a signal to arrive
            signal = _agree_on_signal(preemption.signal, True)
          if saves or signal:
            self.checkpoints.save(step, state, next((s for s in scores if s is not None), None))
          peers.barrier()
    self.checkpoints.wait()
    timing = {"compile_s": compile_s, "total_s": time.perf_counter() - began}
    return TrainResult(state, step, signal, timing | throughput.summary(), remarks)

  def _start(self, pending_start: Callable[[], Start] | None) -> tuple[State, float, list[str]]:
    """Restores or initialises the state, which is evaluated at step 0.

    Returns:
      The state, the seconds spent compiling, and remarks on what is damaged or missing.
    """
    spec = self.train_step.batch_spec(self.loader.data, self.loader[0])
    state, remarks = self.checkpoints.restore(self.train_step.abstract(spec))
    fresh, compile_s = pending_start() if pending_start else (None, 0.0)
    if state is None:
      state = self.train_step.init(spec) if fresh is None else fresh
    step, total = int(state["step"]), self.clock.total_steps
    logged = self.writer.truncate(step)
    if step:
      self.say(f"resumed from step {step:,} of {total:,}")
      expected = step // self.log_every + (step == total and step % self.log_every > 0)
      if logged < expected:
        remarks.append(
          f"metrics.jsonl lacks {expected - logged} of {expected} lines up to step {step}: "
          "it was deleted or changed; curves are drawn without them"
        )
    for remark in remarks:
      self.say(f"note: {remark}")
    if step == 0:
      for evaluation in self.evaluations.values():
        evaluation.run(0, state)
    return state, compile_s, remarks

  def _progress_bar(self, step: int) -> tqdm:
    """A bar in images, `step` steps of which are done."""
    return tqdm(
      total=self.clock.total_steps * self.clock.batch_size,
      initial=step * self.clock.batch_size,
      unit="img",
      unit_scale=True,
      disable=not self.progress,
      dynamic_ncols=True,
      smoothing=0.1,
    )


class Throughput:
  """Images per second of training; pauses for evaluations and checkpoints."""

  def __init__(self) -> None:
    self.images, self.seconds = 0, 0.0
    self.host_images, self.host_seconds = 0, 0.0
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

  def summary(self) -> dict[str, float]:
    """Mean rate, and the host's time for an image."""
    return {
      "images_per_s": self.images / self.seconds if self.seconds else float("nan"),
      "host_ms_per_image": 1e3 * self.host_seconds / max(self.host_images, 1),
    }


class MetricLog:
  """Metrics of dispatched steps, which are read when they are ready, checked, and written as means.

  Args:
    clock: length of the run.
    every: steps between lines of metrics.
    monitor: checks all metrics.
    writer: receives the lines.
    throughput: measures the time between dispatches.
    bar: shows progress and loss.
  """

  def __init__(
    self,
    clock: Clock,
    every: int,
    monitor: DivergenceMonitor,
    writer: Writer,
    throughput: Throughput,
    bar: tqdm,
  ) -> None:
    self.clock, self.every, self.monitor = clock, every, monitor
    self.writer, self.throughput, self.bar = writer, throughput, bar
    self._unread: list[tuple[int, int, Any]] = []
    # Since the last line: steps of each dispatch, their mean metrics and images per second.
    self._window: list[tuple[int, dict[str, float], float | None]] = []

  def add(self, first: int, count: int, metrics: Any) -> None:
    """Adds the metrics of a dispatch of `count` steps, which may still be running."""
    self._unread.append((first, count, metrics))

  def flush(self, keep: int = 0) -> None:
    """Reads, checks and writes the metrics of all but the newest `keep` dispatches."""
    while len(self._unread) > keep:
      first, count, metrics = self._unread.pop(0)
      values = {k: np.asarray(v)[:count] for k, v in metrics.items()}
      rate = self.throughput.tick(count * self.clock.batch_size)
      self.bar.update(count * self.clock.batch_size)
      self.monitor.check(first, values)
      self._window.append((count, {k: float(np.mean(v)) for k, v in values.items()}, rate))
      step = first + count
      if step % self.every == 0 or step == self.clock.total_steps:
        self._write(step)

  def _write(self, step: int) -> None:
    counts, means, rates = zip(*self._window, strict=True)
    self._window.clear()
    line = {k: float(np.average([m[k] for m in means], weights=counts)) for k in means[-1]}
    if measured := [rate for rate in rates if rate]:
      line["images_per_s"] = float(np.median(measured))
    self.writer.scalars(step, self.clock.epoch(step), line)
    self.bar.set_postfix_str(f"loss {line['loss']:.3f}", refresh=False)


def _agree_on_signal(signal: int | None, asking: bool) -> int | None:
  """The signal that any process has received; collective at steps where all are `asking`."""
  if jax.process_count() == 1:
    return signal
  if not asking:
    return None
  signals = multihost_utils.process_allgather(np.int32(signal or 0))
  return int(np.max(signals)) or None


def _batch_getter(
  loader: Any, start: int, stop: int, block: int, throughput: Throughput
) -> Callable[[int], Any]:
  """Returns `batches(step)`, the next `block` steps' batches; counts the host's time."""
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
    throughput.host_seconds += time.perf_counter() - began
    throughput.host_images += block * loader.batch_size
    return batch

  return get
