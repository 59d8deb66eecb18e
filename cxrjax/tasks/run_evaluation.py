"""Evaluates a run before, during and after training, and writes the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cxrjax.evals.base import Evaluator, Result
from cxrjax.report.run_writer import Writer
from cxrjax.tasks.training_run import Run
from cxrjax.training.checkpoint import Checkpoints
from cxrjax.training.loop import Evaluation, TrainResult
from cxrjax.training.train_step import State

CHOSEN = "chosen"  # an evaluator's `every`: once, after training, on the best checkpoint


def thumbnail_baselines(run: Run, writer: Writer) -> None:
  """Evaluates the thumbnail baseline of every evaluator, once per run."""
  for name, evaluator in run.evaluators.items():
    if not _has_result(writer, name, "floor"):
      result = evaluator.floor(run.eval_data[name])
      if result is not None:
        _write(writer, 0, 0.0, name, "floor", result)


def during_training(run: Run, writer: Writer, written: Callable[[], Any]) -> dict[str, Evaluation]:
  """Evaluators that run during training, by name; `written()` is called after each result."""

  def evaluation(name: str, evaluator: Evaluator) -> Evaluation:
    def evaluate(step: int, state: State) -> float | None:
      result = run.evaluate(name, state)
      encoder = "random" if step == 0 else "trained"
      _write(writer, step, run.clock.epoch(step), name, encoder, result)
      written()
      score = result.scores.get(run.config["checkpoint"]["score"])
      return None if score is None or np.isnan(score) else score

    return Evaluation(run.interval(evaluator.every, f"config.evals.{name}.every"), evaluate)

  return {name: evaluation(name, e) for name, e in run.evaluators.items() if e.every != CHOSEN}


def chosen_checkpoint(
  run: Run, writer: Writer, checkpoints: Checkpoints, outcome: TrainResult
) -> State:
  """Runs the evaluators that wait for the end of training, on the checkpoint with the best score.

  Returns:
    That checkpoint's state; the last state where no evaluator waits.
  """
  waiting = [name for name, e in run.evaluators.items() if e.every == CHOSEN]
  if not waiting or outcome.stopped:
    return outcome.state
  step, state = checkpoints.best, outcome.state
  if step is None:
    step = outcome.step
  elif step != outcome.step:
    state = checkpoints.load(step, run.train_step.abstract(run.spec))
  for name in waiting:
    if not _has_result(writer, name, "trained"):
      _write(writer, step, run.clock.epoch(step), name, "trained", run.evaluate(name, state))
  score = run.config["checkpoint"]["score"]
  writer.facts(chosen={"step": step, "by": score, "evaluators": waiting})
  return state


def _write(
  writer: Writer, step: int, epoch: float, name: str, encoder: str, result: Result
) -> None:
  """Writes scores (for ROC curves) and facts, then metrics, which mark the evaluation as done."""
  threshold = result.facts.get("linear", {}).get("threshold")
  thresholds = {} if threshold is None else {"threshold": np.asarray(threshold)}
  writer.arrays(f"scores_{name}_{encoder}", **result.arrays, **thresholds)
  writer.facts(evaluation={name: {encoder: result.facts}})
  writer.results(step, epoch, name, encoder, result.metrics)


def _has_result(writer: Writer, name: str, encoder: str) -> bool:
  """Whether a result was written before the run was stopped; process 0 decides for all."""
  exists = writer.has(name, encoder)
  if jax.process_count() > 1:
    exists = bool(multihost_utils.broadcast_one_to_all(np.bool_(exists)))
  return exists
