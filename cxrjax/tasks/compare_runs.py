"""Compares finished runs on the same test images: metrics, differences and paired tests."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.evals import classification_metrics
from cxrjax.metrics import patient_bootstrap
from cxrjax.metrics.intervals import Difference
from cxrjax.report import run_files as runs
from cxrjax.report import terminal
from cxrjax.report.html import format
from cxrjax.report.naming import method_name, model_name, total_seconds
from cxrjax.report.pages.run_page import save_table
from cxrjax.report.run_files import TRAINED, Run, environment, lookup
from cxrjax.report.run_writer import FACTS, Writer, now
from cxrjax.studies import results_table
from cxrjax.studies import runs_page as page
from cxrjax.studies.launcher import parse_runs
from cxrjax.studies.transfer_results import interval
from cxrjax.training.workdir import differences, settle_config

PLATFORM = "cpu"  # no network is run
MASKS = ("dice", "iou")  # segmentation metrics with one value per image


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Compares the runs of `config.runs`; writes `report.html`, `table.csv` and `run.json`.

  Raises:
    UserError: fewer than two runs, an unfinished run, or different test images.
  """
  runs_by_name = read(config["runs"])
  evaluators = [name for name in config["evals"].split(",") if name]
  comparison = collect(runs_by_name, evaluators)
  # Other runs may have been compared in this workdir: that comparison is discarded.
  settle_config(workdir, {k: v for k, v in config.items() if k not in ("runs", "evals")})
  (workdir / FACTS).unlink(missing_ok=True)  # facts are merged
  with Writer(workdir) as writer:
    writer.facts(
      command=command or " ".join(sys.argv),
      started=now(),
      finished=now(),
      status="finished",
      compare_runs=comparison,
      **environment(),
    )
    for name in comparison["sets"]:
      writer.arrays(f"scores_{name}", **_roc_arrays(name, runs_by_name))
  save_table(workdir / "table.csv", results_table.of_finished_runs(comparison))
  report = page.write(workdir)
  for note in comparison["notes"]:
    say(f"note: {note}")
  say(page.table(comparison))
  say(f"report    {report}")
  return 0


def read(text: str) -> dict[str, Run]:
  """Reads runs by name from `A,B` or `NAME=A,NAME=B`.

  Raises:
    UserError: fewer than two runs, a repeated name, or a folder without a finished run.
  """
  runs_by_name: dict[str, Run] = {}
  for name, folder in parse_runs(text, 2).items():
    if not (folder / FACTS).is_file():
      raise UserError(
        f"config.runs={str(folder)!r} holds no run ({FACTS} is missing); give the "
        "workdir of a finished one"
      )
    runs_by_name[name] = runs.read(folder)
    status = runs_by_name[name].fact("status")
    if status != "finished":
      raise UserError(
        f"config.runs={str(folder)!r} has not finished (its status: {status!r}); run "
        "its command again to its end"
      )
  return runs_by_name


@dataclasses.dataclass(frozen=True, eq=False)
class TestScores:
  """Test scores of one run by one classifier of an evaluator, in the order of the image names.

  Attributes:
    arrays: as saved by the evaluator, rows sorted.
    key: of the scores in `arrays`: "probability", "linear", "knn20"; "dice_all" for masks.
  """

  arrays: dict[str, np.ndarray]
  key: str

  @property
  def exclusive(self) -> bool:
    return bool(self.arrays["exclusive"])

  @property
  def thresholds(self) -> np.ndarray | None:
    """Decision threshold of every class, for `judge`; None for kNN."""
    thresholds, n_classes = self.arrays.get("threshold"), self.arrays["labels"].shape[1]
    if thresholds is None or self.key.startswith(("knn", "whitened")):
      return None
    thresholds = np.asarray(thresholds, np.float64).reshape(-1)
    # A single threshold is the last class's.
    return np.concatenate([np.full(n_classes - len(thresholds), 0.5), thresholds])


def collect(named: Mapping[str, Run], wanted: Sequence[str] = ()) -> dict[str, Any]:
  """Collects all facts of a comparison.

  Args:
    named: the runs by name, the reference first.
    wanted: evaluators; empty for all that judged every run.

  Raises:
    UserError: no evaluator, or not each of `wanted`, judged all runs; different test images.
  """
  reference, *others = named
  notes: list[str] = []
  names = _select_evaluators(named, wanted, notes)
  sets = {name: _evaluator_facts(name, named, reference, others) for name in names}
  return {
    "reference": reference,
    "runs": [_describe_run(n, r) for n, r in named.items()],
    "sets": sets,
    "changed": {n: differences(named[reference].config, named[n].config) for n in others},
    "notes": notes,
  }


