"""Trains a method on a source, evaluates it as it goes, and writes the report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cxrjax import data as sources
from cxrjax.config.instantiate import build, freeze
from cxrjax.core import files
from cxrjax.core.command import say
from cxrjax.core.durations import tabulate
from cxrjax.core.errors import UserError
from cxrjax.core.memory import peak
from cxrjax.data.base import Source
from cxrjax.data.images import Images
from cxrjax.data.loading.loader import Loader
from cxrjax.evals.eval_splits import Data
from cxrjax.explain import feature_artifacts, saliency_artifacts
from cxrjax.inference import pseudo_masks
from cxrjax.methods.base import Labels
from cxrjax.models.module import param_count
from cxrjax.report import terminal
from cxrjax.report.pages import run_page
from cxrjax.report.run_files import environment
from cxrjax.report.run_writer import FACTS, FULL, Writer, now
from cxrjax.tasks import leakage_checks
from cxrjax.training import init_params, learnt_from, peers, sharding, step_flops
from cxrjax.training import workdir as workdirs
from cxrjax.training.build import build_trainer, learns_from
from cxrjax.training.checkpoint import Checkpoints
from cxrjax.training.divergence import Diverged, DivergenceMonitor
from cxrjax.training.loop import Evaluation, TrainResult, compile_in_background, train
from cxrjax.training.train_step import State

CHOSEN = "chosen"  # an evaluator's `every`: once, after training, on the best checkpoint


class Run:
  """All parts of a training run, built from its config: data, trainer, evaluators."""

  def __init__(self, config: Mapping[str, Any], progress: bool = True) -> None:
    self.config = config
    self.progress = progress and jax.process_index() == 0
    batch_size, seed = config["batch_size"], config["seed"]
    if batch_size < 1:
      raise UserError(f"config.batch_size={batch_size} must be at least 1")
    self.mesh = sharding.make_mesh(config["mesh"]["fsdp"])

    recipe = build(config["views"], "Recipe", "config.views")  # first, as it fails cheaply
    recipe.check(config["data"]["size"])
    data = config["data"]
    masked, segmenter = pseudo_masks.parse_option(data.get("masks"))
    if masked and "masks" not in inspect.signature(recipe.__call__).parameters:
      raise UserError(
        f"config.views.name={config['views']['name']!r} takes no lung masks; set "
        "config.data.masks='', or choose 'cxrjax.views.multicrop'"
      )
    self.source = source = sources.open_source(
      freeze(data["source"]),
      split=data["split"],
      subset=data.get("subset") or None,
      fold=data.get("fold") or None,
      split_seed=data.get("split_seed", 0),
      labelled=data.get("labelled") or None,
      labelled_share=data.get("labelled_share", 0.0),
      **freeze(data.get("options", {})),
    )
    options = {
      "size": data["size"],
      "fit": data["fit"],
      "cache_dir": data["cache_dir"] or None,
      "on_bad_image": data["on_bad_image"],
      "bits": data.get("bits", "auto"),
      "window": freeze(data.get("window", "auto")),
      "progress": self.progress,
    }
    self.masks_owned: int | None = None
    training_data: Source | Images = source
    if segmenter:  # masks are predicted for all decoded images before the loader starts
      images = sources.load_images(source, **options)
      self.masks_owned = pseudo_masks.count(images)
      training_data = pseudo_masks.fill(
        images,
        segmenter,
        cache_dir=options["cache_dir"],
        mesh=self.mesh,
        progress=self.progress,
        look=[options["fit"], options["window"]],
      )
    self.loader = Loader(
      training_data,
      batch_size=batch_size,
      seed=seed,
      mesh=self.mesh,
      storage=data["storage"],
      masks=masked,
      repeat=data.get("repeat", False),
      **options,
    )
    if masked and self.masks_owned is None and self.loader.images is not None:
      self.masks_owned = pseudo_masks.count(self.loader.images)

    self.labels = labels_of(
      self.loader.images.table if self.loader.images is not None else self.source.table,
      self.loader.info,
    )
    trainer = build_trainer(
      config,
      self.mesh,
      examples=self.loader.num_examples,
      labels=self.labels,
      fetch=self.loader.fetch,
      resident=self.loader.storage == "resident",
    )
    self.recipe, self.method, self.optimizer = trainer.recipe, trainer.method, trainer.optimizer
    self.encoder, self.clock = self.method.encoder, self.optimizer.clock
    weights, self.started = init_params.start(config, self.encoder)
    self.trainer = dataclasses.replace(trainer, start=weights)
    self.spec = self.trainer.batch_spec(self.loader.data, self.loader[0])

    interval = functools.partial(self._interval, config)
    self.log_every, self.save_every = interval("log_every"), interval("checkpoint.every")
    self.evaluators = {
      name: build(spec, "Evaluator", f"config.evals.{name}")
      for name, spec in config["evals"].items()
    }

  def _interval(self, config: Mapping[str, Any], key: str) -> int:
    """Steps of the interval at the dotted `key` of the config, at least 1."""
    value: Any = config
    for part in key.split("."):
      value = value[part]
    return max(1, self.clock.steps(value, f"config.{key}"))

  @functools.cached_property
  def eval_data(self) -> dict[str, Any]:
    """Decoded images of every evaluator, in every process, as all compute every result."""
    cache = self.config["data"]["cache_dir"] or None
    return {
      name: e.load(cache_dir=cache, progress=self.progress) for name, e in self.evaluators.items()
    }

  def encode(self, params: Any, x: jax.Array) -> jax.Array:
    """Class-token features, `[b d]`."""
    return self.encoder.encode(params, x).cls

  def predict(self, params: Any, x: jax.Array) -> jax.Array:
    """Predictions of the method's network."""
    return self.method.predict(params, x)

  def judge(self, name: str, state: State) -> Any:
    """Runs an evaluator on the encoder's features or on the method's predictions."""
    evaluator, data = self.evaluators[name], self.eval_data[name]
    if getattr(evaluator, "judges", "features") == "features":
      function, params = self.encode, self.method.encoder_params
    else:
      function, params = self.predict, self.method.network_params
    return evaluator.run(function, params(state["params"], state["extra"]), data, mesh=self.mesh)

  @functools.cached_property
  def leaks(self) -> list[str]:
    """Remarks on patients and images shared by training and evaluation."""
    data = self.config["data"]
    evaluations = {
      name: eval_data for name, eval_data in self.eval_data.items() if isinstance(eval_data, Data)
    }
    choice = data.get("shared_patients", "error")
    path = (self.config.get("init") or {}).get("path", "")
    # Validation images only choose the checkpoint: pretraining may have seen them, unlabelled.
    tests = {
      name: eval_data
      for name, eval_data in evaluations.items()
      if getattr(self.evaluators[name], "part", "test") == "test"
    }
    return [
      *leakage_checks.shared_patients(self.source, evaluations, choice),
      *leakage_checks.seen_in_pretraining(path, tests, choice, data["cache_dir"] or None),
      *leakage_checks.near_duplicates(self.loader, evaluations, data.get("near_duplicates", 0)),
    ]

  def describe(self) -> dict[str, Any]:
    """Facts for the report and for the summary printed before the run."""
    evals = {name: e.describe(self.eval_data[name]) for name, e in self.evaluators.items()}
    shapes = self.trainer.abstract(self.spec)
    encoder = self.method.encoder_params(shapes["params"], shapes["extra"])
    device = self.mesh.devices.flat[0]
    schedules = {
      name: tabulate(schedule, self.clock.total_steps)
      for name, schedule in {**self.optimizer.schedules, **self.method.schedules}.items()
    }
    return {
      "device": {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": self.mesh.size,
        "processes": jax.process_count(),
      },
      "model": {
        "name": self.config["model"]["name"],
        "variant": self.config["model"].get("variant", ""),
        "parameters": param_count(encoder),
        "trained_parameters": param_count(shapes["params"]),
        "flops_per_image": self._flops_per_image(),
      },
      "method": self.config["method"]["name"].rpartition(".")[2],
      "learns_from": learns_from(self.config["method"]),
      "data": {"train": self._describe_data(), **evals},
      "steps": self.clock.total_steps,
      "epochs": self.clock.epoch(self.clock.total_steps),
      "batch_size": self.clock.batch_size,
      "schedules": {n: {"step": step, "value": value} for n, (step, value) in schedules.items()},
      **self.started,
    }

  def _flops_per_image(self) -> float:
    """FLOPs of a training step per image, NaN where a user's method hides them from the count."""
    try:
      return step_flops.training(self.config, self.clock.num_examples, self.labels)
    except ValueError:
      return math.nan

  def _describe_data(self) -> dict[str, Any]:
    info = self.loader.info
    table = self.loader.images if self.loader.images is not None else self.source.table
    labels = self.labels
    patients = set(table.patients)
    return {
      "name": info.name,
      "split": info.split,
      "n": self.loader.num_examples,
      "storage": self.loader.storage,
      "bits": self.loader.bits,
      "classes": list(info.classes),
      "exclusive": labels.exclusive,
      "class_counts": dict(zip(labels.classes, labels.positive, strict=True)),
      "class_known": dict(zip(labels.classes, labels.known, strict=True)),
      "patients": len(patients) if all(patients) else None,
      "fingerprint": info.fingerprint,
      "splits": dict(info.splits),
      "notes": [*info.notes, *self.loader.notes, *absent_class_notes(labels), *self.leaks],
      **self._describe_masks(),
      "skipped": [list(s) for s in (*info.skipped, *self.loader.skipped)],
      "size": self.config["data"]["size"],
      "fit": self.config["data"]["fit"],
    }

  def _describe_masks(self) -> dict[str, Any]:
    """Number of images by the origin of their lung mask."""
    if self.masks_owned is None:
      return {}
    _, segmenter = pseudo_masks.parse_option(self.config["data"]["masks"])
    others = f"predicted by {segmenter}" if segmenter else "none"
    counts = {"published": self.masks_owned, others: self.loader.num_examples - self.masks_owned}
    return {"lung_masks": counts}


def labels_of(table: Any, info: Any) -> Labels:
  """Classes of the training images, with their positive and known counts.

  Raises:
    UserError: a label is neither 0 nor 1 nor unknown.
  """
  wrong = np.argwhere(~(np.isnan(table.labels) | np.isin(table.labels, (0, 1))))
  if len(wrong):
    row, column = wrong[0].tolist()
    raise UserError(
      f"{info.name} [{info.split}]: label {info.classes[column]!r} of {table.ids[row]!r} is "
      f"{table.labels[row, column]:g}, which is neither 0 nor 1 nor unknown; mend the source, or "
      "say what it means with config.data.options.uncertain"
    )
  return Labels(
    tuple(info.classes),
    info.exclusive,
    tuple((table.labels == 1).sum(0).tolist()),
    tuple((~np.isnan(table.labels)).sum(0).tolist()),
    info.advice,
  )


def absent_class_notes(labels: Labels) -> list[str]:
  """Remarks on classes without a positive training image."""
  if not any(labels.known):
    return []
  absent = [name for name, n in zip(labels.classes, labels.positive, strict=True) if not n]
  return [
    f"no training image has the class {name!r}: its output is not taught, and means over "
    "classes include it"
    for name in absent
  ]


def remarks(facts: Mapping[str, Any]) -> list[str]:
  """Remarks on the data to print before training, each once."""
  sets = facts["data"]
  train_notes = sets["train"]["notes"]
  notes = dict.fromkeys(train_notes)
  for name, dataset in sets.items():
    if name == "train":
      continue
    parts = [dataset, *(part for part in dataset.values() if isinstance(part, Mapping))]
    notes |= {
      f"{name}: {note}": None
      for part in parts
      for note in part.get("notes", ())
      if note not in train_notes
    }
  return list(notes)