def _select_evaluators(
  named: Mapping[str, Run], wanted: Sequence[str], notes: list[str]
) -> list[str]:
  """Evaluators that judged all runs, except those that choose a checkpoint."""
  judges = {
    n: [e for e in r.evaluators() if e in wanted or not _chooses_checkpoint(r, e)]
    for n, r in named.items()
  }
  candidates = list(dict.fromkeys(e for names in judges.values() for e in names))
  for e in wanted:
    if e not in candidates:
      raise UserError(
        f"config.evals={e!r} judged none of the runs; they have {', '.join(candidates)}"
      )
  common = [e for e in candidates if all(e in names for names in judges.values())]
  for e in candidates:
    missing = [n for n, names in judges.items() if e not in names]
    if missing and e in wanted:
      raise UserError(f"config.evals={e!r} did not judge {', '.join(missing)}")
    if missing:
      notes.append(f"{e} did not judge {', '.join(missing)}, and is left out")
  common = [e for e in common if not wanted or e in wanted]
  if not common:
    listing = "; ".join(f"{n}: {', '.join(names) or 'none'}" for n, names in judges.items())
    raise UserError(
      f"config.runs: no evaluator judged all of them ({listing}); compare runs with the "
      "same config.evals"
    )
  return common


def _chooses_checkpoint(run: Run, evaluator: str) -> bool:
  """Whether it judged validation images: those chose the checkpoint, so its scores are biased."""
  return lookup(run.config, "evals", evaluator, "part") == "val" or (
    bool(run.fact("chosen", "evaluators")) and evaluator not in run.fact("chosen", "evaluators")
  )


def _evaluator_facts(
  name: str, named: Mapping[str, Run], reference: str, others: Sequence[str]
) -> dict[str, Any]:
  """Facts of one evaluator: metrics of every run, and differences from the reference."""
  first = named[reference]
  data_facts = first.fact("data", name) or {}
  scored = {n: _load_scores(name, n, r) for n, r in named.items()}
  for n in others:
    _check_same_images(name, (reference, first, scored[reference]), (n, named[n], scored[n]))
  latest = {n: r.only(name).latest().get(TRAINED, {}) for n, r in named.items()}
  metrics = [
    m for m in terminal.sort_metrics(set(latest[reference])) if all(m in latest[n] for n in others)
  ]
  facts: dict[str, Any] = {}
  for metric in metrics:
    all_gains = {n: _difference(metric, scored[n], scored[reference]) for n in others}
    gains = {n: g for n, g in all_gains.items() if g is not None}
    adjusted = holm([g.p for g in gains.values()])
    facts[metric] = {
      "runs": {n: interval(latest[n][metric]) for n in named},
      "gains": {
        n: {**interval(g), "p": g.p, "p_holm": p, "method": g.method}
        for (n, g), p in zip(gains.items(), adjusted, strict=True)
      },
    }
  return {"test": data_facts.get("test") or data_facts, "metrics": facts}


def _roc_arrays(evaluator: str, named: Mapping[str, Run]) -> dict[str, np.ndarray]:
  """Scores of all runs for the page's ROC curves, f[runs m k]; of the linear one among probes.

  Empty for masks.
  """
  scored = [_load_scores(evaluator, n, r) for n, r in named.items()]
  head = next((h for h in ("", "linear") if all(h in s for s in scored)), None)
  if head is None or "labels" not in scored[0][head].arrays:
    return {}
  selected = [s[head] for s in scored]
  return {
    "scores": np.stack([s.arrays[s.key] for s in selected]),
    **{k: selected[0].arrays[k] for k in ("labels", "classes", "exclusive")},
  }


def _load_scores(evaluator: str, name: str, run: Run) -> dict[str, TestScores]:
  """Scores of a run by prefix of the metric names, rows in the order of the image names."""
  arrays = run.arrays(f"scores_{evaluator}_{TRAINED}")
  if "dice_all" in arrays:
    keys, suffix, n = {"": "dice_all"}, "_all", len(arrays["dice_all"])
  elif "labels" in arrays:
    suffix, n, shape = "", len(arrays["labels"]), arrays["labels"].shape
    keys = {
      "" if key == "probability" else key: key
      for key, value in arrays.items()
      if key != "labels" and value.shape == shape and value.dtype.kind == "f"
    }
  else:
    keys = {}
  if not keys or f"id{suffix}" not in arrays:
    raise UserError(
      f"config.runs: {name} ({run.workdir}) has no predictions of single images by {evaluator!r}, "
      "as runs before this version; run it again, or leave the evaluator out with config.evals"
    )
  order = np.argsort(arrays[f"id{suffix}"], kind="stable")
  arrays = {
    k: v[order] if v.ndim and len(v) == n and k not in ("classes", "threshold") else v
    for k, v in arrays.items()
  }
  return {prefix: TestScores(arrays, key) for prefix, key in keys.items()}


def _check_same_images(evaluator: str, a: tuple[str, Run, Any], b: tuple[str, Run, Any]) -> None:
  """Raises a UserError unless two runs were judged by the same images and labels."""
  (name_a, run_a, scores_a), (name_b, run_b, scores_b) = a, b
  x, y = (next(iter(s.values())).arrays for s in (scores_a, scores_b))
  ids = "id_all" if "id_all" in x else "id"
  prefix = f"config.runs: {name_a} and {name_b} were judged by other images ({evaluator}: "
  way_out = "); compare runs with the same test split"
  if ids not in y or x[ids].shape != y[ids].shape or (x[ids] != y[ids]).any():
    n_common = len(set(x[ids].tolist()) & set(y.get(ids, np.zeros(0)).tolist()))
    raise UserError(
      f"{prefix}{len(x[ids])} and {len(y.get(ids, ()))}, {n_common} of them the same{way_out}"
    )
  fingerprints = [
    lookup(r.fact("data", evaluator), "test", "fingerprint")
    or r.fact("data", evaluator, "fingerprint")
    for r in (run_a, run_b)
  ]
  if fingerprints[0] != fingerprints[1]:
    raise UserError(f"{prefix}their names are the same, their content is not{way_out}")
  if "labels" in x:
    is_same = (
      x["labels"].shape == y["labels"].shape
      and (x["classes"].tolist() == y["classes"].tolist())
      and np.array_equal(x["labels"], y["labels"], equal_nan=True)
    )
    if not is_same:
      raise UserError(f"{prefix}their labels or classes are not the same{way_out}")


def _difference(
  metric: str, ours: Mapping[str, TestScores], theirs: Mapping[str, TestScores]
) -> Difference | None:
  """Difference from the reference; None for metrics that single images do not determine."""
  head, measure, class_name = format.split(metric)
  if head not in ours or head not in theirs:
    return None
  a, b = ours[head], theirs[head]
  if a.key == "dice_all":
    if measure not in MASKS:
      return None
    names = [str(p) for p in a.arrays["patient_all"]]
    x, y = (
      patient_bootstrap.mean(s.arrays[f"{measure}_all"][:, None].astype(np.float64), names)
      for s in (a, b)
    )
    return patient_bootstrap.difference(x, y)
  p, q, labels, patients = a.arrays[a.key], b.arrays[b.key], a.arrays["labels"], a.arrays["patient"]
  if class_name:
    classes = a.arrays["classes"].tolist()
    if class_name not in classes:  # not computed from the saved scores, such as `ece/uncalibrated`
      return None
    c = classes.index(class_name)
    cut = _threshold_of(a.thresholds, c), _threshold_of(b.thresholds, c)
    # One class against the others, by decisions between all classes.
    if measure not in classification_metrics.SCORES and a.exclusive:
      half = np.full(len(classes), 0.5)  # as in `judge` without thresholds
      p, q = (
        classification_metrics.called(
          s.arrays[s.key], True, half if s.thresholds is None else s.thresholds
        ).astype(np.float64)
        for s in (a, b)
      )
      cut = half[:1], half[:1]
    return classification_metrics.difference(
      p[:, [c]], q[:, [c]], labels[:, [c]], patients, False, measure, cut
    )
  return classification_metrics.difference(
    p, q, labels, patients, a.exclusive, measure, (a.thresholds, b.thresholds)
  )


def _threshold_of(thresholds: np.ndarray | None, c: int) -> np.ndarray | None:
  return None if thresholds is None else thresholds[[c]]


def holm(values: Sequence[float]) -> list[float]:
  """P values after Holm's correction for multiple comparisons; NaN stays and does not count.

  References:
    Holm 1979, Scand. J. Stat. 6:65.
  """
  order = sorted((i for i, p in enumerate(values) if math.isfinite(p)), key=values.__getitem__)
  corrected, largest = [math.nan] * len(values), 0.0
  for rank, i in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - rank) * values[i]))
    corrected[i] = largest
  return corrected


def _describe_run(name: str, run: Run) -> dict[str, Any]:
  """Facts about a run."""
  return {
    "name": name,
    "workdir": str(run.workdir),
    "method": method_name(run),
    "model": model_name(run),
    "start": run.fact("init"),
    "n": run.fact("data", "train", "n"),
    "train": run.fact("data", "train", "name"),
    "split": run.fact("data", "train", "split"),
    "steps": run.fact("steps"),
    "epochs": run.fact("epochs"),
    "chosen": run.fact("chosen"),
    "seed": run.config.get("seed"),
    "total_s": total_seconds(run),
    "command": run.fact("command"),
  }