def announce(facts: Mapping[str, Any], workdir: pathlib.Path) -> str:
  """Summary of the run, printed before it starts."""
  data, model, device = facts["data"]["train"], facts["model"], facts["device"]
  flops = model["flops_per_image"]
  cost = f", {flops / 1e9:.2f} GFLOPs an image a step" if math.isfinite(flops) else ""
  lines = [
    f"data      {data['name']} [{data['split']}], {data['n']} images, {data['storage']}",
    f"device    {device['devices']} x {device['kind']} ({device['platform']})",
    f"model     {model['name']} {model['variant']}, {model['parameters'] / 1e6:.2f} M parameters",
    f"method    {facts['method']}{cost}",
    f"steps     {facts['steps']} of {facts['batch_size']} images, {facts['epochs']:.4g} epochs",
    f"workdir   {workdir}",
  ]
  if "init" in facts:
    lines.insert(3, f"start     {facts['init']['summary']}")
  return "\n".join(lines)


def _evaluations(run: Run, writer: Writer) -> dict[str, Evaluation]:
  """Evaluators that run during training, by name."""

  def evaluation(name: str, evaluator: Any) -> Evaluation:
    def evaluate(step: int, state: State) -> float | None:
      result = run.judge(name, state)
      encoder = "random" if step == 0 else "trained"
      _record(writer, step, run.clock.epoch(step), name, encoder, result)
      # The page can be read during training.
      _write_page(writer.workdir, jax.process_index() == 0)
      score = getattr(result, "scores", {}).get(run.config["checkpoint"]["score"])
      return None if score is None or np.isnan(score) else score

    every = max(1, run.clock.steps(evaluator.every, f"config.evals.{name}.every"))
    return Evaluation(every, evaluate)

  return {name: evaluation(name, e) for name, e in run.evaluators.items() if e.every != CHOSEN}


def _evaluate_chosen(
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
    state = checkpoints.load(step, run.trainer.abstract(run.spec))
  score = run.config["checkpoint"]["score"]
  for name in waiting:
    if not _has_result(writer, name, "trained"):
      _record(writer, step, run.clock.epoch(step), name, "trained", run.judge(name, state))
  writer.facts(chosen={"step": step, "by": score, "evaluators": waiting})
  return state


def _record(writer: Writer, step: int, epoch: float, name: str, encoder: str, result: Any) -> None:
  """Writes scores (for ROC curves) and facts, then metrics, which mark the evaluation as done."""
  threshold = result.facts.get("linear", {}).get("threshold")
  extra = {} if threshold is None else {"threshold": np.asarray(threshold)}
  writer.arrays(f"scores_{name}_{encoder}", **result.arrays, **extra)
  writer.facts(evaluation={name: {encoder: result.facts}})
  writer.results(step, epoch, name, encoder, result.metrics)


def _evaluate_floors(run: Run, writer: Writer) -> None:
  """Evaluates the thumbnail baseline of every evaluator, once per run."""
  for name, evaluator in run.evaluators.items():
    if not _has_result(writer, name, "floor"):
      _record(writer, 0, 0.0, name, "floor", evaluator.floor(run.eval_data[name]))


def _has_result(writer: Writer, name: str, encoder: str) -> bool:
  """Whether a result was written before the run was stopped; process 0 decides for all."""
  exists = writer.has(name, encoder)
  if jax.process_count() > 1:
    exists = bool(multihost_utils.broadcast_one_to_all(np.bool_(exists)))
  return exists


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Trains `config` in `workdir` and writes the report; returns the exit status.

  0: finished, now or before; 128 + signal: stopped by a signal, after saving.

  Raises:
    UserError: an error that the user can fix; the workdir keeps all that was saved.
  """
  is_main = jax.process_index() == 0
  say = say if is_main else lambda line: None
  if _finished(config, workdir):
    page_path = workdir / "report.html"
    # The process may have been killed after the run, before it wrote the page.
    if is_main and not _is_newer(page_path, workdir / FACTS):
      _write_page(workdir, is_main)
    say(f"{workdir} holds a finished run of this config; its report is {page_path}")
    return 0
  run = Run(config)
  pending_start = compile_in_background(run.trainer, run.loader)
  facts = run.describe()
  say(announce(facts, workdir))
  for remark in remarks(facts):
    say(f"note: {remark}")
  with Writer(workdir, active=is_main) as writer:
    checkpoints = None
    try:
      writer.facts(
        command=command or " ".join(sys.argv),
        started=now(),
        finished=None,
        status="running",
        **environment(),
        **facts,
      )
      if is_main:
        learnt_from.remember(
          run.loader,
          run.source,
          workdir,
          (config.get("init") or {}).get("path", ""),
          config["data"]["cache_dir"] or None,
        )
      checkpoints = Checkpoints(
        workdir / "checkpoints", keep=config["checkpoint"]["keep"], config=config
      )
      writer.arrays("views", **saliency_artifacts.views(run))
      _evaluate_floors(run, writer)
      health = config["health"]
      outcome = train(
        run.trainer,
        run.loader,
        run.clock,
        checkpoints=checkpoints,
        writer=writer,
        evaluations=_evaluations(run, writer),
        log_every=run.log_every,
        save_every=run.save_every,
        begun=pending_start,
        progress=run.progress,
        say=say,
        watch=DivergenceMonitor(
          run.method.check_collapse,
          health["patience"],
          run.clock.steps(health["grace"], "config.health.grace"),
        ),
      )
      state = _evaluate_chosen(run, writer, checkpoints, outcome)
      if not outcome.stopped:
        feature_artifacts.write(run, state, writer)
        for line in saliency_artifacts.write(run, state, writer):
          say(line)
      status = f"stopped: {signal.Signals(outcome.stopped).name}" if outcome.stopped else "finished"
      writer.facts(
        status=status, finished=now(), timing=outcome.timing, notes=outcome.remarks, memory=peak()
      )
    except BaseException as error:
      peers.report_error(error)  # before this process waits for any of them
      if isinstance(error, OSError) and error.errno in FULL:
        error = UserError(
          f"no space left on device ({error.filename or workdir}); free some, then "
          "run the same command again"
        )
      with contextlib.suppress(UserError, OSError):  # a full disk has no room for the page either
        writer.facts(status=_error_status(error), finished=now())
        _write_page(workdir, is_main)
      raise error
    finally:
      if checkpoints is not None:
        checkpoints.close()
  if outcome.stopped:
    say(
      f"stopped by {signal.Signals(outcome.stopped).name} after saving step {outcome.step}; "
      "the same command goes on from there"
    )
  report = _write_page(workdir, is_main)
  if is_main:
    say(terminal.results_table(workdir))
    for remark in terminal.remarks(workdir):
      say(f"note: {remark}")
    say(f"report    {report}")
  return 128 + outcome.stopped if outcome.stopped else 0


def _finished(config: Mapping[str, Any], workdir: pathlib.Path) -> bool:
  """Whether the workdir holds a finished run of this config; process 0 decides for all."""
  is_finished = False
  if jax.process_index() == 0:
    facts_path = workdir / "run.json"
    try:
      is_finished = (
        workdirs.settle_config(workdir, config)
        and facts_path.exists()
        and files.read_mapping(facts_path).get("status") == "finished"
      )
    except (OSError, files.Damaged) as error:
      raise UserError(
        f"{facts_path} cannot be read ({error}); remove it, and the same command goes on "
        "from the last checkpoint"
      ) from error
  if jax.process_count() > 1:
    is_finished = bool(multihost_utils.broadcast_one_to_all(np.bool_(is_finished)))
  return is_finished


def _error_status(error: BaseException) -> str:
  """Status text of a run that an error ended."""
  if isinstance(error, KeyboardInterrupt):
    return "stopped: SIGINT"
  if isinstance(error, UserError):
    return f"{'diverged' if isinstance(error, Diverged) else 'failed'}: {error}"
  return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _is_newer(file: pathlib.Path, other: pathlib.Path) -> bool:
  return file.exists() and file.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _write_page(workdir: pathlib.Path, is_main: bool) -> pathlib.Path | None:
  return run_page.write(workdir) if is_main else None
